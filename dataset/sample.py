"""The target of one picture: the contract between the data sets, the augmentation and the loader."""
import torch

PER_BOX = ("boxes", "labels", "difficult", "ignore", "weights", "pseudo", "zone_ignore", "sought")


def per_box(target):
    """The names of the target's fields that have a row for each object: PER_BOX, and masks where there are any."""
    return (*PER_BOX, "masks") if "masks" in target else PER_BOX


def make_target(boxes, labels, difficult, image_id, orig_size, ignore=None, weights=None, pseudo=None, zone_ignore=None):
    """The target of a picture with M objects; M may be 0. Every list may be a tensor.

    boxes       float32 [M, 4]  xyxy, continuous edges in the picture's own upright pixels, 0 <= x1 < x2 <= w
    labels      int64 [M]       0..C-1
    difficult   bool [M]        neither hit nor miss when evaluated: VOC's difficult, COCO's crowds
    ignore      bool [M]        a region that training leaves out, neither object nor background: COCO's crowds; None: none is
    weights     float32 [M]     in the losses; None: 1, as every human label has
    pseudo      bool [M]        labelled by a network: trained on, never ground truth; None: none is
    zone_ignore bool [M]        no object: its class, and no other, is left open where its box would be learnt; None: none is
    sought      bool [M]        a window was laid where it shows this object: it is in view because it is labelled; False from a data set
    image_id    str
    orig_size   (h, w)          of the upright picture
    and, added by a data set that was opened with them:
    masks       uint8 [M, H, W] 1 on the object, in the picture's pixels; all 0 where nobody drew one
    """
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)

    def flags(values):
        return torch.zeros(len(boxes), dtype=torch.bool) if values is None else torch.as_tensor(values, dtype=torch.bool).reshape(-1)

    return {
        "boxes": boxes,
        "labels": torch.as_tensor(labels, dtype=torch.int64).reshape(-1),
        "difficult": flags(difficult),
        "ignore": flags(ignore),
        "weights": torch.ones(len(boxes)) if weights is None else torch.as_tensor(weights, dtype=torch.float32).reshape(-1),
        "pseudo": flags(pseudo),
        "zone_ignore": flags(zone_ignore),
        "sought": flags(None),
        "image_id": image_id,
        "orig_size": tuple(int(side) for side in orig_size),
    }


def keep_objects(target, keep):
    """The target with only the objects of `keep` (bool [M] or indices), every field per box cut alike."""
    return {**target, **{field: target[field][keep] for field in per_box(target)}}


def of_people(target):
    """bool [M]: the labels that evaluation may take for true, which those of a network are not."""
    return ~(target["pseudo"] | target["zone_ignore"])


def check_target(target, image_size, num_classes, where):
    """Raise ValueError, naming `where`, the object (counted from 1) and the rule, unless the target keeps the contract.

    image_size: (h, w) of the pixels the boxes are in, which after augmentation is not orig_size.
    """
    dtypes = {"boxes": torch.float32, "labels": torch.int64, "weights": torch.float32} | dict.fromkeys(
        ("difficult", "ignore", "pseudo", "zone_ignore", "sought"), torch.bool)
    missing = [key for key in (*PER_BOX, "image_id", "orig_size") if key not in target]
    if missing:
        raise ValueError(f"{where}: the target has no {', '.join(missing)}")
    count = len(target["boxes"])
    for field, dtype in dtypes.items():
        value, shape = target[field], (count, 4) if field == "boxes" else (count,)
        if value.dtype != dtype or tuple(value.shape) != shape:
            raise ValueError(f"{where}: {field} must be {dtype} of shape {list(shape)}, "
                             f"not {value.dtype} of shape {list(value.shape)}")
    if "masks" in target:
        masks, most = target["masks"], int(target["masks"].max()) if target["masks"].numel() else 0
        if masks.dtype != torch.uint8 or tuple(masks.shape) != (count, *image_size) or most > 1:
            raise ValueError(f"{where}: masks must be 0 or 1 in torch.uint8 of shape {[count, *image_size]}, "
                             f"not up to {most} in {masks.dtype} of shape {list(masks.shape)}")
    (x1, y1, x2, y2), labels = target["boxes"].unbind(1), target["labels"]
    height, width = image_size
    rules = (
        ((x1 < x2) & (y1 < y2), "must have x1 < x2 and y1 < y2"),  # false for NaN too
        ((x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height), f"must lie in the {width}x{height} picture"),
        ((labels >= 0) & (labels < num_classes), f"must have a label in 0..{num_classes - 1}"),
        (target["weights"].isfinite() & (target["weights"] >= 0), "must have a finite weight of 0 or more"),
    )
    for holds, rule in rules:
        if not holds.all():
            first = int((~holds).nonzero()[0])
            raise ValueError(f"{where}: object {first + 1} (box {target['boxes'][first].tolist()}, label "
                             f"{int(labels[first])}, weight {float(target['weights'][first]):g}) {rule}")

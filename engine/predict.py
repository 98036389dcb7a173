"""Network inputs in, detections in the original pictures' pixels out."""

import torch
from torchvision.ops import batched_nms
from tqdm import tqdm

from util.boxes import box_area, box_intersection, clip_boxes

CUT_MARGIN = 0.02  # a box this close to a tile's border, in shares of the tile's side, counts as cut by it
CONTAINED = 0.7  # a cut box with this share of its area inside a larger one is a fragment of it
RIVAL_SCORE = 0.5  # unless the larger one scores less than this share of the fragment's score


def predict(network, loader, device, progress=True, nms_iou_threshold=0.6):
    """Detections of every picture the loader shows, in the picture's own pixels. In float32, so that they are the same wherever they are asked for.

    network    called as network(images, image_sizes); already on `device`; its train and eval modes are left as found
    loader     iterable of (batch, infos); a picture may come in several windows, in any order
    returns    {image_id: {"boxes" float32 [K,4], "scores" float32 [K], "labels" int64 [K]}} on the CPU, best first,
               boxes clipped to the picture; every id of the loader is there, with K = 0 where nothing was found. "masks"
               float32 [K,S,S], which util.masks.paste_masks puts into the picture, where the network gives them

    The windows of one picture are merged by `merge_windows`, which alone uses nms_iou_threshold. A window gives as many boxes as a picture would, 100 at most by default, so that a
    picture of several may have more.
    """
    device = torch.device(device)
    modes = {module: module.training for module in network.modules()}
    found = {}
    network.eval()
    try:
        for batch, infos in tqdm(loader, desc="predict", unit="batch", disable=not progress, dynamic_ncols=True):
            outputs = detect_batch(network, batch, device)
            for output, info, image_size in zip(outputs, infos, batch["image_sizes"].cpu(), strict=True):
                found.setdefault(info["image_id"], []).append((map_to_picture(output, info, image_size), info))
    finally:
        for module, mode in modes.items():
            module.training = mode
    return {
        image_id: parts[0][0] if len(parts) == 1 else merge_windows(parts, nms_iou_threshold)
        for image_id, parts in found.items()
    }


def detect_batch(network, batch, device, amp_dtype=None):
    """The network's own output for one batch. The input becomes channels_last, and convolutions follow it; the weights
    keep their layout, so that training goes on bit for bit as if there had been no prediction. amp_dtype torch.bfloat16, torch.float16 or None for float32.
    """
    with torch.inference_mode(), torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
        images = batch["images"].to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        return network(images, batch["image_sizes"].to(device, non_blocking=True))


def map_to_picture(output, info, image_size):
    """Detections of one network input -> the same in the original picture's pixels, clipped to it, on the CPU.

    image_size (h, w) is the input before padding; it shows info["window"] (x1, y1, x2, y2) of a picture of
    info["orig_size"] (h, w): boxes * (window size / image_size) + window corner. Masks lie in their boxes, and stay as they are.
    """
    x1, y1, x2, y2 = info["window"]
    input_height, input_width = (float(side) for side in image_size)
    found = {name: (values.float() if values.is_floating_point() else values).cpu().clone() for name, values in output.items()}
    boxes = found["boxes"]
    boxes = boxes * boxes.new_tensor([(x2 - x1) / input_width, (y2 - y1) / input_height]).repeat(2)
    return {**found, "boxes": clip_boxes(boxes + boxes.new_tensor([x1, y1, x1, y1]), info["orig_size"])}


def merge_windows(parts, nms_iou_threshold=0.6):
    """One picture's detections out of several overlapping windows: list of (detections, info) -> detections.

    First the fragments go: a box that its tile's border cuts, mostly contained in a larger box of its class from
    another tile. NMS cannot see these, because a fragment's IoU with the whole is small. Then class-aware NMS. A window's border
    that is the picture's own border cuts nothing. A mask goes where its box goes.
    """
    found = {name: torch.cat([part[name] for part, _ in parts]) for name in parts[0][0]}
    boxes, scores, labels = (found[name] for name in ("boxes", "scores", "labels"))
    window_of = torch.cat([torch.full_like(part["labels"], index) for index, (part, _) in enumerate(parts)])
    windows = boxes.new_tensor([info["window"] for _, info in parts])
    height, width = parts[0][1]["orig_size"]

    inner_border = windows != boxes.new_tensor([0, 0, width, height])
    margin = CUT_MARGIN * (windows[:, 2:] - windows[:, :2]).repeat(1, 2)
    near_border = (boxes - windows[window_of]).abs() <= margin[window_of]
    cut = (near_border & inner_border[window_of]).any(1).nonzero().flatten()

    area = box_area(boxes)
    whole = torch.ones_like(labels, dtype=torch.bool)
    for rows in cut.split(256):         # all pairs of a huge picture's boxes would be gigabytes
        fragment_of = (
            (box_intersection(boxes[rows], boxes) >= CONTAINED * area[rows, None])
            & (area > area[rows, None])
            & (scores >= RIVAL_SCORE * scores[rows, None])
            & (labels == labels[rows, None])
            & (window_of != window_of[rows, None])
        )
        whole[rows] = ~fragment_of.any(1)
    found = {name: values[whole] for name, values in found.items()}
    keep = batched_nms(found["boxes"].double(), found["scores"].double(), found["labels"], nms_iou_threshold)   # it moves classes apart, further than float32 is fine
    return {name: values[keep] for name, values in found.items()}

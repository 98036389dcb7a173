"""The three losses of FCOS, as pairs (sum, count): the engine adds the pairs of all replicas and ranks and divides once.

Everything is float32 and starts from logits, so that no input up to 1e30 gives a non-finite loss. Nothing here indexes with a
mask: positives are weighted in, which keeps the shapes fixed and the device busy.
"""
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from model.box_loss import BOX_LOSSES, paired_iou
from model.locations import decode_ltrb, encode_ltrb
from model.targets import BACKGROUND


def centerness(ltrb: Tensor) -> Tensor:
    """sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)) (paper, equation 3): 1 at the centre, 0 on an edge.

    ltrb [..., 4] with no negative distance; a box without area gives 0.
    """
    x, y = ltrb[..., 0::2], ltrb[..., 1::2]
    ratio = (x.amin(-1) * y.amin(-1)) / (x.amax(-1) * y.amax(-1)).clamp(min=1e-12)
    return ratio.clamp(min=0).sqrt()


BOX_WEIGHTS = {"centerness": centerness, "none": lambda target_ltrb: 1.0}
QUALITY_TARGETS = {"centerness": lambda target_ltrb, predicted, gt: centerness(target_ltrb),
                   "iou": lambda target_ltrb, predicted, gt: paired_iou(predicted.detach(), gt)}


class FCOSLoss:
    """(outputs, locations, strides, matched_gt, targets, silent) -> {"cls", "reg", "quality"}: each [1, 2] float32, (sum, count).

    outputs     cls_logits [B, N, C], ltrb [B, N, 4] in strides (never negative), quality_logits [B, N]
    locations   [N, 2] input pixels;  strides [N]
    matched_gt  int64 [B, N]  row of the gt box, -1 background, -2 ignored
    targets     boxes [B, M, 4] input pixels, labels [B, M], weights [B, M] (1 for a human label)
    silent      bool [B, N, C]  logits that are left out where the location is not a positive; None: none are

    cls      focal loss of every location that is not ignored, a positive's by its weight, background by 1 / weight of the positives
    reg      box loss of the positives, weighted with their centerness if the config says so / the sum of these weights
    quality  binary cross-entropy of centerness or IoU on the positives / weight of the positives; absent if the head has none
    Without a positive every sum but that of cls is 0, and so are the counts.
    """

    def __init__(self, config):
        self.box_loss, self.box_weight = BOX_LOSSES[config.box_loss], BOX_WEIGHTS[config.box_weighting]
        self.quality_targets = {} if config.quality == "none" else {"quality": QUALITY_TARGETS[config.quality]}
        self.alpha, self.gamma = config.focal_alpha, config.focal_gamma

    def __call__(self, outputs: dict, locations: Tensor, strides: Tensor, matched_gt: Tensor, targets: dict,
                 silent: Tensor | None = None) -> dict:
        logits = outputs["cls_logits"].float()
        positive = matched_gt >= 0
        row = matched_gt.clamp(min=0)
        weight = torch.where(positive, targets["weights"].gather(1, row), 0.0)            # [B, N]
        num_pos = weight.sum()

        labels = targets["labels"].gather(1, row)
        classes = torch.arange(logits.shape[-1], device=labels.device)
        one_hot = ((labels[..., None] == classes) & positive[..., None]).to(logits.dtype)  # [B, N, C]
        cls_weight = torch.where(positive, weight, (matched_gt == BACKGROUND).to(weight.dtype))
        focal = sigmoid_focal_loss(logits, one_hot, self.alpha, self.gamma)
        if silent is not None:
            focal = torch.where(silent & ~positive[..., None], 0.0, focal)
        cls_sum = (focal.sum(-1) * cls_weight).sum()

        # In units of the stride; a location that is not positive gets a box of its own, so that its zero is a clean zero.
        gt_boxes = targets["boxes"].gather(1, row[..., None].expand(-1, -1, 4))
        target = torch.where(positive[..., None], encode_ltrb(locations, gt_boxes) / strides[:, None], 1.0)
        origin = torch.zeros_like(target[..., :2])
        gt, predicted = decode_ltrb(origin, target), decode_ltrb(origin, outputs["ltrb"].float())
        reg_weight = weight * self.box_weight(target)
        reg_sum = (self.box_loss(predicted, gt) * reg_weight).sum()

        pairs = {"cls": (cls_sum, num_pos), "reg": (reg_sum, reg_weight.sum())}
        for name, quality in self.quality_targets.items():
            wanted = quality(target, predicted, gt)
            entropy = F.binary_cross_entropy_with_logits(outputs["quality_logits"].float(), wanted, reduction="none")
            pairs[name] = ((entropy * weight).sum(), num_pos)
        return {name: torch.stack(pair)[None] for name, pair in pairs.items()}

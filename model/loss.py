"""The three losses of FCOS, as pairs (sum, count): the engine adds the pairs of all replicas and ranks and divides once.

Everything is float32 and starts from logits, so that no finite input gives a non-finite loss. Nothing here indexes with a
mask: positives are weighted in, which keeps the shapes fixed and the device busy.
"""
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from model.locations import decode_ltrb, encode_ltrb


def centerness(ltrb: Tensor) -> Tensor:
    """sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)) (paper, equation 3): 1 at the centre, 0 on an edge.

    ltrb [..., 4] with no negative distance; a box without area gives 0.
    """
    x, y = ltrb[..., 0::2], ltrb[..., 1::2]
    ratio = (x.amin(-1) * y.amin(-1)) / (x.amax(-1) * y.amax(-1)).clamp(min=1e-12)
    return ratio.clamp(min=0).sqrt()


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of the boxes [..., 4] xyxy row by row; 0 where neither has an area."""
    overlap, union = _overlap_and_union(a, b)
    return overlap / union.clamp(min=1e-7)


def iou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """-log IoU of paired boxes [..., 4] xyxy (UnitBox; the paper's first choice), finite for boxes that do not meet."""
    return -paired_iou(predicted, target).clamp(min=1e-6).log()


def giou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - GIoU of paired boxes [..., 4] xyxy (1902.09630). As torchvision's, which indexes with a mask and so makes a GPU wait."""
    overlap, union = _overlap_and_union(predicted, target)
    hull = (torch.maximum(predicted[..., 2:], target[..., 2:]) - torch.minimum(predicted[..., :2], target[..., :2])).prod(-1)
    return 1 - overlap / union.clamp(min=1e-7) + (hull - union) / hull.clamp(min=1e-7)


def _overlap_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    return overlap, (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - overlap


BOX_LOSSES = {"giou": giou_loss, "iou": iou_loss}
QUALITY_TARGETS = {"centerness": lambda target_ltrb, predicted, gt: centerness(target_ltrb),
                   "iou": lambda target_ltrb, predicted, gt: paired_iou(predicted.detach(), gt)}


class FCOSLoss:
    """(outputs, locations, strides, matched_gt, targets) -> {"cls", "reg", "quality"}: each [1, 2] float32, (sum, count).

    outputs     cls_logits [B, N, C], ltrb [B, N, 4] in strides (never negative), quality_logits [B, N]
    locations   [N, 2] input pixels;  strides [N]
    matched_gt  int64 [B, N]  row of the gt box, -1 background, -2 ignored
    targets     boxes [B, M, 4] input pixels, labels [B, M], weights [B, M] (1 for a human label)

    cls      focal loss of every location that is not ignored / weight of the positives
    reg      box loss of the positives, weighted with their centerness / the sum of these weights
    quality  binary cross-entropy of centerness or IoU on the positives / weight of the positives
    Without a positive every sum but that of cls is 0, and so are the counts.
    """

    def __init__(self, config):
        self.box_loss, self.quality_target = BOX_LOSSES[config.box_loss], QUALITY_TARGETS[config.quality]
        self.alpha, self.gamma = config.focal_alpha, config.focal_gamma

    def __call__(self, outputs: dict, locations: Tensor, strides: Tensor, matched_gt: Tensor, targets: dict) -> dict:
        logits, quality_logits = outputs["cls_logits"].float(), outputs["quality_logits"].float()
        positive = matched_gt >= 0
        row = matched_gt.clamp(min=0)
        weight = torch.where(positive, targets["weights"].gather(1, row), 0.0)            # [B, N]
        num_pos = weight.sum()

        labels = targets["labels"].gather(1, row)
        classes = torch.arange(logits.shape[-1], device=labels.device)
        one_hot = ((labels[..., None] == classes) & positive[..., None]).to(logits.dtype)  # [B, N, C]
        cls_weight = torch.where(positive, weight, (matched_gt == -1).to(weight.dtype))
        focal = sigmoid_focal_loss(logits, one_hot, self.alpha, self.gamma)
        cls_sum = (focal.sum(-1) * cls_weight).sum()

        # In units of the stride; a location that is not positive gets a box of its own, so that its zero is a clean zero.
        gt_boxes = targets["boxes"].gather(1, row[..., None].expand(-1, -1, 4))
        target = torch.where(positive[..., None], encode_ltrb(locations, gt_boxes) / strides[:, None], 1.0)
        origin = torch.zeros_like(target[..., :2])
        gt, predicted = decode_ltrb(origin, target), decode_ltrb(origin, outputs["ltrb"].float())
        reg_weight = weight * centerness(target)
        reg_sum = (self.box_loss(predicted, gt) * reg_weight).sum()

        quality = self.quality_target(target, predicted, gt)
        quality_sum = (F.binary_cross_entropy_with_logits(quality_logits, quality, reduction="none") * weight).sum()

        pairs = {"cls": (cls_sum, num_pos), "reg": (reg_sum, reg_weight.sum()), "quality": (quality_sum, num_pos)}
        return {name: torch.stack(pair)[None] for name, pair in pairs.items()}

"""How far a predicted box is from its object: IoU and the losses made of it, finite for boxes without area and for those apart."""
import torch
from torch import Tensor


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of the boxes [..., 4] xyxy row by row; 0 where neither has an area."""
    overlap, union = _overlap_and_union(a, b)
    return overlap / union.clamp(min=1e-7)


def iou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """-log IoU of paired boxes float32 [..., 4] xyxy (UnitBox; the paper's first choice), finite for boxes that do not meet.

    The bound, where there is no gradient, lies below the IoU of the first boxes, a pixel wide, with an object of a hundred megapixels.
    """
    return -paired_iou(predicted, target).clamp(min=1e-8).log()


def linear_iou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - IoU of paired boxes [..., 4] xyxy; boxes that do not meet give it no gradient."""
    return 1 - paired_iou(predicted, target)


def giou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - GIoU of paired boxes [..., 4] xyxy (1902.09630). As torchvision's, which indexes with a mask and so makes a GPU wait."""
    overlap, union = _overlap_and_union(predicted, target)
    hull = _hull(predicted, target).prod(-1)
    return 1 - overlap / union.clamp(min=1e-7) + (hull - union) / hull.clamp(min=1e-7)


def diou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - IoU + (distance of the centres / diagonal of the hull)^2 of paired boxes [..., 4] xyxy (1911.08287)."""
    apart = (predicted[..., :2] + predicted[..., 2:] - target[..., :2] - target[..., 2:]) / 2
    return 1 - paired_iou(predicted, target) + apart.square().sum(-1) / _hull(predicted, target).square().sum(-1).clamp(min=1e-7)


def _hull(a: Tensor, b: Tensor) -> Tensor:
    """Width and height [..., 2] of the smallest box around both."""
    return torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])


def _overlap_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    return overlap, (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - overlap


BOX_LOSSES = {"giou": giou_loss, "iou": iou_loss, "linear_iou": linear_iou_loss, "diou": diou_loss}

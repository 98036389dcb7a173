"""Box arithmetic. Boxes are xyxy continuous edges, so width is x2 - x1 and nothing is ever added to it."""

import torch
from torch import Tensor


def box_area(boxes: Tensor) -> Tensor:
    """[..., 4] xyxy -> [...]; a box turned inside out has no area."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def box_intersection(boxes: Tensor, others: Tensor) -> Tensor:
    """The area that every pair has in common: [..., N, 4] and [..., M, 4] xyxy -> [..., N, M]."""
    corner = torch.maximum(boxes[..., :, None, :2], others[..., None, :, :2])
    opposite = torch.minimum(boxes[..., :, None, 2:], others[..., None, :, 2:])
    return box_area(torch.cat([corner, opposite], dim=-1))


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of every pair.

    boxes    [..., N, 4]  xyxy
    others   [..., M, 4]  xyxy
    returns  [..., N, M]  in 0..1; 0 where both have no area; N and M may be 0
    """
    intersection = box_intersection(boxes, others)
    union = box_area(boxes)[..., :, None] + box_area(others)[..., None, :] - intersection
    return torch.where(union > 0, intersection / union, 0)


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """[..., 4] corners -> left top corner and sides, as COCO writes boxes. Law: xywh_to_xyxy undoes it."""
    return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], dim=-1)


def xywh_to_xyxy(boxes_xywh: Tensor) -> Tensor:
    """[..., 4] left top corner and sides -> corners."""
    return torch.cat([boxes_xywh[..., :2], boxes_xywh[..., :2] + boxes_xywh[..., 2:]], dim=-1)


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """[..., 4] xyxy -> the part of each box inside a picture of `size` (h, w); no area is left of one outside."""
    height, width = size
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))

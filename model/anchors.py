"""Anchors, boxes of a few shapes at every location; how boxes are told from them by deltas; which of them answer for which
object, and which of those the losses look at (Faster R-CNN, 1506.01497, section 3.1; proposals are treated alike).

Conventions are torchvision's, so that its weights mean here what they mean there: the anchors of a cell stand on its upper
left corner, their corners are whole pixels, and cells are (padded size // grid size) apart.
"""
import functools
import math

import torch
from torch import Tensor

from model.locations import level_locations
from model.targets import BACKGROUND, IGNORED

MAX_LOG_SCALE = math.log(1000 / 16)         # a box is at most so much larger than its anchor, whatever the network says
MIN_SIDE = 1e-3                             # input pixels; what is smaller has no logarithm, and is no proposal
ROI_WEIGHTS = 10.0, 5.0                     # factors on moves and on log scales in the second stage, about 1 / their deviations
COVERED = 0.5                               # an anchor with more than this share of its area in a region to leave out is left out


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def pyramid_anchors(sizes: tuple, spacings: tuple, strides: tuple, scale: float, ratios: tuple, device: torch.device) -> Tensor:
    """[N, 4] xyxy input pixels: level after level, row by row, in each cell one anchor for each of `ratios` (height / width).

    sizes (h, w), spacings (y, x) and strides of each level;  scale: sqrt(area) of an anchor, in strides
    """
    anchors = []
    for (height, width), spacing, stride in zip(sizes, spacings, strides, strict=True):
        root = torch.tensor(ratios).sqrt()
        half = torch.stack([1 / root, root], 1) * (scale * stride) / 2
        shapes = torch.cat([-half, half], 1).round().to(device)
        corners = level_locations(height, width, spacing, device, offset=0.0).repeat(1, 2)
        anchors.append((corners[:, None] + shapes).flatten(0, 1))
    return torch.cat(anchors)


def encode_deltas(anchors: Tensor, boxes: Tensor, weights: tuple = (1.0, 1.0)) -> Tensor:
    """How `boxes` [..., 4] differ from `anchors` [..., 4]: the move of the centre (x, y) in sides of the anchor, and the
    logarithms of the scales of width and height; times `weights` (of moves, of logarithms).

    Law: decode_deltas(anchors, encode_deltas(anchors, boxes)) == boxes, for sides of MIN_SIDE or more and boxes less than 62
    times as large as their anchors. Finite for boxes and anchors without area.
    """
    (center, sides), (box_center, box_sides) = _center_and_sides(anchors), _center_and_sides(boxes)
    return torch.cat([weights[0] * (box_center - center) / sides, weights[1] * (box_sides / sides).log()], -1)


def decode_deltas(anchors: Tensor, deltas: Tensor, weights: tuple = (1.0, 1.0)) -> Tensor:
    """Boxes [..., 4] xyxy that differ from `anchors` by `deltas`."""
    center, sides = _center_and_sides(anchors)
    center = center + deltas[..., :2] / weights[0] * sides
    half = (deltas[..., 2:] / weights[1]).clamp(max=MAX_LOG_SCALE).exp() * sides / 2
    return torch.cat([center - half, center + half], -1)


def _center_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]).clamp(min=MIN_SIDE)


def clip_to_pictures(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """The part of each box [..., 4] inside its picture; image_sizes [..., 2] (h, w)."""
    return torch.minimum(boxes.clamp(min=0), image_sizes.flip(-1).repeat(*[1] * (image_sizes.ndim - 1), 2))


def match(candidates: Tensor, targets: dict, low: float, high: float, best_too: bool = False) -> Tensor:
    """The gt row that each anchor or proposal answers for: that of the highest IoU (of equal ones the first), from `high` on.

    candidates  [N, 4] for all pictures, or [B, N, 4];  targets: as FasterRCNN takes them
    best_too    those with the highest IoU of any box have a match too, however low it is: no object is without an anchor
    returns     int64 [B, N]: 0..M-1; BACKGROUND below `low`; IGNORED between, and for background that lies in a region to leave out
                or would not be background if that were an object

    One gt row at a time, of all pictures at once: there is no [anchors x boxes] matrix.
    """
    x1, y1, x2, y2 = candidates.unbind(-1)                                                # [N] or [B, N]
    area = (x2 - x1) * (y2 - y1)
    boxes, real, left_out = targets["boxes"].float(), targets["labels"] >= 0, targets["ignore"]
    best = torch.full((len(boxes), candidates.shape[-2]), -1.0, device=boxes.device)
    matched, forced, covered = best.long(), best > 0, best > 0
    columns = (*boxes.unbind(-1), real & ~left_out, real & left_out)                      # [B, M] each
    for row, (left, top, right, bottom, is_object, is_region) in enumerate(zip(*(column.T[..., None] for column in columns), strict=True)):
        width, height = torch.minimum(x2, right) - torch.maximum(x1, left), torch.minimum(y2, bottom) - torch.maximum(y1, top)
        overlap = width.clamp(min=0) * height.clamp(min=0)
        union = (right - left) * (bottom - top) + area - overlap
        iou = overlap / union.clamp(min=1e-7)
        highest = iou.amax(1, keepdim=True)
        nearest = (iou == highest) & (highest > 0) & best_too
        forced |= is_object & nearest
        covered |= is_region & (nearest | (iou >= low) | (overlap > COVERED * area))
        iou = torch.where(is_object, iou, -1.0)
        matched = torch.where(iou > best, row, matched)
        best = torch.maximum(best, iou)
    positive = (best >= high) | forced
    unclaimed = torch.where((best >= low) | covered, IGNORED, BACKGROUND)
    return torch.where(positive, matched, unclaimed)


def sample(matched_gt: Tensor, count: int, positives: float, draw=torch.rand) -> tuple[Tensor, Tensor]:
    """(index int64 [B, S], real bool [B, S]) of `count` random ones a picture, at most the share `positives` of them positive, or one, and
    the others background, positives first. S is count, or N where there are not so many; where not real there is no more.

    draw    (shape, device=...) -> numbers in 0..1; the highest are taken
    """
    number = draw(matched_gt.shape, device=matched_gt.device)
    length = matched_gt.shape[1]
    most = max(1, int(count * positives)) if positives else 0
    top, index = torch.where(matched_gt >= 0, number, -1.0).topk(min(most, length), dim=1)
    chosen = torch.zeros_like(matched_gt, dtype=torch.bool).scatter(1, index, top >= 0)
    rank = torch.where(chosen, number + 1, torch.where(matched_gt == BACKGROUND, number, -1.0))
    top, index = rank.topk(min(count, length), dim=1)
    return index, top >= 0

"""Where the outputs of the pyramid look: the centre of each grid cell, in input pixels."""
import torch
from torch import Tensor


def level_locations(height: int, width: int, stride: int, device=None) -> Tensor:
    """[height * width, 2] (x, y) in input pixels, row by row: cell (i, j) is at ((j + 0.5) * stride, (i + 0.5) * stride)."""
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) * stride
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) * stride
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def pyramid_locations(sizes: tuple, strides: tuple, device=None) -> tuple[Tensor, Tensor]:
    """All levels in one list.

    sizes    (height, width) of each level's feature map
    returns  locations [N, 2] (x, y) input pixels and strides [N], level after level
    """
    locations = [level_locations(h, w, stride, device) for (h, w), stride in zip(sizes, strides, strict=True)]
    per_location = [torch.full((h * w,), float(stride), device=device) for (h, w), stride in zip(sizes, strides, strict=True)]
    return torch.cat(locations), torch.cat(per_location)


def decode_ltrb(locations: Tensor, ltrb: Tensor) -> Tensor:
    """Boxes [..., 4] xyxy whose sides lie `ltrb` [..., 4] pixels left, top, right and bottom of `locations` [..., 2].

    Law: decode_ltrb(p, encode_ltrb(p, boxes)) == boxes, for p inside or outside the boxes.
    """
    return torch.cat([locations - ltrb[..., :2], locations + ltrb[..., 2:]], dim=-1)


def encode_ltrb(locations: Tensor, boxes: Tensor) -> Tensor:
    """Distances [..., 4] from `locations` [..., 2] to the left, top, right, bottom side of `boxes` [..., 4]; negative = outside."""
    return torch.cat([locations - boxes[..., :2], boxes[..., 2:] - locations], dim=-1)

"""Where the outputs of the pyramid look, in input pixels: the centre of each grid cell, or its upper left corner."""
import torch
from torch import Tensor

# (y, x) from cell to cell of each level, input pixels, of a padded picture's (height, width) and the sizes of the grids; None: the strides
SPACINGS = {False: lambda padded, sizes: None,
            True: lambda padded, sizes: tuple((padded[0] // h, padded[1] // w) for h, w in sizes)}


def level_locations(height: int, width: int, spacing: tuple, device=None, offset: float = 0.5) -> Tensor:
    """[height * width, 2] (x, y) in input pixels, row by row: cell (i, j) is at ((j + offset) * spacing x, (i + offset) * spacing y).

    spacing  (y, x) from one cell to the next, input pixels
    """
    y = (torch.arange(height, device=device, dtype=torch.float32) + offset) * spacing[0]
    x = (torch.arange(width, device=device, dtype=torch.float32) + offset) * spacing[1]
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def pyramid_locations(sizes: tuple, strides: tuple, device=None, spacings: tuple | None = None, offset: float = 0.5) -> tuple[Tensor, Tensor]:
    """All levels in one list.

    sizes     (height, width) of each level's feature map
    spacings  (y, x) of each level, input pixels; None: its stride
    returns   locations [N, 2] (x, y) input pixels and strides [N], level after level
    """
    spacings = spacings or [(stride, stride) for stride in strides]
    locations = [level_locations(h, w, spacing, device, offset) for (h, w), spacing in zip(sizes, spacings, strict=True)]
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

"""Which location answers for which object (paper, section 3.2; centre sampling and ambiguity as in its improved version).

A location n of a level is claimed by gt box m when it lies strictly inside the box, its longest ltrb distance is within
the level's regression range, and it is less than `radius` strides from the box's centre in x and in y. Of several
boxes that claim a location the smallest wins (of equal ones the first): a large object has many other locations.

A box can only be claimed by the few cells near it: with a radius of 1.5 strides at most 4 x 4 a level, and without centre
sampling a level's range bounds the cells. So those cells are enumerated and tested; the work grows with the number of
boxes and not with the picture, and nothing waits for the device.
"""
import math

import torch
from torch import Tensor

from model.grid import inside_any, per_level, pyramid_grid

BACKGROUND, IGNORED = -1, -2


def claims(boxes: Tensor, sizes: list, strides: tuple, ranges: tuple, radius: float, spacings: tuple | None = None,
           offset: float = 0.5) -> tuple:
    """Which locations each box would claim if it were alone: location int64 [B, M, P] in 0..N-1 where claimed bool [B, M, P]; and the grid, as
    model.grid.pyramid_grid makes it.

    boxes    [B, M, 4]  xyxy, input pixels
    sizes    [(h, w)]   grid of each level;  strides, ranges ((low, high) input pixels, both included) one a level
    spacings, offset    as in model.locations
    """
    spacings = spacings or tuple((stride, stride) for stride in strides)
    grid = pyramid_grid(tuple(sizes), tuple(spacings), boxes.device)
    stride, low, high = (per_level(values, boxes.device) for values in (tuple(strides), *zip(*ranges, strict=True)))    # [L, 1, 1]

    # First cell that can lie inside, per level. In float64 this is exact, so that the floor is never one off.
    exact, center = boxes.double()[:, :, None], (boxes[..., :2] + boxes[..., 2:]) / 2     # [B, M, 1, 4], [B, M, 2]
    start = torch.maximum(exact[..., :2], exact[..., 2:] - high[:, 0].double())
    start = torch.maximum(start, center.double()[:, :, None] - radius * stride[:, 0].double())
    first = torch.floor(start / grid.spacing - offset).long().clamp(min=-1)               # [B, M, L, 2] (x, y)
    reach = max(min(2 * radius * stride / min(spacing), limit / min(spacing), max(size))
                for (_, limit), stride, spacing, size in zip(ranges, strides, spacings, sizes, strict=True))
    steps = torch.arange(math.ceil(reach) + 1, device=boxes.device)
    cell_x = (first[..., 0, None] + steps)[..., None, :]                                  # [B, M, L, 1, K]
    cell_y = (first[..., 1, None] + steps)[..., :, None]                                  # [B, M, L, K, 1]

    x, y = (cell_x + offset) * grid.spacing_x, (cell_y + offset) * grid.spacing_y
    x1, y1, x2, y2 = boxes[:, :, None, None, None].unbind(-1)
    left, right, top, bottom = x - x1, x2 - x, y - y1, y2 - y
    nearest = torch.minimum(torch.minimum(left, right), torch.minimum(top, bottom))
    longest = torch.maximum(torch.maximum(left, right), torch.maximum(top, bottom))
    cx, cy = center[:, :, None, None, None].unbind(-1)
    claimed = ((nearest > 0) & (longest >= low) & (longest <= high)
               & ((x - cx).abs() < radius * stride) & ((y - cy).abs() < radius * stride)
               & (cell_x >= 0) & (cell_x < grid.width) & (cell_y >= 0) & (cell_y < grid.height))
    return (grid.offset + cell_y * grid.width + cell_x).flatten(2), claimed.flatten(2), grid


def assign(boxes: Tensor, labels: Tensor, ignore: Tensor, sizes: list, strides: tuple, ranges: tuple, radius: float,
           spacings: tuple | None = None, offset: float = 0.5) -> Tensor:
    """The gt row that each location answers for.

    labels   [B, M]     -1 marks padding rows
    ignore   [B, M]     True: claims nothing, but unclaimed locations inside it are left out of the loss
    returns  int64 [B, N]  0..M-1, BACKGROUND, or IGNORED; N runs level after level, row by row

    The other arguments are those of `claims`.
    """
    batch, rows = labels.shape
    location, claimed, grid = claims(boxes, sizes, strides, ranges, radius, spacings, offset)
    claimed &= ((labels >= 0) & ~ignore)[..., None]

    # Smallest area first; the stable sort keeps equal ones in order. A location keeps the lowest rank that claims it.
    areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    order = areas.argsort(dim=1, stable=True)
    rank = order.argsort(dim=1)[..., None].expand_as(claimed)
    best = torch.full((batch, grid.count), rows, device=boxes.device)
    best.scatter_reduce_(1, torch.where(claimed, location, 0).flatten(1), torch.where(claimed, rank, rows).flatten(1), "amin")
    matched = torch.where(best < rows, order.gather(1, best.clamp(max=rows - 1)), BACKGROUND)
    return torch.where((matched == BACKGROUND) & inside_any(boxes, ignore & (labels >= 0), grid, offset), IGNORED, matched)


def silenced(location: Tensor, claimed: Tensor, labels: Tensor, num_locations: int, num_classes: int) -> Tensor:
    """bool [B, N, C]: the logits that class-wise ignore zones leave out of the loss, each that of its own class at the locations
    that its box would claim. Zones do not compete: one place may be left open for several classes.

    location, claimed  [B, M, P] of `claims`, claimed by nothing but zones;  labels  [B, M]
    """
    nowhere = num_locations * num_classes
    place = torch.where(claimed, location * num_classes + labels[..., None], nowhere).flatten(1)
    silent = torch.zeros(len(labels), nowhere + 1, dtype=torch.bool, device=labels.device)
    return silent.scatter_(1, place, True)[:, :-1].unflatten(1, (num_locations, num_classes))


def open_ranges(ranges: tuple) -> tuple:
    """The ranges that hold, both ends included, what `ranges` hold without their ends: each end is the next float32 inside."""
    low, high = torch.tensor(ranges, dtype=torch.float32, device="cpu").unbind(1)
    return tuple(zip(low.nextafter(high).tolist(), high.nextafter(low).tolist(), strict=True))


RANGE_ENDS = {"closed": lambda ranges: ranges, "open": open_ranges}

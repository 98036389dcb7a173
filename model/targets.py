"""Which location answers for which object (paper, section 3.2; centre sampling and ambiguity as in its improved version).

A location n of a level is claimed by gt box m when it lies strictly inside the box, its longest ltrb distance is within
the level's regression range, and it is less than `radius` strides from the box's centre in x and in y. Of several
boxes that claim a location the smallest wins (of equal ones the first): a large object has many other locations.

A box can only be claimed by the few cells near it: with a radius of 1.5 strides at most 4 x 4 a level, and without centre
sampling a level's range bounds the cells. So those cells are enumerated and tested; the work grows with the number of
boxes and not with the picture, and nothing waits for the device.
"""
import functools
import math
from types import SimpleNamespace

import torch
from torch import Tensor

BACKGROUND, IGNORED = -1, -2


def assign(boxes: Tensor, labels: Tensor, ignore: Tensor, sizes: list, strides: tuple, ranges: tuple, radius: float) -> Tensor:
    """The gt row that each location answers for.

    boxes    [B, M, 4]  xyxy, input pixels
    labels   [B, M]     -1 marks padding rows
    ignore   [B, M]     True: claims nothing, but unclaimed locations inside it are left out of the loss
    sizes    [(h, w)]   grid of each level;  strides, ranges ((low, high) input pixels, both included) one a level
    returns  int64 [B, N]  0..M-1, BACKGROUND, or IGNORED; N runs level after level, row by row
    """
    batch, rows = labels.shape
    grid = _grid(tuple(sizes), tuple(strides), tuple(ranges), boxes.device)
    stride, low, high = grid.stride, grid.low, grid.high                                  # [L, 1, 1]

    # First cell that can lie inside, per level. In float64 this is exact, so that the floor is never one off.
    exact, center = boxes.double()[:, :, None], (boxes[..., :2] + boxes[..., 2:]) / 2     # [B, M, 1, 4], [B, M, 2]
    start = torch.maximum(exact[..., :2], exact[..., 2:] - high[:, 0].double())
    start = torch.maximum(start, center.double()[:, :, None] - radius * stride[:, 0].double())
    first = torch.floor(start / stride[:, 0] - 0.5).long().clamp(min=-1)                  # [B, M, L, 2] (x, y)
    reach = max(min(2 * radius, limit / s, max(size)) for (_, limit), s, size in zip(ranges, strides, sizes, strict=True))
    steps = torch.arange(math.ceil(reach) + 1, device=boxes.device)
    cell_x = (first[..., 0, None] + steps)[..., None, :]                                  # [B, M, L, 1, K]
    cell_y = (first[..., 1, None] + steps)[..., :, None]                                  # [B, M, L, K, 1]

    x, y = (cell_x + 0.5) * stride, (cell_y + 0.5) * stride
    x1, y1, x2, y2 = boxes[:, :, None, None, None].unbind(-1)
    left, top, right, bottom = torch.broadcast_tensors(x - x1, y - y1, x2 - x, y2 - y)
    nearest = torch.minimum(torch.minimum(left, top), torch.minimum(right, bottom))
    longest = torch.maximum(torch.maximum(left, top), torch.maximum(right, bottom))
    cx, cy = center[:, :, None, None, None].unbind(-1)
    claimed = ((nearest > 0) & (longest >= low) & (longest <= high)
               & ((x - cx).abs() < radius * stride) & ((y - cy).abs() < radius * stride)
               & (cell_x >= 0) & (cell_x < grid.width) & (cell_y >= 0) & (cell_y < grid.height)
               & ((labels >= 0) & ~ignore)[:, :, None, None, None])

    # Smallest area first; the stable sort keeps equal ones in order. A location keeps the lowest rank that claims it.
    areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    order = areas.argsort(dim=1, stable=True)
    rank = order.argsort(dim=1)[:, :, None, None, None].expand_as(claimed)
    location = grid.offset + cell_y * grid.width + cell_x
    best = torch.full((batch, grid.count), rows, device=boxes.device)
    best.scatter_reduce_(1, torch.where(claimed, location, 0).flatten(1), torch.where(claimed, rank, rows).flatten(1), "amin")
    matched = torch.where(best < rows, order.gather(1, best.clamp(max=rows - 1)), BACKGROUND)
    return torch.where((matched == BACKGROUND) & inside_any(boxes, ignore & (labels >= 0), grid), IGNORED, matched)


def inside_any(boxes: Tensor, chosen: Tensor, grid) -> Tensor:
    """bool [B, N]: the location lies inside, or on the edge, of one of the chosen boxes (boxes [B, M, 4], chosen [B, M]).

    Each box marks four corners of each level's grid; summing the marks along rows, then along columns, counts the boxes
    over every cell. A row's and a column's marks add up to 0, so that one running sum serves all of them.
    """
    limit = torch.cat([grid.width[:, 0], grid.height[:, 0]], 1)                           # [L, 2]
    first = (boxes[:, :, None, :2] / grid.stride[:, 0] - 0.5).ceil().clamp(min=0).minimum(limit).long()
    last = ((boxes[:, :, None, 2:] / grid.stride[:, 0] - 0.5).floor() + 1).clamp(min=0).minimum(limit).long()
    (x1, y1), (x2, y2) = first.unbind(-1), torch.maximum(first, last).unbind(-1)          # [B, M, L]
    corner, across = grid.marks_offset, grid.width[:, 0, 0] + 1
    places = torch.stack([corner + y * across + x for x, y in ((x1, y1), (x2, y2), (x2, y1), (x1, y2))], -1)
    signs = torch.cat([torch.ones_like(places[..., :2]), -torch.ones_like(places[..., 2:])], -1) * chosen[:, :, None, None]
    marks = torch.zeros(len(boxes), len(grid.by_column), dtype=torch.int64, device=boxes.device)
    marks.scatter_add_(1, places.flatten(1), signs.flatten(1))
    return marks.cumsum(1)[:, grid.by_column].cumsum(1)[:, grid.cells] > 0


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _grid(sizes: tuple, strides: tuple, ranges: tuple, device: torch.device) -> SimpleNamespace:
    """What depends on the pyramid alone, kept so that a step uploads nothing. [L, 1, 1] each but for:

    marks_offset [L], by_column, cells: for grids of (height + 1) * (width + 1) marks, level after level, row by row: where
    each level begins; the order column by column; where in that order the N locations are
    """
    column = functools.partial(torch.tensor, device=device)
    height, width = column(sizes).unbind(1)
    low, high = column(ranges, dtype=torch.float32).unbind(1)
    marks, offset, by_column, cells = [], 0, [], []
    for h, w in sizes:
        marks.append(offset)
        by_column.append(offset + torch.arange((h + 1) * (w + 1)).view(h + 1, w + 1).T.flatten())
        cells.append(offset + torch.arange((h + 1) * (w + 1)).view(w + 1, h + 1).T[:h, :w].flatten())
        offset += (h + 1) * (w + 1)
    shaped = {"stride": column(strides), "height": height, "width": width, "low": low, "high": high,
              "offset": torch.cumsum(height * width, 0) - height * width}
    return SimpleNamespace(**{name: value[:, None, None] for name, value in shaped.items()}, count=sum(h * w for h, w in sizes),
                           marks_offset=column(marks), by_column=torch.cat(by_column).to(device), cells=torch.cat(cells).to(device))

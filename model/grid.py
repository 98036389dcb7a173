"""The cells of the pyramid as the assignments see them: all levels at once, on the device, without waiting for it."""
import functools
from types import SimpleNamespace

import torch
from torch import Tensor


def inside_any(boxes: Tensor, chosen: Tensor, grid: SimpleNamespace, offset: float) -> Tensor:
    """bool [B, N]: the location lies inside, or on the edge, of one of the chosen boxes (boxes [B, M, 4], chosen [B, M]).

    Each box marks four corners of each level's grid; summing the marks along rows, then along columns, counts the boxes
    over every cell. A row's and a column's marks add up to 0, so that one running sum serves all of them.
    """
    limit = torch.cat([grid.width[:, 0], grid.height[:, 0]], 1)                           # [L, 2]
    first = (boxes[:, :, None, :2] / grid.spacing - offset).ceil().clamp(min=0).minimum(limit).long()
    last = ((boxes[:, :, None, 2:] / grid.spacing - offset).floor() + 1).clamp(min=0).minimum(limit).long()
    (x1, y1), (x2, y2) = first.unbind(-1), torch.maximum(first, last).unbind(-1)          # [B, M, L]
    corner, across = grid.marks_offset, grid.width[:, 0, 0] + 1
    places = torch.stack([corner + y * across + x for x, y in ((x1, y1), (x2, y2), (x2, y1), (x1, y2))], -1)
    signs = torch.cat([torch.ones_like(places[..., :2]), -torch.ones_like(places[..., 2:])], -1) * chosen[:, :, None, None]
    marks = torch.zeros(len(boxes), len(grid.by_column), dtype=torch.int64, device=boxes.device)
    marks.scatter_add_(1, places.flatten(1), signs.flatten(1))
    return marks.cumsum(1)[:, grid.by_column].cumsum(1)[:, grid.cells] > 0


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def per_level(values: tuple, device: torch.device) -> Tensor:
    """[L, 1, 1], kept so that a step uploads nothing."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


@functools.lru_cache(maxsize=256)                # several GPUs share it, each with an entry for every size of batch
@torch.inference_mode(False)
def pyramid_grid(sizes: tuple, spacings: tuple, device: torch.device) -> SimpleNamespace:
    """What depends on the pyramid alone, kept likewise. [L, 1, 1] each but for:

    spacing [L, 2] (x, y)
    marks_offset [L], by_column, cells: for grids of (height + 1) * (width + 1) marks, level after level, row by row: where
    each level begins; the order column by column; where in that order the N locations are
    """
    column = functools.partial(torch.tensor, device=device)
    height, width = column(sizes).unbind(1)
    spacing_y, spacing_x = column(spacings).unbind(1)
    marks, offset, by_column, cells = [], 0, [], []
    for h, w in sizes:
        marks.append(offset)
        by_column.append(offset + torch.arange((h + 1) * (w + 1)).view(h + 1, w + 1).T.flatten())
        cells.append(offset + torch.arange((h + 1) * (w + 1)).view(w + 1, h + 1).T[:h, :w].flatten())
        offset += (h + 1) * (w + 1)
    shaped = {"spacing_x": spacing_x, "spacing_y": spacing_y, "height": height, "width": width,
              "offset": torch.cumsum(height * width, 0) - height * width}
    return SimpleNamespace(**{name: value[:, None, None] for name, value in shaped.items()}, count=sum(h * w for h, w in sizes),
                           spacing=torch.stack([spacing_x, spacing_y], 1), marks_offset=column(marks),
                           by_column=torch.cat(by_column).to(device), cells=torch.cat(cells).to(device))

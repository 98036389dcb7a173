"""Adaptive training sample selection (Zhang et al., 1912.02424): which location answers for which object, without ranges.

The candidates of a gt box are the TOP_K locations of each level nearest to its centre. Around each location stands a square
anchor of ANCHOR_STRIDES strides, and the box takes the candidates inside it whose anchors' IoU with it is at least the mean
plus the standard deviation over all of its candidates. A location that several boxes take goes to that of the highest IoU
(of equal ones to the first).

The nearest cells of a grid lie in a window of TOP_K columns and rows: were one outside, TOP_K others of its row or column
would be nearer. So the work grows with the number of boxes, and all is float64, where what is equal by hand is equal.
"""
import torch
from torch import Tensor

from model.box_loss import paired_iou
from model.grid import inside_any, per_level, pyramid_grid
from model.targets import BACKGROUND, IGNORED

TOP_K = 9
ANCHOR_STRIDES = 8
WINDOW = TOP_K + 1              # one more than needed, so that no rounding loses a cell
SLACK = 1e-9                    # of the IoU: equal ones all reach their mean


def claims_atss(boxes: Tensor, sizes: list, strides: tuple, spacings: tuple | None = None, offset: float = 0.5) -> tuple:
    """location, claimed and the grid as targets.claims gives them, of the same arguments, and the IoU [B, M, P] of the anchors there with the box."""
    spacings = spacings or tuple((stride, stride) for stride in strides)
    grid = pyramid_grid(tuple(sizes), tuple(spacings), boxes.device)
    gt = boxes.double()[:, :, None, None]                                                 # [B, M, 1, 1, 4]
    center = (gt[..., :2] + gt[..., 2:]) / 2

    # The window of each level, and in it the TOP_K nearest cells; of two equally near ones the first in the grid.
    limit = torch.cat([grid.width[:, 0], grid.height[:, 0]], 1)                           # [L, 2]
    start = (center[:, :, 0] / grid.spacing - offset - TOP_K / 2).floor()
    first = start.minimum(limit - WINDOW).clamp(min=0).long()                             # [B, M, L, 2] (x, y)
    steps = torch.arange(WINDOW, device=boxes.device)
    cell_x, cell_y = (cell.flatten(3) for cell in torch.broadcast_tensors(
        (first[..., 0, None] + steps)[..., None, :], (first[..., 1, None] + steps)[..., :, None]))      # [B, M, L, W * W]
    x, y = (cell_x.double() + offset) * grid.spacing_x[:, 0], (cell_y.double() + offset) * grid.spacing_y[:, 0]
    apart = (x - center[..., 0]).square() + (y - center[..., 1]).square()
    outside = (cell_x >= grid.width[:, 0]) | (cell_y >= grid.height[:, 0])
    nearest = torch.where(outside, torch.inf, apart).argsort(dim=-1, stable=True)[..., :TOP_K]
    x, y, cell_x, cell_y, outside = (value.gather(-1, nearest) for value in (x, y, cell_x, cell_y, outside))    # [B, M, L, K]

    points = torch.stack([x, y], -1)
    half = ANCHOR_STRIDES / 2 * per_level(tuple(strides), boxes.device)
    iou = paired_iou(torch.cat([points - half, points + half], -1), gt.expand(-1, -1, *points.shape[2:4], -1))
    count = (~outside).sum((2, 3), keepdim=True)
    mean = torch.where(outside, 0.0, iou).sum((2, 3), keepdim=True) / count
    variance = torch.where(outside, 0.0, iou - mean).square().sum((2, 3), keepdim=True) / (count - 1).clamp(min=1)
    inside = torch.cat([points - gt[..., :2], gt[..., 2:] - points], -1).amin(-1) > 0
    taken = ~outside & inside & (iou >= mean + variance.sqrt() - SLACK)
    return (grid.offset[:, 0] + cell_y * grid.width[:, 0] + cell_x).flatten(2), taken.flatten(2), grid, iou.flatten(2)


def assign_atss(boxes: Tensor, labels: Tensor, ignore: Tensor, sizes: list, strides: tuple,
                spacings: tuple | None = None, offset: float = 0.5) -> Tensor:
    """int64 [B, N]: the gt row that each location answers for, BACKGROUND, or IGNORED. The arguments are those of targets.assign."""
    batch, rows = labels.shape
    location, taken, grid, iou = claims_atss(boxes, sizes, strides, spacings, offset)
    taken &= ((labels >= 0) & ~ignore)[..., None]

    # The highest IoU at each location, then the first row that has it.
    iou, location = torch.where(taken, iou, 0.0), torch.where(taken, location, 0).flatten(1)
    best = iou.new_zeros(batch, grid.count).scatter_reduce(1, location, iou.flatten(1), "amax")
    row = torch.arange(rows, device=boxes.device)[:, None].expand_as(taken)
    wins = taken & (iou == best.gather(1, location).view_as(iou))
    matched = torch.full_like(best, rows, dtype=torch.int64).scatter_reduce(1, location, torch.where(wins, row, rows).flatten(1), "amin")
    matched = torch.where(matched < rows, matched, BACKGROUND)
    return torch.where((matched == BACKGROUND) & inside_any(boxes, ignore & (labels >= 0), grid, offset), IGNORED, matched)

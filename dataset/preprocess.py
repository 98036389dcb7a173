"""The size at which the network sees a picture: one home for training, evaluation and detection."""
import math

import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F


def resized_size(height, width, min_size, max_size):
    """(h', w'): the shorter side becomes min_size px, unless the longer one would exceed max_size px; never below 1."""
    scale = min(min_size / min(height, width), max_size / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_picture(image, size):
    """uint8 [3, H, W] -> uint8 [3, h', w'], antialiased bilinear; the image itself where it has that size already."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.resize(image, list(size), antialias=True)


def resize_masks(masks, size):
    """uint8 [M, H, W] -> uint8 [M, h', w']: what lies under the middle of each new pixel; M may be 0."""
    return F.resize(masks, list(size), InterpolationMode.NEAREST_EXACT) if len(masks) else masks.new_zeros(0, *size)


def map_boxes(boxes, source, destination):
    """Boxes of the rectangle `source` in the pixels in which that rectangle is `destination`.

    boxes                  float32 [M, 4]      xyxy; M may be 0
    source, destination    (x1, y1, x2, y2)
    Law: map_boxes(map_boxes(b, s, d), d, s) == b, up to rounding.
    """
    s, d = torch.tensor(source, dtype=torch.float64), torch.tensor(destination, dtype=torch.float64)
    scale = (d[2:] - d[:2]) / (s[2:] - s[:2])
    return (boxes * scale.repeat(2) + (d[:2] - s[:2] * scale).repeat(2)).float()


def tile_windows(height, width, tile, overlap):
    """Rectangles (x1, y1, x2, y2) of tile x tile px that cover a picture, row by row.

    Neighbours share `overlap` of a tile (0..1, a share) or more: the tiles are spread evenly, the last ones ending at
    the picture's edges. A side shorter than the tile is covered as it is. Raises ValueError for an impossible overlap.
    """
    if tile < 1 or not 0 <= overlap < 1:
        raise ValueError(f"a tile must be 1 px or more and its overlap in 0..1 (less than 1), not {tile} and {overlap}")
    rows, columns = (_tile_starts(side, tile, tile * overlap) for side in (height, width))
    return [(x, y, min(x + tile, width), min(y + tile, height)) for y in rows for x in columns]


def _tile_starts(side, tile, shared):
    if side <= tile:
        return [0]
    # a step of at least 1 px, however large the share of a small tile
    count = 1 + math.ceil((side - tile) / max(1, math.floor(tile - shared)))
    return [round(number * (side - tile) / (count - 1)) for number in range(count)]

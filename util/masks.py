"""Masks of objects: from the network's small grids to pixels, and to and from the run lengths (RLE) of COCO json.

An RLE is {"size": [h, w], "counts": ...}: how many pixels are 0, then 1, then 0, ..., column by column, top to bottom. Counts
are a list of numbers, or packed in a text: the first three as they are, each later one as its difference to the one two before,
in groups of five bits, low ones first, each group a character from "0" (48) on; +32 says that another group follows, and the
highest bit of the last group is the sign.
"""
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class OneByOne:
    """The masks of a picture as draw_detections takes them, each made when its row is asked for: a hundred of a large picture are gigabytes."""

    def __init__(self, mask_of):
        self.mask_of = mask_of

    def __getitem__(self, row):
        return self.mask_of(row)


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """bool [K, h, w]: where in a picture of `size` (h, w) each mask is above 0.5; equal to torchvision's paste_masks_in_image.

    masks   float32 [K, S, S]  probabilities on a grid that fills the box
    boxes   float32 [K, 4]     xyxy in the picture's pixels; what sticks out of it is cut; K may be 0

    A ring of zeros around the grid lets masks fade at their box's edge. The grid lies on whole pixels, from the one that holds
    the (widened) box's first corner to the one that holds its last.
    """
    height, width = size
    side = masks.shape[-1]
    reach = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * ((side + 2) / side)
    centre = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    corners = torch.cat([centre - reach, centre + reach], dim=1).long().tolist()
    pasted = torch.zeros(len(masks), height, width, dtype=torch.bool)
    for canvas, grid, (x1, y1, x2, y2) in zip(pasted, F.pad(masks, (1, 1, 1, 1)), corners, strict=True):
        grid = F.interpolate(grid[None, None], (max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)), mode="bilinear", align_corners=False)[0, 0]
        top, left = min(max(y1, 0), height), min(max(x1, 0), width)
        bottom, right = (min(max(last + 1, first), side) for last, first, side in ((y2, top, height), (x2, left, width)))
        canvas[top:bottom, left:right] = grid[top - y1:bottom - y1, left - x1:right - x1] > 0.5
    return pasted


def paste_as_rle(found: dict, size: tuple[int, int]) -> list[dict]:
    """The RLE of each of a picture's detections that have masks, in a picture of `size` (h, w)."""
    masks, boxes = found["masks"][:, None], found["boxes"].float()[:, None]     # one at a time: a hundred of a large picture are gigabytes
    return [encode_rle(paste_masks(mask, box, size))[0] for mask, box in zip(masks, boxes, strict=True)]


def encode_rle(masks: Tensor) -> list[dict]:
    """The RLE, with its counts as a text, of each of masks [K, h, w] (bool or uint8, 0 outside). Law: decode_rle undoes it."""
    columns = (masks != 0).transpose(1, 2).flatten(1).numpy()
    return [{"size": list(masks.shape[1:]), "counts": _pack(_run_lengths(column))} for column in columns]


def pack_bits(masks: Tensor) -> Tensor:
    """uint8 [..., h, ceil(w / 8)] of masks [..., h, w] (uint8, 0 or 1), eight pixels a byte, the first in the highest bit. Law: unpack_bits undoes
    it where w is a multiple of 8."""
    return torch.from_numpy(np.packbits(masks.numpy(), axis=-1))


def unpack_bits(packed: Tensor) -> Tensor:
    """uint8 [..., h, 8 * w], 0 or 1, of uint8 [..., h, w], on its device."""
    return (packed[..., None] >> torch.arange(7, -1, -1, device=packed.device, dtype=torch.uint8) & 1).flatten(-2)


def _run_lengths(pixels):
    ends = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    first = [0] * bool(len(pixels) and pixels[0])       # runs begin with one of zeros
    return np.diff(np.concatenate([[0], first, ends, [len(pixels)]]).astype(np.int64))


def decode_rle(rle: dict, size: tuple[int, int]) -> Tensor:
    """uint8 [h, w], 1 on the object. Raises ValueError, saying what and the rule, for what is no RLE of a picture of `size` (h, w)."""
    said, counts = rle.get("size"), rle.get("counts")
    if not isinstance(said, list) or said != list(size):
        raise ValueError(f"its RLE has size {said}, must be the picture's [height, width], {list(size)}")
    if isinstance(counts, str):
        counts = _unpack(counts)
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("its RLE has counts that are not whole numbers of 0 and more")
    if sum(counts) != size[0] * size[1]:
        raise ValueError(f"its RLE counts {sum(counts)} pixels, a picture of {size[1]}x{size[0]} has {size[0] * size[1]}")
    pixels = np.repeat(np.arange(len(counts), dtype=np.uint8) & 1, counts)
    return torch.from_numpy(pixels).reshape(size[1], size[0]).T.contiguous()


def _pack(counts) -> str:
    differences = counts.copy()
    differences[3:] -= counts[1:-2]
    text = bytearray()
    for value in differences.tolist():
        more = True
        while more:
            group, value = value & 31, value >> 5
            more = value != -(group >> 4)       # all that is left are copies of the sign
            text.append(48 + group + 32 * more)
    return text.decode("ascii")


def _unpack(text: str) -> list[int]:
    counts, value, shift = [], 0, 0
    for code in map(ord, text):
        group = code - 48
        if not 0 <= group < 64:
            raise ValueError(f"its RLE has the character {chr(code)!r}, must be of those from '0' to 'o'")
        value |= (group & 31) << shift
        shift += 5
        if group < 32:
            value -= (group >> 4) << shift      # the sign
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    if shift:
        raise ValueError("its RLE breaks off in the middle of a number")
    return counts

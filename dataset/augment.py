"""Training-time augmentation: which part of which pictures the network sees, turned, mirrored and coloured how.

Everything is one step, `show`: a rectangle of a picture, which may stick out of it, is cut, resized and laid on a
canvas. Whole pictures, zooming in and out, crops around small objects and mosaics differ only in the rectangle. Cutting
comes first and resizing second, so that mirror, rotation and colour work on a tensor of the network's size. Pixels go
through torchvision.transforms.v2; boxes are moved here, since v2 grows the boxes of rotated pictures and filters only
labels. Masks, where a target has them, go through the same steps as the pixels.
"""
import math
from dataclasses import dataclass

import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from dataset.preprocess import map_boxes, resize_masks, resize_picture, resized_size
from dataset.sample import keep_objects, per_box

MEAN_COLOUR = (124, 116, 104)  # ImageNet's; what normalisation turns into zero, as it does the padding
MIN_VISIBLE = 0.3  # of an object's area; less is no example of it
MIN_SIDE = 2.0  # px in the network's input
GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Augment:
    """augment(dataset, index, min_size, max_size, rng) -> (uint8 [3, h, w], target in its pixels).

    flip, vertical_flip     probabilities of the two mirrors
    jitter                  brightness, contrast and saturation are each multiplied by 1 - jitter .. 1 + jitter
    rotate                  degrees: up to so many either way, with rotate_probability
    zoom                    (low, high): the picture is shown so many times larger, drawn on a log scale, on a canvas of
                            the size it would have had; a picture smaller than that is surrounded by the mean colour
    crop                    px, or None: the canvas is a square of so many px, and zoom counts from the original size
    around_object           share of zoomed-in windows and crops that are laid around a random object
    mosaic                  probability that the canvas is divided among four pictures
    Objects of which less than 0.3 stays in view, or less than 2 px of a side, are dropped with all their fields; of a
    region or zone to ignore any share counts, of 2 px or more a side.
    All randomness is drawn from rng (random.Random). The order is fixed: one rng state, one result.
    """

    flip: float = 0.5
    vertical_flip: float = 0.0
    jitter: float = 0.3
    rotate: float = 5.0
    rotate_probability: float = 0.3
    zoom: tuple[float, float] = (1.0, 1.0)
    crop: int | None = None
    around_object: float = 0.8
    mosaic: float = 0.0

    def __call__(self, dataset, index, min_size, max_size, rng):
        image, target = dataset[index]
        canvas_size = (self.crop, self.crop) if self.crop else resized_size(*image.shape[-2:], min_size, max_size)
        if rng.random() < self.mosaic:
            image, target = self._mosaic(dataset, image, target, canvas_size, min_size, max_size, rng)
        else:
            image, target = self._show(image, target, canvas_size, min_size, max_size, rng)
        if rng.random() < self.flip:
            image, target = mirror(image, target)
        if rng.random() < self.vertical_flip:
            image, target = mirror(image, target, vertical=True)
        if self.rotate and rng.random() < self.rotate_probability:
            image, target = rotate(image, target, rng.uniform(-self.rotate, self.rotate))
        if self.jitter:
            image = jitter_colour(image, *(rng.uniform(max(0, 1 - self.jitter), 1 + self.jitter) for _ in range(3)))
        return image, target

    def _show(self, image, target, canvas_size, min_size, max_size, rng):
        height, width = image.shape[-2:]
        plain = (height, width) if self.crop else resized_size(height, width, min_size, max_size)
        zoom = math.exp(rng.uniform(*map(math.log, self.zoom)))
        sides = [max(1, round(canvas * side / (shown * zoom)))
                 for canvas, side, shown in zip(canvas_size, (height, width), plain, strict=True)]
        window, target = self._window(target, (height, width), sides, rng)
        return show(image, target, window, canvas_size)

    def _window(self, target, size, sides, rng):
        """(x1, y1, x2, y2), of `sides` (h, w), in a picture of `size`, around an object or anywhere; and the target, which says around which."""
        boxes = target["boxes"]
        inside = None
        if len(boxes) and rng.random() < self.around_object:
            row = rng.randrange(len(boxes))
            inside = boxes[row].tolist()
            if sides[0] < size[0] or sides[1] < size[1]:        # else the whole picture is in view, whatever is labelled
                target = {**target, "sought": torch.arange(len(boxes)) == row}
        y1, x1 = (_window_start(size[axis], sides[axis], inside and (inside[1 - axis], inside[3 - axis]), rng)
                  for axis in (0, 1))
        return (x1, y1, x1 + sides[1], y1 + sides[0]), target

    def _mosaic(self, dataset, image, target, canvas_size, min_size, max_size, rng):
        height, width = canvas_size
        y, x = (min(max(1, round(side * rng.uniform(0.3, 0.7))), max(1, side - 1)) for side in canvas_size)
        canvas, targets = _blank(canvas_size), []
        quarters = (0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)
        for place, (x1, y1, x2, y2) in enumerate(quarters):
            if x1 == x2 or y1 == y2:
                continue
            source = (image, target) if place == 0 else dataset[rng.randrange(len(dataset))]
            part, part_target = self._show(*source, (y2 - y1, x2 - x1), min_size, max_size, rng)
            canvas[:, y1:y2, x1:x2] = part
            part_target = lay_masks(part_target, (x1, y1, x2, y2), canvas_size)
            targets.append({**part_target, "boxes": part_target["boxes"] + torch.tensor([x1, y1, x1, y1])})
        return canvas, {**target, **{field: torch.cat([each[field] for each in targets]) for field in per_box(target)}}


def _window_start(side, window, inside, rng):
    """Where a window of so many px begins along a side; beyond the picture only where it is longer than the picture.

    inside: (low, high) that the window must contain, or lie in if it is the shorter one; None for anywhere.
    """
    low, high = min(0, side - window), max(0, side - window)
    if inside:
        near, far = sorted((math.floor(inside[0]), math.ceil(inside[1]) - window))
        low, high = min(max(near, low), high), max(min(far, high), low)
    return rng.randint(low, high)


def _blank(size):
    return torch.tensor(MEAN_COLOUR, dtype=torch.uint8)[:, None, None].expand(3, *size).clone()


def show(image, target, window, canvas_size):
    """What the rectangle `window` of a picture shows, resized to a canvas.

    window        (x1, y1, x2, y2) whole picture pixels, x1 < x2, y1 < y2; may stick out, then the mean colour is seen
    canvas_size   (h, w)
    """
    height, width = image.shape[-2:]
    source = max(window[0], 0), max(window[1], 0), min(window[2], width), min(window[3], height)
    scale = [canvas / (window[axis + 2] - window[axis]) for axis, canvas in ((0, canvas_size[1]), (1, canvas_size[0]))]
    x1, y1, x2, y2 = (round((edge - window[side % 2]) * scale[side % 2]) for side, edge in enumerate(source))
    if x1 >= x2 or y1 >= y2:  # less than a pixel of the picture, or nothing
        return _blank(canvas_size), lay_masks(keep_objects(target, slice(0, 0)), (0, 0, 0, 0), canvas_size)
    part = resize_picture(image[:, source[1]:source[3], source[0]:source[2]], (y2 - y1, x2 - x1))
    if (x1, y1, x2, y2) != (0, 0, canvas_size[1], canvas_size[0]):
        part, canvas = _blank(canvas_size), part
        part[:, y1:y2, x1:x2] = canvas
    boxes = map_boxes(target["boxes"], source, (x1, y1, x2, y2))
    target = keep_visible({**target, "boxes": boxes}, (x1, y1, x2, y2))
    if "masks" in target:
        target["masks"] = target["masks"][:, source[1]:source[3], source[0]:source[2]]
    return part, lay_masks(target, (x1, y1, x2, y2), canvas_size)


def lay_masks(target, place, canvas_size):
    """The target with its masks, if it has any, resized to the rectangle `place` of a canvas of zeros of `canvas_size` (h, w)."""
    if "masks" not in target:
        return target
    (x1, y1, x2, y2), masks = place, target["masks"]
    canvas = masks.new_zeros(len(masks), *canvas_size)
    canvas[:, y1:y2, x1:x2] = resize_masks(masks, (y2 - y1, x2 - x1))
    return {**target, "masks": canvas}


def keep_visible(target, view):
    """The target with its boxes cut to the rectangle `view`, without the objects of which too little stays."""
    boxes = target["boxes"]
    corner, opposite = torch.tensor(view[:2]), torch.tensor(view[2:])
    cut = torch.cat([boxes[:, :2].maximum(corner), boxes[:, 2:].minimum(opposite)], dim=1)
    sides, cut_sides = boxes[:, 2:] - boxes[:, :2], (cut[:, 2:] - cut[:, :2]).clamp(min=0)
    keep = ((cut_sides.prod(1) >= MIN_VISIBLE * sides.prod(1)) | target["ignore"] | target["zone_ignore"]) & (cut_sides >= MIN_SIDE).all(1)
    return keep_objects({**target, "boxes": cut}, keep)


def mirror(image, target, vertical=False):
    """Left to right, or top to bottom."""
    axis = 1 if vertical else 0
    side = image.shape[-1 - axis]
    boxes = target["boxes"].clone()
    boxes[:, [axis, axis + 2]] = side - boxes[:, [axis + 2, axis]]
    flip = F.vertical_flip if vertical else F.horizontal_flip
    masks = {"masks": flip(target["masks"])} if "masks" in target else {}
    return flip(image), {**target, "boxes": boxes, **masks}


def rotate(image, target, degrees):
    """Turned counter-clockwise about the centre, on the same canvas; the mean colour fills the corners.

    A box becomes the exact extent of the ellipse inscribed in it, turned: half sides (a, b) become
    sqrt(a² cos² + b² sin²), sqrt(a² sin² + b² cos²). Turning the corners would grow a box by 1.3 to 2.7 times at 10°,
    most of it background.
    """
    def turned(pixels, interpolation, fill=0):
        return F.pil_to_tensor(F.rotate(F.to_pil_image(pixels), degrees, interpolation, fill=fill))

    height, width = image.shape[-2:]
    image = turned(image, InterpolationMode.BILINEAR, MEAN_COLOUR)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    centre = torch.tensor([width / 2, height / 2])
    x, y = ((target["boxes"][:, :2] + target["boxes"][:, 2:]) / 2 - centre).unbind(1)
    middle = torch.stack([x * cos + y * sin, y * cos - x * sin], dim=1) + centre
    a2, b2 = ((target["boxes"][:, 2:] - target["boxes"][:, :2]) / 2).square().unbind(1)
    half = torch.stack([a2 * cos**2 + b2 * sin**2, a2 * sin**2 + b2 * cos**2], dim=1).sqrt()
    target = keep_visible({**target, "boxes": torch.cat([middle - half, middle + half], dim=1)}, (0, 0, width, height))
    if len(target.get("masks", ())):
        target["masks"] = torch.cat([turned(mask, InterpolationMode.NEAREST) for mask in target["masks"]])
    return image, target


def jitter_colour(image, brightness, contrast, saturation):
    """uint8 [3, h, w] with saturation, contrast and brightness multiplied by factors of 0 or more; 1 changes nothing.

    The three are linear in the colours, so they are one pass: brightness * (contrast * (saturation * (x - grey) + grey
    - mean) + mean), with the grey of each pixel and the mean grey of the picture. No hue, which costs ten times more.
    """
    pixels = image.to(torch.float32, memory_format=torch.contiguous_format)
    grey = sum(weight * channel for weight, channel in zip(GREY, pixels, strict=True))
    # whole numbers add up alike in any order, so the result does not depend on the number of threads
    mean = sum(weight * float(channel.sum(dtype=torch.int64)) for weight, channel in zip(GREY, image, strict=True))
    offset = brightness * (1 - contrast) * mean / grey.numel()
    gain = brightness * contrast
    pixels.mul_(gain * saturation).add_(grey.mul_(gain * (1 - saturation)).add_(offset + 0.5))
    return pixels.clamp_(0, 255).to(torch.uint8)

"""A batch made harder to read, on the device that holds it: other colours and erased patches, every object where it was."""
import torch

from dataset.augment import GREY, MEAN_COLOUR

STRENGTH = 0.5              # brightness, contrast and saturation are each multiplied by 1 - STRENGTH .. 1 + STRENGTH
GREY_SHARE = 0.2            # of the pictures lose their colours
PATCHES = 3                 # erased, with the mean colour, each with probability one half
PATCH_SIDE = 0.05, 0.2      # of the picture's sides


def strong_view(images, image_sizes):
    """uint8 [B, 3, H, W] of the same pictures in the same geometry, so that boxes need no change. All randomness is torch's, of the CPU.

    images, image_sizes   of a batch, on any device; the padding is left as it comes out, the network does not see it
    """
    count, device = len(images), images.device

    def draw(*shape):
        return torch.rand(*shape).to(device, non_blocking=True)

    brightness, contrast, saturation = 1 + STRENGTH * (2 * draw(3, count, 1, 1, 1) - 1)
    saturation = torch.where(draw(count, 1, 1, 1) < GREY_SHARE, 0.0, saturation)
    weights = torch.tensor(GREY).to(device, non_blocking=True)
    # as dataset.augment.jitter_colour; the padding is 0 and so adds nothing to the mean grey of a picture
    mean = (images.sum((2, 3), dtype=torch.int64) * weights).sum(1) / image_sizes.prod(1)
    pixels = images.float()
    grey = (pixels * weights[:, None, None]).sum(1, keepdim=True)
    pixels = brightness * (contrast * (saturation * (pixels - grey) + grey - mean[:, None, None, None]) + mean[:, None, None, None])
    pixels = (pixels + 0.5).clamp(0, 255).to(torch.uint8)

    sides = (PATCH_SIDE[0] + (PATCH_SIDE[1] - PATCH_SIDE[0]) * draw(count, PATCHES, 2)) * image_sizes[:, None]       # (h, w)
    first = draw(count, PATCHES, 2) * (image_sizes[:, None] - sides)
    sides = torch.where(draw(count, PATCHES, 1) < 0.5, sides, 0.0)
    down, right = (torch.arange(side, device=device) for side in images.shape[-2:])
    rows, columns = ((place >= first[..., axis, None]) & (place < (first + sides)[..., axis, None]) for axis, place in enumerate((down, right)))
    erased = (rows[..., :, None] & columns[..., None, :]).any(1, keepdim=True)
    colour = torch.tensor(MEAN_COLOUR, dtype=torch.uint8)[:, None, None].to(device, non_blocking=True)
    return torch.where(erased, colour, pixels)

"""From linear light to the JPEG of a surveillance camera: exposure, lens, noise, sharpening, codec, burnt-in text."""

import io

import cv2
import numpy as np
from PIL import Image

from camera import REFERENCE_WIDTH
from ground import noise
from shapes import warm

GLYPHS = {  # seven rows of five bits
    "0": "0E11131519110E",
    "1": "040C040404040E",
    "2": "0E11010204081F",
    "3": "1F02040201110E",
    "4": "02060A121F0202",
    "5": "1F101E0101110E",
    "6": "0608101E11110E",
    "7": "1F010204080808",
    "8": "0E11110E11110E",
    "9": "0E11110F01020C",
    "-": "0000001F000000",
    ":": "000C0C000C0C00",
    "|": "04040404040404",
    " ": "00000000000000",
    "P": "1E11111E101010",
    "T": "1F040404040404",
    "C": "0E11101010110E",
    "A": "0E1111111F1111",
    "M": "111B1515111111",
}


def expose(rng, linear, style):
    """Linear RGB float32 -> display RGB float32 0..255."""
    grey = linear[::8, ::8].mean(-1)
    target = (rng.uniform(*style["exposure"]) / 255) ** 2.2
    reference = np.quantile(grey, rng.uniform(0.4, 0.75))
    linear = linear * np.float32(target / max(reference, 1e-4))
    linear *= np.exp(warm(rng, style["white_balance"])).astype(np.float32)
    level = linear.mean(-1, keepdims=True)
    bright = np.clip(level - np.float32(rng.uniform(0.4, 0.9)), 0, 1)
    linear += np.float32(rng.uniform(0, 1)) * bright * (level - linear)  # what is over-exposed loses its colour
    shoulder = np.float32(rng.uniform(0.0, 0.25))
    linear = linear * (1 + shoulder) / (1 + shoulder * linear)
    table = np.linspace(0, 1, 4096, dtype=np.float32) ** (1 / rng.uniform(2.0, 2.5))
    contrast = rng.uniform(-0.1, 0.45)
    table = table + contrast * (table * table * (3 - 2 * table) - table)
    if rng.random() < 0.3:  # black is all that is darker than this
        toe = rng.uniform(0, 0.1)
        table = (table - toe) / (1 - toe)
    else:
        table = table * rng.uniform(0.94, 1.0) + rng.uniform(0.0, 0.06)
    table = table.clip(0, 1) * 255
    return table[np.clip(linear * 4095, 0, 4095).astype(np.int32)]


def motion(image, length, angle):
    """The image smeared along a line of so many pixels."""
    middle = int(length / 2) + 1
    kernel = np.zeros((2 * middle + 1, 2 * middle + 1), np.float32)
    ends = [(int(16 * (middle + s * length / 2 * np.cos(angle))), int(16 * (middle + s * length / 2 * np.sin(angle)))) for s in (-1, 1)]
    cv2.line(kernel, *ends, 1.0, 1, cv2.LINE_8, 4)
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE)


def lens(rng, image, style, pixel):
    """Blur, motion, veiling glare and falling light at the corners, in place of the ideal pinhole."""
    h, w = image.shape[:2]
    sigma = max(rng.uniform(*style["blur"]) * pixel, 0.25)
    across = rng.uniform(1, 2) if rng.random() < 0.5 else 1  # fewer columns are stored than shown
    image = cv2.GaussianBlur(image, (0, 0), across * sigma, sigmaY=sigma)
    if rng.random() < 0.12:
        image = motion(image, max(rng.uniform(1, 5) * pixel, 1), rng.uniform(0, np.pi))
    y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j].astype(np.float32)
    fall = 1 - rng.uniform(0, 0.16) * (x * x + y * y)
    slope = 1 + rng.normal(0, 0.06) * x + rng.normal(0, 0.06) * y
    image *= (fall * slope)[..., None]
    if rng.random() < 0.3:  # glare
        image += (
            rng.uniform(5, 45)
            * np.exp(-((x - rng.uniform(-1.2, 1.2)) ** 2 + (y - rng.uniform(-1.2, 1.2)) ** 2) / rng.uniform(0.2, 1.5))
        )[..., None]
    return image


def sensor(rng, image, style, pixel):
    """Noise, the camera's smoothing of it, sharpening with its halos."""
    h, w = image.shape[:2]
    level = rng.uniform(0, style["noise"])
    image = image + (level * rng.standard_normal((h, w), dtype=np.float32))[..., None]
    chroma = rng.uniform(0, 1.4)
    image += chroma * (
        noise(rng, h, w, rng.uniform(6, 30) * pixel)[..., None] * rng.normal(0, 1, 3).astype(np.float32)
        + noise(rng, h, w, rng.uniform(6, 30) * pixel)[..., None] * rng.normal(0, 1, 3).astype(np.float32)
    )
    if rng.random() < 0.6:  # the camera smooths colour more than brightness
        grey = image.mean(-1, keepdims=True)
        image = grey + cv2.GaussianBlur(image - grey, (0, 0), max(rng.uniform(1, 5) * pixel, 0.4))
    radius = max(rng.uniform(0.8, 2.2) * pixel, 0.5)
    amount = rng.uniform(*style["sharpen"])
    limit = rng.uniform(20, 130)
    grey = image.mean(-1)
    image += np.clip(amount * (grey - cv2.GaussianBlur(grey, (0, 0), radius)), -limit, limit)[..., None]
    return np.clip(image, 0, 255)


def jpeg(image, luma, chroma):
    """uint8 RGB through a JPEG whose quantisation steps rise from fine to `luma`, `chroma`: flat areas stay exact."""
    u, v = np.mgrid[:8, :8]
    rise = np.clip((u + v) / 5, 0, 1.6) + 0.02 * (u + v)
    tables = [np.clip(3 + step * rise, 1, 255).astype(int).ravel().tolist() for step in (luma, chroma)]
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", qtables=tables, subsampling=2)
    return np.array(Image.open(stream))


def codec(rng, image, pixel):
    """uint8 -> uint8 through a video codec: macroblocks that lose their texture, soft colour, block edges."""
    h, w = image.shape[:2]
    steps = np.exp(rng.uniform(np.log(14), np.log(75)))
    good = jpeg(image, steps, 1.5 * steps)
    if rng.random() < 0.25:
        return good
    poor = jpeg(image, steps * rng.uniform(2, 4.5), 3 * steps)
    block = 16 if pixel > 0.7 else 8
    grid = noise(rng, h // block + 1, w // block + 1, 1.0) * 0.6 + noise(rng, h // block + 1, w // block + 1, 12.0)
    share = np.kron((grid > rng.uniform(-1.2, 2.0)).astype(np.uint8), np.ones((block, block), np.uint8))[:h, :w, None]
    return np.where(share, good, poor)


def bitmap(rng, text, size):
    """Mask of text `size` pixels high in a coarse bitmap face; a tilde stands for an invented ideograph."""
    glyphs = []
    for letter in text:
        if letter == "~":
            glyph = np.zeros((9, 11), np.uint8)
            for row in rng.choice(9, rng.integers(2, 5), replace=False):
                glyph[row, rng.integers(0, 3) : rng.integers(7, 11)] = 255
            for column in rng.choice(10, rng.integers(1, 4), replace=False):
                glyph[rng.integers(0, 3) : rng.integers(6, 10), column] = 255
        else:
            bits = (
                np.array([list(f"{int(GLYPHS[letter][k : k + 2], 16):05b}") for k in range(0, 14, 2)], np.uint8) * 255
            )
            glyph = np.pad(bits, 1)
        glyphs.append(np.pad(glyph, ((0, 0), (0, 1))))
    mask = np.hstack(glyphs)
    if rng.random() < 0.6:  # a bold face
        mask = cv2.resize(mask, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
        mask[:, 1:] |= mask[:, :-1]
    scale = size / mask.shape[0]
    return cv2.resize(mask, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)


def _texts(rng):
    """[(text, (left, top))] of a frame, places as shares of its width and height."""
    texts = []
    if rng.random() < 0.92:
        limits = [(1, 13), (1, 29), (1970, 2030), (0, 24), (0, 60), (0, 60)]
        when = [rng.integers(*pair) for pair in limits]
        text = "{:02d}-{:02d}-{:04d} ~~~ {:02d}:{:02d}:{:02d}".format(*when)
        texts.append((text, (rng.uniform(0.01, 0.06), rng.uniform(0.01, 0.06))))
    if rng.random() < 0.45:
        pan, year, number = rng.integers(0, 360), rng.integers(2000, 2040), rng.integers(1, 64)
        text = rng.choice([f"P{pan}|T{rng.integers(0, 90)}", f"{year}", f"CAM {number:02d}"])
        texts.append((text, (rng.uniform(0.05, 0.6), rng.uniform(0.8, 0.93))))
    return texts


def stamp(rng, image, magnification):
    """Burns a time stamp, and sometimes a position text, into the uint8 picture in place: as much of them as shows in a window of
    a frame `magnification` times as wide and high, which lies nearer its upper left than elsewhere. Returns which pixels [H,W] they cover.
    """
    covered = np.zeros(image.shape[:2], bool)
    size = np.array(image.shape[1::-1])
    frame = size * magnification
    corner = np.maximum(frame - size, 0) * rng.uniform(0, 1, 2) ** 2
    for text, place in _texts(rng):
        mask = bitmap(rng, text, max(rng.uniform(36, 58) * frame[0] / REFERENCE_WIDTH, 9))
        by_letter, outlined = rng.random() < 0.5, rng.random() < 0.6
        threshold = rng.uniform(95, 160)
        edge = cv2.dilate(mask, np.ones((3, 3), np.uint8)) if outlined else mask
        left, top = np.round(place * frame - corner).astype(int)
        letters = np.linspace(0, mask.shape[1], len(text) + 1 if by_letter else 2).astype(int)
        for start, end in zip(letters[:-1], letters[1:], strict=True):
            x1, y1 = np.clip([left + start, top], 0, size)
            x2, y2 = np.clip([left + end, top + mask.shape[0]], 0, size)
            if x2 > x1 and y2 > y1:
                rows, columns = slice(y1 - top, y2 - top), slice(x1 - left, x2 - left)
                part = image[y1:y2, x1:x2]
                black = part.mean() > threshold
                part[edge[rows, columns] > 0] = 255 if black else 0
                part[mask[rows, columns] > 0] = 0 if black else 255
                covered[y1:y2, x1:x2] |= edge[rows, columns] > 0
    return covered


def photograph(rng, linear, style, magnification=1.0):
    """Linear RGB float32 [H,W,3] of the scene -> uint8 RGB as the camera would store it, and the pixels [H,W] under its texts. Blur, halos, blocks and texts are as many
    pixels large as in a whole frame that shows things as large: a picture of magnification 4 is a window of one four times as wide.
    """
    pixel = linear.shape[1] * magnification / REFERENCE_WIDTH
    image = lens(rng, expose(rng, linear, style), style, pixel)
    image = sensor(rng, image, style, pixel).astype(np.uint8)
    if rng.random() < 0.015:
        image = np.repeat(image.mean(-1, keepdims=True).astype(np.uint8), 3, -1)
    covered = stamp(rng, image, magnification)
    return codec(rng, image, pixel), covered

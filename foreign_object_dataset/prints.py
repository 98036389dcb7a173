"""What is printed, woven or punched into the surfaces of large things: letters, knit, stripes, holes. In pixels of the picture."""

import cv2
import numpy as np

from sensor import GLYPHS, bitmap


def _pattern(rng, along, across, reach):
    """Mask [h,w] in the frame of a print: along and across are mm from its middle, `reach` mm its half length."""
    kind = rng.choice(["letters", "knit", "stripes", "holes"], p=[0.06, 0.38, 0.28, 0.28])
    if kind == "letters":
        text = "".join(rng.choice([*GLYPHS], rng.integers(2, 9)))
        letters = bitmap(rng, text, rng.uniform(9, 30))
        mm = 2 * reach / letters.shape[1]  # of one of its pixels
        column, row = along / mm + letters.shape[1] / 2, across / mm + letters.shape[0] / 2
        return cv2.remap(letters, column.astype(np.float32), row.astype(np.float32), cv2.INTER_LINEAR) / 255
    turns = 2 * np.pi / np.exp(rng.uniform(np.log(2.5), np.log(14), 2))  # radians a mm
    wave = np.cos(turns[0] * along)
    if kind != "stripes":
        wave = wave + np.cos(turns[1] * across)
    level = {"knit": rng.uniform(-0.3, 0.3), "stripes": rng.uniform(-0.5, 0.5), "holes": rng.uniform(0.6, 1.3)}[kind]
    inside = (np.abs(along) < reach) & (np.abs(across) < reach * rng.uniform(0.2, 1))
    return np.clip(2 * (wave - level) + 0.5, 0, 1) * inside


def prints(rng, pixels, camera):
    """Factor [H,W] on the light of a large thing whose mesh has the picture points pixels [N,2]: about 1 but for its prints."""
    factor = np.ones((camera.height, camera.width), np.float32)
    pixels = pixels[((pixels > 0) & (pixels < [camera.width, camera.height])).all(1)]
    for _ in range(rng.poisson(1.5) if len(pixels) else 0):
        middle, angle = pixels[rng.integers(len(pixels))], rng.uniform(0, np.pi)
        reach, tone = np.exp(rng.uniform(np.log(12), np.log(120))), np.exp(rng.choice([-1, 1]) * rng.uniform(0.1, 0.9))
        span = 1.5 * reach * camera.scale
        x1, y1 = np.clip(middle - span, 0, [camera.width, camera.height]).astype(int)
        x2, y2 = np.clip(middle + span, 0, [camera.width, camera.height]).astype(int)
        if x2 - x1 < 2 or y2 - y1 < 2:
            continue
        y, x = np.mgrid[y1:y2, x1:x2]
        x, y = (x - middle[0]) / camera.scale, (y - middle[1]) / camera.scale
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        factor[y1:y2, x1:x2] *= 1 + (tone - 1) * _pattern(rng, along, across, reach).astype(np.float32)
    return factor

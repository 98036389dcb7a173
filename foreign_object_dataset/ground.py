"""The road: asphalt and what is on it flat, painted on a map of the ground and then seen through the camera."""

import cv2
import numpy as np

from shapes import rgb, warm


def noise(rng, height, width, grain):
    """Smooth unit noise [height,width] float32 whose grains are about `grain` pixels wide."""
    grain = max(grain, 1.0)
    if grain >= 8:  # coarse noise needs no fine interpolation
        quarter = noise(rng, height // 4 + 2, width // 4 + 2, grain / 4)
        return cv2.resize(quarter, (quarter.shape[1] * 4, quarter.shape[0] * 4), interpolation=cv2.INTER_LINEAR)[
            :height, :width
        ]
    small = rng.standard_normal((int(height / grain) + 4, int(width / grain) + 4), dtype=np.float32)
    if grain == 1.0:
        return small[:height, :width]
    size = int(small.shape[1] * grain) + 1, int(small.shape[0] * grain) + 1
    return cv2.resize(small, size, interpolation=cv2.INTER_CUBIC)[:height, :width] * 1.25


def cells(rng, height, width, spacing, wobble=0.35):
    """Voronoi cells: labels int32 [height,width] of random seeds about `spacing` pixels apart, with wavy borders."""
    seeds = np.full((height, width), 255, np.uint8)
    count = max(int(height * width / spacing**2), 2)
    seeds[rng.integers(0, height, count), rng.integers(0, width, count)] = 0
    labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)[1]
    if wobble == 0:
        return labels
    shift = [
        (noise(rng, height, width, max(spacing * 0.5, 2)) + 0.35 * noise(rng, height, width, max(spacing * 0.12, 2)))
        * spacing
        * wobble
        * 0.25
        for _ in range(2)
    ]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return cv2.remap(
        labels.astype(np.float32), x + shift[0], y + shift[1], cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE
    ).astype(np.int32)


def borders(labels, width):
    """Soft lines [h,w] 0..1, about `width` pixels wide, between different labels."""
    edge = np.zeros(labels.shape, np.float32)
    edge[:, 1:] = labels[:, 1:] != labels[:, :-1]
    edge[1:] = np.maximum(edge[1:], labels[1:] != labels[:-1])
    return np.clip(cv2.GaussianBlur(edge, (0, 0), max(width / 2, 0.4)) * max(width, 1) * 1.2, 0, 1)


def blur(image, sigma):
    """Gaussian blur; a wide one works on a smaller copy."""
    factor = int(sigma // 3)
    if factor < 2:
        return cv2.GaussianBlur(image, (0, 0), max(sigma, 0.4))
    size = image.shape[1], image.shape[0]
    small = cv2.resize(image, (max(size[0] // factor, 1), max(size[1] // factor, 1)), interpolation=cv2.INTER_AREA)
    return cv2.resize(cv2.GaussianBlur(small, (0, 0), sigma / factor), size, interpolation=cv2.INTER_LINEAR)


def step(value, softness):
    return np.clip(value / softness + 0.5, 0, 1)


class Ground:
    """albedo [h,w,3] linear and relief [h,w] (height) on a map of `scale` pixels a millimetre from corner `origin`."""

    def __init__(self, rng, camera, style):
        corners = camera.on_ground(
            np.array([[0, 0], [camera.width, 0], [camera.width, camera.height], [0, camera.height]])
        )
        low, high = corners.min(0), corners.max(0)
        self.rng, self.style, self.camera, self.origin = rng, style, camera, low
        self.scale = float(
            camera.scale * min(1.0, np.sqrt(2.6 * camera.width * camera.height / np.prod((high - low) * camera.scale)))
        )
        self.width, self.height = (np.ceil((high - low) * self.scale).astype(int) + 1).tolist()
        self.asphalt()

    def noise(self, millimetres):
        return noise(self.rng, self.height, self.width, millimetres * self.scale)

    def asphalt(self):
        rng, h, w = self.rng, self.height, self.width
        coarse = float(np.exp(rng.uniform(np.log(0.45), np.log(1.3)))) * self.style["grain"]
        layers = [self.noise(size * coarse) for size in (0.8, 1.7, 3.6, 7.5)]
        weights = rng.uniform([0.0, 0.5, 0.4, 0.0], [0.6, 1.0, 1.0, 0.5]).tolist()
        self.relief = sum(weight * layer for weight, layer in zip(weights, layers, strict=True))
        contrast = rng.uniform(0.04, 0.18)
        tone = contrast * (layers[1] + 0.7 * layers[2]) + rng.uniform(0.02, 0.10) * layers[0]
        if rng.random() < self.style["stones"]:  # aggregate laid bare: each stone its own grey
            labels = cells(rng, h, w, max(rng.uniform(3.0, 8.0) * coarse * self.scale, 2.0), 0.2)
            shades = (rng.standard_normal(int(labels.max()) + 1) * rng.uniform(0.1, 0.3)).astype(np.float32)
            tone = 0.6 * tone + shades[labels] - 0.25 * borders(labels, 1.2 * self.scale)
        tone += (
            rng.uniform(0.2, 0.9) * np.maximum(layers[2] - rng.uniform(1.1, 2.4), 0) * (layers[1] > 0.2)
        )  # bright chips
        tone -= rng.uniform(0, 0.6) * np.maximum(-layers[2] - 0.8 * layers[1] - rng.uniform(1.4, 2.6), 0)  # pits
        for size, strength in ((45, 0.05), (180, 0.06), (700, 0.08)):
            tone += rng.uniform(0, strength) * self.noise(size)
        grey = rng.uniform(*self.style["grey"])
        colour = np.array(rgb(*(grey + warm(rng, self.style["tint"]))), np.float32)
        hue = self.noise(rng.uniform(2, 6))[..., None] * warm(rng, 0.015).astype(np.float32)
        hue += self.noise(rng.uniform(150, 500))[..., None] * warm(rng, 0.016).astype(np.float32)
        self.albedo = np.exp(tone[..., None] + hue) * colour

    def coordinates(self):
        """Millimetres x, y [h,w] of every map pixel."""
        x = float(self.origin[0]) + (np.arange(self.width, dtype=np.float32) + 0.5) / self.scale
        y = float(self.origin[1]) + (np.arange(self.height, dtype=np.float32) + 0.5) / self.scale
        return np.meshgrid(x, y)

    def map_points(self, points):
        return (np.asarray(points) - self.origin) * self.scale

    def outline(self, polygon, soft=1.0, ragged=0.0, ragged_size=20.0):
        """Soft mask [h,w] of a polygon [N,2] in millimetres, its edge displaced by noise of `ragged` millimetres."""
        mask = np.zeros((self.height, self.width), np.uint8)
        cv2.fillPoly(mask, [np.round(np.clip(self.map_points(polygon), -30000, 30000)).astype(np.int32)], 255)
        if ragged == 0:
            return blur(mask, soft * self.scale).astype(np.float32) / 255
        reach = max(ragged * self.scale, 0.7)
        field = blur(mask, reach).astype(np.float32) / 255
        edge = 4 * field * (1 - field)
        return step(field - 0.5 + edge * (0.16 * self.noise(ragged_size) + 0.1 * self.noise(3)), max(0.5 / reach, 0.05))

    def cover(self, mask, colour):
        self.albedo += mask[..., None] * (colour - self.albedo)

    def paint(self, polygon, colour, crackle, worn):
        """Lane paint: white or yellow, ragged, cracked into cells, worn through to the asphalt."""
        rng = self.rng
        mask = self.outline(polygon, ragged=rng.uniform(1.5, 6), ragged_size=rng.uniform(8, 40))
        if mask.max() == 0:
            return
        ys, xs = np.nonzero(mask > 0)
        part = slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1)
        mask = mask[part]
        h, w = mask.shape
        local = [noise(rng, h, w, size * self.scale) for size in (4, 1.5, 60, 50)]
        if crackle > 0:
            size = rng.uniform(11, 32) * self.scale
            lines = borders(cells(rng, h, w, max(size, 4), 0.6), rng.uniform(1.0, 2.8) * self.scale)
            if rng.random() < 0.6:
                lines = np.maximum(
                    lines,
                    0.8 * borders(cells(rng, h, w, max(size * 0.45, 3), 0.6), 1.2 * self.scale) * step(local[3], 0.5),
                )
            mask = mask * (1 - crackle * np.clip(lines * np.clip(0.95 + 0.4 * local[2], 0.2, 1.3), 0, 1))
        gone = step(local[0] * 0.7 + local[1] * 0.4 + local[2] * 0.6 + self.relief[part] * -0.25 - worn, 0.5)
        mask = (mask * (1 - gone))[..., None]
        dirt = np.exp(0.05 * local[1] + 0.06 * local[2])[..., None]
        here = self.albedo[part]
        grit = 0.75 * np.asarray(colour, np.float32) * dirt + 0.25 * here / here.mean() * colour
        here += mask * (grit - here)
        self.relief[part] *= 1 - 0.6 * mask[..., 0]

    def crack(self, start, heading, length, thickness):
        """One crack that wanders and forks."""
        rng, map_scale = self.rng, self.scale
        lines, todo = [], [(np.asarray(start, float), heading, length, thickness)]
        while todo and len(lines) < 12:
            at, heading, rest, thick = todo.pop()
            count = max(int(rest / 9), 3)
            bends = heading + np.cumsum(rng.normal(0, 0.16, count)) + rng.normal(0, 0.45, count)
            points = at + np.cumsum(np.stack([np.cos(bends), np.sin(bends)], 1) * 9, 0)
            lines.append((points, thick))
            if rest > 120 and rng.random() < 0.8:
                k = rng.integers(count // 4, count)
                todo.append(
                    (
                        points[k],
                        heading + rng.choice([-1, 1]) * rng.uniform(0.4, 1.3),
                        rest * rng.uniform(0.2, 0.6),
                        thick * 0.7,
                    )
                )
        mask = np.zeros((self.height, self.width), np.uint8)
        for points, thick in lines:
            corners = np.round(np.clip(self.map_points(points), -2000, 30000) * 16).astype(np.int32)
            widths = np.maximum(np.round(thick * map_scale * rng.uniform(0.4, 1.4, len(corners))), 1).astype(int)
            for a, b, wide in zip(corners[:-1], corners[1:], widths[1:], strict=True):
                cv2.line(mask, a.tolist(), b.tolist(), int(rng.integers(120, 255)), int(wide), cv2.LINE_AA, 4)
        soft = cv2.GaussianBlur(mask, (0, 0), max(0.35 * map_scale, 0.4)).astype(np.float32) / 255
        self.albedo *= (1 - rng.uniform(0.4, 0.8) * soft)[..., None]
        self.relief -= 2 * soft

    def manhole(self, centre, radius):
        rng = self.rng
        x, y = self.coordinates()
        x, y = x - float(centre[0]), y - float(centre[1])
        far = np.hypot(x, y)
        if far.min() > radius * 1.3:
            return
        pitch, turn = rng.uniform(9, 22), rng.uniform(0, np.pi)
        cos, sin = float(np.cos(turn)), float(np.sin(turn))
        u, v = x * cos + y * sin, y * cos - x * sin
        bumps = np.sin(u * 2 * np.pi / pitch) * np.sin(v * 2 * np.pi / pitch)
        if rng.random() < 0.4:
            bumps = np.maximum(bumps, np.sin(far * 2 * np.pi / (pitch * 2)))
        iron = np.array(rgb(*(rng.uniform(45, 105) + warm(rng, 3))), np.float32)
        tone = np.exp(0.35 * np.clip(bumps * 2, -1, 1) + 0.15 * self.noise(3) + 0.2 * self.noise(60))[..., None]
        self.cover(step(radius * 1.1 - far + self.noise(90) + self.noise(12), 4), iron * 0.35 * tone)
        self.cover(step(radius - far, 2), iron * tone)
        self.cover(step(rng.uniform(3, 7) - abs(far - radius), 3) * 0.9, iron * 0.15)
        self.relief[far < radius] = 1.5 * bumps[far < radius]

    def blotch(self, centre, size, colour_factor, sharp):
        """A stain: multiplies the road's colour inside an irregular blob."""
        x, y = self.coordinates()
        far = np.hypot(x - float(centre[0]), (y - float(centre[1])) * self.rng.uniform(0.5, 2)) / size
        mask = step(1 - far + 0.5 * self.noise(size * 0.5) + 0.15 * self.noise(size * 0.12), sharp)[..., None]
        self.albedo *= 1 + mask * (np.asarray(colour_factor, np.float32) - 1)

    def seen(self, field):
        """The map's field as the camera sees it."""
        to_ground = np.array([[1 / self.scale, 0, self.origin[0]], [0, 1 / self.scale, self.origin[1]], [0, 0, 1]])
        half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])
        matrix = np.linalg.inv(half) @ self.camera.ground_homography() @ to_ground @ half
        return cv2.warpPerspective(
            field,
            matrix,
            (self.camera.width, self.camera.height),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT,
        )

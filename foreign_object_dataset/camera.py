"""A pinhole camera above the road and the light on it. World in millimetres, z up, north is up in the picture."""

from dataclasses import dataclass

import cv2
import numpy as np

from shapes import turn

REFERENCE_WIDTH = 2560  # all sizes in pixels are meant for a picture of this width


@dataclass
class Camera:
    width: int
    height: int
    scale: float  # pixels per millimetre at the middle of the picture
    position: np.ndarray  # [3]
    rows: np.ndarray  # [3,3]: right, down, forward
    focal: float  # pixels

    def project(self, points):
        """World points [N,3] -> picture x, y [N,2] (continuous edges: the top left corner is 0, 0) and depth [N]."""
        local = (np.asarray(points) - self.position) @ self.rows.T
        depth = local[:, 2]
        flat = self.focal * local[:, :2] / np.maximum(depth, 1e-3)[:, None]
        return flat + [self.width / 2, self.height / 2], depth

    def on_ground(self, pixels):
        """Picture points [N,2] -> ground points [N,2]; points at or above the horizon come back far away."""
        rays = np.c_[(np.asarray(pixels, float) - [self.width / 2, self.height / 2]) / self.focal, np.ones(len(pixels))]
        rays = rays @ self.rows
        reach = self.position[2] / np.maximum(-rays[:, 2], 0.05)
        return self.position[:2] + rays[:, :2] * reach[:, None]

    def ground_homography(self):
        """3x3 matrix from ground (x, y, 1) to picture."""
        corners = np.array([[0, 0], [self.width, 0], [self.width, self.height], [0, self.height]], np.float32)
        return cv2.getPerspectiveTransform(self.on_ground(corners).astype(np.float32), corners)


def make_camera(rng, width, height, style, magnification=1.0):
    pixel = width / REFERENCE_WIDTH
    scale = magnification * pixel * style["scale"] * float(np.exp(rng.normal(0, style["scale_spread"])))
    field = np.radians(rng.uniform(*style["field_of_view"]))
    focal = float(magnification * width / 2 / np.tan(field / 2))  # a close picture is a window of the frame, not a nearer camera
    up_angle = np.arctan(height / 2 / focal)
    tilt = min(np.radians(rng.uniform(*style["tilt"])), np.radians(64) - up_angle)
    rows = np.array([[1, 0, 0], [0, -np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), -np.cos(tilt)]])
    roll = turn("z", np.radians(rng.normal(0, 5)))
    return Camera(width, height, scale, -rows[2] * focal / scale, roll @ rows, focal)


@dataclass
class Light:
    direction: np.ndarray  # [3] unit, from the ground to the sun
    sun: np.ndarray  # [3] linear RGB falling on a surface that faces the sun
    sky: np.ndarray  # [3] linear RGB from all around
    softness: float  # penumbra: width of a shadow's edge per height of the edge above the ground
    lobes: np.ndarray  # [K,5] surroundings mirrored in metal: direction [3], sharpness, strength

    def surroundings(self, direction, ground):
        """What a mirror sees in direction [N,3]: [N,3]; ground is the radiance of the road, [3] or [N,3]."""
        up = np.clip(direction[:, 2:] * 4 + 0.3, 0, 1)
        bright = np.exp((direction @ self.lobes[:, :3].T - 1) * self.lobes[:, 3]) @ self.lobes[:, 4]
        dim = 1 - 0.75 * np.exp(-(((direction[:, 2:] - 0.12) / 0.16) ** 2))  # houses and trees along the horizon
        return up * self.sky * dim * np.maximum(0.55 + bright[:, None], 0.1) + (1 - up) * ground


def make_light(rng, style):
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(*style["sun_elevation"]))
    direction = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    warmth = rng.normal(style["warmth"], 0.06)
    sunny = rng.random() < style["sunny"]
    if sunny:
        sun = np.array([1 + warmth, 1.0, 1 - warmth]) * rng.uniform(1.0, 1.6)
        hard = rng.random() < 0.35  # a sky so dim that shadows are black, and as blue as it is
        blue = rng.uniform(0, 0.7) if hard else rng.uniform(0, 0.3)
        sky = np.array([1 - blue, 1.0, 1 + blue * 1.3]) * (np.exp(rng.uniform(np.log(0.015), np.log(0.1))) if hard else rng.uniform(0.08, 0.5))
        softness = rng.uniform(0.01, 0.12)
    else:
        sun = np.array([1.0, 1.0, 1.0]) * rng.uniform(0.0, 0.5)
        sky = np.array([1 + warmth / 2, 1.0, 1 - warmth / 2]) * rng.uniform(0.7, 1.0)
        softness = rng.uniform(0.4, 1.2)
    count = 7
    lobes = rng.normal(0, 1, (count, 3))
    lobes[:, 2] = abs(lobes[:, 2])
    lobes /= np.linalg.norm(lobes, axis=1, keepdims=True)
    lobes = np.c_[lobes, rng.uniform(3, 60, count), rng.uniform(-0.3, 3.5, count) * np.exp(rng.normal(0.2, 0.6))]
    return Light(direction, sun, sky, softness, lobes)

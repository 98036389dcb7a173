"""Small 3-D shapes built in numpy: millimetres, z up, the ground is z = 0.

A Mesh is a soup of quads (a triangle repeats its last corner), each face with its own material.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np


class Material(NamedTuple):
    """How a face looks: albedo is linear RGB 0..1 (more where metal flashes); metal 0..1 mixes diffuse with mirror; gloss is the Blinn exponent;
    sheen the strength of the reflection of what is not metal; two_sided faces are seen from behind as well.
    """

    albedo: tuple
    metal: float = 0.0
    gloss: float = 20.0
    sheen: float = 0.04
    two_sided: bool = False


def rgb(red, green, blue):
    """Display colour 0..255 to linear 0..1."""
    return tuple((np.array([red, green, blue], np.float64).clip(0, 255) / 255) ** 2.2)


def warm(rng, spread):
    """Random offsets of red, green, blue: mostly between yellow and blue, as light and stone vary."""
    temperature, green = rng.normal(0, spread), rng.normal(0, 0.3 * spread)
    return np.array([temperature, green, -temperature])


@dataclass
class Mesh:
    points: np.ndarray  # [V,3] millimetres
    faces: np.ndarray  # [F,4] rows of points
    albedo: np.ndarray  # [F,3] linear RGB
    surface: np.ndarray  # [F,4] metal, gloss, sheen, two_sided

    def moved(self, offset):
        return replace(self, points=self.points + np.asarray(offset, np.float64))

    def turned(self, matrix):
        return replace(self, points=self.points @ np.asarray(matrix).T)

    def scaled(self, factor):
        return replace(self, points=self.points * np.asarray(factor, np.float64))

    def dropped(self, sink=0.0):
        """Resting on the ground: lowest point at z = -sink."""
        return self.moved([0, 0, -self.points[:, 2].min() - sink])


def mesh(points, faces, material):
    faces = np.asarray(faces, np.int64)
    count = len(faces)
    surface = np.tile(np.array([material.metal, material.gloss, material.sheen, material.two_sided], float), (count, 1))
    return Mesh(np.asarray(points, float), faces, np.tile(np.array(material.albedo, float), (count, 1)), surface)


def join(meshes):
    offsets = np.cumsum([0] + [len(m.points) for m in meshes[:-1]])
    return Mesh(
        np.concatenate([m.points for m in meshes]),
        np.concatenate([m.faces + o for m, o in zip(meshes, offsets, strict=True)]),
        np.concatenate([m.albedo for m in meshes]),
        np.concatenate([m.surface for m in meshes]),
    )


def turn(axis, angle):
    """Rotation matrix about "x", "y" or "z", radians, right-handed."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array(
        {
            "x": [[1, 0, 0], [0, c, -s], [0, s, c]],
            "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
            "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
        }[axis]
    )


def _grid_faces(rings, sides, closed):
    ring = np.arange(rings - 1)[:, None] * sides
    side = np.arange(sides if closed else sides - 1)[None]
    after = (side + 1) % sides
    return np.stack([ring + side, ring + after, ring + sides + after, ring + sides + side], -1).reshape(-1, 4)


def tube(path, radius, sides, material, caps=True, flat=1.0, up=None):
    """Sweep of a regular polygon along path [N,3]; radius is one number or [N]; flat squeezes the second frame axis."""
    path = np.asarray(path, float)
    radius = np.broadcast_to(np.asarray(radius, float), len(path))
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True) + 1e-12
    normal = np.array([0.0, 0.0, 1.0]) if up is None else np.asarray(up, float)
    if abs(tangent[0] @ normal) > 0.9:
        normal = np.array([1.0, 0.0, 0.0])
    frames = []
    for t in tangent:
        normal = normal - t * (t @ normal)
        normal = normal / (np.linalg.norm(normal) + 1e-12)
        frames.append((normal, np.cross(t, normal)))
    frames = np.array(frames)
    angle = np.arange(sides) * 2 * np.pi / sides
    ring = np.cos(angle)[None, :, None] * frames[:, None, 0] + flat * np.sin(angle)[None, :, None] * frames[:, None, 1]
    points = (path[:, None] + radius[:, None, None] * ring).reshape(-1, 3)
    faces = _grid_faces(len(path), sides, closed=True)
    if not caps:
        return mesh(points, faces, material)
    points = np.concatenate([points, path[[0, -1]]])
    k, last, after = np.arange(sides), (len(path) - 1) * sides, (np.arange(sides) + 1) % sides
    start = np.stack([after, k, np.full(sides, len(points) - 2), np.full(sides, len(points) - 2)], 1)
    end = np.stack([last + k, last + after, np.full(sides, len(points) - 1), np.full(sides, len(points) - 1)], 1)
    return mesh(points, np.concatenate([faces, start, end]), material)


def revolve(profile, sides, material):
    """Body of revolution about x from profile [N,2] of (x, radius), given from the high-x end to the low-x end."""
    profile = np.asarray(profile, float)
    angle = np.arange(sides) * 2 * np.pi / sides
    y, z = profile[:, 1:2] * np.cos(angle), profile[:, 1:2] * np.sin(angle)
    points = np.stack([np.broadcast_to(profile[:, :1], y.shape), y, z], -1).reshape(-1, 3)
    return mesh(points, _grid_faces(len(profile), sides, closed=True)[:, ::-1], material)


def sheet(section, length, segments, material):
    """Thin two-sided sheet: the open polyline section [N,2] of (y, z) extruded along x, centred."""
    section = np.asarray(section, float)
    x = np.linspace(-length / 2, length / 2, segments + 1)
    points = np.concatenate(
        [np.repeat(x[:, None, None], len(section), 1), np.broadcast_to(section, (len(x), *section.shape))], -1
    ).reshape(-1, 3)
    return mesh(points, _grid_faces(len(x), len(section), closed=False), material._replace(two_sided=True))


def slab(outline, height, material):
    """Star-shaped outline [N,2] counter-clockwise standing on z = 0, with a top and walls."""
    outline = np.asarray(outline, float)
    n, middle = len(outline), outline.mean(0)
    points = np.concatenate([np.c_[outline, np.zeros(n)], np.c_[outline, np.full(n, height)], [[*middle, height]]])
    k, after = np.arange(n), (np.arange(n) + 1) % n
    walls = np.stack([k, after, n + after, n + k], 1)
    top = np.stack([n + k, n + after, np.full(n, 2 * n), np.full(n, 2 * n)], 1)
    return mesh(points, np.concatenate([walls, top]), material)


def blob(radii, material, rings=8, sides=12, rng=None, bump=0.0):
    """Ellipsoid, made irregular by bump (relative)."""
    theta = np.linspace(0.02, np.pi - 0.02, rings)[:, None]
    phi = np.arange(sides)[None] * 2 * np.pi / sides
    unit = np.stack([np.cos(theta) + 0 * phi, np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi)], -1)
    if bump:
        unit = unit * (1 + bump * rng.standard_normal((rings, sides, 1)))
    return mesh(
        (unit * np.asarray(radii, float)).reshape(-1, 3), _grid_faces(rings, sides, closed=True)[:, ::-1], material
    )


def box(size, material):
    """Cuboid of size (x, y, z) on z = 0, centred in x and y; long sides are cut so that depth sorting works."""
    x, y, z = size
    count = int(np.clip(x / max(y, z, 1e-6), 1, 24))
    path = np.stack([np.linspace(-x / 2, x / 2, count + 1), np.zeros(count + 1), np.full(count + 1, z / 2)], 1)
    square = tube(path, np.sqrt(0.5), 4, material)
    square.points -= [0, 0, z / 2]
    square = square.turned(turn("x", np.pi / 4))
    square.points *= [1, y, z]
    return square.moved([0, 0, z / 2])


def smooth(points, count):
    """Catmull-Rom curve through points [N,3] with count points between neighbours."""
    p = np.asarray(points, float)
    p = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    t = np.linspace(0, 1, count, endpoint=False)[:, None]
    pieces = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p[:-3], p[1:-2], p[2:-1], p[3:], strict=True)
    ]
    return np.concatenate([*pieces, p[-2:-1]])

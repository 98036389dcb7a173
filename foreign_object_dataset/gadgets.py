"""Things that are like nothing in particular: parts of devices put together at random. Sizes in millimetres.

Whatever has steel, black plastic or yellow in it and is none of the classes; nobody can render all that lies and stands on a road.
"""

import numpy as np

from shapes import Material, blob, box, join, rgb, smooth, tube, turn

BRIGHT = [[235, 140, 30], [225, 200, 40], [200, 40, 40], [40, 110, 190], [60, 150, 80], [225, 225, 220]]


def _material(rng):
    kind = rng.choice(["black", "steel", "grey", "bright"], p=[0.35, 0.25, 0.15, 0.25])
    if kind == "bright":
        return Material(rgb(*(np.array(BRIGHT[rng.integers(len(BRIGHT))]) * rng.uniform(0.6, 1.1))), 0.0, rng.uniform(8, 60))
    level = {"black": rng.uniform(12, 50), "steel": rng.uniform(60, 230), "grey": rng.uniform(60, 220)}[kind]
    return Material(rgb(*np.full(3, level)), rng.uniform(0.6, 0.9) if kind == "steel" else 0.0, rng.uniform(8, 60))


def spring(length, radius, wire, material):
    """A coil along x, from the origin."""
    a = np.linspace(0, 2 * np.pi * length / (3.2 * wire), int(12 * length / (3.2 * wire)))
    return tube(np.stack([length * a / a[-1], radius * np.cos(a), radius * np.sin(a)], 1), wire, 5, material)


def grip(length, radius, ribs, material):
    """A ribbed rod along x, from the origin: a handle, a sleeve, a bellows."""
    x = np.linspace(0, length, 4 * ribs)
    return tube(np.stack([x, 0 * x, 0 * x], 1), radius * (1 - 0.22 * (np.arange(4 * ribs) % 4 < 2)), 14, material)


def grating(rng, size, material):
    """A plate or frame of bars about the origin, size (x, y, z)."""
    x, y, z = size
    count = rng.integers(3, 8)
    bar = box([x, y * rng.uniform(0.25, 0.7) / count, z], material).moved([0, 0, -z / 2])
    end = box([z, y, z * rng.uniform(0.5, 1)], material).moved([0, 0, -z / 2])
    return join([bar.moved([0, v, 0]) for v in np.linspace(-y, y, count) / 2] + [end.moved([u, 0, 0]) for u in (-x / 2, x / 2)])


def _part(rng, size, material):
    """A rod, a bent rod, a box, a disc, a ring, a knob, a spring, a grip or a grating about the origin."""
    kinds = ["rod", "bent", "box", "disc", "ring", "knob", "spring", "grip", "grating"]
    kind = rng.choice(kinds, p=[0.2, 0.12, 0.2, 0.14, 0.08, 0.08, 0.06, 0.06, 0.06])
    if kind in ("spring", "grip"):
        length = size * rng.uniform(0.3, 0.8)
        radius = length * rng.uniform(0.06, 0.2)
        if kind == "spring":
            return spring(length, radius, radius * rng.uniform(0.15, 0.35), material).moved([-length / 2, 0, 0])
        return grip(length, radius, rng.integers(5, 16), material).moved([-length / 2, 0, 0])
    if kind == "grating":
        return grating(rng, size * rng.uniform([0.3, 0.15, 0.02], [0.6, 0.4, 0.06]), material)
    if kind == "rod":
        half = np.array([size * rng.uniform(0.25, 0.6), 0, 0])
        return tube(np.linspace(-half, half, 12), size * rng.uniform(0.015, 0.1), 10, material)
    if kind == "bent":
        path = np.cumsum(rng.normal(0, 0.3 * size, (4, 3)), 0)
        return tube(smooth(path - path.mean(0), 8), size * rng.uniform(0.01, 0.05), 8, material)
    if kind == "box":
        sides = size * np.sort(rng.uniform(0.04, 0.6, 3))[::-1]
        return box(sides, material).moved([0, 0, -sides[2] / 2])
    if kind == "disc":
        half = np.array([size * rng.uniform(0.015, 0.12), 0, 0])
        return tube(np.linspace(-half, half, 3), size * rng.uniform(0.1, 0.35), 24, material)
    if kind == "ring":
        a = np.linspace(0, 2 * np.pi, 41)
        circle = np.stack([np.cos(a), np.sin(a), 0 * a], 1) * size * rng.uniform(0.12, 0.4)
        return tube(circle, size * rng.uniform(0.015, 0.05), 8, material, caps=False)
    return blob(size * rng.uniform(0.05, 0.3, 3), material, 12, 18)


def gadget(rng, size, parts):
    """`parts` pieces of two or three materials within about `size` mm of each other, most of them square to each other."""
    materials = [_material(rng) for _ in range(rng.integers(2, 4))]
    pieces = []
    for _ in range(parts):
        piece = _part(rng, size, materials[rng.integers(len(materials))])
        for axis in "xyz":
            piece = piece.turned(turn(axis, rng.integers(4) * np.pi / 2 + rng.normal(0, 0.04)))
        pieces.append(piece.moved(rng.normal(0, 0.22 * size, 3)))
    return join(pieces)

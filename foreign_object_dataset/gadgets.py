"""Things that are like nothing in particular: parts of devices put together at random. Sizes in millimetres.

Whatever has steel, black plastic or yellow in it and is none of the classes; nobody can render all that lies and stands on a road.
"""

from __future__ import annotations

import numpy as np

from shapes import Material, blob, box, join, rgb, smooth, tube, turn

BRIGHT = [[235, 140, 30], [225, 200, 40], [200, 40, 40], [40, 110, 190], [60, 150, 80], [225, 225, 220]]


def _material(rng):
    kind = rng.choice(["black", "steel", "grey", "bright"], p=[0.35, 0.25, 0.15, 0.25])
    if kind == "bright":
        return Material(rgb(*(np.array(BRIGHT[rng.integers(len(BRIGHT))]) * rng.uniform(0.6, 1.1))), 0.0, rng.uniform(8, 60))
    level = {"black": rng.uniform(12, 50), "steel": rng.uniform(60, 230), "grey": rng.uniform(60, 220)}[kind]
    return Material(rgb(*np.full(3, level)), rng.uniform(0.6, 0.9) if kind == "steel" else 0.0, rng.uniform(8, 60))


def _part(rng, size, material):
    """A rod, a bent rod, a box, a disc, a ring or a knob about the origin."""
    kind = rng.choice(["rod", "bent", "box", "disc", "ring", "knob"], p=[0.25, 0.12, 0.25, 0.18, 0.1, 0.1])
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

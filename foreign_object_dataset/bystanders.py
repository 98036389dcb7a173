"""Large things at the border of the picture: people, bicycles, racks, kerbs, machines. Sizes in millimetres."""

import numpy as np

from bicycles import bicycle
from gadgets import gadget
from people import person
from shapes import Material, box, join, rgb, tube, turn


def rack(rng):
    """A rail of white or grey steel along x, with hoops on the +y side, and mostly bicycles in them."""
    paint = Material(rgb(*(rng.uniform(140, 235) * np.array([1, 1, rng.uniform(0.95, 1.03)]))), 0.0, 25, 0.05)
    parts = [box([2600, rng.uniform(40, 90), rng.uniform(40, 110)], paint)]
    spacing, a = rng.uniform(180, 420), np.linspace(0, np.pi, 19)
    for x in np.arange(-1200, 1200, spacing):
        hoop = np.stack(
            [np.full(19, x) + 40 * np.cos(a), 130 - 110 * np.cos(a), 60 + rng.uniform(250, 400) * np.sin(a)], 1
        )
        parts.append(tube(hoop, rng.uniform(11, 20), 10, paint))
    for _ in range(rng.choice([0, 1, 2, 3], p=[0.3, 0.25, 0.25, 0.2])):
        forwards = rng.choice([1, -1]) * np.pi / 2
        parts.append(bicycle(rng).turned(turn("z", forwards + rng.normal(0, 0.15))).moved([rng.uniform(-700, 700), 200, 0]))
    return join(parts)


def kerb(rng):
    """A kerbstone along x with the pavement on the +y side."""
    height = rng.uniform(40, 150)
    stone = Material(rgb(*(rng.uniform(110, 200) + rng.normal(0, 6, 3))), 0.0, 6, 0.02)
    red = [[165, 85, 75], [120, 118, 112], [150, 145, 130], [175, 120, 90]][rng.integers(4)]
    parts = []
    for k in range(-3, 3):
        tone = rng.uniform(0.85, 1.1)
        parts.append(
            box([595, 120, height], stone._replace(albedo=tuple(tone * c for c in stone.albedo))).moved(
                [600 * k + 300, 60, 0]
            )
        )
    for i in range(-6, 6):
        for j in range(3):
            tone = rng.uniform(0.7, 1.15)
            tile = Material(tuple(tone * c for c in rgb(*red)), 0.0, 6, 0.02)
            parts.append(box([297, 297, height], tile).moved([300 * i + 150, 270 + 300 * j, -2]))
    return join(parts)


def pole(rng):
    grey = Material(rgb(*np.full(3, rng.uniform(50, 220))), rng.choice([0, 0.7]), 30, 0.05)
    return tube(np.linspace([0, 0, 0], [0, 0, rng.uniform(500, 1500)], 40), rng.uniform(20, 70), 64, grey)


def make_bystander(rng, span):
    """A large mesh with its front at the origin facing +x; span is the picture's width in millimetres."""
    kind = rng.choice(["person", "bicycle", "rack", "kerb", "pole", "machine"], p=[0.48, 0.23, 0.15, 0.06, 0.04, 0.04])
    if kind == "person":
        return person(rng, rng.uniform(150, max(0.42 * span, 160)))
    if kind == "pole":
        return pole(rng)
    if kind == "machine":  # a scooter, a cart, luggage
        return gadget(rng, rng.uniform(200, 900), rng.integers(6, 25)).dropped()
    if kind == "bicycle":
        return bicycle(rng).turned(turn("z", rng.uniform(0, 2 * np.pi)))
    return {"rack": rack, "kerb": kerb}[kind](rng).turned(turn("z", np.pi / 2 + rng.normal(0, 0.3)))

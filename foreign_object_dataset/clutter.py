"""Small things on the road that are none of the classes, each able to confuse one. Sizes in millimetres."""

from dataclasses import replace

import numpy as np

from gadgets import gadget
from objects import steel
from shapes import Material, blob, join, mesh, revolve, rgb, slab, smooth, tube, turn


def stone(rng):
    grey = rng.uniform(40, 215)
    material = Material(rgb(*(grey + rng.normal(0, 9, 3) + [4, 0, -4])), 0.0, 8, 0.02)
    size = rng.uniform(2, 16) * rng.uniform(0.5, 1.2, 3)
    return blob(size, material, 7, 10, rng, 0.09).turned(turn("y", rng.uniform(0, 3))).dropped(0.2 * size[2])


def cigarette(rng):
    length, radius = rng.uniform(12, 32), rng.uniform(3, 4.2)
    paper = Material(rgb(*(rng.uniform(195, 240) + np.array([0, -3, -12]))), 0.0, 8, 0.02)
    cork = Material(rgb(*(np.array([205, 140, 85]) + rng.normal(0, 18, 3))), 0.0, 8, 0.02)
    part = length * rng.choice([rng.uniform(0.3, 0.8), 1.0])
    crush = rng.uniform(0.5, 1)
    pieces = [tube(np.linspace([0, 0, 0], [part, 0, 0], 5), radius, 10, cork, flat=crush)]
    if part < length:
        pieces.append(
            tube(np.linspace([part, 0, 0], [length, rng.normal(0, 2), 0], 5), radius * 0.95, 10, paper, flat=crush)
        )
    return join(pieces).turned(turn("x", rng.uniform(0, 3))).dropped()


def leaf(rng):
    length = np.exp(rng.normal(3.1, 0.5))
    width = length * rng.uniform(0.15, 0.42)
    colour = np.array([[95, 110, 50], [150, 120, 70], [185, 165, 70], [110, 75, 50], [200, 190, 130]][rng.integers(5)])
    material = Material(rgb(*(colour * rng.uniform(0.6, 1.15) + rng.normal(0, 8, 3))), 0.0, 12, 0.04, True)
    t = np.linspace(0, 1, 9)
    half = width * np.sin(np.pi * t**0.8) + 0.05
    curl, fold = rng.normal(0, 0.5), rng.uniform(0.05, 0.7)
    spine = np.stack(
        [length * (t - 0.5), 0.15 * length * rng.normal() * (t - 0.5) ** 2, length * curl * (t - 0.5) ** 2], 1
    )
    side = np.stack([0 * t, half, fold * half], 1)
    points = np.concatenate([spine - side * [1, 1, -1], spine, spine + side])
    faces = [[r * 9 + i, r * 9 + i + 1, r * 9 + i + 10, r * 9 + i + 9] for r in (0, 1) for i in range(8)]
    stalk = tube(spine[0] + np.linspace([0, 0, 0], [-0.3 * length, rng.normal(0, 2), 0], 4), 0.5, 4, material)
    return join([mesh(points, faces, material), stalk]).dropped()


def bottle_cap(rng):
    radius, height = rng.uniform(12, 16), rng.uniform(5, 14)
    colour = rng.choice([[220, 220, 225], [200, 40, 40], [40, 90, 190], [210, 190, 60], [60, 150, 80]], axis=0)
    material = Material(rgb(*(colour * rng.uniform(0.5, 1.1))), rng.choice([0.0, 0.6]), 40, 0.06)
    profile = [[height, 0.01], [height, radius * 0.9], [height * 0.85, radius], [0, radius], [0, radius * 0.88]]
    cap = revolve(profile, 20, material).turned(turn("y", -np.pi / 2))
    return cap.turned(turn("x", rng.choice([0, np.pi, rng.uniform(0, 3)]))).dropped()


def flake(rng):
    """Chip of paint, paper, foil or plastic: flat, with a ragged outline."""
    colour = [
        [225, 225, 215],
        [225, 225, 215],
        [215, 195, 80],
        [25, 25, 28],
        [30, 50, 110],
        [150, 60, 50],
        [120, 120, 120],
    ][rng.integers(7)]
    size, corners = np.exp(rng.normal(1.9, 0.6)), 9
    angle = (np.arange(corners) + rng.uniform(-0.4, 0.4, corners)) * 2 * np.pi / corners
    r = size * np.exp(rng.normal(0, 0.35, corners))
    outline = np.stack([r * np.cos(angle) * rng.uniform(0.4, 1), r * np.sin(angle)], 1)
    material = Material(rgb(*(np.array(colour) * rng.uniform(0.6, 1.05))), rng.choice([0, 0, 0.5]), 25, 0.05)
    return slab(outline, rng.uniform(0.3, 2), material).turned(turn("x", rng.normal(0, 0.12))).dropped()


def wire(rng):
    """A bent wire, a twig, a rubber band or a hair tie."""
    kind = rng.choice(["wire", "twig", "ring"])
    if kind == "ring":
        a = np.linspace(0, 2 * np.pi, 33)
        r = rng.uniform(5, 22)
        path = np.stack([r * np.cos(a), rng.uniform(0.5, 1) * r * np.sin(a), 0 * a], 1)
        thick = rng.uniform(0.6, 2.6)
    else:
        count = rng.integers(4, 8)
        path = np.cumsum(rng.normal(0, 1, (count, 3)) * [9, 9, 0.6] + [rng.uniform(4, 14), 0, 0], 0)
        path = smooth(path - path.mean(0), 6)
        thick = rng.uniform(0.5, 1.8)
    colour = [[20, 20, 22], [60, 45, 35], [150, 95, 60], [110, 90, 65], [180, 40, 40], [200, 200, 205]][rng.integers(6)]
    return tube(path, thick, 6, Material(rgb(*(np.array(colour) * rng.uniform(0.7, 1.2))), 0.0, 20, 0.05)).dropped()


def hook(rng):
    """Steel wire or rod bent into a hook, an S, a U, a split pin or a bow: never one corner between two straight legs."""
    length = np.exp(rng.uniform(np.log(15), np.log(110)))
    kind = rng.choice(["hook", "s", "u", "pin", "bow"])
    a = np.linspace(0, np.pi, 15)
    half = length * rng.uniform(0.08, 0.22)
    turn_back = np.stack([length + half * np.sin(a), half - half * np.cos(a), 0 * a], 1)
    path = np.concatenate([np.linspace([0, 0, 0], [length, 0, 0], 12)[:-1], turn_back])
    if kind == "s":
        path = np.concatenate([np.stack([-half * np.sin(a[::-1]), -half - half * np.cos(a), 0 * a], 1)[:-1], path])
    elif kind in ("u", "pin"):
        gap = 2 * half if kind == "u" else half * rng.uniform(0.6, 1.6)
        end = [length * rng.uniform(-0.1, 0.6), gap, 0]
        path = np.concatenate([path, np.linspace(path[-1], end, 12)[1:]])
    elif kind == "bow":
        bend = length / rng.uniform(0.4, 2.5)
        a = np.linspace(0, length / bend, 24)
        path = np.stack([bend * np.sin(a), bend - bend * np.cos(a), 0 * a], 1)
    thick = length * rng.uniform(0.012, 0.06)
    material = steel(rng, dark=rng.choice([0, rng.uniform(0.2, 0.8)]))
    rod = tube(path - path.mean(0), thick, 10, material)
    across = np.abs(np.gradient(path[:, 1])) > np.abs(np.gradient(path[:, 0]))  # drawn steel mirrors along its length only
    tone = np.exp(rng.uniform(-0.8, 0.9, 2))[np.r_[np.repeat(across[:-1], 10), np.zeros(20, bool)].astype(int), None]
    return replace(rod, albedo=rod.albedo * tone).turned(turn("x", rng.normal(0, 0.15))).dropped(0.2)


def coin(rng):
    """Coin, washer, nut or pull tab."""
    radius, height = rng.uniform(5, 12), rng.uniform(0.8, 4)
    hole = radius * rng.choice([0.002, rng.uniform(0.4, 0.7)])
    profile = [[0, hole], [height, hole], [height, radius], [0, radius]]
    return revolve(profile, 6 if height > 3 else 20, steel(rng)).turned(turn("y", -np.pi / 2)).dropped()


def key(rng):
    """A flat key or a blade of plastic."""
    length = rng.uniform(30, 60)
    colour = [[45, 70, 130], [170, 170, 175], [175, 150, 90], [30, 30, 32]][rng.integers(4)]
    material = Material(rgb(*(np.array(colour) * rng.uniform(0.7, 1.2))), rng.uniform(0, 0.8), 40, 0.06)
    a = np.arange(10) * 2 * np.pi / 10
    bow = slab(np.stack([np.cos(a), np.sin(a)], 1) * length * 0.22, 2, material)
    blade = slab(
        np.array([[0, -0.08], [0.5, -0.09], [0.62, -0.05], [0.75, -0.08], [0.85, 0], [0.75, 0.07], [0, 0.08]]) * length,
        1.8,
        material,
    )
    return join([bow, blade]).dropped()


def scrap(rng):
    """A lump of black rubber, tape or dirt."""
    level = rng.uniform(10, 60)
    size = rng.uniform(4, 17) * rng.uniform([0.7, 0.3, 0.15], [1.3, 1.0, 0.6])
    return blob(size, Material(rgb(level, level, level * 1.03), 0.0, 12, 0.04), 8, 12, rng, 0.16).dropped(0.2)


def pen(rng):
    """A straight rod: pen, straw, chalk, wooden stick, nail without a head; with a cap, a tip or neither."""
    length, radius = rng.uniform(30, 140), rng.uniform(1.2, 5)
    colours = [[235, 235, 230], [30, 60, 150], [20, 20, 22], [190, 150, 100], [200, 60, 50], [150, 150, 155]]

    def material():
        return Material(rgb(*(np.array(colours[rng.integers(6)]) * rng.uniform(0.7, 1.1))), rng.choice([0, 0, 0.7]), 30)

    flat, capped = rng.choice([1, rng.uniform(0.2, 1)]), rng.random() < 0.5
    middle = length * (rng.uniform(0.6, 0.95) if capped else 1)
    parts = [tube(np.linspace([0, 0, 0], [middle, 0, 0], 6), radius, 10, material(), flat=flat)]
    if capped:
        parts.append(tube(np.linspace([middle, 0, 0], [length, 0, 0], 4), radius * 1.08, 10, material(), flat=flat))
    return join(parts).dropped()


def device(rng):
    """Bell, lighter, lock, toy, buckle: no two alike."""
    return gadget(rng, np.exp(rng.uniform(np.log(12), np.log(90))), rng.integers(2, 7)).dropped()


KINDS = (stone, cigarette, leaf, bottle_cap, flake, wire, hook, coin, key, scrap, pen, device)
SHARES = np.array([0.19, 0.06, 0.13, 0.04, 0.15, 0.07, 0.08, 0.03, 0.04, 0.06, 0.04, 0.11])


def make_clutter(rng):
    """One of KINDS, more or less dusty."""
    thing, dust = KINDS[rng.choice(len(KINDS), p=SHARES)](rng), rng.uniform(0, 0.6)
    return replace(thing, albedo=thing.albedo + dust * (np.array(rgb(125, 122, 116)) - thing.albedo))

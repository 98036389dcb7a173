"""Bicycles at the border of the picture. Sizes in millimetres."""

import numpy as np

from gadgets import gadget, grating, grip, spring
from shapes import Material, blob, box, join, rgb, smooth, tube, turn


def wheel(rng, radius, thick, rubber, chrome):
    """A bicycle's wheel in the x-z plane around its hub at the origin."""
    a = np.linspace(0, 2 * np.pi, 241)
    circle = np.stack([np.cos(a), 0 * a, np.sin(a)], 1)
    parts = [
        tube(circle * radius, thick, 24, rubber, caps=False),
        tube(circle * (radius - thick * 1.2), 6, 8, chrome, caps=False),
    ]
    for k in range(28):
        hub = np.array([18 * np.cos(k * 2.1), 25 * (-1) ** k, 18 * np.sin(k * 2.1)])
        rim = (radius - thick) * np.array([np.cos(k * 2 * np.pi / 28), 0, np.sin(k * 2 * np.pi / 28)])
        parts.append(tube(np.linspace(hub, rim, 12), 1.3, 4, chrome, caps=False))
    parts.append(tube(np.linspace([0, -45, 0], [0, 45, 0], 5), 20, 12, chrome))
    flange = rng.uniform(22, 45)
    for side in (-1, 1):
        parts.append(tube(np.linspace([0, side * 28, 0], [0, side * 32, 0], 2), flange, 20, chrome))
        parts.append(tube(np.linspace([0, side * 45, 0], [0, side * 62, 0], 3), rng.uniform(6, 12), 6, chrome))
    return join(parts)


def pedal(rng, chrome, black):
    """A block, a cage, a grating or two rubber blocks about the origin, the axle along y; often with reflectors."""
    kind = rng.choice(["block", "cage", "grating", "rubbers"])
    if kind == "cage":
        parts = [box([8, 75, 22], chrome).moved([end, 0, -11]) for end in (-45, 45)]
        parts += [box([90, 8, 22], chrome).moved([0, end, -11]) for end in (-36, 36)]
    elif kind == "grating":
        parts = [grating(rng, [95, 80, 20], black)]
    elif kind == "rubbers":
        rubber = [grip(85, rng.uniform(11, 16), rng.integers(6, 12), black).turned(turn("z", np.pi / 2)) for _ in range(2)]
        parts = [rubber[k].moved([(-25, 25)[k], -42, 0]) for k in (0, 1)]
        parts.append(tube(np.linspace([0, -50, 0], [0, 50, 0], 5), 8, 8, chrome))
    else:
        parts = [box([95, 75, 22], black).moved([0, 0, -11])]
    if rng.random() < 0.7:
        reflector = Material(rgb(*[[235, 140, 30], [230, 190, 40], [220, 220, 215]][rng.integers(3)]), 0.0, 60, 0.1)
        parts += [box([6, 50, 14], reflector).moved([end, 0, -7]) for end in (-50, 50)]
    return join(parts).turned(turn("y", rng.normal(0, 0.5)))


def stand(rng, radius, chrome, black):
    """A kickstand down to the ground, radius mm below the origin, or folded, its end sleeved, flattened or bent like a hex key."""
    steel = [black, chrome, Material(rgb(*np.full(3, rng.uniform(60, 200))), rng.choice([0, 0.6]), 20, 0.05)][rng.integers(3)]
    root, thick = np.array([-40, 20, 0]), rng.uniform(5, 11)
    foot = np.array([-rng.uniform(150, 350), rng.uniform(100, 260), -radius])
    if rng.random() < 0.5:
        foot = np.array([-rng.uniform(180, 380), rng.uniform(30, 140), rng.uniform(-100, 40)])
    along = (foot - root) / np.linalg.norm(foot - root)
    aside = np.cross(along, rng.normal(0, 1, 3))
    aside /= np.linalg.norm(aside)
    bend = rng.uniform(0.3, 1.9)  # radians
    toe = foot + rng.uniform(25, 80) * (np.cos(bend) * along + np.sin(bend) * aside)
    end = rng.choice(["sleeve", "plate", "toe", "both"], p=[0.35, 0.15, 0.3, 0.2])
    bowed = [root, (root + foot) / 2 + aside * rng.normal(0, 12), foot - 15 * along]
    parts = [tube(smooth([*bowed, foot, toe] if end in ("toe", "both") else [*bowed, foot], 8), thick, 8, steel)]
    if end in ("sleeve", "both"):
        tip, way = (foot, along) if end == "sleeve" else (toe, (toe - foot) / np.linalg.norm(toe - foot))
        parts.append(tube(np.linspace(tip - rng.uniform(30, 60) * way, tip + 5 * way, 4), thick * rng.uniform(1.2, 1.8), 8, black))
    if end == "plate":
        parts.append(tube(np.linspace(foot - 25 * along, foot + 30 * along, 6), rng.uniform(15, 28), 10, steel, flat=0.25, up=aside))
    if rng.random() < 0.6:
        coil = spring(rng.uniform(60, 120), rng.uniform(6, 10), rng.uniform(1.5, 2.5), chrome)
        yaw, pitch = np.arctan2(along[1], along[0]), -np.arcsin(along[2])
        parts.append(coil.turned(turn("y", pitch)).turned(turn("z", yaw)).moved([-40, 34, 10]))
    return join(parts)


def drive(rng, crank, back, chrome, black):
    """Chainring, chain, cranks and pedals between the bottom bracket and the rear hub."""
    a = np.linspace(0, 2 * np.pi, 97)
    circle = np.stack([np.cos(a), 0 * a, np.sin(a)], 1)
    ring, steel = rng.uniform(70, 100), chrome if rng.random() < 0.6 else black
    parts = [tube(crank + [0, 45, 0] + circle * (ring + 3 * np.sin(32 * a))[:, None], 5, 6, steel, caps=False)]
    for k in range(5):
        spoke = ring * np.array([np.cos(k * 1.257), 0, np.sin(k * 1.257)])
        parts.append(tube(np.linspace(crank + [0, 45, 0], crank + [0, 45, 0] + spoke, 6), 8, 6, steel))
    for up in (-1, 1):
        parts.append(
            tube(np.linspace(crank + [0, 45, up * ring], back + [0, 45, up * 35], 30), 4.5, 5, steel, caps=False)
        )
    spin = rng.uniform(0, np.pi)
    for side in (-1, 1):
        foot = crank + side * 165 * np.array([np.cos(spin), 0, np.sin(spin)]) + [0, side * 75, 0]
        parts.append(tube(np.linspace(crank + [0, side * 60, 0], foot, 10), 9, 8, chrome))
        parts.append(pedal(rng, chrome, black).moved(foot + [0, side * 45, 0]))
    if rng.random() < 0.4:  # chain guard
        guard = Material(rgb(*np.full(3, rng.uniform(20, 220))), rng.choice([0, 0.7]), 40, 0.08)
        middle = np.linspace(crank + [90, 62, 20], back + [-60, 62, 20], 40)
        parts.append(tube(middle, rng.uniform(40, 80), 12, guard, flat=0.08, up=[0, 0, 1]))
    return parts


def basket(rng):
    """An open basket of wire, hung before the handlebar."""
    wire = Material(rgb(*np.full(3, rng.uniform(25, 210))), rng.choice([0, 0.7]), 25, 0.06)
    wide, deep, tall = rng.uniform(140, 190), rng.uniform(90, 130), rng.uniform(180, 240)
    corners = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1], [1, 1]]) * [deep, wide]
    parts = []
    for z in np.linspace(0, tall, rng.integers(5, 9)):
        rim = np.concatenate([np.linspace(p, q, 8) for p, q in zip(corners[:-1], corners[1:], strict=True)]) * (
            0.8 + 0.2 * z / tall
        )
        parts.append(tube(np.c_[rim, np.full(len(rim), z)], 2.2, 4, wire, caps=False))
    for p, q in zip(corners[:-1], corners[1:], strict=True):
        for foot in np.linspace(p, q, 7):
            parts.append(tube(np.linspace([*foot * 0.8, 0], [*foot, tall], 6), 2.2, 4, wire, caps=False))
    return join(parts)


def bicycle(rng):
    """A standing bicycle, front hub above the origin, the rest towards -x; now and then only wheel and fork."""
    radius, thick = rng.uniform(240, 340), rng.uniform(16, 30)
    rubber = Material(rgb(*np.full(3, rng.uniform(18, 60))), 0.0, 10, 0.04)
    chrome = Material(rgb(*np.full(3, rng.uniform(120, 220))), 0.8, 40, 0.1)
    black = Material(rgb(*np.full(3, rng.uniform(15, 45))), 0.0, 20, 0.04)
    colours = [[30, 90, 200], [20, 20, 22], [220, 180, 30], [200, 200, 205], [170, 40, 35], [60, 80, 90]]
    frame = Material(rgb(*np.array(colours[rng.integers(6)]) * rng.uniform(0.6, 1.05)), 0.0, 50, 0.08)
    parts = [wheel(rng, radius, thick, rubber, chrome)]
    rise = rng.uniform(0.6, 1.3)
    head = np.array([-430 * np.cos(rise), 0, 430 * np.sin(rise) + 60])
    for side in (-55, 55):
        parts.append(tube(np.linspace([0, side, 0], head + [0, side * 0.5, 0], 24), 10, 10, frame))
    if whole := rng.random() < 0.65:
        back, crank, seat = np.array([-1040.0, 0, 0]), np.array([-600.0, 0, -40]), np.array([-720.0, 0, 420])
        parts.append(wheel(rng, radius, thick, rubber, chrome).moved(back))
        for start, end, thickness in (
            (head, crank, 20),
            (head, seat, 17),
            (crank, seat, 16),
            (crank, back, 10),
            (seat, back, 9),
        ):
            parts.append(tube(np.linspace(start, end, 30), thickness, 12, frame))
        parts += drive(rng, crank, back, chrome, black)
        for _ in range(rng.integers(0, 6)):  # lamps, locks, brakes, gears, a bottle
            start, end = [(head, crank), (head, seat), (crank, back), (seat, back), (back, back)][rng.integers(5)]
            fitted = gadget(rng, rng.uniform(50, 200), rng.integers(2, 7))
            parts.append(fitted.moved(start + rng.random() * (end - start) + [0, rng.normal(0, 30), 0]))
        parts.append(blob([125, 70, 30], black, 20, 24).moved(seat + [0, 0, 90]))
        for side in (-1, 1) if rng.random() < 0.4 else ():
            coil = spring(80, rng.uniform(12, 20), rng.uniform(2, 4), chrome).turned(turn("y", -np.pi / 2))
            parts.append(coil.moved(seat + [-70, side * 45, 0]))
        parts.append(tube(np.linspace(head + [0, -270, 150], head + [0, 270, 150], 30), 12, 10, black))
        for side in (-1, 1):
            handle = grip(120, rng.uniform(15, 19), rng.integers(8, 20), black).turned(turn("z", side * np.pi / 2))
            parts.append(handle.moved(head + [0, side * 165, 150]))
            lever = head + np.array([[0, side * 140, 150], [45, side * 165, 140], [40, side * 240, 130]])
            parts.append(tube(smooth(lever, 8), 5, 6, chrome))
        if rng.random() < 0.3:
            parts.append(basket(rng).moved(head + [120, 0, 60]))
        for _ in range(rng.integers(0, 4)):  # cables
            ends = head + [
                [30, rng.uniform(-200, 200), 150],
                [rng.uniform(0, 160), rng.uniform(-60, 60), 20],
                [0, 0, -180],
            ]
            parts.append(tube(smooth(ends, 14), 2.5, 5, black))
    if rng.random() < 0.4:  # mudguard
        a = np.linspace(rng.uniform(-0.3, 0.4), rng.uniform(1.9, 2.6), 40)
        over = (radius + thick + 14) * np.stack([np.cos(a), 0 * a, np.sin(a)], 1)
        parts.append(
            tube(over, rng.uniform(22, 32), 10, frame if rng.random() < 0.5 else black, flat=0.25, up=[0, 1, 0])
        )
    for hub in ([-1000, 0] if whole else [0]):
        if rng.random() < (0.85 if hub else 0.5):
            parts.append(stand(rng, radius, chrome, black).moved([hub, 0, 0]))
    return join(parts).turned(turn("x", rng.normal(0, 0.15))).dropped()

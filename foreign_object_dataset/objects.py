"""The four classes as 3-D shapes, resting on the ground around the origin. Sizes in millimetres."""

from dataclasses import replace

import numpy as np

from shapes import Material, blob, join, mesh, revolve, rgb, sheet, smooth, tube, turn

CLASSES = ("nail", "clip_B", "clip_Y", "L_stick")


def steel(rng, dark=0.0):
    level = rng.uniform(105, 235) * (1 - dark)
    tint = rng.normal(0, 5, 3)
    return Material(
        rgb(level + tint[0], level + tint[1], level + tint[2] + 4), rng.uniform(0.65, 1), rng.uniform(15, 160), 0.1
    )


def brass(rng):
    base = np.array([167, 157, 111]) * rng.uniform(0.6, 1.2) + rng.normal(0, [9, 6, 16])
    return Material(rgb(*base), rng.uniform(0.45, 0.95), rng.uniform(12, 90), 0.1)


def _head(rng, radius, kind):
    """Profile (x from 0 outwards, radius) of a screw's head, outermost first, and the height of its flat face."""
    if kind == "dome":
        height = radius * rng.uniform(0.55, 0.85)
        a = np.linspace(0, np.pi / 2, 6)
        return np.stack([height * np.cos(a), radius * np.maximum(np.sin(a), 1e-3)], 1), height
    if kind == "cone":
        height = radius * rng.uniform(0.5, 0.9)
        return np.array([[height, 1e-3], [height, radius], [height * 0.85, radius], [0, radius * 0.5]]), height
    height = radius * (rng.uniform(0.9, 1.3) if kind in ("cap", "hex") else rng.uniform(0.3, 0.5))
    return np.array([[height, 1e-3], [height, radius * 0.9], [height * 0.93, radius], [0, radius]]), height


def _slots(rng, head, height, domed, material):
    """One slot or a cross in the head's face."""
    bars = 1 if rng.random() < 0.6 else 2
    along = np.linspace(-0.8, 0.8, 7)
    faces = [[i, i + 1, i + 8, i + 7] for i in range(6)]
    parts = []
    for k in range(bars):
        width = head * rng.uniform(0.1, 0.18)
        rise = height * (np.sqrt(1 - along**2) if domed else np.ones(7)) + 0.15
        y = along * head * (1 if bars == 1 else 0.7)
        points = np.stack([np.r_[rise, rise], np.r_[y, y], np.repeat([-width, width], 7)], 1)
        parts.append(mesh(points, faces, material).turned(turn("x", k * np.pi / 2)))
    return parts


def _socket(rng, head, height, material):
    """The hexagonal hole of a socket screw."""
    hole, a = head * rng.uniform(0.4, 0.6), np.arange(6) * np.pi / 3
    rim = np.stack([np.full(6, height + 0.1), hole * np.cos(a), hole * np.sin(a)], 1)
    faces = [[0, i + 1, (i + 1) % 6 + 1, (i + 1) % 6 + 1] for i in range(6)]
    return [mesh(np.concatenate([[[height + 0.1, 0, 0]], rim]), faces, material)]


def _shaft(rng, length, radius):
    """Profile (x from 0 downwards, radius): some of it plain, the rest with thread, the end blunt or pointed."""
    turns = int(length / rng.uniform(0.9, 1.8))
    x = np.linspace(0, -length, 2 * turns + 1)
    plain = rng.uniform(0, 0.5) if rng.random() < 0.6 else 1.0
    depth = np.where(-x < plain * length, 0, rng.uniform(0.06, 0.16))
    r = radius * (1 - depth * (np.arange(len(x)) % 2))
    if rng.random() < 0.15:
        r *= np.clip((x + length) / (length * rng.uniform(0.1, 0.5)), 0.05, 1)
    end = [[-length - radius * 0.25, r[-1] * 0.6], [-length - radius * 0.3, 1e-3]]
    return np.concatenate([[[0, radius]], np.stack([x, r], 1), end])


def nail(rng):
    """A screw along x, its head at high x."""
    length = rng.uniform(24, 55)
    shaft = length * rng.uniform(0.06, 0.15)
    head = shaft * rng.uniform(1.5, 2.5)
    kind = rng.choice(["dome", "cap", "rim", "cone", "hex"], p=[0.38, 0.22, 0.22, 0.1, 0.08])
    material = brass(rng) if rng.random() < 0.55 else steel(rng, dark=rng.uniform(0, 0.45))
    profile, height = _head(rng, head, kind)
    shank = _shaft(rng, length, shaft)
    if kind == "hex":
        parts = [revolve(profile, 6, material), revolve(shank, 16, material)]
    else:
        parts = [revolve(np.concatenate([profile, shank]), 16, material)]
    dark = Material(tuple(0.12 * np.array(material.albedo)), 0.3, 10)
    if kind in ("dome", "cone") or rng.random() < 0.2:
        parts += _slots(rng, head, height, kind == "dome", dark)
    else:
        parts += _socket(rng, head, height, dark)
    if rng.random() < 0.06:  # a loose washer or nut
        at, thick = -rng.uniform(0.1, 0.8) * length, rng.uniform(0.8, 3)
        ring = np.array([[at + thick, shaft], [at + thick, head * 1.1], [at, head * 1.1], [at, shaft]])
        parts.append(revolve(ring, 6 if thick > 1.5 else 16, steel(rng)))
    whole = join(parts).turned(turn("x", rng.uniform(0, 2 * np.pi)))
    if rng.random() < 0.07:  # standing on its head
        return whole.turned(turn("y", np.pi / 2 + rng.normal(0, 0.05))).dropped()
    tilt = np.arctan2(head - shaft, length)
    return whole.turned(turn("y", -tilt + rng.normal(0, 0.03))).dropped(0.3)


def _handle(rng, width, reach, wire, material):
    """A bent wire in the x-y plane hanging on the axis y = 0, reaching to y = reach."""
    neck, bulge = rng.uniform(0.08, 0.2), rng.uniform(0.2, 0.36)
    half = np.array(
        [[0.42, -0.02], [0.36, 0.15], [(0.36 + neck) / 2, 0.42], [neck, 0.68], [bulge * 0.9, 0.86], [bulge * 0.6, 0.98]]
    )
    outline = np.concatenate([half * [-1, 1], [[0, 1.0]], half[::-1]]) * [width, reach]
    path = smooth(np.c_[outline, np.zeros(len(outline))], 4)
    return tube(path, wire, 6, material, caps=False)


def clip(rng, length, body, wire_material):
    """A binder clip of jaw length along x: folded sheet (spine, two sides), rolled lips, two wire handles."""
    side, spine, gap = length * rng.uniform(0.5, 0.85), length * rng.uniform(0.3, 0.62), length * rng.uniform(0.0, 0.12)
    if rng.random() < 0.15:
        gap = spine * rng.uniform(0.4, 1.1)  # pressed open
    depth = np.sqrt(max(side**2 - ((spine - gap) / 2) ** 2, (0.4 * side) ** 2))
    corner = 0.16 * spine
    upper = [[depth * t, gap / 2 + (spine - gap) / 2 * (1 - t)] for t in (1.0, 0.8, 0.6, 0.4, 0.2, 0.06)]
    section = np.array(
        [
            *upper,
            [-0.3 * corner, spine / 2 - corner],
            [-0.45 * corner, 0],
            [-0.3 * corner, -spine / 2 + corner],
            *[[y, -z] for y, z in upper[::-1]],
        ]
    )
    parts = [sheet(section, length, 6, body)]
    wire = max(length * rng.uniform(0.016, 0.03), 0.35)
    lip = max(0.035 * length, wire * 1.6)
    reach = side * rng.uniform(0.95, 1.35)
    lean = np.arctan2((spine - gap) / 2, depth)
    folds = rng.choice([0, 1, 2], p=[0.4, 0.35, 0.25], size=2)
    if rng.random() < 0.6:
        folds[1] = folds[0]
    for sign, fold in zip((1, -1), folds, strict=True):
        path = np.linspace(
            [-length / 2, depth, sign * (gap / 2 + lip * 0.7)], [length / 2, depth, sign * (gap / 2 + lip * 0.7)], 9
        )
        parts.append(tube(path, lip, 8, body))
        # angle of the handle about the lip: 0 points away from the spine, about pi lies back on the side
        angle = (rng.uniform(-0.1, 0.35), np.pi - lean - rng.uniform(0.02, 0.15), rng.uniform(0.3, 2.6))[fold]
        handle = _handle(rng, length, reach, wire, wire_material)
        parts.append(handle.turned(turn("x", sign * angle)).moved([0, depth, sign * (gap / 2 + lip)]))
    return _rest(rng, join(parts).moved([0, -depth / 2, 0]), lean)


def _rest(rng, whole, lean):
    """A clip lying on one side (most often), on its spine, on an end, or anyhow."""
    rest = rng.choice(["side", "spine", "any", "end"], p=[0.62, 0.14, 0.16, 0.08])
    if rest == "side":
        whole = whole.turned(turn("x", (lean if rng.random() < 0.5 else np.pi - lean) + rng.normal(0, 0.06)))
    elif rest == "spine":
        whole = whole.turned(turn("x", np.pi / 2 + rng.normal(0, 0.1)))
    elif rest == "any":
        whole = whole.turned(turn("x", rng.uniform(0, 2 * np.pi))).turned(turn("y", rng.normal(0, 0.25)))
    else:
        whole = whole.turned(turn("y", np.pi / 2 + rng.normal(0, 0.1))).turned(turn("x", rng.normal(0, 0.1)))
    return whole.dropped(0.2)


def clip_black(rng):
    level = rng.uniform(4, 38)
    body = Material(
        rgb(level, level + rng.normal(0, 2), level + rng.normal(2, 4)),
        0.0,
        rng.uniform(15, 70),
        rng.uniform(0.004, 0.035),
    )
    return clip(rng, rng.uniform(22, 42), body, steel(rng))


def clip_yellow(rng):
    colour = np.array([223, 223, 90]) + rng.normal(0, [14, 13, 36])
    colour += rng.uniform(0, 0.55) * (220 - colour)  # pale
    body = Material(rgb(*(colour * rng.uniform(0.8, 1.08))), 0.0, rng.uniform(15, 60), 0.05)
    return clip(rng, rng.uniform(15, 25), body, steel(rng))


def _gleams(rng):
    """How many times brighter than their steel the long and the short leg of a hex key are. Drawn steel mirrors along its
    length only: in most photographs one leg flashes and the other is as dull as the road.
    """
    if rng.random() < 0.25:
        return np.exp(rng.uniform(-0.5, 0.7, 2))
    return np.exp(rng.permutation([rng.uniform(0.3, 1.7), rng.uniform(-1.2, 0)]))


def hex_key(rng):
    """Long leg along x, short leg along y."""
    long_leg = rng.uniform(45, 92)
    short_leg = long_leg * rng.uniform(0.27, 0.52)
    radius = long_leg * rng.uniform(0.022, 0.045)
    bend = radius * rng.uniform(1.3, 4.5)
    a = np.linspace(-np.pi / 2, 0, 7)
    arc = np.stack([long_leg - bend + bend * np.cos(a), bend + bend * np.sin(a), np.zeros(7)], 1)
    path = np.concatenate(
        [np.linspace([0, 0, 0], arc[0], 14)[:-1], arc, np.linspace(arc[-1], [long_leg, short_leg, 0], 8)[1:]]
    )
    material = steel(rng) if rng.random() < 0.88 else steel(rng, dark=rng.uniform(0.4, 0.75))
    bar = tube(path, radius, 6 if rng.random() < 0.8 else 12, material, up=(0, np.sin(0.5), np.cos(0.5)))
    on_short = bar.points[bar.faces].mean(1) @ [1, 1, 0] > long_leg
    parts = [replace(bar, albedo=bar.albedo * _gleams(rng)[on_short.astype(int), None])]
    if rng.random() < 0.12:
        parts.append(blob([radius * 1.2] * 3, material))
    whole = join(parts).moved([-long_leg / 2, -short_leg / 3, 0])
    roll = rng.normal(0, 0.05) if rng.random() < 0.75 else rng.uniform(-1.2, 1.2)
    whole = whole.turned(turn("x", roll)).turned(turn("y", rng.normal(0, 0.02)))
    if rng.random() < 0.5:
        whole = whole.turned(turn("x", np.pi))
    return whole.dropped(0.2)


MAKERS = {"nail": nail, "clip_B": clip_black, "clip_Y": clip_yellow, "L_stick": hex_key}

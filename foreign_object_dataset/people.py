"""People at the border of the picture: standing or squatting, with shoes, and hands that reach in. Sizes in millimetres."""

import numpy as np

from shapes import Material, blob, box, join, mesh, rgb, slab, smooth, tube, turn


def cloth(rng):
    colour = np.array(
        [[52, 78, 108], [42, 58, 82], [25, 26, 30], [75, 75, 78], [110, 98, 82], [20, 20, 22], [100, 116, 132]][
            rng.integers(7)
        ]
    )
    return Material(rgb(*(colour * rng.uniform(0.6, 1.15) + rng.normal(0, 4, 3))), 0.0, 5, 0.004)


def _wrinkled(rng, path, radius, sides, material, depth):
    """A sleeve or trouser leg: a tube whose radius runs in folds."""
    path = smooth(path, 30)
    body = tube(path, np.interp(np.linspace(0, 1, len(path)), np.linspace(0, 1, len(radius)), radius), sides, material)
    rings = np.arange(len(path))[:, None]
    turns = np.arange(sides)[None] * 2 * np.pi / sides
    folds = 0
    for _ in range(14):  # each on one side and a part of the length
        part = np.exp(-(((rings - rng.uniform(0, len(path))) / rng.uniform(5, 25)) ** 2))
        side = 0.5 + 0.5 * np.cos(turns - rng.uniform(0, 2 * np.pi))
        wave = np.sin(rings * rng.uniform(0.05, 0.5) + rng.integers(-4, 5) * turns + rng.uniform(0, 2 * np.pi))
        folds = folds + 2 * rng.normal() * part * side * wave
    middle = np.repeat(path, sides, 0)
    skin = body.points[:-2]
    body.points[:-2] = middle + (skin - middle) * (1 + depth * folds.reshape(-1, 1))
    return body


def shoe(rng, upper, sole):
    """Toe at +x, heel at -x, sole on the ground."""
    length, width = rng.uniform(250, 300), rng.uniform(92, 112)
    t = np.linspace(0, 1, 70)
    x = length * (t - 0.5)
    half = (
        width / 2 * np.interp(t, [0, 0.06, 0.2, 0.45, 0.72, 0.9, 0.97, 1], [0.35, 0.6, 0.72, 0.68, 1.0, 0.8, 0.5, 0.15])
    )
    tall = np.interp(t, [0, 0.05, 0.25, 0.4, 0.6, 0.85, 0.97, 1], [70, 92, 95, 92, 70, 48, 34, 20])
    a = np.linspace(0, np.pi, 41)

    def ring(scale, low, high):
        return np.stack(
            [
                np.broadcast_to(x[:, None], (70, 41)),
                half[:, None] * scale * np.cos(a),
                low + (high[:, None] - low) * np.sin(a) ** 0.7,
            ],
            -1,
        )

    index = np.arange(69)[:, None] * 41 + np.arange(40)[None]
    faces = np.stack([index, index + 41, index + 42, index + 1], -1).reshape(-1, 4)
    body = mesh(ring(0.96, 22, tall).reshape(-1, 3), faces, upper._replace(two_sided=True))
    _trim(rng, body, sole)
    laces = _laces(rng, x, half, tall, sole if rng.random() < 0.6 else upper)
    wave = 1 + rng.choice([0.015, 0.04, 0.09]) * np.sin(t * rng.uniform(20, 90))
    holed = rng.random() < 0.2
    flare = rng.uniform(1.12, 1.35) if holed else 1.06
    rim = np.stack([x, half * flare * wave, np.zeros(70)], 1)
    loop = np.concatenate([rim, (rim * [1, -1, 1])[::-1]])
    high = np.concatenate([26 + 5 * np.sin(t * 40), (26 + 5 * np.sin(t * 40))[::-1]])
    n = len(loop)
    points = np.concatenate([loop, loop * [1, 1.03 / flare, 1] + np.c_[np.zeros((n, 2)), high]])
    k, after = np.arange(n), (np.arange(n) + 1) % n
    edge = mesh(points, np.stack([after, k, n + k, n + after], 1), sole._replace(two_sided=True))
    if rng.random() < 0.3:  # cushions along the sole, with gaps between them
        edge.albedo[(k * rng.integers(4, 10) // n) % 2 == 1] *= rng.uniform(0.1, 0.6)
    holes = []
    if holed:  # through the sides of a wide sole
        dark, size = Material(tuple(0.05 * np.array(sole.albedo)), 0.0, 5, 0.0), rng.uniform(3, 5)
        middles = (points[:n] + points[n:]) / 2
        holes = [blob([size * rng.uniform(1, 2), size, size], dark).moved(middles[i]) for i in range(5, n, rng.integers(6, 14))]
    return join([edge, *holes, body, *laces])


def _trim(rng, body, sole):
    """Stripes, a heel or a toe cap of another colour on a shoe's upper [69 x 40 faces], or nothing."""
    along, around = np.mgrid[:69, :40]
    side = np.minimum(around, 39 - around)
    kind = rng.choice(["none", "stripes", "heel", "toe"], p=[0.4, 0.3, 0.15, 0.15])
    if kind == "stripes":
        slanted = np.sin(along * rng.uniform(0.5, 1.2) + side * rng.uniform(-0.5, 0.5)) > 0.3
        where = slanted & (side > 2) & (side < 14) & (along > 22) & (along < 46)
    else:
        where = {"none": along < 0, "heel": along < rng.integers(6, 14), "toe": along > rng.integers(56, 63)}[kind]
    body.albedo[where.ravel()] = np.array(sole.albedo) * rng.uniform(0.4, 1.1)


def _laces(rng, x, half, tall, material):
    """Across the instep, with a bow."""
    cord = material._replace(gloss=8, sheen=0.02)
    parts, a = [], np.linspace(0.28 * np.pi, 0.72 * np.pi, 9)
    for k in np.linspace(32, 48, rng.integers(4, 7)).astype(int):
        skew = np.linspace(-1, 1, 9) * rng.uniform(-9, 9)
        over = np.stack([x[k] + skew, half[k] * np.cos(a), 24 + (tall[k] - 22) * np.sin(a) ** 0.7 + 2], 1)
        parts.append(tube(over, rng.uniform(1.6, 3.2), 6, cord))
    knot = np.array([x[31], 0, tall[31] + 3])
    for side in (-1, 1):
        loop = knot + np.array([[0, 0, 0], [12, side * 26, 3], [-8, side * 38, -6], [-14, side * 20, -1], [0, 0, 1]])
        end = knot + np.array([[0, 0, 0], [14, side * 12, 2], [26, side * rng.uniform(15, 40), -12]])
        parts += [tube(smooth(loop, 5), 1.8, 5, cord), tube(smooth(end, 5), 1.8, 5, cord)]
    return parts


def hand(rng, skin):
    """Palm at the origin, fingers towards +x and down to the ground."""
    parts = [blob([54, 41, 17], skin, 16, 24).moved([-10, 0, 45])]
    for k in range(5):
        spread = (k - 1.8) * 17
        length = (45, 68, 75, 70, 55)[k]
        bend = rng.uniform(0.2, 0.9)
        path = np.array(
            [
                [20, spread * 0.9, 46],
                [25 + length * 0.45, spread, 44 - 8 * bend],
                [25 + length * 0.75, spread * 0.8, 30 - 14 * bend],
                [25 + length * (1.0 - 0.2 * bend), spread * 0.6, 14 - 8 * bend],
            ]
        )
        parts.append(tube(smooth(path, 9), rng.uniform(8, 10), 16, skin))
        parts.append(blob([9, 9, 9], skin).moved(path[-1]))
    return join(parts)


def _reaching_arm(rng, chest, inside, shirt, skin):
    """An arm from the chest to a hand on the ground, inside mm from the origin."""
    side = rng.choice([-1, 1])
    shoulder = chest + [20, side * 190, 40]
    palm = np.array([inside, side * rng.uniform(-60, 220), 20])
    elbow = (shoulder + palm) / 2 + [0, side * 60, -60]
    reach = np.arctan2(*(palm - elbow)[[1, 0]])
    sleeve = _wrinkled(rng, [shoulder, (shoulder + elbow) / 2 + [0, 0, 15]], [75, 70], 40, shirt, 0.02)
    wrist = palm + [-38 * np.cos(reach), -38 * np.sin(reach), 30]
    radii = np.interp(np.linspace(0, 1, 61), [0, 0.5, 1], [44, 40, 26])
    arm = smooth([(shoulder + elbow) / 2, elbow, wrist], 30)
    parts = [sleeve, tube(arm, radii, 32, skin), hand(rng, skin).turned(turn("z", reach)).moved(palm)]
    if rng.random() < 0.25:  # a watch or a bracelet
        strap = Material(rgb(*np.full(3, rng.uniform(15, 200))), rng.choice([0.0, 0.8]), 30, 0.05)
        parts.append(tube(arm[53:57], radii[53:57] + 3, 32, strap, caps=False))
    if rng.random() < 0.4:
        fingers = palm + 75 * np.array([np.cos(reach), np.sin(reach), 0]) + [0, 0, rng.uniform(0, 30)]
        parts.append(held(rng).turned(turn("z", rng.uniform(0, 2 * np.pi))).moved(fingers))
    return parts


def telephone(rng):
    """Lying on its face or back, about the origin: a rounded plate with a rim and either a screen or lenses."""
    a = np.arange(40) * 2 * np.pi / 40
    corner = np.stack([np.sign(np.cos(a)) * np.abs(np.cos(a)) ** 0.3, np.sign(np.sin(a)) * np.abs(np.sin(a)) ** 0.3], 1)
    half = np.array([rng.uniform(62, 82), rng.uniform(31, 40)])
    tone = rng.choice([rng.uniform(12, 45), rng.uniform(150, 240)]) * np.array([1, rng.uniform(0.9, 1), rng.uniform(0.8, 1.1)])
    face = Material(rgb(*tone), rng.choice([0, 0.5]), 60, 0.08)
    rim = Material(rgb(*np.full(3, rng.uniform(15, 200))), rng.choice([0, 0.8]), 40, 0.08)
    black = Material(rgb(*rng.uniform(8, 40, 3)), 0.0, 80, 0.12)
    parts = [slab(corner * half, 8, rim), slab(corner * (half - 2.5), 8.6, face)]
    if rng.random() < 0.4:
        parts.append(slab(corner * (half - [9, 4]), 9, black))
    else:
        bump = np.array([half[0] - 16, half[1] - 12, 0])
        parts.append(slab(corner * [13, 8], 10, black if rng.random() < 0.6 else face).moved(bump))
        parts += [tube(np.linspace([k, 0, 9], [k, 0, 11.5], 2), 5, 14, black).moved(bump) for k in (-6, 6)]
    return join(parts).moved([0, 0, -4])


def _telephoning(rng, head, skin):
    """A hand that holds a telephone to the head, its back upwards or outwards."""
    device = telephone(rng).turned(turn("x", rng.uniform(-0.9, 0.9))).turned(turn("z", rng.uniform(0, 2 * np.pi)))
    at = head + [rng.uniform(0, 60), rng.choice([-1, 1]) * rng.uniform(40, 80), rng.uniform(60, 110)]
    parts = [device.moved(at), blob([48, 38, 20], skin, 16, 24).moved(at - [20, 0, 28])]
    for k in range(4):
        start = at + [-30 + 20 * k, -50, -12]
        parts.append(tube(smooth([start, start + [2, 22, 18], start + [4, 48, 16]], 8), 8, 14, skin))
    return parts


def hair(rng):
    """The upper part of a head about the origin, in strands from the crown down."""
    dull = Material(rgb(*(rng.uniform(14, 70) * np.array([1.1, 1, 0.9]))), 0.0, 6, 0.01)
    rings, sides, long = 60, 180, 12
    head = blob([115, 78, 100], dull, rings, sides)
    strands = rng.standard_normal((rings + long, sides)).cumsum(0)
    strands = (strands[long:] - strands[:-long]) / np.sqrt(long)
    head.points *= 1 + rng.uniform(0.003, 0.013) * strands.reshape(-1, 1)
    head.albedo *= np.exp(rng.uniform(0.1, 0.4) * strands[:-1]).reshape(-1, 1)
    return head.turned(turn("y", -np.pi / 2))


def _spectacles(rng, face):
    frame = Material(rgb(*np.full(3, rng.uniform(10, 190))), rng.choice([0, 0.8]), 40, 0.08)
    a = np.linspace(0, 2 * np.pi, 25)
    parts = []
    for side in (-1, 1):
        ring = face + np.stack([20 * np.sin(a), side * 32 + 24 * np.cos(a), 60 + 0 * a], 1)
        arm = face + np.array([[0, side * 58, 60], [-60, side * 70, 40], [-130, side * 74, 20]])
        parts += [tube(ring, 1.6, 6, frame, caps=False), tube(smooth(arm, 10), rng.uniform(1.5, 4), 6, frame)]
    return parts


def held(rng):
    """What a hand may hold: a rod, a telephone, a sheet of paper or a small box, around the origin."""
    kind = rng.choice(["rod", "telephone", "paper", "box"], p=[0.4, 0.25, 0.2, 0.15])
    if kind == "telephone":
        return telephone(rng).turned(turn("x", rng.normal(0, 0.4)))
    if kind == "rod":
        steel = Material(rgb(*np.full(3, rng.uniform(20, 230))), rng.choice([0, 0.8]), 40, 0.1)
        tip = np.array([rng.uniform(40, 110), 0, rng.uniform(-15, 25)])
        return tube(np.linspace(-tip * rng.uniform(0.2, 1), tip, 12), rng.uniform(1.5, 4), 10, steel)
    size, colour = {
        "paper": ([*rng.uniform(60, 200, 2), 1], rng.uniform(150, 245, 3)),
        "box": (rng.uniform(20, 60, 3), rng.uniform(30, 245, 3)),
    }[kind]
    return box(size, Material(rgb(*colour), 0.0, 8, 0.05)).turned(turn("x", rng.normal(0, 0.4)))


def person(rng, inside):
    """Someone standing or squatting at the origin, facing +x; inside is how far (mm) a hand reaches."""
    upper = Material(rgb(*(rng.uniform(15, 90) + rng.normal(0, 10, 3))), 0.0, 6, 0.015)
    if rng.random() < 0.2:
        upper = Material(rgb(*rng.uniform(60, 230, 3)), 0.0, 6, 0.02)
    sole = Material(rgb(*(rng.uniform(120, 240) * np.array([1, 0.99, 0.94]))), 0.0, 8, 0.03)
    trousers, shirt = cloth(rng), cloth(rng)
    skin = Material(rgb(*(np.array([205, 150, 122]) * rng.uniform(0.45, 1.15))), 0.0, 10, 0.03)
    parts = []
    squat = rng.random() < 0.55
    for sign in (1, -1):
        at = np.array([rng.normal(0, 90), sign * rng.uniform(70, 180), 0])
        foot = shoe(rng, upper, sole).turned(turn("z", sign * rng.uniform(0, 0.5))).moved(at)
        ankle = at + [-70, 0, 80]
        if squat:
            knee, hip = at + [rng.uniform(0, 160), sign * 60, 470], at * [1, 0.6, 1] + [-380, 0, 420]
        else:
            knee, hip = at + [rng.normal(0, 40), 0, 500], at * [1, 0.8, 1] + [-60, 0, 900]
        leg = _wrinkled(
            rng,
            [ankle, (ankle + knee) / 2 + [-15, 0, 0], knee, (knee + hip) / 2, hip],
            [66, 70, 82, 95, 105],
            48,
            trousers,
            0.014,
        )
        parts += [foot, leg]
    if squat or rng.random() < 0.95:
        chest = np.array([-60 if squat else -20, 0, 720 if squat else 1250.0])
        waist = np.array([-330 if squat else -60, 0, 430 if squat else 950.0])
        parts.append(blob([150, 160, 130], trousers, 40, 50).moved(waist - [0, 0, 40]))
        parts.append(
            _wrinkled(
                rng,
                [waist, (waist + chest) / 2 + [-40, 0, 20], chest, chest + [50, 0, 70]],
                [150, 170, 185, 70],
                60,
                shirt,
                0.012,
            )
        )
        parts.append(hair(rng).moved(chest + [140, 0, 170]))
        parts.append(blob([85, 72, 75], skin, 30, 40).moved(chest + [70, 0, 75]))
        parts.append(blob([70, 60, 80], skin, 30, 40).moved(chest + [175, 0, 120]))
        if rng.random() < 0.3:
            parts += _spectacles(rng, chest + [175, 0, 120])
        if rng.random() < 0.3:
            parts += _telephoning(rng, chest + [150, 0, 170], skin)
        if squat and rng.random() < 0.75:
            parts += _reaching_arm(rng, chest, inside, shirt, skin)
    return join(parts)

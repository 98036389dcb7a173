"""What lies flat on the road: patches, stains, oil, manhole covers, lane paint, cracks; how many and where."""

import numpy as np

from ground import Ground, borders, cells, step
from shapes import rgb, warm


def band(centre, angle, width, length, flare=0.0):
    """Rectangle [4,2] around centre, its long side along angle."""
    along, across = (
        np.array([np.cos(angle), np.sin(angle)]) * length / 2,
        np.array([-np.sin(angle), np.cos(angle)]) * width / 2,
    )
    return np.array(
        [
            centre - along - across,
            centre + along - across * (1 + flare),
            centre + along + across * (1 + flare),
            centre - along + across,
        ]
    )


def disc(rng, centre, size, corners=14, rough=0.35):
    a = np.sort(rng.uniform(0, 2 * np.pi, corners))
    r = size * np.exp(rng.normal(0, rough, corners))
    return np.asarray(centre) + np.stack([r * np.cos(a), r * np.sin(a)], 1)


def make_road(rng, camera, style, span):
    """A road with its marks, which lie within `span` millimetres."""
    ground = Ground(rng, camera, style)

    def somewhere(reach=0.55):
        return rng.uniform(-reach, reach, 2) * [span, span * camera.height / camera.width]

    for _ in range(rng.poisson(0.5)):  # patches of another asphalt, or dusty concrete
        shape = (
            band(somewhere(), rng.uniform(0, np.pi), rng.uniform(150, 700), rng.uniform(300, 2500))
            if rng.random() < 0.6
            else disc(rng, somewhere(), rng.uniform(80, 400))
        )
        inside = ground.outline(shape, ragged=rng.uniform(3, 25), ragged_size=rng.uniform(10, 60))[..., None]
        factor = float(np.exp(rng.normal(0, 0.35))) * (1 + warm(rng, 0.05))
        rough = 1 + 0.2 * rng.uniform(-1, 1) * ground.noise(rng.uniform(2, 12))[..., None]
        seam = (4 * inside * (1 - inside)) * rng.uniform(0, 0.6)
        ground.albedo *= (1 + inside * (factor * rough - 1)).astype(np.float32) * (1 - seam)
    for _ in range(rng.poisson(0.9)):
        ground.blotch(
            somewhere(),
            float(np.exp(rng.normal(4.2, 0.9))),
            float(np.exp(rng.normal(-0.22, 0.25))) * (1 + warm(rng, 0.025)),
            rng.uniform(0.2, 1.5),
        )
    for _ in range(rng.poisson(1.2)):  # oil drips and gum
        ground.blotch(somewhere(), rng.uniform(4, 22), np.full(3, rng.uniform(0.4, 0.85)), rng.uniform(0.2, 0.8))
    if rng.random() < 0.12:
        ground.manhole(somewhere(), rng.uniform(180, 360))
    paint_lines(rng, ground, somewhere, span)
    for _ in range(rng.poisson(1.1)):
        ground.crack(somewhere(), rng.uniform(0, 2 * np.pi), rng.uniform(80, 1200), rng.uniform(0.8, 4.5))
    if rng.random() < 0.12:  # crazed like an alligator's skin
        lines = borders(
            cells(rng, ground.height, ground.width, max(rng.uniform(40, 130) * ground.scale, 4), 0.8),
            rng.uniform(1, 3) * ground.scale,
        )
        ground.albedo *= (1 - rng.uniform(0.3, 0.6) * lines * step(ground.noise(300) - 0.3, 0.5))[..., None]
    return ground


def paint_lines(rng, ground, somewhere, span):
    def colour():
        white = rng.uniform(140, 222)
        if rng.random() < ground.style["yellow_paint"]:
            return np.array(rgb(white, white * rng.uniform(0.7, 0.9), white * rng.uniform(0.15, 0.5)), np.float32)
        return np.array(rgb(white, white * rng.uniform(0.97, 1.01), white * rng.uniform(0.88, 1.0)), np.float32)

    angle = rng.uniform(0, np.pi)
    for _ in range(rng.choice([0, 1, 2, 3], p=[0.22, 0.52, 0.18, 0.08])):
        ground.paint(
            band(somewhere(0.45), angle, rng.uniform(70, 190), 6 * span),
            colour(),
            rng.choice([0, rng.uniform(0.6, 1)], p=[0.15, 0.85]),
            rng.uniform(0.7, 2.6),
        )
        angle += rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)])
    for _ in range(rng.poisson(0.7)):  # strokes, arrows and remains of letters
        ground.paint(
            band(
                somewhere(), rng.uniform(0, np.pi), rng.uniform(25, 120), rng.uniform(60, 420), rng.uniform(-0.6, 0.6)
            ),
            colour(),
            rng.uniform(0, 1),
            rng.uniform(-0.4, 1.3),
        )

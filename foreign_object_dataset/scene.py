"""Puts one picture together: what lies where, who owns which pixel, and the boxes that follow."""

from dataclasses import dataclass

import cv2
import numpy as np

from bystanders import make_bystander
from camera import make_camera, make_light
from clutter import make_clutter
from ground import noise, step
from objects import CLASSES, MAKERS
from prints import prints
from raster import DRAWN, cast, draw, occlude
from road import band, disc, make_road
from sensor import motion, photograph
from shapes import turn
from styles import STYLES

# How many of (nail, clip_B, clip_Y, L_stick) lie together, and how often: as in the photographs, with a few more kinds
TOGETHER = {
    (1, 1, 1, 1): 204,
    (3, 1, 1, 0): 78,
    (1, 1, 0, 1): 57,
    (1, 1, 1, 0): 30,
    (1, 0, 0, 1): 25,
    (1, 1, 0, 0): 24,
    (1, 0, 1, 1): 18,
    (1, 0, 0, 0): 18,
    (0, 1, 1, 1): 17,
    (0, 1, 0, 0): 16,
    (0, 0, 0, 1): 15,
    (0, 1, 0, 1): 14,
    (0, 0, 1, 1): 14,
    (1, 0, 1, 0): 14,
    (3, 0, 1, 0): 12,
    (0, 1, 1, 0): 10,
    (3, 2, 1, 0): 9,
    (2, 1, 1, 0): 9,
    (2, 0, 1, 0): 7,
    (0, 0, 1, 0): 6,
    (3, 2, 0, 0): 5,
    (2, 1, 0, 0): 5,
    (3, 1, 0, 0): 4,
    (3, 0, 0, 0): 2,
    (0, 2, 1, 1): 1,
    (1, 2, 2, 1): 8,
    (2, 1, 1, 2): 8,
    (0, 0, 0, 0): 12,
}


SEEN = 15  # levels of 255; what differs less from the road around it nobody would label


@dataclass
class Picture:
    """image uint8 RGB [H,W,3]; owner int16 [H,W]: which object (1-based, 0 none) shows at a pixel; objects: dicts with
    name, box (x1, y1, x2, y2) continuous edges in pixels, truncated, difficult."""

    image: np.ndarray
    owner: np.ndarray
    objects: list


def mask_box(mask):
    """Extent (x1, y1, x2, y2) of a mask in continuous edges: a single pixel at column 3, row 5 gives (3, 5, 4, 6)."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _wish(rng, camera):
    """Where in the picture something might lie: the photographs' middle more often than the borders."""
    if rng.random() < 0.7:
        place = np.clip(rng.normal([0.5, 0.52], [0.18, 0.19]), 0.02, 0.98)
    else:
        place = rng.uniform(0.01, 0.99, 2)
    return place * [camera.width, camera.height]


def _bystanders(rng, camera, span):
    """Large meshes in place at the borders of the picture, or outside and only their shadows in it, from far to near."""
    placed, farthest = [], max(0.25, 400 / span)  # in shares of the picture
    for _ in range(rng.choice([0, 1, 2, 3], p=[0.22, 0.38, 0.27, 0.13])):
        side, along, beyond = rng.integers(4), rng.uniform(0, 1), rng.uniform(-0.14, farthest)
        spot = np.array([[along, -beyond], [1 + beyond, along], [along, 1 + beyond], [-beyond, along]][side])
        at = camera.on_ground([spot * [camera.width, camera.height]])[0]
        towards = np.arctan2(-at[1], -at[0]) + rng.normal(0, 0.5)
        placed.append(make_bystander(rng, span).turned(turn("z", towards)).moved([*at, 0]))
    return _far_to_near(placed, camera)


def _far_to_near(meshes, camera, of=lambda mesh: mesh):
    return sorted(meshes, key=lambda each: -np.linalg.norm(of(each).points.mean(0) - camera.position))


def _far_shadows(rng, ground, span, softness):
    """Sunlight [h,w] on the ground map, where houses, trees and people out of sight take it away."""
    sunlit = np.ones((ground.height, ground.width), np.float32)
    for _ in range(rng.choice([0, 1, 2], p=[0.5, 0.33, 0.17])):
        centre = rng.uniform(-0.7, 0.7, 2) * span
        size = rng.uniform(0.1, 0.5) * span
        soft = min(1 + softness * np.exp(rng.uniform(np.log(100), np.log(4000))), 80)  # what casts it is so many mm high
        kind = rng.choice(["leaves", "bars", "house", "round"], p=[0.14, 0.36, 0.25, 0.25])
        if kind == "leaves":
            leaves = ground.noise(rng.uniform(60, 250)) + 0.6 * ground.noise(rng.uniform(15, 40))
            mask = rng.uniform(0.6, 1) * step(leaves - rng.uniform(-0.2, 0.9), rng.uniform(0.5, 1.6))
        elif kind == "bars":  # a pole, a wall, or a fence
            angle, wide = rng.uniform(0, np.pi), rng.uniform(12, 400)
            aside = np.array([-np.sin(angle), np.cos(angle)])
            count = rng.integers(2, 9) if wide < 60 and rng.random() < 0.5 else 1
            step_aside = wide * rng.uniform(1.5, 5) * aside
            mask = np.max([ground.outline(band(centre + k * step_aside, angle, wide, 8 * span), soft) for k in range(count)], axis=0)
        elif kind == "house":
            corners = disc(rng, centre, 1.5 * size, 8, 0.3).astype(np.float32)
            mask = ground.outline(cv2.convexHull(corners)[:, 0], soft)
        else:  # a tree, somebody out of sight
            mask = ground.outline(disc(rng, centre, size, 24, 0.12), max(soft, 4))
        sunlit = np.minimum(sunlit, 1 - mask)
    return sunlit


def _layer(rng, mesh, camera, light, road, sunlit):
    """(window, cover, colour) of a mesh drawn by itself, or None when it is out of the picture; in the sun that falls on its foot.
    Some move while the picture is taken; the road's albedo is `road`."""
    canvas = np.zeros((camera.height, camera.width, 3), np.float32)
    foot = camera.project(mesh.points[mesh.points[:, 2] < 60])[0].mean(0)
    x, y = np.clip(np.nan_to_num(foot), 0, [camera.width - 1, camera.height - 1]).astype(int)
    sunlit = np.full_like(sunlit, sunlit[y, x])
    weave = [noise(rng, camera.height, camera.width, size * camera.scale) for size in (1.2, 4, 25)]
    grain = np.exp(
        rng.uniform(0.01, 0.09) * weave[0] + rng.uniform(0, 0.06) * weave[1] + rng.uniform(0, 0.05) * weave[2]
    )
    drawn = draw(canvas, mesh, camera, light, road, sunlit, grain * prints(rng, camera.project(mesh.points)[0], camera))
    if drawn is None:
        return None
    (x1, y1, x2, y2), cover = drawn
    colour = canvas[y1:y2, x1:x2].copy()
    if rng.random() < 0.2:
        length, angle = rng.uniform(2, 14) * camera.scale, rng.uniform(0, np.pi)
        cover, colour = (motion(layer, length, angle) for layer in (cover, colour))
    return (x1, y1, x2, y2), cover, colour


def _edge_wish(rng, camera, hidden):
    """Where something standing ends, such as a hand or a shoe: beside it or partly under it."""
    edge = np.argwhere(cv2.morphologyEx(hidden[::8, ::8], cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0.5)
    return 8 * edge[rng.integers(len(edge))][::-1] if len(edge) else _wish(rng, camera)


def _fits(pixels, camera, hidden, crowded, rng):
    """May a thing with these picture points lie here? Rarely it may touch another or leave the picture."""
    low, high = pixels.min(0), pixels.max(0)
    size = high - low
    inside = (np.minimum(high, [camera.width, camera.height]) - np.maximum(low, 0)).clip(0).prod() / max(
        size.prod(), 1e-6
    )
    if inside < (0.97 if rng.random() > 0.05 else 0.55):
        return False
    if low[1] < 0.11 * camera.height and low[0] < 0.46 * camera.width:  # under the time stamp
        return False
    x1, y1 = np.maximum(low, 0).astype(int)
    x2, y2 = np.maximum(np.ceil(np.minimum(high, [camera.width, camera.height])).astype(int), [x1 + 1, y1 + 1])
    if crowded[y1:y2, x1:x2].mean() > (0.0 if rng.random() > 0.08 else 0.3):
        return False
    return hidden[y1:y2, x1:x2].mean() < (0.03 if rng.random() > 0.15 else 0.45)


def _place(rng, mesh, camera, hidden, crowded, beside=None):
    """The mesh turned and moved to a free spot, or None; with `beside`, close to that mesh and maybe touching."""
    mesh = mesh.turned(turn("z", rng.uniform(0, 2 * np.pi)))
    at_edge = rng.random() < 0.15
    for _ in range(30):
        if beside is None:
            wish = _edge_wish(rng, camera, hidden) if at_edge else _wish(rng, camera)
            spot = camera.on_ground([wish])[0]
        else:
            reach, angle = rng.uniform(0.5, 0.9) * np.ptp(beside.points[:, :2], axis=0).max(), rng.uniform(0, 2 * np.pi)
            spot = beside.points[:, :2].mean(0) + reach * np.array([np.cos(angle), np.sin(angle)])
        moved = mesh.moved([*spot, 0])
        pixels, _ = camera.project(moved.points)
        if _fits(pixels, camera, hidden, crowded if beside is None else 0.3 * crowded, rng):
            low, high = np.floor(pixels.min(0)).astype(int), np.ceil(pixels.max(0)).astype(int)
            crowded[max(low[1], 0) : max(high[1], 0), max(low[0], 0) : max(high[0], 0)] = 1
            return moved
    return None


def _relief_shading(rng, ground, light):
    """[h,w] about 1: how the ground's grain, lit from one side, brightens and darkens the sunlight on it."""
    relief = cv2.GaussianBlur(ground.relief, (0, 0), max(0.3 * ground.scale, 0.3))
    east, north, up = light.direction.tolist()
    slope = east * cv2.Sobel(relief, cv2.CV_32F, 1, 0) + north * cv2.Sobel(relief, cv2.CV_32F, 0, 1)
    return np.clip(1 - rng.uniform(0.01, 0.08) / max(up, 0.45) * slope, 0.25, 1.9)


def render(seed, index, width, height, style="default", magnification=1.0):
    """The picture number `index` of the world `style`: a function of its arguments alone.

    magnification   how many times larger things are than in a photograph of this width: 2 at 1280x720 shows a quarter
                    of a 2560x1440 frame
    """
    rng, style = np.random.default_rng([seed, index]), STYLES[style]
    camera, light = make_camera(rng, width, height, style, magnification), make_light(rng, style)
    span = width / camera.scale
    marked = span * magnification if rng.random() < 0.65 else span  # the marks of a whole frame, few of which such a window shows, or many
    ground = make_road(rng, camera, style, marked)
    sunlit = ground.seen(_far_shadows(rng, ground, span, light.softness))
    rough = ground.seen(_relief_shading(rng, ground, light))
    albedo = ground.seen(ground.albedo)

    openness = np.ones((height, width), np.float32)
    bystanders, far_only = _bystanders(rng, camera, span), sunlit.copy()
    for mesh in bystanders:
        cast(sunlit, mesh, camera, light)
        occlude(openness, mesh, camera, 0.6)
    road = albedo[::16, ::16].mean((0, 1))
    surfaces = np.random.default_rng([seed, index, 1])  # of their own, so that what lies there does not hang on them
    standing = [layer for mesh in bystanders if (layer := _layer(surfaces, mesh, camera, light, road, far_only))]
    hidden = np.zeros((height, width), np.float32)
    for (x1, y1, x2, y2), cover, _ in standing:
        np.maximum(hidden[y1:y2, x1:x2], cover, out=hidden[y1:y2, x1:x2])

    lying = _lying_things(rng, camera, hidden, style)
    shaded, beside = sunlit.copy(), 0.25 + 0.75 * openness
    for mesh, _ in lying:
        cast(shaded, mesh, camera, light)
        occlude(openness, mesh, camera, 0.75)
    openness = openness[..., None]
    image = albedo * (
        light.sky.astype(np.float32) * (0.25 + 0.75 * openness)
        + (light.sun * light.direction[2]).astype(np.float32) * (rough * shaded)[..., None]
    )
    image *= (0.8 + 0.2 * rough)[..., None]
    owner, named = _draw_things(image, lying, standing, camera, light, road, sunlit, beside)
    image, covered = photograph(rng, image, style, magnification)
    owner[covered] = 0
    return Picture(image, owner, _objects(image, owner, named, camera))


def _draw_things(image, lying, standing, camera, light, road, sunlit, beside):
    """Draws into image what lies there, as bright as beside [H,W] lets it, and what stands there; returns owner [H,W] and the owners'
    [(class name, mesh, pixels when nothing covers it)]."""
    owner, named = np.zeros(image.shape[:2], np.int16), []
    for mesh, name in lying:
        found = draw(image, mesh, camera, light, road, sunlit, beside)
        if found is None:
            continue
        (x1, y1, x2, y2), cover = found
        drawn = cover > DRAWN
        if name:
            named.append((name, mesh, int(drawn.sum())))
        owner[y1:y2, x1:x2][drawn] = len(named) if name else 0
    for (x1, y1, x2, y2), cover, colour in standing:
        image[y1:y2, x1:x2] = image[y1:y2, x1:x2] * (1 - cover[..., None]) + colour
        owner[y1:y2, x1:x2][cover > 0.5] = 0
    return owner, named


def _lying_things(rng, camera, hidden, style):
    """[(mesh, class name or None)] from far to near."""
    crowded = np.zeros(hidden.shape, np.float32)
    kinds, weights = list(TOGETHER), np.array(list(TOGETHER.values()), float)
    counts = kinds[rng.choice(len(kinds), p=weights / weights.sum())]
    things = []
    for name, count in zip(CLASSES, counts, strict=True):
        for _ in range(count):
            mesh = MAKERS[name](rng).scaled(np.exp(rng.normal(0, style["stretch"], 3)))
            mesh = _place(rng, mesh, camera, hidden, crowded, things[-1][0] if things and rng.random() < 0.06 else None)
            things += [(mesh, name)] if mesh else []
    for _ in range(rng.poisson(rng.choice([1.5, 5, 14], p=[0.6, 0.3, 0.1]))):
        mesh = _place(rng, make_clutter(rng), camera, hidden, crowded)
        things += [(mesh, None)] if mesh else []
    return _far_to_near(things, camera, of=lambda thing: thing[0])


def _contrast(image, mask, owner):
    """How many levels of 255 most of the pixels of a mask [H,W] differ from the road around: the tenth of them that does so most, in the
    channel that shows it best, after a blur against noise."""
    x1, y1, x2, y2 = mask_box(mask)
    reach = 6 + max(x2 - x1, y2 - y1) // 4
    window = slice(max(y1 - reach, 0), y2 + reach), slice(max(x1 - reach, 0), x2 + reach)
    part, mask = cv2.GaussianBlur(np.ascontiguousarray(image[window]), (0, 0), 0.8).astype(float), mask[window]
    around = owner[window] == 0
    if not around.any():
        return 255.0
    return np.percentile(abs(part[mask] - np.median(part[around], axis=0)).max(1), 90)


def _objects(image, owner, named, camera):
    objects = []
    for k, (name, mesh, full) in enumerate(named, 1):
        mask = owner == k
        if not mask.any() or _contrast(image, mask, owner) < SEEN:
            owner[mask] = 0
            continue
        pixels, _ = camera.project(mesh.points)
        low, high = pixels.min(0), pixels.max(0)
        inside = (np.minimum(high, [camera.width, camera.height]) - np.maximum(low, 0)).prod() / (high - low).prod()
        visible = mask.sum() / max(full, 1) * min(inside, 1)
        box = mask_box(mask)
        objects.append(
            {
                "name": name,
                "box": box,
                "truncated": bool(inside < 0.98 or visible < 0.9),
                "difficult": bool(visible < 0.4),
            }
        )
    return objects

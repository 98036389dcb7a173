"""Draws meshes into a linear RGB picture: painter's algorithm on supersampled patches; shadows by projection."""

from dataclasses import replace

import cv2
import numpy as np

from ground import blur

SHIFT = 4  # fractional bits of cv2's polygon corners
DRAWN = 0.3  # share of a pixel that a thing must cover to own it
CREASE = np.cos(np.radians(50))  # cosine: faces whose normals differ by less are parts of one curved surface; a hexagon (60) stays one
PIECE = (4.0, np.radians(2))  # pixels, and radians of curvature, that one flat piece of such a surface may span


def _patch(points, camera, sharp, margin=3):
    """Window (x1, y1, x2, y2) of the picture around points [N,2], and the supersampling; None when outside."""
    low, high = np.floor(points.min(0)) - margin, np.ceil(points.max(0)) + margin
    x1, y1 = np.maximum(low, 0).astype(int)
    x2, y2 = np.minimum(high, [camera.width, camera.height]).astype(int)
    if x2 <= x1 or y2 <= y1:
        return None
    side = max(x2 - x1, y2 - y1)
    return (x1, y1, x2, y2), int(np.clip(sharp // side, 1, 4))


def _fill(polygons, order, window, factor):
    """Index image: which polygon (1-based, 0 none) is on top; order lists them from far to near."""
    x1, y1, x2, y2 = window
    index = np.zeros(((y2 - y1) * factor, (x2 - x1) * factor), np.int32)
    corners = (polygons - [x1, y1]) * factor - 0.5
    corners = np.round(np.clip(corners, -9000, 9000) * (1 << SHIFT)).astype(np.int32)
    for k in order:
        cv2.fillConvexPoly(index, corners[k], int(k) + 1, 8, SHIFT)
    return index


def _shrink(image, factor):
    if factor == 1:
        return image
    return cv2.resize(image, (image.shape[1] // factor, image.shape[0] // factor), interpolation=cv2.INTER_AREA)


def shade(mesh, centres, normals, camera, light, albedo):
    """Linear RGB of each face [F,3], twice: in the sun and in the shadow of something else. Its points tell how high the mesh is, its
    faces are not looked at: one row of albedo and surface for each of the centres and normals. albedo [3] is the road's, which they mirror:
    a face low above it that turns from the sun sees the shadow of its own thing."""
    view = camera.position - centres
    view /= np.linalg.norm(view, axis=1, keepdims=True)
    metal, gloss, sheen = (mesh.surface[:, k : k + 1] for k in range(3))
    facing = np.maximum(normals @ light.direction, 0)[:, None]
    up = 0.5 + 0.5 * normals[:, 2:]
    low, high = mesh.points[:, 2].min(), mesh.points[:, 2].max()
    open_sky = 0.45 + 0.55 * np.clip((centres[:, 2:] - low) / (0.5 * (high - low) + 1e-6), 0, 1)
    mirrored = 2 * (normals * view).sum(1, keepdims=True) * normals - view
    half = view + light.direction
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    glint = np.maximum((normals * half).sum(1, keepdims=True), 0) ** gloss * (gloss + 8) / 25 * (facing > 0)
    tint = metal * mesh.albedo + (1 - metal) * sheen
    fresnel = tint + np.maximum(1 - tint, 0) * 0.5 * (1 - np.clip((normals * view).sum(1, keepdims=True), 0, 1)) ** 5
    own_shadow = (facing == 0) * np.exp(-np.maximum(centres[:, 2:], 0) / 40)
    sunny = light.sun * light.direction[2] * (1 - own_shadow)
    lit, dark = (mesh.albedo * (1 - metal) * (light.sky * up * open_sky + 0.5 * ground * (1 - up))
                 + fresnel * light.surroundings(mirrored, ground) * (0.4 + 0.6 * open_sky)
                 for ground in (albedo * (light.sky + sunny), albedo * light.sky))
    return lit + light.sun * (mesh.albedo * (1 - metal) * facing + tint * glint), dark


def _faces(mesh, camera):
    """Unit normals [F,3] of the faces, and which of them turn to the camera [F]."""
    corners = mesh.points[mesh.faces]
    normals = np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
    triangle = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.where((mesh.faces[:, 2] == mesh.faces[:, 3])[:, None], triangle, normals)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    return normals, ((camera.position - corners.mean(1)) * normals).sum(1) >= 0


def _corner_normals(faces, normals):
    """Unit normals [F,4,3] at the corners of faces [F,4]: the mean of those faces that meet there without a crease."""
    corner, face = faces.ravel(), np.repeat(np.arange(len(faces)), 4)
    order = np.argsort(corner, kind="stable")
    total, at = normals[face], np.arange(len(order))
    for step in range(1, len(order)):  # each corner with the one that comes `step` later at the same point
        at = at[at + step < len(order)]
        at = at[corner[order[at]] == corner[order[at + step]]]
        if not len(at):
            break
        one, other = order[at], order[at + step]
        alike = (normals[face[one]] * normals[face[other]]).sum(1) > CREASE
        one, other = one[alike], other[alike]
        total[one] += normals[face[other]]
        total[other] += normals[face[one]]
    total /= np.linalg.norm(total, axis=1, keepdims=True) + 1e-12
    return total.reshape(-1, 4, 3)


def _angle(a, b):
    return np.arccos(np.clip((a * b).sum(-1), -1, 1))


def _within(values, s, t):
    """What the values [F,4,3] at the corners are inside, at s, t [P] from 0 to 1 along the sides 0-1 and 0-3: [F,P,3]."""
    return np.stack([(1 - s) * (1 - t), s * (1 - t), s * t, (1 - s) * t], 1) @ values


def _pieces(corners, bent, pixels):
    """Cuts curved faces so that none of the flat pieces is seen as one.

    corners [F,4,3] mm, bent [F,4,3] unit normals there, pixels [F,4,2] where the corners are seen; returns corners [N,4,3] and
    unit normals [N,3] of the pieces, and of which face each is one [N].
    """
    counts = []
    for a, b, c, d in ((0, 1, 3, 2), (0, 3, 1, 2)):  # along the sides 0-1 and 3-2, then 0-3 and 1-2
        long = np.maximum(*(np.linalg.norm(pixels[:, i] - pixels[:, j], axis=1) for i, j in ((a, b), (c, d))))
        turn = np.maximum(_angle(bent[:, a], bent[:, b]), _angle(bent[:, c], bent[:, d]))
        counts.append(np.clip(np.minimum(np.ceil(long / PIECE[0]), np.ceil(turn / PIECE[1] - 0.5)), 1, 16).astype(int))
    parts = []
    for m, n in np.unique(np.stack(counts, 1), axis=0):
        face = np.flatnonzero((counts[0] == m) & (counts[1] == n))
        u, v = (a.ravel() for a in np.meshgrid(np.arange(m), np.arange(n), indexing="ij"))
        cut = np.stack([_within(corners[face], (u + i) / m, (v + j) / n) for i, j in ((0, 0), (1, 0), (1, 1), (0, 1))], 2)
        middle = _within(bent[face], (u + 0.5) / m, (v + 0.5) / n)
        parts.append((cut.reshape(-1, 4, 3), middle.reshape(-1, 3), np.repeat(face, m * n)))
    corners, normals, origin = (np.concatenate(p) for p in zip(*parts, strict=True))
    return corners, normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12), origin


def draw(picture, mesh, camera, light, albedo, sunlit, grain=None):
    """Blends the mesh, on a road of that albedo [3], into picture [H,W,3]; sunlit [H,W] says how much sun reaches it there, grain [H,W] is a factor on its light.

    Returns (window, coverage): the patch (x1, y1, x2, y2) and the covered share of each of its pixels; None if unseen.
    """
    pixels, depth = camera.project(mesh.points)
    near = depth[mesh.faces].min(1) < 0.12 * np.linalg.norm(camera.position)
    found = _patch(pixels[depth > 0], camera, 900) if (depth > 0).any() else None
    if found is None:
        return None
    window, factor = found
    x1, y1, x2, y2 = window
    normals, towards = _faces(mesh, camera)
    outlines = pixels[mesh.faces]
    inside = (outlines.max(1) >= [x1, y1]).all(1) & (outlines.min(1) <= [x2, y2]).all(1)
    shown = np.flatnonzero((towards | (mesh.surface[:, 3] > 0)) & inside & ~near)
    if not len(shown):
        return None
    bent = _corner_normals(mesh.faces, normals)[shown] * np.where(towards, 1, -1)[shown, None, None]
    faces = mesh.faces[shown]
    corners, normals, origin = _pieces(mesh.points[faces], bent, outlines[shown])
    centres = corners.mean(1)
    order = np.argsort(-np.linalg.norm(centres - camera.position, axis=1), kind="stable")
    seen, _ = camera.project(corners.reshape(-1, 3))
    index = _fill(seen.reshape(-1, 4, 2), order, window, factor)
    pieces = replace(mesh, albedo=mesh.albedo[shown][origin], surface=mesh.surface[shown][origin])
    lit, dark = shade(pieces, centres, normals, camera, light, albedo)
    cover = (index > 0).astype(np.float32)
    zero = np.zeros((1, 3))
    colours = [np.concatenate([zero, c]).astype(np.float32)[index] for c in (lit, dark)]
    cover, lit, dark = _shrink(cover, factor), _shrink(colours[0], factor), _shrink(colours[1], factor)
    if factor == 1:
        cover, lit, dark = (cv2.GaussianBlur(a, (0, 0), 0.8) for a in (cover, lit, dark))
    sun = sunlit[y1:y2, x1:x2, None]
    colour = lit * sun + dark * (1 - sun)
    if grain is not None:
        colour = colour * grain[y1:y2, x1:x2, None]
    picture[y1:y2, x1:x2] = picture[y1:y2, x1:x2] * (1 - cover[..., None]) + colour
    return window, cover


def cast(sunlit, mesh, camera, light):
    """Darkens sunlit [H,W] in place by the mesh's shadow on the ground; softer the taller the mesh."""
    along = mesh.points[:, 2:] / light.direction[2]
    flat = mesh.points - along * light.direction
    flat[:, 2] = 0
    _darken(
        sunlit, flat, mesh, camera, light.softness * 0.5 * np.ptp(mesh.points[:, 2]) * camera.scale, 1.0
    )


def occlude(openness, mesh, camera, strength=0.6):
    """Darkens openness [H,W] in place where the mesh hides the sky from the ground: under it and around it."""
    height = np.ptp(mesh.points[:, 2])
    low = mesh.points[:, 2] < 0.6 * height + 1
    near = replace(mesh, faces=mesh.faces[low[mesh.faces].all(1)])
    _darken(
        openness, mesh.points * [1, 1, 0], near, camera, max(0.5, 0.25 * min(height, 60) * camera.scale), strength
    )


def _darken(field, flat, mesh, camera, softness, strength):
    pixels, depth = camera.project(flat)
    if depth.min() <= 0:
        return
    found = _patch(pixels, camera, 400, margin=int(3 * softness) + 3)
    if found is None:
        return
    window, factor = found
    x1, y1, x2, y2 = window
    mask = (_fill(pixels[mesh.faces], range(len(mesh.faces)), window, factor) > 0).astype(np.float32)
    mask = blur(_shrink(mask, factor), softness)
    part = field[y1:y2, x1:x2]
    np.minimum(part, 1 - strength * mask, out=part)

"""Draws meshes into a linear RGB picture: painter's algorithm on supersampled patches; shadows by projection."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from ground import blur

SHIFT = 4  # fractional bits of cv2's polygon corners
DRAWN = 0.3  # share of a pixel that a thing must cover to own it


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


def shade(mesh, centres, normals, camera, light, ground):
    """Linear RGB of each face [F,3], twice: in the sun and in the shadow of something else."""
    view = camera.position - centres
    view /= np.linalg.norm(view, axis=1, keepdims=True)
    metal, gloss, sheen = (mesh.surface[:, k : k + 1] for k in range(3))
    facing = np.maximum(normals @ light.direction, 0)[:, None]
    up = 0.5 + 0.5 * normals[:, 2:]
    height = centres[:, 2:] - centres[:, 2].min()
    open_sky = 0.45 + 0.55 * np.clip(height / (0.5 * height.max() + 1e-6), 0, 1)
    mirrored = 2 * (normals * view).sum(1, keepdims=True) * normals - view
    half = view + light.direction
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    glint = np.maximum((normals * half).sum(1, keepdims=True), 0) ** gloss * (gloss + 8) / 25 * (facing > 0)
    tint = metal * mesh.albedo + (1 - metal) * sheen
    fresnel = tint + np.maximum(1 - tint, 0) * 0.5 * (1 - np.clip((normals * view).sum(1, keepdims=True), 0, 1)) ** 5
    dark = mesh.albedo * (1 - metal) * (light.sky * up * open_sky + 0.5 * ground * (1 - up))
    dark = dark + fresnel * light.surroundings(mirrored, ground) * (0.4 + 0.6 * open_sky)
    lit = dark + light.sun * (mesh.albedo * (1 - metal) * facing + tint * glint)
    return lit, dark


def _faces(mesh, camera):
    """Centres [F,3], unit normals [F,3] turned to the camera where two-sided, and which faces show [F]."""
    corners = mesh.points[mesh.faces]
    centres = corners.mean(1)
    normals = np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
    triangle = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.where((mesh.faces[:, 2] == mesh.faces[:, 3])[:, None], triangle, normals)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    away = ((camera.position - centres) * normals).sum(1) < 0
    two_sided = mesh.surface[:, 3] > 0
    normals[away & two_sided] *= -1
    return centres, normals, ~away | two_sided


def draw(picture, mesh, camera, light, ground, sunlit, grain=None):
    """Blends the mesh into picture [H,W,3]; sunlit [H,W] says how much sun reaches it there, grain [H,W] is a factor on its light.

    Returns (window, coverage): the patch (x1, y1, x2, y2) and the covered share of each of its pixels; None if unseen.
    """
    pixels, depth = camera.project(mesh.points)
    near = depth[mesh.faces].min(1) < 0.12 * np.linalg.norm(camera.position)
    found = _patch(pixels[depth > 0], camera, 900) if (depth > 0).any() else None
    if found is None:
        return None
    window, factor = found
    x1, y1, x2, y2 = window
    centres, normals, shown = _faces(mesh, camera)
    distance = np.linalg.norm(centres - camera.position, axis=1)
    order = np.argsort(-distance, kind="stable")
    order = order[(shown & ~near)[order]]
    index = _fill(pixels[mesh.faces], order, window, factor)
    lit, dark = shade(mesh, centres, normals, camera, light, ground)
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


def cast(sunlit, mesh, camera, light, strength=1.0):
    """Darkens sunlit [H,W] in place by the mesh's shadow on the ground; softer the taller the mesh."""
    along = mesh.points[:, 2:] / max(light.direction[2], 0.15)
    flat = mesh.points - along * light.direction
    flat[:, 2] = 0
    return _darken(
        sunlit, flat, mesh, camera, light.softness * 0.5 * np.ptp(mesh.points[:, 2]) * camera.scale, strength
    )


def occlude(openness, mesh, camera, strength=0.6):
    """Darkens openness [H,W] in place where the mesh hides the sky from the ground: under it and around it."""
    height = np.ptp(mesh.points[:, 2])
    low = mesh.points[:, 2] < 0.6 * height + 1
    near = replace(mesh, faces=mesh.faces[low[mesh.faces].all(1)])
    return _darken(
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

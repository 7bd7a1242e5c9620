"""Defects of objects: a foreign body on the part, and a component missing, swapped or displaced.

Arguments and results are those of the surface defects.
"""

from __future__ import annotations

import cv2
import numpy as np

from anomaly.data.synthetic.noise import smooth_noise, smoothstep
from anomaly.data.synthetic.placement import Site
from anomaly.data.synthetic.rendered_part import Field
from anomaly.data.synthetic.surface_defects import LIGHT, SPREAD, blob, draw_line

NUM_SOURCES = 6


def draw_foreign_body(site: Site, rng: np.random.Generator) -> tuple[Field, Field]:
    """Draw a fibre, a chip or a crumb on the part, with a soft shadow."""
    body = (_fibre, _chip, _crumb)[rng.integers(3)]
    cover, shading, tint, height = body(site, rng)
    cover = cover / max(float(cover.max()), 1e-3)
    light = LIGHT + rng.uniform(-SPREAD, SPREAD)
    cast = np.array([-np.cos(light), -np.sin(light)]) * height
    move = np.array([[1.0, 0.0, cast[0]], [0.0, 1.0, cast[1]]])
    shadow = cv2.GaussianBlur(cv2.warpAffine(cover, move, cover.shape[::-1]), (0, 0), 0.6 + 0.5 * height)
    shadow = 0.55 * min(1.0, site.peak / 60.0) * shadow * (1.0 - cover)
    under = site.image * (1.0 - shadow[:, :, None])
    # the body hides the texture below it, limited by its own contrast
    covered = site.image[cover >= 0.5]
    hidden = np.float32(min(1.0, site.peak / (float(covered.std(axis=0).mean()) + 1.0)))
    # the body has another colour than the part, limited by the contrast
    level = covered.mean(axis=0)
    fade = level.mean() - level
    level = level + fade * min(1.0, 0.5 * site.peak / max(float(np.abs(fade).max()), 1e-3))
    paint = np.asarray(tint if site.colourful else (1.0, 1.0, 1.0), dtype=np.float32)
    colour = site.image + (level - site.image) * hidden + site.sign * site.peak * shading[:, :, None] * paint
    change = (colour + site.noise(rng) * hidden - site.image) * cover[:, :, None]
    reached = float(np.quantile(np.abs(change).max(axis=2)[cover >= 0.5], 0.98))
    change *= min(1.0, site.peak / max(reached, 1e-3))
    changed = under + change
    amplitude = np.maximum(site.peak * cover, shadow * site.image.mean(axis=2))
    return np.asarray(changed, dtype=np.float32), np.asarray(amplitude, dtype=np.float32)


Body = tuple[Field, Field, tuple[float, float, float], float]  # cover, shading, tint, height in pixels


def _fibre(site: Site, rng: np.random.Generator) -> Body:
    """Draw a curled hair or thread."""
    heading = np.cumsum(rng.normal(0.0, 0.10, 64) + rng.normal(0.0, 0.035))
    line = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0)
    line -= line.mean(axis=0)
    _, _, axes = np.linalg.svd(line, full_matrices=False)
    line = line @ axes.T  # longest along the site's axis
    line *= site.extent / np.ptp(line[:, 0])
    cover = draw_line(site, line, strength=np.ones(64), width=site.stroke)
    core = draw_line(site, line - (0.0, 0.3 * site.stroke), strength=np.ones(64), width=0.4 * site.stroke)
    tint = ((1.0, 1.0, 1.0), (1.0, 0.9, 0.7), (0.8, 0.9, 1.0))[rng.integers(3)]
    return cover, 0.75 + 0.25 * core, tint, 1.2 * site.stroke


def _chip(site: Site, rng: np.random.Generator) -> Body:
    """Draw a sharp-edged sliver of metal with a few facets."""
    angles = (np.arange(6) + rng.uniform(0.0, 0.85, 6)) * np.pi / 3
    corners = np.stack([np.cos(angles), rng.uniform(0.25, 0.6) * np.sin(angles)], axis=1)
    corners *= site.extent / np.ptp(corners[:, 0])
    distance = np.full(site.x.shape, np.inf, np.float32)
    for start, stop in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        (left, top), (right, down) = start, (stop - start) / np.linalg.norm(stop - start)
        edge = (site.y - np.float32(top)) * np.float32(right) - (site.x - np.float32(left)) * np.float32(down)
        distance = np.minimum(distance, edge)
    cover = smoothstep(distance, low=-0.7, high=0.7)
    ridge = rng.uniform(-0.2, 0.2, 2)
    facet = site.y + np.float32(ridge[0]) * site.x + np.float32(ridge[1] * 0.3 * site.extent)
    rim = smoothstep(-distance, low=-1.6, high=-0.6)
    shading = 0.62 + 0.22 * smoothstep(facet, low=-0.8, high=0.8) + 0.16 * rim
    return cover, np.asarray(shading, dtype=np.float32), (1.0, 1.0, 0.97), float(np.clip(0.05 * site.extent, 1.0, 6.0))


def _crumb(site: Site, rng: np.random.Generator) -> Body:
    """Draw a lump with a grainy surface."""
    cover = blob(site, aspect=rng.uniform(0.65, 0.95), softness=max(0.08, 3.0 / site.extent), rng=rng)
    lump = np.asarray(cv2.GaussianBlur(cover, (0, 0), max(0.8, 0.14 * site.extent)), dtype=np.float32)
    for share, depth in ((0.20, 0.14), (0.07, 0.035), (0.0, 0.012)):
        step = max(2.5, share * site.extent)
        lump += depth * smooth_noise(cover.shape, period=(step, step), rng=rng) * cover
    facing = cv2.Sobel(lump, cv2.CV_32F, 1, 0) * -np.cos(LIGHT) + cv2.Sobel(lump, cv2.CV_32F, 0, 1) * -np.sin(LIGHT)
    facing = facing / max(3.0 * float(facing.std()), 1e-6) * site.sign
    shading = np.clip(0.70 + 0.35 * facing, 0.25, 1.0)
    height = float(np.clip(0.09 * site.extent, 1.0, 10.0))
    return cover, np.asarray(shading, dtype=np.float32), (1.0, 0.9, 0.75) if site.sign > 0 else (0.75, 0.9, 1.0), height


def draw_component(site: Site, rng: np.random.Generator) -> tuple[Field, Field]:
    """Erase, move or replace a rectangular piece of the image, with faint edges."""
    aspect, corner = rng.uniform(0.5, 0.9), np.float32(0.08 * site.extent)
    out_x = np.maximum(np.abs(site.x) - np.float32(0.5 * site.extent) + corner, 0.0)
    out_y = np.maximum(np.abs(site.y) - np.float32(0.5 * site.extent * aspect) + corner, 0.0)
    border = corner - np.asarray(cv2.magnitude(out_x, out_y), dtype=np.float32)
    cover = smoothstep(border, low=-0.8, high=0.8) * site.inside
    fills = (_erased, _moved, _replaced)[rng.integers(3)](site, cover, rng)
    change = max(
        ((fill - site.image) * cover[:, :, None] for fill in fills), key=lambda field: float(np.abs(field).sum())
    )
    largest = np.abs(change).max(axis=2)
    reached = float(np.quantile(largest[cover > 0.5], 0.98)) if (cover > 0.5).any() else 0.0
    change *= min(1.0, site.peak / max(reached, 1e-3))
    # a piece too similar to the image gets another shade and a lit edge
    missing = np.float32(site.sign * max(0.0, site.peak - reached))
    bevel = cv2.Sobel(cover, cv2.CV_32F, 1, 0) * np.cos(LIGHT) + cv2.Sobel(cover, cv2.CV_32F, 0, 1) * np.sin(LIGHT)
    edge = np.clip(np.asarray(bevel, dtype=np.float32) * 0.5, -1.0, 1.0) * np.abs(missing) * np.float32(0.3)
    change += (missing * cover + edge * site.inside)[:, :, None]
    amplitude = cv2.morphologyEx(np.abs(change).max(axis=2), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    return site.image + change, np.asarray(amplitude, dtype=np.float32)


def _erased(site: Site, cover: Field, rng: np.random.Generator) -> list[Field]:
    """Fill the piece from its surroundings, without texture."""
    height, width = cover.shape
    zoom = min(1.0, 96.0 / max(height, width))
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    small = cv2.resize(site.image, size, interpolation=cv2.INTER_AREA)
    hole = cv2.dilate((cv2.resize(cover, size, interpolation=cv2.INTER_AREA) > 0.0).astype(np.uint8), np.ones((3, 3)))
    grown = cv2.inpaint(small.astype(np.uint8), hole, 3.0, cv2.INPAINT_TELEA).astype(np.float32)
    fill = cv2.resize(grown, (width, height), interpolation=cv2.INTER_CUBIC) + site.noise(rng)
    return [np.asarray(fill, dtype=np.float32)]


def _moved(site: Site, cover: Field, rng: np.random.Generator) -> list[Field]:
    """Shift the piece by a share of its length and rotate it slightly."""
    height, width = cover.shape
    fills = []
    for _ in range(NUM_SOURCES):
        direction, distance = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(0.15, 0.45) * site.extent
        affine = cv2.getRotationMatrix2D((site.column, site.row), rng.uniform(-12.0, 12.0), 1.0)
        affine[:, 2] += (distance * np.cos(direction), distance * np.sin(direction))
        fill = cv2.warpAffine(site.image, affine, (width, height), borderMode=cv2.BORDER_REFLECT)
        fills.append(np.asarray(fill, dtype=np.float32))
    return fills


def _replaced(site: Site, cover: Field, rng: np.random.Generator) -> list[Field]:
    """Take another piece of the same image, upright or upside down."""
    return [*site.donors, *(np.ascontiguousarray(donor[::-1, ::-1]) for donor in site.donors)]

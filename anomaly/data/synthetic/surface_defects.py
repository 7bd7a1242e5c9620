"""Defects of the surface: scratch, stain and dent.

Each function takes the site. It returns the changed region (h, w, 3) and the amplitude (h, w) of the change, both in
grey levels. The amplitude has no holes between a bright and a dark side.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from anomaly.data.synthetic.noise import smooth_noise, smoothstep
from anomaly.data.synthetic.placement import Site
from anomaly.data.synthetic.rendered_part import Field

Curve = npt.NDArray[np.float64]

LIGHT = np.deg2rad(235.0)  # most parts are lit from the upper left, within SPREAD
SPREAD = np.deg2rad(40.0)
DARK_TINTS = ((0.80, 0.90, 1.0), (0.60, 0.85, 1.0), (1.0, 1.0, 1.0))  # light absorbed by oil, rust and water
PALE_TINTS = ((1.0, 1.0, 1.0), (1.0, 0.98, 0.92), (1.0, 0.95, 0.84))  # light added by lime, dried coolant and glue


def draw_scratch(site: Site, rng: np.random.Generator) -> tuple[Field, Field]:
    """Draw a curved groove that fades at its ends, with a ridge of material along one side."""
    t = np.linspace(-1.0, 1.0, 48)
    bow, wave = rng.normal(0.0, 0.10), rng.normal(0.0, 0.02)
    line = np.stack([0.5 * t, bow * (t * t - 0.5) + wave * np.sin(5.0 * t + rng.uniform(0, 6))], axis=1) * site.extent
    strength = np.clip((1.0 - np.abs(t) ** 3) * 1.4, 0.1, 1.0) * np.clip(1.0 + 0.2 * rng.standard_normal(48), 0.4, 1.0)
    side = float(rng.choice((-0.9, 0.9))) * site.stroke
    groove = draw_line(site, line, strength=strength, width=site.stroke)
    ridge = draw_line(site, line + np.array((0.0, side)), strength=strength, width=site.stroke)
    groove, ridge = groove * site.inside, ridge * site.inside * 0.5
    change = site.sign * site.peak * (groove - ridge * (1.0 - groove))
    return site.image + change[:, :, None], np.asarray(site.peak * np.maximum(groove, ridge), dtype=np.float32)


def draw_line(site: Site, line: Curve, *, strength: Curve, width: float) -> Field:
    """Draw the coverage (h, w), 0 to 1, of a line of strength (n,) through points (n, 2) along and across the axis."""
    zoom = int(np.clip(1200 // max(site.x.shape), 1, 4))
    cos, sin = np.cos(site.angle), np.sin(site.angle)
    points = line @ np.array([[cos, sin], [-sin, cos]]) + (site.column, site.row)
    dots = np.asarray(np.round(((points + 0.5) * zoom - 0.5) * 16), dtype=np.int32)
    sheet = np.zeros((site.x.shape[0] * zoom, site.x.shape[1] * zoom), np.uint8)
    for start, stop, value in zip(dots[:-1], dots[1:], strength, strict=False):
        cv2.line(sheet, start.tolist(), stop.tolist(), int(255 * value), max(1, round(width * zoom)), cv2.LINE_AA, 4)
    covered = cv2.resize(sheet.astype(np.float32), site.x.shape[::-1], interpolation=cv2.INTER_AREA)
    covered = cv2.GaussianBlur(covered, (0, 0), 0.55)
    return np.asarray(covered / max(float(covered.max()), 1.0), dtype=np.float32)


def draw_stain(site: Site, rng: np.random.Generator) -> tuple[Field, Field]:
    """Draw a soft irregular blob of dried liquid: an even film with a darker rim."""
    film = blob(site, aspect=rng.uniform(0.6, 0.95), softness=0.5, rng=rng)
    step = max(3.0, 0.15 * site.extent)
    rim = 4.0 * film * (1.0 - film)
    cover = (0.75 * film + 0.30 * rim) * (1.0 + 0.10 * smooth_noise(film.shape, period=(step, step), rng=rng))
    cover = np.clip(cover / max(float(cover.max()), 1e-3), 0.0, 1.0) * site.inside
    tints = PALE_TINTS if site.sign > 0 else DARK_TINTS
    tint = np.asarray(tints[rng.integers(3)] if site.colourful else (1.0, 1.0, 1.0), dtype=np.float32)
    level = cv2.blur(site.image, (15, 15))
    share = np.clip(site.image / np.maximum(level, 8.0), 0.6, 1.3) if site.sign < 0 else np.ones_like(level)
    change = site.sign * site.peak * cover[:, :, None] * tint * share
    return np.asarray(site.image + change, dtype=np.float32), np.asarray(site.peak * cover, dtype=np.float32)


def blob(site: Site, *, aspect: float, softness: float, rng: np.random.Generator) -> Field:
    """Draw the coverage (h, w), 0 to 1, of an irregular spot about as long as the site's extent."""
    radius = site.radius(aspect)
    step = max(site.extent / 4.0, 2.0)
    ragged = 0.16 * smooth_noise(radius.shape, period=(step, step), rng=rng)
    ragged += 0.06 * smooth_noise(radius.shape, period=(0.4 * step, 0.4 * step), rng=rng)
    spot = smoothstep(1.0 - radius + ragged, low=0.0, high=softness) * smoothstep(-radius, low=-1.3, high=-1.0)
    return np.asarray(spot, dtype=np.float32)


def draw_dent(site: Site, rng: np.random.Generator) -> tuple[Field, Field]:
    """Draw a bump or a hollow: one side brighter, the other darker, with a bent texture."""
    radius = site.radius(rng.uniform(0.55, 1.0))
    step = max(site.extent / 3.0, 2.0)
    radius = radius * (1.0 + 0.08 * smooth_noise(radius.shape, period=(step, step), rng=rng))
    height = np.clip(1.0 - radius * radius, 0.0, 1.0) ** 2
    slope_x = np.asarray(cv2.Sobel(height, cv2.CV_32F, 1, 0), dtype=np.float32)
    slope_y = np.asarray(cv2.Sobel(height, cv2.CV_32F, 0, 1), dtype=np.float32)
    light = LIGHT + rng.uniform(-SPREAD, SPREAD)
    shade = site.sign * (slope_x * np.float32(-np.cos(light)) + slope_y * np.float32(-np.sin(light)))
    shade = shade / max(float(np.abs(shade).max()), 1e-6)
    shade = np.where(shade > 0.0, shade * (0.5 + 0.5 * shade), 0.8 * shade) * site.inside
    bend = np.float32(0.25 * site.peak / 100.0 * site.stroke / max(float(np.abs(slope_x).max()), 1e-6))
    y, x = (axis.astype(np.float32) for axis in np.ogrid[: height.shape[0], : height.shape[1]])
    bent = cv2.remap(
        site.image, x + bend * slope_x, y + bend * slope_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    inside = (height > 0.0).astype(np.float32) * site.inside
    changed = site.image + (bent - site.image) * inside[:, :, None] + site.peak * shade[:, :, None]
    gap = max(3, int(0.35 * site.extent)) | 1
    amplitude = cv2.morphologyEx(np.abs(shade), cv2.MORPH_CLOSE, np.ones((gap, gap), np.uint8))
    return np.asarray(changed, dtype=np.float32), np.asarray(site.peak * amplitude * (inside > 0.0), dtype=np.float32)

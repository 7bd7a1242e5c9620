"""A turned steel flange on a rubber belt, at any angle under a fixed light."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from anomaly.data.synthetic.camera import capture
from anomaly.data.synthetic.noise import smooth_noise, smoothstep
from anomaly.data.synthetic.rendered_part import Field, Mask, RenderedPart

RADIUS = 0.43  # radius of the flange in edges of the image; all other lengths are in radii
LIGHT = np.deg2rad(235.0)  # direction of the light in the image plane (y down): the upper left
PROFILE_RADIUS = (0.0, 0.185, 0.215, 0.315, 0.33, 0.35, 0.595, 0.615, 0.63, 0.955, 1.0, 1.4)
PROFILE_HEIGHT = (-0.03, -0.03, 0.0, 0.0, -0.03, -0.03, -0.03, -0.03, 0.0, 0.0, -0.045, -0.045)
BORE = 0.19
HOLES = (*((0.79, angle, 0.066) for angle in (0.0, 60.0, 120.0, 180.0, 240.0, 300.0)), (0.79, 30.0, 0.032))
CHAMFER = 0.022
ENGRAVING = "A7-316"


@dataclass(frozen=True)
class _Pose:
    """Position of each pixel and direction of the light in the frame of the flange."""

    x: Field
    y: Field
    radius: Field
    to_light: tuple[float, float]

    @property
    def lit_side(self) -> Field:
        """Position along the direction to the light, positive on the lit side."""
        return np.asarray(self.x * np.float32(self.to_light[0]) + self.y * np.float32(self.to_light[1]), np.float32)


def render_machined(*, size: int, seed: int) -> RenderedPart:
    """Render the flange, `size` pixels square; its holes belong to the background."""
    rng = np.random.default_rng(seed)
    length = size * 3 // 2
    pose = _lay(length, rng=rng)
    height, depth = _relief(pose)
    steel = _steel(pose, height, rng=rng)
    belt = _belt(pose, rng=rng)
    on_part = smoothstep(depth, low=-1.5 / length, high=1.5 / length)
    scene = belt + (steel - belt) * on_part
    scene = cv2.resize(scene, (size, size), interpolation=cv2.INTER_AREA)
    warmth = np.asarray(rng.normal((1.0, 0.995, 0.985), 0.006), dtype=np.float32)
    image = capture(np.asarray(scene[:, :, None] * warmth, dtype=np.float32), rng=rng)
    foreground: Mask = cv2.resize(on_part, (size, size), interpolation=cv2.INTER_AREA) > 0.5
    return RenderedPart(kind="machined", image=image, foreground=foreground, seed=seed, components=())


def _lay(length: int, *, rng: np.random.Generator) -> _Pose:
    """Place the flange near the middle of the image, rotated by any angle."""
    radius = RADIUS * length * rng.normal(1.0, 0.004)
    centre = length / 2 + length * rng.normal(0.0, 0.008, 2)
    turn, light = rng.uniform(0.0, 2.0 * np.pi), LIGHT + rng.normal(0.0, 0.03)
    axis = np.arange(length, dtype=np.float32) + 0.5
    right, down = ((axis - c) / radius for c in centre)
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    x = (right * cos)[None, :] + (down * sin)[:, None]
    y = (down * cos)[:, None] - (right * sin)[None, :]
    to_light = (float(np.cos(light - turn)), float(np.sin(light - turn)))
    return _Pose(x.astype(np.float32), y.astype(np.float32), _length(x, y), to_light)


def _length(x: Field, y: Field) -> Field:
    return np.asarray(cv2.magnitude(x.astype(np.float32), y.astype(np.float32)), dtype=np.float32)


def _relief(pose: _Pose) -> tuple[Field, Field]:
    """Compute the height of the surface and the depth inside the part (negative in the holes and outside)."""
    table = np.interp(np.arange(1024) / 1024 * 1.4, PROFILE_RADIUS, PROFILE_HEIGHT).astype(np.float32)
    height = table[np.minimum(pose.radius * (1024 / 1.4), 1023).astype(np.intp)]
    keyway = np.maximum(np.abs(pose.y) - 0.045, np.maximum(-pose.x, pose.x - 0.245))
    depth = np.minimum(np.minimum(1.0 - pose.radius, pose.radius - BORE), keyway)
    for at, angle, radius in HOLES:
        x, y = at * np.cos(np.deg2rad(angle)), at * np.sin(np.deg2rad(angle))
        distance = _length(pose.x - np.float32(x), pose.y - np.float32(y)) - np.float32(radius)
        depth = np.minimum(depth, distance)
        height = np.minimum(height, np.maximum(distance - CHAMFER, -CHAMFER) * 1.2)
    return np.asarray(height, dtype=np.float32), np.asarray(depth, dtype=np.float32)


def _steel(pose: _Pose, height: Field, *, rng: np.random.Generator) -> Field:
    """Compute the brightness of the metal: turned face, brushed recess, lit chamfers, engraved number."""
    length = height.shape[0]
    along = pose.lit_side
    to_light = along / np.maximum(pose.radius, np.float32(0.01))
    turned, brushed = _tool_marks(pose, length, rng=rng)
    # grooves reflect light that falls across them (Kajiya, "Anisotropic Reflection Models", 1985)
    across = 1.0 - to_light * to_light
    glare = 0.34 * np.exp(across * -13.0) * (1.0 + 0.5 * to_light) + 0.16 * np.exp(across * -2.5)
    turned_face = (0.40 + 0.07 * along + glare * (1.0 + 1.6 * turned)) * (1.0 + turned)
    tilt = np.float32(0.7 * pose.to_light[0]) + 0.55 * (pose.x - 0.1)
    brushed_face = (0.36 + 0.05 * along + 0.36 * np.exp(tilt * tilt * -4.0)) * (1.0 + brushed)
    in_recess = smoothstep(pose.radius, low=0.33, high=0.345) * smoothstep(-pose.radius, low=-0.6, high=-0.595)
    face = turned_face + (brushed_face - turned_face) * in_recess
    smooth = cv2.GaussianBlur(height, (0, 0), length / 400)
    slope_x, slope_y = (cv2.Sobel(smooth, cv2.CV_32F, dx, 1 - dx, scale=RADIUS * length / 8) for dx in (1, 0))
    facing = slope_x * np.float32(-np.cos(LIGHT)) + slope_y * np.float32(-np.sin(LIGHT))
    steep = np.minimum(np.abs(slope_x) + np.abs(slope_y), 1.0)
    bevel = 0.34 + 0.42 * facing + 0.9 * np.maximum(facing - 0.55, 0.0)
    steel = face + (np.maximum(bevel, 0.05) - face) * steep
    corners = cv2.blur(cv2.blur(height, (length // 24, length // 24)), (length // 24, length // 24)) - height
    steel *= np.clip(1.0 - 14.0 * corners, 0.55, 1.08)
    return np.asarray(steel * (1.0 - 0.55 * _engraving(pose)), dtype=np.float32)


def _tool_marks(pose: _Pose, length: int, *, rng: np.random.Generator) -> tuple[Field, Field]:
    """Draw the relative brightness of the turning rings and of the brush strokes (mean about 0)."""
    rows = length // 2
    rings = 0.05 * smooth_noise((rows, 1), period=(1.5, 1), rng=rng) + 0.05 * smooth_noise(
        (rows, 1), period=(7, 1), rng=rng
    )
    polar = rings + 0.07 * smooth_noise((rows, 256), period=(1.5, 40), rng=rng)
    azimuth = cv2.phase(pose.x, pose.y) * np.float32(128 / np.pi)
    turned = cv2.remap(
        polar, azimuth, pose.radius * np.float32(rows / 1.4), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )
    strokes = 0.10 * smooth_noise((rows, 256), period=(1.3, 60), rng=rng) + 0.04 * smooth_noise(
        (rows, 256), period=(6, 90), rng=rng
    )
    column, row = (pose.x + 0.7) * np.float32(256 / 1.4), (pose.y + 0.7) * np.float32(rows / 1.4)
    brushed = cv2.remap(strokes, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(turned, dtype=np.float32), np.asarray(brushed, dtype=np.float32)


def _engraving(pose: _Pose) -> Field:
    """Compute the coverage of each pixel by the engraved number."""
    plate = np.zeros((64, 256), np.uint8)
    cv2.putText(plate, ENGRAVING, (14, 46), cv2.FONT_HERSHEY_SIMPLEX, 1.6, 255, 5, cv2.LINE_AA)
    column, row = (0.24 - pose.x) * np.float32(256 / 0.48), (0.85 - pose.y) * np.float32(64 / 0.12)
    covered = cv2.remap(plate.astype(np.float32) / 255, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return np.asarray(covered, dtype=np.float32)


def _belt(pose: _Pose, *, rng: np.random.Generator) -> Field:
    """Compute the brightness of the rubber belt, with the soft shadow of the flange and dark holes."""
    length = pose.x.shape[0]
    shape = (length, length)
    grain = smooth_noise(shape, period=(3.5, 3.5), rng=rng) + 0.5 * smooth_noise(
        shape, period=(length / 6, length / 6), rng=rng
    )
    rubber = 0.115 + 0.016 * grain
    shift = 0.05
    shadow = _length(pose.x + np.float32(shift * pose.to_light[0]), pose.y + np.float32(shift * pose.to_light[1]))
    lit = 0.30 + 0.70 * smoothstep(shadow, low=0.97, high=1.09)
    return np.asarray(rubber * lit, dtype=np.float32)

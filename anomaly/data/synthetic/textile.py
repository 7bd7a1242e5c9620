"""A woven cloth, yarn by yarn: a 2/1 twill of dark warp and pale weft."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from anomaly.data.synthetic.camera import capture
from anomaly.data.synthetic.noise import smooth_noise, smoothstep
from anomaly.data.synthetic.rendered_part import Field, RenderedPart

NUM_YARNS = 36  # across the image
REPEAT = 3  # a warp yarn passes over two weft yarns, then under one
WARP_COLOUR = (0.25, 0.32, 0.42)
WEFT_COLOUR = (0.66, 0.64, 0.58)


def render_textile(*, size: int, seed: int) -> RenderedPart:
    """Render the cloth, `size` pixels square; the cloth fills the image."""
    rng = np.random.default_rng(seed)
    length = size * 3 // 2
    warp, weft = _Yarns.lay(length, rng=rng), _Yarns.lay(length, rng=rng)
    j, i = np.ogrid[: weft.num, : warp.num]
    over = np.where((i + j) % REPEAT == 0, -1.0, 1.0).astype(np.float32)
    warp_height, warp_light = warp.surface(over, crossing=weft, rng=rng)
    weft_height, weft_light = (field.T for field in weft.surface(-over.T, crossing=warp, rng=rng))
    on_top = smoothstep(warp_height - weft_height, low=-0.08, high=0.08)
    relief = np.asarray(np.maximum(warp_height, weft_height), dtype=np.float32)
    light = _shade(relief)
    layers = cv2.merge([light * weft_light * (1.0 - on_top), light * warp_light * on_top])
    draped = _drape(np.asarray(layers, dtype=np.float32), rng=rng)
    share = cv2.resize(draped, (size, size), interpolation=cv2.INTER_AREA)
    lot = rng.normal(1.0, 0.006, 3) * rng.normal(1.0, 0.025)
    colours = np.asarray([WEFT_COLOUR, WARP_COLOUR] * lot, dtype=np.float32)
    image = capture(np.asarray(share @ colours, dtype=np.float32), rng=rng)
    return RenderedPart(
        kind="textile", image=image, foreground=np.ones((size, size), np.bool_), seed=seed, components=()
    )


@dataclass(frozen=True)
class _Yarns:
    """Parallel yarns of uneven thickness: the yarn at each position across them, and the offset on it (-1 to 1)."""

    num: int
    phase: Field
    index: npt.NDArray[np.intp]
    offset: Field

    @classmethod
    def lay(cls, length: int, *, rng: np.random.Generator) -> _Yarns:
        pitch = length / NUM_YARNS
        num = NUM_YARNS + 8
        widths = pitch * np.clip(1.0 + 0.08 * rng.standard_normal(num), 0.75, 1.3)
        edges = np.concatenate([[0.0], np.cumsum(widths)]) - 2.0 * pitch * rng.uniform(0.5, 1.0)
        phase = np.interp(np.arange(length) + 0.5, edges, np.arange(num + 1.0))
        index = phase.astype(np.intp)
        return cls(num, phase.astype(np.float32), index, (2.0 * (phase - index) - 1.0).astype(np.float32))

    def surface(self, over: Field, *, crossing: _Yarns, rng: np.random.Generator) -> tuple[Field, Field]:
        """Compute height and reflectance, with these yarns along the rows; `over` is 1 where they cover a crossing yarn."""
        length = len(self.phase)
        pitch = length / NUM_YARNS
        # crimp: the centre line of a yarn rises over one crossing yarn and dips under the next
        at = crossing.phase - 0.5
        before = np.clip(np.floor(at).astype(np.intp), 0, crossing.num - 2)
        step = smoothstep((at - before).astype(np.float32), low=0.15, high=0.85)[:, None]
        crimp = over[before] + (over[before + 1] - over[before]) * step
        thick = 1.0 + 0.10 * smooth_noise((length, self.num), period=(4.0 * pitch, 1.0), rng=rng)
        shade = 1.0 + 0.05 * smooth_noise((length, self.num), period=(length / 3, 1.0), rng=rng)
        shade += 0.05 * rng.standard_normal(self.num, dtype=np.float32)
        centre = 0.12 * smooth_noise((length, self.num), period=(5.0 * pitch, 1.0), rng=rng)
        across = (self.offset - centre.take(self.index, axis=1)) / thick.take(self.index, axis=1)
        round_ = np.sqrt(np.clip(1.0 - 0.92 * across * across, 0.0, 1.0))
        height = 0.60 * round_ + 0.36 * crimp.take(self.index, axis=1)
        # twist: fibres wind around the yarn as slanted stripes
        start = rng.uniform(0.0, 2.0 * np.pi, self.num).astype(np.float32)[self.index]
        row = np.arange(length, dtype=np.float32)[:, None] * np.float32(2.0 * np.pi / (0.42 * pitch))
        twist = np.sin(row + 3.2 * across + start)
        fuzz = 3.46 * rng.random((length, length), dtype=np.float32) - 1.73
        fuzz = np.asarray(cv2.GaussianBlur(fuzz, (0, 0), sigmaX=0.7, sigmaY=1.6), dtype=np.float32)
        light = shade.take(self.index, axis=1) * (1.0 + 0.10 * twist + 0.34 * fuzz)
        return np.asarray(height, dtype=np.float32), np.asarray(light, dtype=np.float32)


def _shade(relief: Field) -> Field:
    """Light the relief from the upper left, with dark gaps between the yarns."""
    relief = np.asarray(cv2.GaussianBlur(relief, (0, 0), 0.8), dtype=np.float32)
    slope_x = cv2.Sobel(relief, cv2.CV_32F, 1, 0, ksize=3)
    slope_y = cv2.Sobel(relief, cv2.CV_32F, 0, 1, ksize=3)
    facing = (1.0 + 0.40 * slope_x + 0.55 * slope_y) / np.sqrt(1.0 + slope_x * slope_x + slope_y * slope_y)
    gaps = 0.30 + 0.70 * smoothstep(relief, low=0.05, high=0.62)
    return np.asarray(np.maximum(facing, 0.15) * gaps * 1.25, dtype=np.float32)


def _drape(cloth: Field, *, rng: np.random.Generator) -> Field:
    """Lay the cloth by hand: rotated by about a degree and slightly stretched."""
    length = cloth.shape[0]
    angle, zoom = np.deg2rad(rng.normal(0.0, 1.0)), rng.normal(0.97, 0.01)
    y, x = (axis.astype(np.float32) for axis in np.ogrid[:length, :length])
    x, y = x - length / 2, y - length / 2
    pull = [
        length / 330 * smooth_noise((length, length), period=(length / 2.5, length / 2.5), rng=rng) for _ in range(2)
    ]
    map_x = np.float32(zoom * np.cos(angle)) * x - np.float32(zoom * np.sin(angle)) * y + pull[0] + length / 2
    map_y = np.float32(zoom * np.sin(angle)) * x + np.float32(zoom * np.cos(angle)) * y + pull[1] + length / 2
    draped = cv2.remap(
        cloth, map_x.astype(np.float32), map_y.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    return np.asarray(draped, dtype=np.float32)

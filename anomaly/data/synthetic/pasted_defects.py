"""Defects from the pixels of images: a piece pasted elsewhere, and a texture blended through Perlin noise.

C.-L. Li et al., "CutPaste: Self-Supervised Learning for Anomaly Detection and Localization", 2021, arXiv 2104.04015 (§2.2:
patch and scar, with jittered colours and rotation); V. Zavrtanik et al., "DRAEM", 2021, arXiv 2108.07610 (§3.3: a texture,
augmented, blended by β through thresholded Perlin noise); K. Perlin, "Improving Noise", 2002 (the quintic fade).
Differences from the papers, and why: a paste covers only the part, because a paste on the background is not a defect of
the part. The texture comes from the given images, so no other data are needed. The mask holds the changed pixels, not the
whole rectangle or noise: a change below two grey levels is not a defect.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from anomaly.data.synthetic.defects import check_defect_arguments, draw_defect
from anomaly.data.synthetic.rendered_part import Field, Image, Mask
from anomaly.errors import UsageError

MIN_CHANGE = 2
"""Smallest change of a defect pixel in some channel, in grey levels"""
NUM_TRIES = 16
PERLIN_SHARE = 0.12
"""Largest share of the part under a texture at size 0.5"""


def paste_patch(
    image: Image, *, size: float, contrast: float, foreground: Mask, sources: Sequence[Image], rng: np.random.Generator
) -> tuple[Image, Mask]:
    """Paste a piece of an image at another place on the part, rotated and tinted: a patch, or a thin scar.

    Args:
        image: (H, W, 3) uint8 RGB; it is not changed.
        size: longer side of the piece over the shorter side of the image, 0.01 to 0.5.
        contrast: strength of the colour jitter, 0 to 1.
        foreground: (H, W) bool, True on the part.
        sources: images of any size, from which the piece is cut.
        rng: random generator of all choices.

    Returns:
        The image with the defect, and its mask (H, W): True where a pixel changed by at least two grey levels.

    Raises:
        UsageError: a paste that would be invisible everywhere on the part.
    """
    height, width = image.shape[:2]
    for _ in range(NUM_TRIES):
        chosen = sources[int(rng.integers(len(sources)))]
        source = cv2.resize(chosen, (width, height), interpolation=cv2.INTER_AREA)
        longer = max(3.0, size * min(height, width))
        ratio = rng.uniform(0.08, 0.3) if rng.random() < 0.5 else rng.uniform(0.3, 1.0)  # scar or patch (§2.2)
        box = (longer, max(2.0, longer * ratio))
        at, origin = _pixel_of(foreground, rng), _pixel_of(foreground, rng)
        angle = rng.uniform(-45, 45)
        turn = cv2.getRotationMatrix2D((float(origin[1]), float(origin[0])), angle, 1.0)
        turn[:, 2] += (at[1] - origin[1], at[0] - origin[0])
        moved = cv2.warpAffine(source, turn, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        gain = 1 + contrast * rng.uniform(-0.5, 0.5)
        tint = 60 * contrast * rng.uniform(-1, 1, size=3)
        piece = np.clip(np.rint(moved * gain + tint), 0, 255).astype(np.uint8)
        cover = np.zeros((height, width), np.uint8)
        corners = cv2.boxPoints(((float(at[1]), float(at[0])), box, float(rng.uniform(0, 180))))
        cv2.fillConvexPoly(cover, np.rint(corners).astype(np.int32), 1)
        found = _changed(image, piece, (cover > 0) & foreground)
        if found[1].any():
            return found
    raise UsageError(f"a pasted patch of size {size} is invisible on the part; give a larger size or contrast")


def paste_texture(
    image: Image, *, size: float, contrast: float, foreground: Mask, sources: Sequence[Image], rng: np.random.Generator
) -> tuple[Image, Mask]:
    """Blend an augmented piece of another image through Perlin noise.

    Arguments and result are those of `paste_patch`, with two exceptions. `size` is the extent of a blot over the shorter
    side of the image. `contrast` is the opacity.
    """
    height, width = image.shape[:2]
    for _ in range(NUM_TRIES):
        period = max(2.0, size * min(height, width))
        noise = perlin_noise((height, width), period=period, rng=rng)
        on_part = noise[foreground]
        share = min(1.0, PERLIN_SHARE * rng.uniform(0.2, 1.0) * (size / 0.5) + 0.002)
        cover = (noise > np.quantile(on_part, 1 - share)) & foreground
        piece = _augmented(sources[int(rng.integers(len(sources)))], height, width, rng)
        opacity = np.float32(max(0.1, contrast) * rng.uniform(0.6, 1.0))
        mixed = image + opacity * (piece.astype(np.float32) - image)
        found = _changed(image, np.rint(mixed).astype(np.uint8), cover)
        if found[1].any():
            return found
    raise UsageError(f"a texture of size {size} and contrast {contrast} is invisible on the part; give larger values")


PASTED = {"pasted_patch": paste_patch, "pasted_texture": paste_texture}
"""Kinds of defects made from the pixels of images"""


def draw_any_defect(
    image: Image,
    kind: str,
    *,
    size: float,
    contrast: float,
    foreground: Mask,
    sources: Sequence[Image],
    rng: np.random.Generator,
) -> tuple[Image, Mask]:
    """Draw a defect of a kind in `DEFECTS` or `PASTED`, with the arguments, result and errors of `paste_patch`."""
    if kind in PASTED:
        check_defect_arguments(image, size=size, contrast=contrast, foreground=foreground)
        return PASTED[kind](image, size=size, contrast=contrast, foreground=foreground, sources=sources, rng=rng)
    return draw_defect(image, kind, size=size, contrast=contrast, foreground=foreground, rng=rng)


def perlin_noise(shape: tuple[int, int], *, period: float, rng: np.random.Generator) -> Field:
    """Draw gradient noise (H, W) float32 of mean about 0: unit gradients every `period` pixels, quintic fade between."""
    rows, columns = (np.arange(n, dtype=np.float32) / np.float32(period) for n in shape)
    angle = rng.uniform(0, 2 * np.pi, (int(rows[-1]) + 2, int(columns[-1]) + 2))
    gradient = np.stack((np.sin(angle), np.cos(angle)), axis=-1).astype(np.float32)
    i, j = rows.astype(int), columns.astype(int)
    y, x = (rows - i)[:, None], (columns - j)[None, :]

    def corner(below: int, right: int) -> Field:
        g = gradient[np.ix_(i + below, j + right)]
        return np.asarray(g[..., 0] * (y - below) + g[..., 1] * (x - right), dtype=np.float32)

    fade_y, fade_x = (t * t * t * (t * (t * 6 - 15) + 10) for t in (y, x))
    top = corner(0, 0) + fade_x * (corner(0, 1) - corner(0, 0))
    bottom = corner(1, 0) + fade_x * (corner(1, 1) - corner(1, 0))
    return np.asarray(top + fade_y * (bottom - top), dtype=np.float32)


def _augmented(source: Image, height: int, width: int, rng: np.random.Generator) -> Image:
    """Crop an image at random, enlarge, rotate and tint it: three augmentations of DRAEM's list."""
    crop = rng.uniform(0.15, 0.7)
    tall, wide = (max(4, round(n * crop)) for n in source.shape[:2])
    top, left = (int(rng.integers(n - m + 1)) for n, m in zip(source.shape[:2], (tall, wide), strict=True))
    turned = np.rot90(source[top : top + tall, left : left + wide], int(rng.integers(4)))
    piece = cv2.resize(turned, (width, height), interpolation=cv2.INTER_LINEAR)
    gamma = np.float32(np.exp(rng.uniform(-0.7, 0.7)))
    values = 255 * (piece.astype(np.float32) / 255) ** gamma
    sign = -1 if rng.random() < 0.3 else 1
    values = 255 * (sign < 0) + sign * values + rng.uniform(-70, 70, size=3)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _pixel_of(foreground: Mask, rng: np.random.Generator) -> tuple[int, int]:
    rows, columns = np.nonzero(foreground)
    index = rng.integers(len(rows))
    return int(rows[index]), int(columns[index])


def _changed(image: Image, candidate: Image, where: Mask) -> tuple[Image, Mask]:
    """Take the visible pixels of a candidate inside `where`, and return their mask."""
    difference = np.abs(candidate.astype(np.int16) - image.astype(np.int16)).max(axis=2)
    mask = where & (difference >= MIN_CHANGE)
    return np.where(mask[..., None], candidate, image), mask

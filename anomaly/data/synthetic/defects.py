"""Draw defects with exact masks onto any image, of a size and a contrast that are asked for.

The five kinds are those that an inspection meets on most parts. A defect changes the image inside its mask only,
so that the probability of detection can be measured by kind, size and contrast on images of good parts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from anomaly.data.synthetic.object_defects import draw_component, draw_foreign_body
from anomaly.data.synthetic.placement import Site, find_site
from anomaly.data.synthetic.rendered_part import Field, Image, Mask
from anomaly.data.synthetic.surface_defects import draw_dent, draw_scratch, draw_stain
from anomaly.errors import UsageError

PERCEPTIBLE = 2.0  # grey levels; a weaker change belongs neither to the picture nor to the mask
NUM_TRIES = 8  # places, until most of the mask shows: a saturated or a tiny spot may hide a defect
PEAK = 100.0  # grey levels at contrast 1
SIZES = (0.01, 0.5)
CONTRASTS = (0.02, 1.0)

DEFECTS: dict[str, tuple[float, Callable[[Site, np.random.Generator], tuple[Field, Field]]]] = {
    # kind: (width over length, drawing)
    "scratch": (0.1, draw_scratch),
    "stain": (0.8, draw_stain),
    "dent": (0.8, draw_dent),
    "component": (0.7, draw_component),
    "foreign_body": (0.5, draw_foreign_body),
}


def draw_defect(
    image: Image, kind: str, *, size: float, contrast: float, foreground: Mask, rng: np.random.Generator
) -> tuple[Image, Mask]:
    """Draw one defect onto a image, somewhere on the part.

    `image` is (H, W, 3) uint8 RGB and is not written to. `size`, 0.01 to 0.5, is the longest extent over the shorter
    side of the image; `contrast`, 0.02 to 1, the largest change in hundreds of grey levels. `foreground` (H, W) bool
    says where the part is; a defect larger than the part ends at the part's edge, a foreign body may stand out over
    it. Where a texture or a colour is replaced (`component`, `foreign_body`) single pixels may change more.

    Returns the image with the defect and its mask (H, W): True where the defect changes the picture by two grey
    levels or more (half of the largest change, where that is less than four). Outside the mask both images are equal;
    inside it, single pixels may be equal by chance, where a bright side turns into a dark one, a texture repeats
    itself or the image is saturated.

    Raises UsageError for a kind, size, contrast, image or foreground that is none, and for a defect that shows
    nowhere on the part.
    """
    if kind not in DEFECTS:
        raise UsageError(f"no defect {kind!r}: choose one of {', '.join(DEFECTS)}")
    check_request(image, size=size, contrast=contrast, foreground=foreground)
    aspect, draw = DEFECTS[kind]
    extent, peak = size * min(image.shape[:2]), contrast * PEAK
    for _ in range(NUM_TRIES):
        site, window = find_site(image, foreground=foreground, extent=extent, aspect=aspect, peak=peak, rng=rng)
        changed, amplitude = draw(site, rng)
        touched = amplitude >= min(PERCEPTIBLE, 0.5 * peak)
        drawn = np.clip(np.rint(changed), 0, 255).astype(np.uint8)
        if 2 * (drawn[touched] != image[window][touched]).any(axis=1).sum() > touched.sum():
            break
    else:
        raise UsageError(
            f"a {kind} of size {size} and contrast {contrast} shows nowhere on a part of {int(foreground.sum())} "
            "pixels: give a larger size or contrast"
        )
    result, mask = image.copy(), np.zeros(foreground.shape, np.bool_)
    result[window][touched] = drawn[touched]
    mask[window] = touched
    return result, mask


def check_request(image: Image, *, size: float, contrast: float, foreground: Mask) -> None:
    """Refuse what no defect can be drawn from.

    Raises:
        UsageError: a size, contrast, image or foreground that is none.
    """
    for name, value, (low, high) in (("size", size, SIZES), ("contrast", contrast, CONTRASTS)):
        if not low <= value <= high:
            raise UsageError(f"{name} of a defect is {value}: give a number from {low} to {high}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UsageError(f"image is {image.dtype} of shape {image.shape}: give uint8 RGB (H, W, 3)")
    if foreground.dtype != np.bool_ or foreground.shape != image.shape[:2]:
        raise UsageError(f"foreground is {foreground.dtype} {foreground.shape}: give bool {image.shape[:2]}")
    if not foreground.any():
        raise UsageError("foreground is empty: a defect needs a part to sit on")

"""Defects with exact masks, drawn onto any image at a requested size and contrast.

The five kinds occur on most parts. A defect changes the image only inside its mask. The probability of detection can
therefore be measured by kind, size and contrast on images of good parts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from anomaly.data.synthetic._array_arguments import check_foreground, check_image
from anomaly.data.synthetic.object_defects import draw_component, draw_foreign_body
from anomaly.data.synthetic.placement import Site, find_site
from anomaly.data.synthetic.rendered_part import Field, Image, Mask
from anomaly.data.synthetic.surface_defects import draw_dent, draw_scratch, draw_stain
from anomaly.errors import UsageError
from anomaly.system.suggestions import nearest

MIN_CHANGE = 2.0  # grey levels; a weaker change is neither drawn nor part of the mask
NUM_TRIES = 8  # places to try until most of the mask is visible; a saturated or tiny spot may hide a defect
PEAK = 100.0  # grey levels at contrast 1
SIZES = (0.01, 0.5)
CONTRASTS = (0.02, 1.0)

DEFECTS: dict[str, tuple[float, Callable[[Site, np.random.Generator], tuple[Field, Field]]]] = {
    # kind: (width over length, drawing function)
    "scratch": (0.1, draw_scratch),
    "stain": (0.8, draw_stain),
    "dent": (0.8, draw_dent),
    "component": (0.7, draw_component),
    "foreign_body": (0.5, draw_foreign_body),
}


def draw_defect(
    image: Image, kind: str, *, size: float, contrast: float, foreground: Mask, rng: np.random.Generator
) -> tuple[Image, Mask]:
    """Draw one defect at a random place on the part.

    A defect larger than the part ends at the part's edge; a foreign body may reach beyond it.

    Args:
        image: (H, W, 3) uint8 RGB; it is not changed.
        kind: key of `DEFECTS`.
        size: longest extent over the shorter side of the image, 0.01 to 0.5.
        contrast: largest change in hundreds of grey levels, 0.02 to 1. Single pixels of a `component` or `foreign_body`
            may change more, because these replace a texture or a colour.
        foreground: (H, W) bool, True on the part.
        rng: random generator of place and shape.

    Returns:
        The image with the defect and its mask (H, W). The mask is True where the defect changes the image by at least
        two grey levels. A largest change below four grey levels lowers this to half of that change. Outside the mask both
        images are equal. Inside it single pixels may be equal: between a bright and a dark side, in a repeated texture,
        or in saturation.

    Raises:
        UsageError: an unknown kind, an invalid size, contrast, image or foreground, or a defect that would be invisible.
    """
    if kind not in DEFECTS:
        raise UsageError(f"no defect {kind!r}; nearest: {nearest(str(kind), DEFECTS)!r}; all: {', '.join(DEFECTS)}")
    check_defect_arguments(image, size=size, contrast=contrast, foreground=foreground)
    aspect, draw = DEFECTS[kind]
    extent, peak = size * min(image.shape[:2]), contrast * PEAK
    for _ in range(NUM_TRIES):
        site, window = find_site(image, foreground=foreground, extent=extent, aspect=aspect, peak=peak, rng=rng)
        changed, amplitude = draw(site, rng)
        touched = amplitude >= min(MIN_CHANGE, 0.5 * peak)
        drawn = np.clip(np.rint(changed), 0, 255).astype(np.uint8)
        if 2 * (drawn[touched] != image[window][touched]).any(axis=1).sum() > touched.sum():
            break
    else:
        raise UsageError(
            f"a {kind} of size {size} and contrast {contrast} is invisible on a part of {int(foreground.sum())} pixels; "
            "give a larger size or contrast"
        )
    result, mask = image.copy(), np.zeros(foreground.shape, np.bool_)
    result[window][touched] = drawn[touched]
    mask[window] = touched
    return result, mask


def check_defect_arguments(image: Image, *, size: float, contrast: float, foreground: Mask) -> None:
    """Check the arguments common to all defects.

    Raises:
        UsageError: an invalid size, contrast, image or foreground.
    """
    for name, value, (low, high) in (("size", size, SIZES), ("contrast", contrast, CONTRASTS)):
        if not low <= value <= high:
            raise UsageError(f"{name} of a defect is {value}; give a number from {low} to {high}")
    check_image(image)
    check_foreground(foreground, shape=image.shape[:2])

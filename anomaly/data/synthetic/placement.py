"""The place of a defect in an image."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from anomaly.data.synthetic.rendered_part import Field, Image, Mask

NUM_TRIES = 24
NUM_DONORS = 3
MARGIN = 1.7  # edge of the region, in extents of the defect
MAX_GRAIN = 3.0  # grey levels; stronger variation is texture, not sensor noise


@dataclass(frozen=True)
class Site:
    """The region around a defect.

    `image` (h, w, 3) is float32 in grey levels, `inside` (h, w) is 1 on the part and 0 off it. (`row`, `column`) is the
    defect's centre in the region and `angle` its long axis in radians. `x`, `y` (h, w) are pixels from the centre along
    and across that axis. `extent` is the longest extent in pixels, `stroke` the width of a thin line, `peak` the
    requested change in grey levels. `sign` is +1 for a brighter defect and -1 for a darker defect, by the room in the image.
    `grain` is the deviation of the sensor noise in grey levels. `colourful` is False in a grey image. `donors` are
    other regions of the same image, in the shape of `image`.
    """

    image: Field
    inside: Field
    row: int
    column: int
    angle: float
    x: Field
    y: Field
    extent: float
    stroke: float
    peak: float
    sign: int
    grain: float
    colourful: bool
    donors: tuple[Field, ...]

    def radius(self, aspect: float) -> Field:
        """Distance (h, w) from the centre: 1 on an ellipse of the defect's length and `aspect` times its width."""
        reach = np.float32(2.0 / self.extent)
        return np.asarray(cv2.magnitude(self.x * reach, self.y * (reach / np.float32(aspect))), dtype=np.float32)

    def noise(self, rng: np.random.Generator) -> Field:
        """Draw new sensor noise (h, w, 1) for pixels that replace the image."""
        grain = rng.standard_normal(self.image.shape[:2], dtype=np.float32) * np.float32(self.grain)
        return np.asarray(grain[:, :, None], dtype=np.float32)


def find_site(
    image: Image, *, foreground: Mask, extent: float, aspect: float, peak: float, rng: np.random.Generator
) -> tuple[Site, tuple[slice, slice]]:
    """Find a random place for a defect, as far on the foreground as possible, and its window in the image.

    Args:
        image: (H, W, 3) uint8.
        foreground: (H, W) bool with at least one True pixel.
        extent: length of the defect in pixels.
        aspect: width over length of the defect.
        peak: requested change in grey levels.
        rng: random generator.
    """
    rows, columns = np.nonzero(foreground)
    along, across = np.meshgrid(np.linspace(-0.45, 0.45, 9) * extent, np.linspace(-0.45, 0.45, 3) * extent * aspect)
    best = (-1.0, 0, 0, 0.0)
    for _ in range(NUM_TRIES):
        pick, angle = int(rng.integers(len(rows))), float(rng.uniform(0.0, np.pi))
        x = np.rint(columns[pick] + along * np.cos(angle) - across * np.sin(angle)).astype(int)
        y = np.rint(rows[pick] + along * np.sin(angle) + across * np.cos(angle)).astype(int)
        within = (x >= 0) & (x < image.shape[1]) & (y >= 0) & (y < image.shape[0])
        share = float(foreground[y[within], x[within]].sum() / x.size)
        best = max(best, (share, int(rows[pick]), int(columns[pick]), angle))
        if share == 1.0:
            break
    _, row, column, angle = best
    reach = int(0.5 * MARGIN * extent) + 8
    top, left = max(0, row - reach), max(0, column - reach)
    window = (slice(top, row + reach + 1), slice(left, column + reach + 1))
    crop = image[window].astype(np.float32)
    donors = []
    for pick in rng.integers(len(rows), size=NUM_DONORS):
        corner = [
            int(np.clip(at - length // 2, 0, whole - length))
            for at, length, whole in zip((rows[pick], columns[pick]), crop.shape, image.shape, strict=False)
        ]
        donor = image[corner[0] : corner[0] + crop.shape[0], corner[1] : corner[1] + crop.shape[1]]
        donors.append(donor.astype(np.float32))
    down, right = (axis.astype(np.float32) for axis in np.ogrid[: crop.shape[0], : crop.shape[1]])
    down, right = down - (row - top), right - (column - left)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    part = np.asarray(cv2.GaussianBlur(foreground[window].astype(np.float32), (0, 0), 1.0), dtype=np.float32)
    grey = crop.mean(axis=2)
    level = float(grey[foreground[window] & (down * down + right * right <= max(0.25 * extent * extent, 4.0))].mean())
    sign = int(rng.choice((-1, 1)))
    if min(level - 5.0, 250.0 - level) < peak:
        sign = 1 if level < 127.5 else -1
    ripple = cv2.filter2D(grey, cv2.CV_32F, np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32))
    site = Site(
        image=crop,
        inside=np.clip(2.0 * part - 1.0, 0.0, 1.0),
        row=row - top,
        column=column - left,
        angle=angle,
        x=right * cos + down * sin,
        y=down * cos - right * sin,
        extent=extent,
        stroke=max(1.0, 0.005 * min(image.shape[:2])) * float(rng.uniform(0.9, 1.6)),
        peak=peak,
        sign=sign,
        # Immerkær, "Fast Noise Variance Estimation", 1996
        grain=min(MAX_GRAIN, float(np.sqrt(np.pi / 2) / 6 * np.abs(ripple).mean())),
        colourful=bool(np.ptp(image[window].astype(np.int16), axis=2).mean() > 2.0),
        donors=tuple(donors),
    )
    return site, window

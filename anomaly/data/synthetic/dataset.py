"""Rendered parts, and data sets of them in the layout of MVTec AD with exact masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol
from zlib import crc32

import cv2
import numpy as np
import numpy.typing as npt

from anomaly.data.synthetic.assembly import draw_component_defect, render_assembly
from anomaly.data.synthetic.defects import DEFECTS, draw_defect
from anomaly.data.synthetic.machined import render_machined
from anomaly.data.synthetic.rendered_part import Image, Mask, RenderedPart
from anomaly.data.synthetic.textile import render_textile
from anomaly.errors import OutputError, UsageError
from anomaly.system.files import as_path
from anomaly.system.suggestions import nearest

MIN_SIZE = 256  # yarns and pins are thinner than two pixels below it
EASIEST = np.array((0.90, 0.30))  # contrast and size of the most visible defect
HARDEST = np.array((0.14, 0.04))
# Roberts, "The Unreasonable Effectiveness of Quasirandom Sequences", 2018: any number of R2 points fills the square evenly
R2 = np.array((0.7548776662466927, 0.5698402909980532))


class Render(Protocol):
    """Renderer of one kind of part."""

    def __call__(self, *, size: int, seed: int) -> RenderedPart:
        """Render a good part, `size` pixels square, fixed by `seed`."""


PARTS: dict[str, Render] = {"textile": render_textile, "machined": render_machined, "assembly": render_assembly}


def make_part(kind: str, *, size: int, rng: np.random.Generator) -> RenderedPart:
    """Render a good part.

    Args:
        kind: key of `PARTS`.
        size: side of the image in pixels, at least 256.
        rng: random generator of lot, pose, light and sensor noise.

    Raises:
        UsageError: an unknown kind, or a size below 256.
    """
    _check(kind, size=size)
    return PARTS[kind](size=size, seed=int(rng.integers(2**63)))


def _check(kind: str, *, size: int) -> None:
    if kind not in PARTS:
        raise UsageError(f"no part {kind!r}; nearest: {nearest(str(kind), PARTS)!r}; all: {', '.join(PARTS)}")
    if not isinstance(size, (int, np.integer)) or size < MIN_SIZE:
        raise UsageError(f"size is {size!r}; give {MIN_SIZE} pixels or more")


def make_dataset(
    root: str | Path,
    *,
    parts: Sequence[str],
    num_train: int,
    num_test_good: int,
    num_test_defect: int,
    size: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a data set in the layout of MVTec AD (Bergmann et al., CVPR 2019), one category per part.

    Files below `root`/<part>: `train/good/000.png`, `test/good/000.png`, `test/<defect>/000.png` and
    `ground_truth/<defect>/000_mask.png` (255 on the defect). Contrasts and sizes of the defects range from clearly
    visible to hard. Image i of a folder depends only on the seed, the part and i, not on the number of images.

    Args:
        root: folder of the data set, missing or empty.
        parts: keys of `PARTS`.
        num_train: good training images per part.
        num_test_good: good test images per part.
        num_test_defect: defective test images per part, distributed over the kinds in `DEFECTS`.
        size: side of the images in pixels, at least 256.
        seed: random seed, at least 0.
        progress: function called after each image with the number of images written and their total.

    Raises:
        UsageError: an unknown part, an invalid size, number or seed, or a path of another type.
        OutputError: a folder that is not empty or cannot be written.
    """
    root = as_path(root, name="root")
    for part in parts:
        _check(part, size=size)
    for name, number in (
        ("num_train", num_train),
        ("num_test_good", num_test_good),
        ("num_test_defect", num_test_defect),
        ("seed", seed),
    ):
        if not isinstance(number, (int, np.integer)) or number < 0:
            raise UsageError(f"{name} is {number!r}; give a whole number of 0 or more")
    counts = {"train/good": num_train, "test/good": num_test_good}
    for place, kind in enumerate(DEFECTS):
        counts[f"test/{kind}"] = (num_test_defect + len(DEFECTS) - 1 - place) // len(DEFECTS)
    jobs = [(part, folder, i) for part in parts for folder, count in counts.items() for i in range(count)]
    try:
        if root.exists() and any(root.iterdir()):
            raise OutputError(f"{root} is not empty; give a new folder")
        for done, (part, folder, index) in enumerate(jobs, start=1):
            image, mask = _make_sample(part, folder, index=index, size=size, seed=seed)
            _write(root / part / folder / f"{index:03d}.png", image[:, :, ::-1])
            if mask.any():
                truth = root / part / folder.replace("test/", "ground_truth/", 1)
                _write(truth / f"{index:03d}_mask.png", mask.astype(np.uint8) * 255)
            if progress is not None:
                progress(done, len(jobs))
    except OSError as error:
        raise OutputError(f"{root} cannot be written ({error.strerror or error}); choose another place") from error


def _make_sample(part: str, folder: str, *, index: int, size: int, seed: int) -> tuple[Image, Mask]:
    """Make one image of the data set and its mask, all False for a good part."""
    rng = np.random.default_rng([seed, crc32(f"{part}/{folder}".encode()), index])
    good = make_part(part, size=size, rng=rng)
    kind = folder.removeprefix("test/")
    if kind not in DEFECTS:
        return good.image, np.zeros_like(good.foreground)
    if kind == "component" and good.components:
        return draw_component_defect(good, rng=rng)
    contrast, extent = EASIEST * (HARDEST / EASIEST) ** (index * R2 % 1.0)
    foreground = good.foreground
    return draw_defect(good.image, kind, size=extent, contrast=contrast, foreground=foreground, rng=rng)


def _write(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())

"""Make parts and whole data sets of them in the layout of MVTec AD, with exact masks."""

from __future__ import annotations

import difflib
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
from anomaly.data.synthetic.rendered_part import Image, Mask, Part
from anomaly.data.synthetic.textile import render_textile
from anomaly.errors import OutputError, UsageError

MIN_SIZE = 256  # below it yarns and pins fall under two pixels
CLEAR = np.array((0.90, 0.30))  # contrast and size of the defect that is easiest to see
HARD = np.array((0.14, 0.04))
# Roberts, "The Unreasonable Effectiveness of Quasirandom Sequences", 2018: R2 fills the square evenly, however many are
# taken
R2 = np.array((0.7548776662466927, 0.5698402909980532))


class Render(Protocol):
    """What renders one kind of part."""

    def __call__(self, *, size: int, seed: int) -> Part:
        """A image of a good part, `size` pixels square, everything about it fixed by `seed`."""


PARTS: dict[str, Render] = {"textile": render_textile, "machined": render_machined, "assembly": render_assembly}


def make_part(kind: str, *, size: int, rng: np.random.Generator) -> Part:
    """A image of a good part, `size` pixels square, with lot, pose, light and sensor noise drawn from `rng`.

    Raises UsageError for a kind that is not in PARTS, and for a size below 256.
    """
    _check(kind, size=size)
    return PARTS[kind](size=size, seed=int(rng.integers(2**63)))


def _check(kind: str, *, size: int) -> None:
    if kind not in PARTS:
        nearest = difflib.get_close_matches(kind, PARTS, n=1, cutoff=0.0)[0]
        raise UsageError(f"no part {kind!r}: did you mean {nearest!r}? There are {', '.join(PARTS)}")
    if size < MIN_SIZE:
        raise UsageError(f"size {size} is too small to show a part: give {MIN_SIZE} pixels or more")


def make_dataset(
    root: Path,
    *,
    parts: Sequence[str],
    num_train: int,
    num_test_good: int,
    num_test_defect: int,
    size: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> None:
    """Write a data set in the layout of MVTec AD (Bergmann et al., CVPR 2019), one category per part.

    Under `root`/<part>: `train/good/000.png`, `test/good/`, `test/<defect>/000.png` and
    `ground_truth/<defect>/000_mask.png` (255 on the defect). `num_train`, `num_test_good` and `num_test_defect` are per
    part; the defects are shared out over the kinds in DEFECTS, and their contrasts and sizes go from clearly visible
    to hard. Image i of a folder depends on the seed, the part and i alone, never on how many are made. `progress` is
    called with (images written, images in all) after each.

    Raises UsageError for a part, size, number or seed that is none, OutputError for a folder that is not empty or
    cannot be written.
    """
    for part in parts:
        _check(part, size=size)
    for name, number in (
        ("num_train", num_train),
        ("num_test_good", num_test_good),
        ("num_test_defect", num_test_defect),
        ("seed", seed),
    ):
        if number < 0:
            raise UsageError(f"{name} is {number}: give 0 or more")
    counts = {"train/good": num_train, "test/good": num_test_good}
    for place, kind in enumerate(DEFECTS):
        counts[f"test/{kind}"] = (num_test_defect + len(DEFECTS) - 1 - place) // len(DEFECTS)
    jobs = [(part, folder, i) for part in parts for folder, count in counts.items() for i in range(count)]
    try:
        if root.exists() and any(root.iterdir()):
            raise OutputError(f"{root} is not empty: name a new folder, or clear it first")
        for done, (part, folder, index) in enumerate(jobs, start=1):
            image, mask = _make_sample(part, folder, index=index, size=size, seed=seed)
            _write(root / part / folder / f"{index:03d}.png", image[:, :, ::-1])
            if mask.any():
                truth = root / part / folder.replace("test/", "ground_truth/", 1)
                _write(truth / f"{index:03d}_mask.png", mask.astype(np.uint8) * 255)
            progress(done, len(jobs))
    except OSError as error:
        raise OutputError(f"cannot write the data set to {root}: {error}") from error


def _make_sample(part: str, folder: str, *, index: int, size: int, seed: int) -> tuple[Image, Mask]:
    """One image of the data set and its mask, all False for a good part."""
    rng = np.random.default_rng([seed, crc32(f"{part}/{folder}".encode()), index])
    good = make_part(part, size=size, rng=rng)
    kind = folder.removeprefix("test/")
    if kind not in DEFECTS:
        return good.image, np.zeros_like(good.foreground)
    if kind == "component" and good.components:
        return draw_component_defect(good, rng=rng)
    contrast, extent = CLEAR * (HARD / CLEAR) ** (index * R2 % 1.0)
    foreground = good.foreground
    return draw_defect(good.image, kind, size=extent, contrast=contrast, foreground=foreground, rng=rng)


def _write(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())

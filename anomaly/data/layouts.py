"""The layouts of published data sets, identified by folders that only one layout has.

    layout              training             calibration        test                    masks
    MVTec AD, MPDD      train/good           validation/good¹   test/good, test/<kind>  ground_truth/<kind>
    MVTec AD 2          train/good           validation/good    test_public/good, /bad  test_public/ground_truth/bad
    BTAD                train/ok                                test/ok, test/ko        ground_truth/ko
    KolektorSDD2        train/<n>.png ²                         test/<n>.png            <n>_GT.png beside it
    VisA                Data/Images by the table ../split_csv/1cls.csv (`anomaly.data.visa`)

¹ if it exists.  ² images with a black mask; an image without a mask has no label and is not used.
The masks of all layouts but KolektorSDD2 and VisA are `<stem>_mask` or `<stem>`, of any ending, in the same subfolders.

Sources: Bergmann et al., "MVTec AD", CVPR 2019; Jezek et al., "Deep learning-based defect detection of metal parts"
(MPDD), ICUMT 2021; Heckler-Kram et al., "The MVTec AD 2 Dataset", 2025; Mishra et al., "VT-ADL" (BTAD), ISIE 2021;
Božič et al., "Mixed supervision for surface-defect detection" (KolektorSDD2), Computers in Industry 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from anomaly.data.image_files import ENDINGS, Category, Sample, good_samples, image_files_if_any
from anomaly.data.visa import read_visa
from anomaly.errors import DataError
from anomaly.imaging.image_file import read_mask

GOOD_FOLDERS = ("good", "ok")
_PRIVATE_TESTS = ("test_private", "test_private_mixed")
_TRUTH = "_GT"
_MAX_PIXELS = 100_000_000


class Layout(NamedTuple):
    """Layout of the images of one product."""

    name: str
    train: str
    """folder of the training images"""
    fits: Callable[[Path], bool]
    read: Callable[[Path], Category]


def find_layouts(root: Path) -> list[Layout]:
    """List the layouts that a folder fits; a plain folder and a data set of several products give an empty list."""
    return [layout for layout in _LAYOUTS if layout.fits(root)]


def _read_folders(root: Path, *, good: str, test: str, truth: str) -> Category:
    """Read a layout with one folder per kind of test image, and its masks in folders of the same names."""
    masks: dict[Path, Path] = {}
    for path in image_files_if_any(root / truth):
        other = masks.setdefault(path.relative_to(root / truth).with_suffix(""), path)
        if other != path:
            raise DataError(f"{other} and {path.name} are two masks of one name; keep one of them")
    samples = []
    paired: set[Path] = set()
    for path in image_files_if_any(root / test):
        if path.parent == root / test or root / truth in path.parents:
            continue
        inner = path.relative_to(root / test).with_suffix("")
        found = [masks[name] for name in (inner.with_name(f"{inner.name}_mask"), inner) if name in masks]
        paired.update(found)
        if inner.parts[0] in GOOD_FOLDERS:
            samples.append(Sample(path, "good", False, None))
        else:
            samples.append(Sample(path, inner.parts[0], True, found[0] if found else None))
    private = [path for folder in _PRIVATE_TESTS for path in image_files_if_any(root / folder)]
    return Category(
        root=root,
        name=root.resolve().name,
        train=good_samples(root / "train" / good),
        calibration_images=good_samples(root / "validation" / good),
        test=tuple(samples),
        stray_masks=tuple(mask for mask in masks.values() if mask not in paired),
        ignored=tuple(sorted(paired - {sample.mask_path for sample in samples})) + tuple(private),
    )


def _read_kolektorsdd2(root: Path) -> Category:
    """Read images labelled by the mask beside them; the mask of a good image is black."""
    samples: dict[str, list[Sample]] = {"train": [], "test": []}
    stray_masks, ignored = [], []
    for split, found in samples.items():
        files = {path.with_suffix(""): path for path in image_files_if_any(root / split)}
        for stem, path in files.items():
            mask = files.get(stem.with_name(f"{stem.name}{_TRUTH}"))
            if stem.name.endswith(_TRUTH):
                if stem.with_name(stem.name.removesuffix(_TRUTH)) not in files:
                    stray_masks.append(path)
            elif mask is None:
                continue
            elif not read_mask(mask, max_pixels=_MAX_PIXELS).any():
                found.append(Sample(path, "good", False, None))
                ignored.append(mask)
            elif split == "train":
                ignored += [path, mask]
            else:
                found.append(Sample(path, "defect", True, mask))
    return Category(
        root=root,
        name=root.resolve().name,
        train=tuple(samples["train"]),
        calibration_images=(),
        test=tuple(samples["test"]),
        stray_masks=tuple(stray_masks),
        ignored=tuple(ignored),
    )


def _has_truth_beside(root: Path) -> bool:
    names = (path.name.lower() for path in (root / "train").glob(f"*{_TRUTH}.*"))
    return any(name.endswith(ENDINGS) for name in names)


_read_mvtec = partial(_read_folders, good="good", test="test", truth="ground_truth")
_read_mvtec2 = partial(_read_folders, good="good", test="test_public", truth="test_public/ground_truth")
_read_btad = partial(_read_folders, good="ok", test="test", truth="ground_truth")

_LAYOUTS = (
    Layout(
        "MVTec AD",
        "train/good",
        lambda root: (
            (root / "train/good").is_dir() and ((root / "test").is_dir() or not (root / "test_public").is_dir())
        ),
        _read_mvtec,
    ),
    Layout(
        "MVTec AD 2",
        "train/good",
        lambda root: (root / "train/good").is_dir() and (root / "test_public").is_dir(),
        _read_mvtec2,
    ),
    Layout("BTAD", "train/ok", lambda root: (root / "train/ok").is_dir(), _read_btad),
    Layout("KolektorSDD2", "train", _has_truth_beside, _read_kolektorsdd2),
    Layout("VisA", "Data/Images/Normal", lambda root: (root / "Data/Images/Normal").is_dir(), read_visa),
)

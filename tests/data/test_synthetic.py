"""Synthetic parts, defects with exact masks, and data sets of both."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from anomaly.data.synthetic import (
    DEFECTS,
    PARTS,
    RenderedPart,
    draw_component_defect,
    draw_defect,
    estimate_foreground,
    make_dataset,
    make_part,
)
from anomaly.data.synthetic.assembly import BOARD, COMPONENT_DEFECTS
from anomaly.errors import OutputError, UsageError

SEEDS = range(12)


def draw_image(*, colourful: bool) -> tuple[Any, Any]:
    """Draw an elliptic part, brighter and rougher than its background, 300 × 420 pixels, and its mask."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:300, :420]
    part = ((x - 205) / 150) ** 2 + ((y - 150) / 110) ** 2 < 1.0
    grain = cv2.GaussianBlur(rng.normal(0.0, 12.0, (300, 420)), (0, 0), 1.0)
    grey = np.where(part, 130.0 + 0.05 * x + 3.0 * grain, 45.0 + 0.02 * y + 0.5 * grain)
    colour = (1.0, 0.9, 0.75) if colourful else (1.0, 1.0, 1.0)
    return np.clip(np.rint(grey[:, :, None] * colour), 0, 255).astype(np.uint8), part


def draw(kind: str, *, size: float, contrast: float, seed: int) -> tuple[Any, Any]:
    """Draw one defect on an image filled by the part; return its change in grey levels (H, W) and its mask."""
    image, part = draw_image(colourful=True)
    image, everywhere = image[60:240, 80:330], np.ones((180, 250), np.bool_)
    assert part[60:240, 80:330].mean() > 0.95
    rng = np.random.default_rng(seed)
    result, mask = draw_defect(image, kind, size=size, contrast=contrast, foreground=everywhere, rng=rng)
    return np.abs(result.astype(int) - image).max(axis=2), mask


def longest_extent(mask: Any) -> float:
    points = np.stack(np.nonzero(mask), axis=1).astype(np.float32)
    return float(max(cv2.minAreaRect(points)[1])) + 1.0


@pytest.mark.parametrize("kind", PARTS)
def test_part_is_fixed_by_its_seed(kind: str) -> None:
    first, again, other = (make_part(kind, size=256, rng=np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert first.image.shape == (256, 256, 3)
    assert first.image.dtype == np.uint8
    assert np.array_equal(first.image, again.image)
    assert np.abs(first.image.astype(int) - other.image).mean() > 3.0


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("textile", 1.0, 1.0), ("machined", 0.48, 0.58), ("assembly", 0.8, 0.9)]
)
def test_foreground_is_the_part(kind: str, low: float, high: float) -> None:
    part = make_part(kind, size=301, rng=np.random.default_rng(0))
    assert part.foreground.shape == (301, 301)
    assert low <= part.foreground.mean() <= high
    if kind == "machined":
        assert part.image[part.foreground].mean() > 3.0 * part.image[~part.foreground].mean()


@pytest.mark.parametrize("kind", PARTS)
def test_image_has_sensor_noise_and_a_full_range(kind: str) -> None:
    grey = make_part(kind, size=256, rng=np.random.default_rng(1)).image.mean(axis=2)
    assert np.ptp(grey) > 100
    assert (grey >= 250).mean() < 0.05
    assert (grey == 0).mean() < 0.05
    flat = cv2.blur(np.abs(cv2.Laplacian(grey, cv2.CV_64F)), (9, 9)).min()
    assert flat > 0.5


@pytest.mark.slow
def test_machined_part_lies_at_any_angle() -> None:
    angles = []
    for seed in range(32):
        part = make_part("machined", size=256, rng=np.random.default_rng(seed))
        rows, columns = np.nonzero(part.foreground)
        centre = (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2
        radius = np.ptp(rows) / 2
        y, x = np.mgrid[:256, :256]
        distance = np.hypot(y - centre[0], x - centre[1]) / radius
        keyway = ~part.foreground & (distance > 0.205) & (distance < 0.245)
        assert keyway.any()
        angles.append(np.arctan2((y - centre[0])[keyway].mean(), (x - centre[1])[keyway].mean()))
    quadrants = np.histogram(angles, bins=4, range=(-np.pi, np.pi))[0]
    assert quadrants.min() >= 3


@pytest.mark.parametrize("colourful", [True, False])
@pytest.mark.parametrize("kind", DEFECTS)
def test_mask_holds_the_changed_pixels(kind: str, colourful: bool) -> None:
    image, part = draw_image(colourful=colourful)
    before = image.copy()
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        result, mask = draw_defect(image, kind, size=0.15, contrast=0.4, foreground=part, rng=rng)
        change = np.abs(result.astype(int) - image).max(axis=2)
        assert change[~mask].max() == 0
        # a few masked pixels stay equal: in a repeated texture, or between a bright and a dark side
        assert (change[mask] > 0).mean() > 0.85
        assert mask.sum() > 40
        assert (mask & part).sum() > 0.5 * mask.sum()
        if kind != "foreign_body":
            assert not (mask & ~part).any()
        if not colourful:
            assert np.ptp(result, axis=2).max() == 0
    assert np.array_equal(image, before)


@pytest.mark.parametrize("kind", DEFECTS)
def test_defect_is_fixed_by_its_seed(kind: str) -> None:
    image, part = draw_image(colourful=True)
    drawn = [
        draw_defect(image, kind, size=0.2, contrast=0.5, foreground=part, rng=np.random.default_rng(seed))
        for seed in (1, 1, 2)
    ]
    assert np.array_equal(drawn[0][0], drawn[1][0])
    assert np.array_equal(drawn[0][1], drawn[1][1])
    assert not np.array_equal(drawn[0][1], drawn[2][1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", DEFECTS)
def test_size_is_the_longest_extent(kind: str) -> None:
    sizes = (0.05, 0.1, 0.2, 0.4)
    extents = [
        float(np.median([longest_extent(draw(kind, size=size, contrast=0.5, seed=seed)[1]) for seed in SEEDS]))
        for size in sizes
    ]
    assert extents == sorted(extents)
    assert extents[2] > 1.6 * extents[1]
    assert 0.75 * 0.2 * 180 < extents[2] < 1.45 * 0.2 * 180


@pytest.mark.parametrize("kind", DEFECTS)
def test_contrast_is_the_largest_change(kind: str) -> None:
    contrasts = (0.1, 0.3, 0.9)
    means, peaks = [], []
    for contrast in contrasts:
        drawn = [draw(kind, size=0.2, contrast=contrast, seed=seed) for seed in SEEDS]
        means.append(float(np.mean([change[mask].mean() for change, mask in drawn])))
        peaks.append(float(np.median([np.quantile(change[mask], 0.98) for change, mask in drawn])))
    assert means[1] > 1.5 * means[0]
    assert means[2] > 1.5 * means[1]
    assert peaks == pytest.approx([100 * contrast for contrast in contrasts], rel=0.3)


@pytest.mark.parametrize("kind", DEFECTS)
def test_hardest_defects_are_visible(kind: str) -> None:
    for seed in SEEDS:
        change, mask = draw(kind, size=0.02, contrast=0.03, seed=seed)
        assert mask.any()
        assert change[mask].any()


@pytest.fixture(scope="module")
def board() -> RenderedPart:
    return make_part("assembly", size=256, rng=np.random.default_rng(4))


@pytest.mark.parametrize("name", COMPONENT_DEFECTS)
def test_component_defect_alters_one_component(board: RenderedPart, name: str) -> None:
    kinds = set()
    for seed in range(40):
        altered = COMPONENT_DEFECTS[name](board.components, np.random.default_rng(seed))
        gone, come = set(board.components) - set(altered), set(altered) - set(board.components)
        assert len(gone) == 1
        (good,) = gone
        kinds.add(good.kind)
        if name == "missing":
            assert not come
            continue
        (wrong,) = come
        moved = np.hypot(wrong.x - good.x, wrong.y - good.y)
        if name == "swapped":
            assert moved == 0.0
            assert wrong.kind != good.kind or wrong.angle == good.angle + 180.0
        else:
            assert wrong.kind == good.kind
            assert 0.2 * good.width < moved < 0.7 * good.length
    assert len(kinds) > 5


@pytest.mark.parametrize("name", COMPONENT_DEFECTS)
def test_component_mask_holds_the_changed_pixels(
    board: RenderedPart, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    picked = []

    def remember(components: Any, rng: Any, alter: Any = COMPONENT_DEFECTS[name]) -> Any:
        altered = alter(components, rng)
        picked.append((set(components) - set(altered)).pop())
        return altered

    for other in COMPONENT_DEFECTS:
        monkeypatch.setitem(COMPONENT_DEFECTS, other, remember)
    for seed in range(6):
        image, mask = draw_component_defect(board, rng=np.random.default_rng(seed))
        change = np.abs(image.astype(int) - board.image).max(axis=2)
        assert change[~mask].max() == 0
        assert (change[mask] >= 3).mean() > 0.8
        assert mask.sum() > 20
        column, row = (128 + (at - 50) * BOARD * 2.56 for at in (picked[-1].x, picked[-1].y))
        rows, columns = np.nonzero(mask)
        assert np.hypot(rows - row, columns - column).min() < 8


@pytest.mark.slow
def test_every_component_defect_occurs(board: RenderedPart, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()
    for name, alter in list(COMPONENT_DEFECTS.items()):

        def count(components: Any, rng: Any, name: str = name, alter: Any = alter) -> Any:
            counts[name] += 1
            return alter(components, rng)

        monkeypatch.setitem(COMPONENT_DEFECTS, name, count)
    for seed in range(18):
        draw_component_defect(board, rng=np.random.default_rng(seed))
    assert set(counts) == {"missing", "swapped", "displaced"}


def test_foreground_of_an_image_is_found() -> None:
    image, part = draw_image(colourful=True)
    found = estimate_foreground(image)
    assert (found & part).sum() > 0.95 * (found | part).sum()
    flange = make_part("machined", size=256, rng=np.random.default_rng(0))
    disc = estimate_foreground(flange.image)
    assert disc[flange.foreground].mean() > 0.9  # the unlit chamfer is as dark as the belt
    assert disc.mean() < 0.62


def test_texture_is_all_foreground() -> None:
    assert estimate_foreground(make_part("textile", size=256, rng=np.random.default_rng(0)).image).all()
    assert estimate_foreground(np.full((270, 300, 3), 90, np.uint8)).all()


def make(root: Path, **change: Any) -> list[tuple[int, int]]:
    calls: list[tuple[int, int]] = []
    options: dict[str, Any] = {
        "parts": ["textile", "assembly"],
        "num_train": 1,
        "num_test_good": 1,
        "num_test_defect": 5,
        "size": 256,
        "seed": 0,
    }
    make_dataset(root, **options | change, progress=lambda done, total: calls.append((done, total)))
    return calls


@pytest.mark.slow
def test_dataset_has_the_layout_and_images_independent_of_their_number(tmp_path: Path) -> None:
    assert make(tmp_path / "small") == [(done, 14) for done in range(1, 15)]
    make(tmp_path / "large", num_train=2, num_test_good=0, num_test_defect=7, parts=["assembly"])
    large = {str(path.relative_to(tmp_path / "large")) for path in (tmp_path / "large").rglob("*.png")}
    expected = {"train/good/000.png", "train/good/001.png"}
    for place, kind in enumerate(DEFECTS):
        for index in range(2 if place < 2 else 1):
            expected |= {f"test/{kind}/{index:03d}.png", f"ground_truth/{kind}/{index:03d}_mask.png"}
    assert large == {f"assembly/{name}" for name in expected}
    small = {str(path.relative_to(tmp_path / "small")) for path in (tmp_path / "small").rglob("*.png")}
    assert len(small) == 2 * (1 + 1 + 5 + 5)
    for name in small & large:
        assert (tmp_path / "small" / name).read_bytes() == (tmp_path / "large" / name).read_bytes()
    for name in small:
        pixels = np.asarray(cv2.imread(str(tmp_path / "small" / name), cv2.IMREAD_UNCHANGED))
        if "ground_truth" in name:
            assert pixels.shape == (256, 256)
            assert set(np.unique(pixels)) == {0, 255}
        else:
            assert pixels.shape == (256, 256, 3)
    cloth = np.asarray(cv2.imread(str(tmp_path / "small/textile/train/good/000.png")))
    assert cloth[:, :, 0].mean() > cloth[:, :, 2].mean()  # stored blue first: the cloth is blue


def test_dataset_depends_on_its_seed(tmp_path: Path) -> None:
    options: dict[str, Any] = {"parts": ["textile"], "num_train": 1, "num_test_good": 0, "num_test_defect": 1}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make(tmp_path / name, seed=seed, **options)
    for file in ("train/good/000.png", "test/scratch/000.png", "ground_truth/scratch/000_mask.png"):
        a, b, c = ((tmp_path / name / "textile" / file).read_bytes() for name in "abc")
        assert a == b
        assert a != c


def test_dataset_refuses_invalid_arguments(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no part 'textil'; nearest: 'textile'; all: textile, machined, assembly"):
        make(tmp_path / "new", parts=["textil"])
    with pytest.raises(UsageError, match="size is 255; give 256 pixels or more"):
        make(tmp_path / "new", size=255)
    with pytest.raises(UsageError, match="num_test_good is -1"):
        make(tmp_path / "new", num_test_good=-1)
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        make(tmp_path / "old")
    with pytest.raises(OutputError, match=r"notes\.txt cannot be written \(Not a directory\); choose another place"):
        make(tmp_path / "old" / "notes.txt")
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "hole"}, r"no defect 'hole'; nearest: .*; all: scratch"),
        ({"size": 0.0}, "size of a defect is 0.0; give a number from 0.01 to 0.5"),
        ({"contrast": 1.5}, "contrast of a defect is 1.5"),
        ({"image": np.zeros((300, 420), np.uint8)}, "uint8 of shape"),
        ({"image": np.zeros((300, 420, 3))}, "float64 of shape"),
        ({"image": np.zeros((0, 0, 3), np.uint8)}, "uint8 of shape"),
        ({"image": None}, "image is of type NoneType"),
        ({"foreground": [[True]]}, "foreground is of type list"),
        ({"foreground": np.zeros((300, 420), np.bool_)}, "foreground is empty"),
        ({"foreground": np.ones((300, 300), np.bool_)}, "give bool"),
    ],
)
def test_defect_refuses_invalid_arguments(change: dict[str, Any], message: str) -> None:
    image, part = draw_image(colourful=True)
    options: dict[str, Any] = {
        "image": image,
        "kind": "dent",
        "size": 0.1,
        "contrast": 0.5,
        "foreground": part,
    } | change
    with pytest.raises(UsageError, match=message):
        draw_defect(options.pop("image"), options.pop("kind"), rng=np.random.default_rng(0), **options)


def test_invisible_defect_is_refused() -> None:
    image, _ = draw_image(colourful=True)
    speck = np.zeros(image.shape[:2], np.bool_)
    speck[100, 100] = True
    with pytest.raises(UsageError, match="is invisible on a part of 1 pixels"):
        draw_defect(image, "stain", size=0.2, contrast=0.5, foreground=speck, rng=np.random.default_rng(0))


def test_component_defect_needs_components() -> None:
    cloth = make_part("textile", size=256, rng=np.random.default_rng(0))
    with pytest.raises(UsageError, match="'textile' has no components"):
        draw_component_defect(cloth, rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 0, 3), np.uint8), None]
)
def test_foreground_refuses_an_invalid_image(image: Any) -> None:
    with pytest.raises(UsageError, match=r"^image is "):
        estimate_foreground(image)


def test_dataset_takes_a_string_and_needs_no_progress(tmp_path: Path) -> None:
    numbers: dict[str, Any] = {"num_train": 1, "num_test_good": 0, "num_test_defect": 0, "size": 256, "seed": 0}
    make_dataset(str(tmp_path / "set"), parts=["textile"], **numbers)
    assert (tmp_path / "set/textile/train/good/000.png").is_file()
    with pytest.raises(UsageError, match=r"root is NoneType None: give a path as str or pathlib\.Path"):
        make_dataset(None, parts=["textile"], **numbers)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"num_train is 1\.5; give a whole number of 0 or more"):
        make_dataset(tmp_path / "new", parts=["textile"], **numbers | {"num_train": 1.5})

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from anomaly.data.folders import Sample
from anomaly.data.splits import Split, drop_excluded, find_part_groups, split
from anomaly.errors import DataError, UsageError

ROOT = Path("/data/bottle")


def good(*names: str, root: Path = ROOT) -> list[Sample]:
    return [Sample(root / name, "good", False, None) for name in names]


def alone(samples: list[Sample], *, root: Path = ROOT) -> dict[Path, str]:
    return find_part_groups(samples, root=root, part_group=None, duplicates=[])


def names(samples: tuple[Sample, ...]) -> list[str]:
    return [sample.path.name for sample in samples]


IMAGES = good(*(f"{i:03}.png" for i in range(200)))


def test_split_has_its_shares() -> None:
    parts = split(IMAGES, alone(IMAGES), seed=0, stopping=False)
    assert (len(parts.train), len(parts.calibration_images), len(parts.stopping)) == (160, 40, 0)
    parts = split(IMAGES, alone(IMAGES), seed=0, stopping=True)
    assert (len(parts.train), len(parts.calibration_images), len(parts.stopping)) == (144, 40, 16)
    assert sorted(parts.train + parts.calibration_images + parts.stopping, key=lambda s: s.path) == IMAGES
    assert all(list(side) == sorted(side, key=lambda s: s.path) for side in (parts.train, parts.calibration_images))


def test_calibration_images_are_the_same_with_and_without_stopping() -> None:
    groups = alone(IMAGES)
    with_stopping = split(IMAGES, groups, seed=3, stopping=True)
    without = split(IMAGES, groups, seed=3, stopping=False)
    assert with_stopping.calibration_images == without.calibration_images
    assert set(with_stopping.train) < set(without.train)


def test_split_depends_on_the_seed_not_on_order_or_folder() -> None:
    parts = split(IMAGES, alone(IMAGES), seed=0, stopping=True)
    shuffled = random.Random(1).sample(IMAGES, k=len(IMAGES))
    assert split(shuffled, alone(shuffled), seed=0, stopping=True) == parts
    elsewhere = good(*(s.path.name for s in IMAGES), root=Path("/mnt/b"))
    moved = split(elsewhere, alone(elsewhere, root=Path("/mnt/b")), seed=0, stopping=True)
    assert names(moved.calibration_images) == names(parts.calibration_images)
    other = split(IMAGES, alone(IMAGES), seed=1, stopping=True)
    assert 0 < len(set(other.calibration_images) & set(parts.calibration_images)) < 25


def test_split_equals_recorded_names() -> None:
    parts = split(IMAGES, alone(IMAGES), seed=0, stopping=False)
    assert names(parts.calibration_images)[:5] == ["000.png", "002.png", "003.png", "008.png", "012.png"]


def test_one_more_image_moves_few_others() -> None:
    more = [*IMAGES, *good("new.png")]
    before = split(IMAGES, alone(IMAGES), seed=0, stopping=False)
    after = split(more, alone(more), seed=0, stopping=False)
    assert len(set(before.calibration_images) ^ set(after.calibration_images)) <= 3


def test_some_seed_chooses_every_image_for_calibration() -> None:
    counts: Counter[Sample] = Counter()
    for seed in range(200):
        counts.update(split(IMAGES, alone(IMAGES), seed=seed, stopping=False).calibration_images)
    assert len(counts) == 200
    assert 15 < min(counts.values()) < 40 < max(counts.values()) < 70  # 200 draws at 20 %: 40 ± 5.7


@pytest.mark.parametrize(("num", "num_calibration"), [(20, 10), (35, 10), (50, 10), (51, 11), (99, 20)])
def test_at_least_ten_images_calibrate(num: int, num_calibration: int) -> None:
    samples = IMAGES[:num]
    parts = split(samples, alone(samples), seed=0, stopping=False)
    assert (len(parts.calibration_images), len(parts.train)) == (num_calibration, num - num_calibration)


@pytest.mark.parametrize(
    ("num", "stopping", "needed"), [(0, False, 20), (1, False, 20), (19, False, 20), (20, True, 21)]
)
def test_too_few_images_are_refused_with_the_needed_number(num: int, stopping: bool, needed: int) -> None:
    samples = IMAGES[:num]
    with pytest.raises(DataError, match=rf"^{num} good images .* at least {needed} images are needed"):
        split(samples, alone(samples), seed=0, stopping=stopping)


def sides(parts: Split, groups: dict[Path, str]) -> list[set[str]]:
    return [{groups[s.path] for s in side} for side in (parts.train, parts.calibration_images, parts.stopping)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [2, 3, 7, 9, 20])
def test_groups_are_kept_whole(seed: int, size: int) -> None:
    samples = good(*(f"lot{i // size:02}_{i:03}.png" for i in range(180)))
    groups = find_part_groups(samples, root=ROOT, part_group=r"lot\d+", duplicates=[])
    parts = split(samples, groups, seed=seed, stopping=True)
    train, calibration, stopping = sides(parts, groups)
    assert not train & calibration
    assert not train & stopping
    assert not calibration & stopping
    assert len(parts.train) + len(parts.calibration_images) + len(parts.stopping) == 180
    assert abs(len(parts.calibration_images) - 36) <= size / 2
    assert len(parts.stopping) >= 1


def test_large_group_does_not_fill_the_calibration_images() -> None:
    samples = good(*(f"big_{i:02}.png" for i in range(60)), *(f"small{i:02}_0.png" for i in range(40)))
    groups = find_part_groups(samples, root=ROOT, part_group="^[^_]+", duplicates=[])
    for seed in range(10):
        parts = split(samples, groups, seed=seed, stopping=False)
        assert len(parts.calibration_images) == 20
        assert "big_00.png" in names(parts.train)


def test_one_group_cannot_be_split() -> None:
    with pytest.raises(DataError, match="200 good images in 1 groups, the largest of 200"):
        split(IMAGES, {s.path: "a" for s in IMAGES}, seed=0, stopping=False)


def test_defects_are_never_split() -> None:
    defect = Sample(ROOT / "test/crack/0.png", "crack", True, None)
    with pytest.raises(UsageError, match="shows a defect"):
        split([*IMAGES, defect], {s.path: str(s.path) for s in [*IMAGES, defect]}, seed=0, stopping=False)


def test_first_capture_group_or_whole_match_names_the_part_group() -> None:
    samples = good("lot 1/part7_a.png", "lot 1/part7_b.png", "lot 2/part7_a.png")
    by_lot = find_part_groups(samples, root=ROOT, part_group=r"^(lot \d)/part(\d)", duplicates=[])
    assert list(by_lot.values()) == ["lot 1", "lot 1", "lot 2"]
    by_part = find_part_groups(samples, root=ROOT, part_group=r"part\d", duplicates=[])
    assert list(by_part.values()) == ["part7"] * 3


def test_images_without_a_part_group_are_named() -> None:
    samples = good("lot1.png", "other 2.png", "other 1.png")
    with pytest.raises(DataError, match=r"no group to 2 of 3 images, first other 1\.png, other 2\.png"):
        find_part_groups(samples, root=ROOT, part_group=r"lot\d", duplicates=[])
    with pytest.raises(DataError, match="no group to 3 of 3"):
        find_part_groups(samples, root=ROOT, part_group=r"x?(y)?", duplicates=[])
    with pytest.raises(UsageError, match=r"'\(' is an invalid regular expression"):
        find_part_groups(samples, root=ROOT, part_group="(", duplicates=[])


@pytest.mark.parametrize("value", [3, Path("groups.csv"), b"lot"])
def test_part_group_of_another_type_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match=r"give a regular expression or the path of a \.csv file as str"):
        find_part_groups(good("a.png"), root=ROOT, part_group=value)


def test_csv_names_the_part_groups(tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    table.write_text("path,station,group\nlot 1/ä.png,3,A\n./b.png,3,A\nc.png,3,B\n", encoding="utf-8-sig")
    samples = good("lot 1/ä.png", "b.png", "c.png")
    assert list(find_part_groups(samples, root=ROOT, part_group=str(table), duplicates=[]).values()) == ["A", "A", "B"]
    with pytest.raises(DataError, match=r"no group to 1 of 4 images, first d\.png"):
        find_part_groups([*samples, *good("d.png")], root=ROOT, part_group=str(table), duplicates=[])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file,group\na.png,1\n", "columns path and group are required"),
        (b"", "columns path and group are required"),
        (b"path,group\na.png,1\na.png,2\n", r"puts a\.png into the groups 1 and 2"),
        (b"path,group\n\xff.png,1\n", "cannot be read as CSV"),
    ],
)
def test_invalid_csv_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "groups.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        find_part_groups(good("a.png"), root=ROOT, part_group=str(tmp_path / "groups.csv"), duplicates=[])
    with pytest.raises(DataError, match="cannot be read as CSV"):
        find_part_groups(good("a.png"), root=ROOT, part_group=str(tmp_path / "gone.csv"), duplicates=[])


def test_duplicates_join_part_groups_in_chains() -> None:
    samples = good("a1.png", "a2.png", "b1.png", "c1.png", "d1.png", "e1.png")
    path = {s.path.stem: s.path for s in samples}
    duplicates = [(path["c1"], path["b1"]), (path["d1"], path["c1"]), (path["b1"], path["d1"])]
    groups = find_part_groups(samples, root=ROOT, part_group="^[a-z]", duplicates=duplicates)
    assert list(groups.values()) == ["a", "a", "b", "b", "b", "e"]
    reverse = find_part_groups(samples, root=ROOT, part_group="^[a-z]", duplicates=duplicates[::-1])
    assert reverse == groups
    assert find_part_groups(samples, root=ROOT, part_group=None, duplicates=duplicates)[path["d1"]] == "b1.png"


def test_duplicates_stay_on_one_side() -> None:
    pairs = [(IMAGES[i].path, IMAGES[199 - i].path) for i in range(60)]
    groups = find_part_groups(IMAGES, root=ROOT, part_group=None, duplicates=pairs)
    parts = split(IMAGES, groups, seed=0, stopping=True)
    for side in (parts.train, parts.calibration_images, parts.stopping):
        paths = {s.path for s in side}
        assert all((first in paths) == (second in paths) for first, second in pairs)


def test_excluded_names_are_dropped() -> None:
    samples = good("lot 1/001.png", "lot 1/002.png", "lot 2/001.png")
    kept, dropped = drop_excluded(samples, ["002.png", "lot 2/001.png"])
    assert (kept, dropped) == ((samples[0],), (samples[1], samples[2]))
    assert drop_excluded(samples, []) == (tuple(samples), ())
    assert drop_excluded(samples, [str(samples[0].path)])[1] == (samples[0],)


def test_excluded_name_must_fit_one_image() -> None:
    samples = good("lot 1/001.png", "lot 1/scratched.png", "lot 2/001.png")
    with pytest.raises(DataError, match=r"scratchd\.png .* nearest: scratched\.png"):
        drop_excluded(samples, ["scratchd.png"])
    with pytest.raises(DataError, match=r"1\.png .* none of 3 images"):
        drop_excluded(samples, ["1.png"])
    with pytest.raises(DataError, match=r"fits .*lot 1/001\.png, .*lot 2/001\.png; give more of the path"):
        drop_excluded(samples, ["001.png"])
    with pytest.raises(DataError, match="none of 0 images"):
        drop_excluded([], ["001.png"])

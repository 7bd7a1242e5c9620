"""Defects drawn onto good images: exact masks, the category on disk, and refusals."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from anomaly.commands.main import run
from anomaly.commands.synthesize import synthesize
from anomaly.data.folders import find_category
from anomaly.data.splits import find_part_groups, split
from anomaly.data.synthetic import DEFECTS, PASTED, draw_any_defect, estimate_foreground
from anomaly.data.synthetic.pasted_defects import perlin_noise
from anomaly.detectors._drawn_defects import draw_defects
from anomaly.errors import DataError, OutputError, UsageError
from anomaly.generation.defects import synthesize_defects
from anomaly.imaging.image_file import read_image, read_mask
from tests.plates import draw_part


def read(path: Path) -> np.ndarray:
    return read_image(path, white=255, max_pixels=10**6)


@pytest.mark.parametrize("kind", list(PASTED))
def test_pasted_defect_changes_exactly_the_pixels_of_its_mask(kind: str) -> None:
    image, source = draw_part(0), draw_part(1)
    foreground = estimate_foreground(image)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        drawn, mask = draw_any_defect(
            image, kind, size=0.3, contrast=0.8, foreground=foreground, sources=[source], rng=rng
        )
        difference = np.abs(drawn.astype(int) - image.astype(int)).max(axis=2)
        assert mask.any()
        assert (difference[mask] >= 2).all()
        assert (difference[~mask] == 0).all()
        assert not mask[~foreground].any()


@pytest.mark.parametrize("kind", list(PASTED))
def test_invisible_pasted_defect_is_refused(kind: str) -> None:
    flat = np.zeros((40, 40, 3), dtype=np.uint8)
    options = {"size": 0.2, "contrast": 0.02, "sources": [flat], "rng": np.random.default_rng(0)}
    with pytest.raises(UsageError, match="foreground is empty"):
        draw_any_defect(flat, kind, foreground=np.zeros((40, 40), dtype=bool), **options)
    with pytest.raises(UsageError, match=r"from 0.01 to 0.5"):
        draw_any_defect(flat, kind, foreground=np.ones((40, 40), dtype=bool), **(options | {"size": 0.9}))
    if kind == "pasted_patch":  # a nearly black piece on a black part
        with pytest.raises(UsageError, match="is invisible"):
            draw_any_defect(flat, kind, foreground=np.ones((40, 40), dtype=bool), **options)


def test_perlin_noise_is_zero_at_its_lattice_and_smooth_between() -> None:
    noise = perlin_noise((65, 65), period=16.0, rng=np.random.default_rng(0))
    assert np.abs(noise[::16, ::16]).max() < 1e-6  # the offset from a lattice point to itself is zero
    assert noise.std() > 0.1
    assert np.abs(np.diff(noise, axis=0)).max() < 0.2


def test_category_of_drawn_defects_matches_its_table(category: Path, tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    assert run(["synthesize", str(category), "--out", str(out), "--num", "14", "--seed", "3"]) == 0
    found = find_category(out)
    assert {sample.kind for sample in found.test} == {"good", *DEFECTS, *PASTED}
    samples = find_category(category).train
    groups = find_part_groups(samples, root=category, part_group=None, duplicates=())
    parts = split(samples, groups, seed=3, stopping=False)
    assert [s.path.name for s in found.train] == [s.path.name for s in parts.train]
    sources = {s.path.name: read(s.path) for s in parts.calibration_images}
    with (out / "defects.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 14
    for row in rows:
        drawn, mask = read(out / row["path"]), read_mask(out / row["mask"], max_pixels=10**6)
        difference = np.abs(drawn.astype(int) - sources[row["source"]].astype(int)).max(axis=2)
        assert int(row["area"]) == mask.sum() > 0
        assert (difference[~mask] == 0).all()
        data = (out / row["path"]).read_bytes()
        assert b"tEXtComment\0synthetic defect: " + row["kind"].encode() in data
        assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is not None


def test_equal_seeds_give_equal_categories(category: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        synthesize(category, out=tmp_path / name, num=3, seed=seed)
    table = {name: (tmp_path / name / "defects.csv").read_bytes() for name in "abc"}
    assert table["a"] == table["b"] != table["c"]
    for path in (tmp_path / "a" / "test").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_invalid_options_are_refused_with_the_way_out(category: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nearest: 'scratch'"):
        synthesize(category, out=tmp_path / "x", kinds=["scrach"])
    with pytest.raises(UsageError, match="at least 1"):
        synthesize(category, out=tmp_path / "x", num=0)
    with pytest.raises(UsageError, match="exchange them"):
        synthesize(category, out=tmp_path / "x", min_size=0.4, max_size=0.1)
    with pytest.raises(UsageError, match="no kind of defect"):
        synthesize(category, out=tmp_path / "x", kinds=[])
    synthesize(category, out=tmp_path / "x", num=1)
    with pytest.raises(OutputError, match="is not empty"):
        synthesize(category, out=tmp_path / "x", num=1)


def test_corruption_by_drawn_defects_changes_parts_of_most_images_and_follows_its_generator() -> None:
    x = torch.from_numpy(np.stack([draw_part(n) for n in range(6)])).permute(0, 3, 1, 2) / 255
    drawn = [draw_defects(x, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    changed = (drawn[0] != x).any(dim=1).float().mean(dim=(1, 2))
    assert (changed > 0).sum() >= 5
    assert changed.max() < 0.6


def test_library_draws_defects_without_writing(category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = sorted((category / "train" / "good").iterdir())
    drawn = list(synthesize_defects(paths[:3], paths[3:], num=4, kinds=["scratch", "stain"], seed=1))
    assert [defect.kind for defect in drawn] == ["scratch", "stain", "scratch", "stain"]
    for defect in drawn:
        changed = (defect.image != read(defect.source)).any(axis=2)
        assert defect.source in paths[:3]
        assert changed.any()
        assert not changed[~defect.mask].any()
    with pytest.raises(DataError, match="no good images"):
        synthesize_defects([], paths)
    assert not list(tmp_path.iterdir())

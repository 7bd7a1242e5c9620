"""Suspicious training images: named, listed, shown, and excluded only by the user."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anomaly
from anomaly.commands.fit import show
from anomaly.data.folders import Sample
from anomaly.detectors.mutual_distances import MutualDistances
from anomaly.errors import AnomalyError, DataError, WeightsError
from anomaly.imaging.image_file import read_image, write_png
from anomaly.training import suspects as suspects_module
from anomaly.training.fit import fit_model
from anomaly.training.fitted_model import FittedModel
from anomaly.training.suspects import Suspects, rank_mutually, unique_names
from anomaly.training.suspects_files import FILES, describe_suspects, read_suspects
from tests.detectors.tiny_detectors import OPTIONS
from tests.plates import draw_part, draw_scratch
from tests.training.quick_training import write_parts

pytestmark = pytest.mark.slow
DEFECTS = ("007.png", "021.png")


def fit(data: Path, out: Path, **arguments: Any) -> FittedModel:
    return fit_model(data, out=out, detector="memory_bank", options=OPTIONS["memory_bank"], **arguments)


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 30 parts, two of them with a scratch."""
    folder = write_parts(tmp_path_factory.mktemp("dirty") / "parts", 30)
    for n, name in enumerate(DEFECTS):
        write_png(folder / name, draw_scratch(read_image(folder / name, white=255, max_pixels=10**6), n)[0])
    return folder


@pytest.fixture(scope="module")
def fitted(dirty: Path, tmp_path_factory: pytest.TempPathFactory) -> FittedModel:
    return fit(dirty, tmp_path_factory.mktemp("fitted") / "model")


def test_scratched_parts_are_named_and_stay_in_the_training_set(fitted: FittedModel, dirty: Path) -> None:
    found = read_suspects(fitted.folder)
    assert sorted(suspect.name for suspect in found) == sorted(DEFECTS)
    assert all(suspect.score > 1 and suspect.p_value < 0.05 and suspect.picture.is_file() for suspect in found)
    assert {Path(path).name for path in fitted.description.train} >= set(DEFECTS)


def test_public_face_gives_the_suspects(dirty: Path, tmp_path: Path) -> None:
    result = anomaly.fit(dirty, detector="memory_bank", options=OPTIONS["memory_bank"], out=tmp_path / "model")
    assert sorted(suspect.path.name for suspect in result.suspects) == sorted(DEFECTS)


def test_message_names_the_images_and_the_threshold_without_them(
    fitted: FittedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    show(fitted)
    output = capsys.readouterr().out
    assert "suspicious images: 2 of 30 look unlike the others" in output
    assert "times the present one" in output
    assert all(name in output for name in DEFECTS)
    assert "No image was excluded" in output


def test_list_file_excludes_the_suspects(fitted: FittedModel, dirty: Path, tmp_path: Path) -> None:
    again = fit(dirty, tmp_path / "again", exclude=fitted.folder / "suspects.txt")
    assert again.description.calibration.excluded == sorted(DEFECTS)
    assert len(again.description.train) == 28
    # the next list begins with the excluded names
    assert set((tmp_path / "again" / "suspects.txt").read_text().splitlines()) >= set(DEFECTS)


def test_table_holds_every_image(fitted: FittedModel) -> None:
    lines = (fitted.folder / "suspects.csv").read_text().splitlines()
    assert lines[0] == "name,path,score,p_value,suspicious"
    assert len(lines) == 31
    assert "parts" in (fitted.folder / "suspects.html").read_text()


def test_another_fit_removes_the_earlier_ranking(fitted: FittedModel, dirty: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(fitted.folder, folder)
    result = fit(dirty, folder, suspects="none")
    assert result.suspects is None
    assert [name for name in (*FILES, "suspects") if (folder / name).exists()] == []
    assert read_suspects(folder) == []


def test_calibration_scores_rank_without_maps(dirty: Path, tmp_path: Path) -> None:
    result = fit(dirty, tmp_path / "model", suspects="calibration")
    assert result.suspects is not None
    assert {image.name for image in result.suspects.ranked[:2]} == set(DEFECTS)
    assert all(image.anomaly_map is None for image in result.suspects.ranked)


def test_clean_folder_has_no_suspects(tmp_path: Path) -> None:
    result = fit(write_parts(tmp_path / "parts", 40), tmp_path / "model")
    assert result.suspects is not None
    assert describe_suspects(result.suspects)[0].startswith("suspicious images: none of 40; ")
    assert (tmp_path / "model" / "suspects.txt").read_text() == ""


@pytest.mark.parametrize("num", [2, 5])
def test_few_images_are_ranked_by_nothing(tmp_path: Path, num: int) -> None:
    result = fit(write_parts(tmp_path / "parts", num), tmp_path / "model")
    assert result.suspects is not None
    assert "too few" in describe_suspects(result.suspects)[0]
    assert result.suspects.ranked == ()


def test_one_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too few"):
        fit(write_parts(tmp_path / "parts", 1), tmp_path / "model")


def test_identical_images_are_refused_with_a_clear_error(tmp_path: Path) -> None:
    for n in range(12):
        write_png(tmp_path / "parts" / f"{n}.png", draw_part(0))
    with pytest.raises(AnomalyError, match="different parts"):
        fit(tmp_path / "parts", tmp_path / "model")


def test_missing_weights_name_no_image(fitted: FittedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*size: int) -> None:
        raise WeightsError("weights of tf_efficientnet_lite0 are missing: install the package")

    monkeypatch.setattr(suspects_module, "Patches", refuse)
    samples = [Sample(Path(path), "good", False, None) for path in fitted.description.train]
    found = suspects_module.find_suspects(
        samples,
        fitted.description,
        {sample.path: sample.path.name for sample in samples},
        ranking="mutual",
        read=lambda sample: read_image(sample.path, white=255, max_pixels=10**6),
    )
    assert found is not None
    assert found.reason is not None
    assert "weights" in found.reason


@pytest.mark.parametrize("ranking", ["mutual", "calibration"])
def test_model_without_scores_states_no_threshold(fitted: FittedModel, ranking: suspects_module.Ranking) -> None:
    samples = [Sample(Path(path), "good", False, None) for path in fitted.description.train]
    found = suspects_module.find_suspects(
        samples,
        replace(fitted.description, calibration_scores=[]),
        {sample.path: sample.path.name for sample in samples},
        ranking=ranking,
        read=lambda sample: read_image(sample.path, white=255, max_pixels=10**6),
    )
    assert found is not None
    assert found.threshold_without is None
    assert (found.reason is None) == (ranking == "mutual")


def test_folder_without_a_majority_names_no_image(fitted: FittedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects_module, "benjamini_hochberg", lambda p, rate: np.arange(len(p)) % 8 > 0)
    samples = [Sample(Path(path), "good", False, None) for path in fitted.description.train]
    found = suspects_module.find_suspects(
        samples,
        fitted.description,
        {sample.path: sample.path.name for sample in samples},
        ranking="mutual",
        read=lambda sample: read_image(sample.path, white=255, max_pixels=10**6),
    )
    assert found is not None
    assert found.named == ()
    assert len(found.ranked) == 30
    assert "no clear majority" in describe_suspects(found)[0]


def test_excluding_all_images_is_refused(fitted: FittedModel, dirty: Path, tmp_path: Path) -> None:
    names = [one["name"] for one in json.loads((fitted.folder / "suspects.json").read_text())["images"]]
    (tmp_path / "all.txt").write_text("\n".join(names))
    with pytest.raises(DataError):
        fit(dirty, tmp_path / "model", exclude=tmp_path / "all.txt")


def test_defects_that_are_alike_do_not_hide_each_other() -> None:
    """Two images lie far from all others and near each other; a third one uncovers them."""
    rng = np.random.default_rng(0)
    num, cells = 40, 16
    distance = np.sort(rng.normal(1.0, 0.02, (num, cells, 3)), axis=-1)
    image = np.broadcast_to(np.array([30, 31, 32], dtype=np.int32), (num, cells, 3)).copy()
    distance[0] = [1.3, 3.0, 3.0]
    distance[1] = [3.0, 3.0, 3.0]
    image[0, :, 0] = 1
    test, maps = rank_mutually(MutualDistances(distance.astype(np.float16), image, (4, 4)))
    assert test.suspicious[:2].all()
    assert maps[0].max() > 1


def test_names_are_the_shortest_unique_ends() -> None:
    paths = [Path("/data/a/1.png"), Path("/data/b/1.png"), Path("/data/b/2.png")]
    assert list(unique_names(paths).values()) == ["a/1.png", "b/1.png", "2.png"]


def test_reason_is_shown_instead_of_a_count() -> None:
    assert describe_suspects(Suspects((), reason="too few images")) == [
        "suspicious images: not named; too few images. Look at the images with the highest scores."
    ]

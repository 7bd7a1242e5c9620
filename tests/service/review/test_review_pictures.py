"""Pictures and maps of a run under review: reduced pictures, stored and recomputed maps, missing and changed files."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from anomaly.commands.main import run as cli
from anomaly.imaging.image_file import write_png
from anomaly.inference.scorer import OnnxScorer
from anomaly.runs.sinks import read_rows
from tests.plates import draw_part
from tests.service.review.review_run import client_of, row_numbers, score_test_images


@pytest.fixture
def finished_run(fitted_plate: Path, category: Path, tmp_path: Path) -> Path:
    """A finished run."""
    return score_test_images(fitted_plate / "model.onnx", category, tmp_path)


@pytest.mark.slow
def test_pictures_are_reduced_and_the_map_equals_the_models_map(finished_run: Path) -> None:
    number = row_numbers(finished_run, folder="scratch")[0]
    row = list(read_rows(finished_run))[number]
    large = cv2.resize(cv2.imread(row["path"]), (2000, 1000))
    with client_of(finished_run) as client:
        for kind, magic in (("thumbnail", b"\xff\xd8"), ("picture", b"\x89PNG")):
            data = client.get(f"/api/images/{number}/{kind}").content
            assert data.startswith(magic)
            shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            assert shown.shape == (72, 88, 3)
        np.testing.assert_array_equal(shown, cv2.imread(row["path"]))
        found = client.get(f"/api/images/{number}/map").json()
    scorer = OnnxScorer(next((finished_run / "models").iterdir()), device="cpu", num_threads=1)
    image = cv2.cvtColor(cv2.imread(row["path"]), cv2.COLOR_BGR2RGB)
    levels = cv2.imdecode(np.frombuffer(base64.b64decode(found["png"]), np.uint8), cv2.IMREAD_UNCHANGED)
    expected = scorer.score(image[None].astype(np.uint8)).anomaly_map[0]
    np.testing.assert_allclose(levels * found["step"] - found["zero"], expected.clip(-4, 28), atol=2e-3)
    assert (found["resize"], found["note"]) == (scorer.metadata.resize, "")
    write_png(row["path"], np.asarray(large, dtype=np.uint8))
    again = finished_run.with_name("again")
    assert cli(["score", str(scorer.path), row["path"], "--run", str(again), "--maps", "--device", "cpu"]) == 0
    with client_of(again) as client:
        for kind, shape in (("thumbnail", (128, 256)), ("picture", (800, 1600))):
            data = client.get(f"/api/images/0/{kind}").content
            assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape[:2] == shape
        stored = client.get("/api/images/0/map").json()
        assert base64.b64decode(stored["png"]) == (again / "maps/00000000.png").read_bytes()


def test_map_with_a_different_score_has_a_note(finished_run: Path) -> None:
    number = row_numbers(finished_run, folder="scratch")[0]
    row = list(read_rows(finished_run))[number]
    text = (finished_run / "rows.csv").read_text(encoding="utf-8")
    (finished_run / "rows.csv").write_text(text.replace(f",{row['score']},", ",9.75,"), encoding="utf-8", newline="")
    with client_of(finished_run) as client:
        note = client.get(f"/api/images/{number}/map").json()["note"]
    assert f"is {row['score']:.4g}; the run's score is 9.75" in note


def test_missing_and_changed_images_are_refused_and_moved_ones_found(finished_run: Path, tmp_path: Path) -> None:
    missing, changed, moved = row_numbers(finished_run, folder="scratch")[:3]
    paths = [Path(row["path"]) for row in read_rows(finished_run)]
    data = paths[moved].read_bytes()
    paths[missing].unlink()
    write_png(paths[changed], draw_part(1))
    (tmp_path / "elsewhere").mkdir()
    paths[moved].rename(tmp_path / "elsewhere/found.png")
    bad = paths.index(tmp_path / "images/bad.png")
    with client_of(finished_run) as client:
        for kind in ("thumbnail", "picture", "map"):
            response = client.get(f"/api/images/{missing}/{kind}")
            assert response.status_code == 404
            assert "is missing at" in response.json()["error"]
            assert "--images" in response.json()["error"]
            response = client.get(f"/api/images/{changed}/{kind}")
            assert response.status_code == 409
            assert "changed since it was scored" in response.json()["error"]
            response = client.get(f"/api/images/{bad}/{kind}")
            assert response.status_code == 409
            assert "has no score (not_an_image)" in response.json()["error"]
    with client_of(finished_run, images=str(tmp_path / "elsewhere")) as client:
        shown = client.get(f"/api/images/{moved}/picture").content
        assert client.get(f"/api/images/{missing}/picture").status_code == 404
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(shown, np.uint8), cv2.IMREAD_COLOR), expected)


def test_merged_run_is_reviewed_with_its_shards(fitted_plate: Path, category: Path, tmp_path: Path) -> None:
    options = ["--device", "cpu", "--format", "jsonl", "--maps"]
    for n in (1, 2):
        arguments = ["score", str(fitted_plate / "model.onnx"), str(category / "test"), "--shard", f"{n}/2", *options]
        assert cli([*arguments, "--run", str(tmp_path / f"s{n}")]) == 0
    merged = tmp_path / "merged"
    assert cli(["merge", str(tmp_path / "s1"), str(tmp_path / "s2"), "--out", str(merged)]) == 0
    with client_of(merged) as client:
        for number in (0, 5):
            found = client.get(f"/api/images/{number}/map").json()
            stored = (tmp_path / f"s{number % 2 + 1}/maps/{number // 2:08d}.png").read_bytes()
            assert base64.b64decode(found["png"]) == stored
        assert client.put("/api/images/5/label", json={"label": "good"}).status_code == 200
        assert len(client.get("/api/run").json()["models"]) == 1
    (tmp_path / "s2").rename(tmp_path / "away")
    with client_of(merged) as client:
        assert client.get("/api/rows?label=good").json()["items"][0]["number"] == 5
        assert client.get("/api/images/5/picture").status_code == 200
        response = client.get("/api/images/5/map")
        assert response.status_code == 409
        assert "the shards of a merged run" in response.json()["error"]


def test_images_in_archives_are_shown(fitted_plate: Path, category: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "shard"), "tar", category / "test")
    run = tmp_path / "run"
    assert cli(["score", str(fitted_plate / "model.onnx"), archive, "--run", str(run), "--device", "cpu"]) == 0
    with client_of(run) as client:
        for number, row in enumerate(read_rows(run)):
            shown = client.get(f"/api/images/{number}/picture").content
            original = cv2.imread(str(category / "test" / row["path"].partition("::")[2]))
            assert original is not None
            np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(shown, np.uint8), cv2.IMREAD_COLOR), original)

"""Pictures and maps of a run under review: reduced, kept or made again, and never those of another file."""

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
from tests.service.review.reviewing import client_of, row_numbers, score_night


@pytest.fixture
def night(run_folder: Path, category: Path, tmp_path: Path) -> Path:
    """A finished run."""
    return score_night(run_folder / "model.onnx", category, tmp_path)


def test_pictures_are_reduced_and_the_map_is_the_models(night: Path) -> None:
    number = row_numbers(night, folder="scratch")[0]
    row = list(read_rows(night))[number]
    large = cv2.resize(cv2.imread(row["path"]), (2000, 1000))
    with client_of(night) as client:
        for kind, magic in (("thumbnail", b"\xff\xd8"), ("picture", b"\x89PNG")):
            data = client.get(f"/api/images/{number}/{kind}").content
            assert data.startswith(magic)
            shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            assert shown.shape == (72, 88, 3)
        np.testing.assert_array_equal(shown, cv2.imread(row["path"]))
        told = client.get(f"/api/images/{number}/map").json()
    scorer = OnnxScorer(next((night / "models").iterdir()), device="cpu", num_threads=1)
    image = cv2.cvtColor(cv2.imread(row["path"]), cv2.COLOR_BGR2RGB)
    levels = cv2.imdecode(np.frombuffer(base64.b64decode(told["png"]), np.uint8), cv2.IMREAD_UNCHANGED)
    expected = scorer.score(image[None].astype(np.uint8)).anomaly_map[0]
    np.testing.assert_allclose(levels * told["step"] - told["zero"], expected.clip(-4, 28), atol=2e-3)
    assert (told["resize"], told["note"]) == (scorer.metadata.resize, "")
    write_png(row["path"], np.asarray(large, dtype=np.uint8))
    again = night.with_name("again")
    assert cli(["score", str(scorer.path), row["path"], "--run", str(again), "--maps", "--device", "cpu"]) == 0
    with client_of(again) as client:
        for kind, shape in (("thumbnail", (128, 256)), ("picture", (800, 1600))):
            data = client.get(f"/api/images/0/{kind}").content
            assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape[:2] == shape
        kept = client.get("/api/images/0/map").json()
        assert base64.b64decode(kept["png"]) == (again / "maps/00000000.png").read_bytes()


def test_map_of_another_score_is_told(night: Path) -> None:
    number = row_numbers(night, folder="scratch")[0]
    row = list(read_rows(night))[number]
    text = (night / "rows.csv").read_text(encoding="utf-8")
    (night / "rows.csv").write_text(text.replace(f",{row['score']},", ",9.75,"), encoding="utf-8", newline="")
    with client_of(night) as client:
        note = client.get(f"/api/images/{number}/map").json()["note"]
    assert f"gets {row['score']:.4g}; the run says 9.75" in note


def test_image_that_is_gone_or_changed_is_told_and_a_moved_one_found(night: Path, tmp_path: Path) -> None:
    gone, changed, moved = row_numbers(night, folder="scratch")[:3]
    paths = [Path(row["path"]) for row in read_rows(night)]
    data = paths[moved].read_bytes()
    paths[gone].unlink()
    write_png(paths[changed], draw_part(1))
    (tmp_path / "elsewhere").mkdir()
    paths[moved].rename(tmp_path / "elsewhere/found.png")
    bad = paths.index(tmp_path / "images/bad.png")
    with client_of(night) as client:
        for kind in ("thumbnail", "picture", "map"):
            told = client.get(f"/api/images/{gone}/{kind}")
            assert told.status_code == 404
            assert "is not where it was scored" in told.json()["error"]
            assert "--images" in told.json()["error"]
            told = client.get(f"/api/images/{changed}/{kind}")
            assert told.status_code == 409
            assert "was changed since it was scored" in told.json()["error"]
            told = client.get(f"/api/images/{bad}/{kind}")
            assert told.status_code == 409
            assert "could not be scored (not_an_image)" in told.json()["error"]
    with client_of(night, images=str(tmp_path / "elsewhere")) as client:
        shown = client.get(f"/api/images/{moved}/picture").content
        assert client.get(f"/api/images/{gone}/picture").status_code == 404
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(shown, np.uint8), cv2.IMREAD_COLOR), expected)


def test_merged_run_is_reviewed_by_its_shards(run_folder: Path, category: Path, tmp_path: Path) -> None:
    options = ["--device", "cpu", "--format", "jsonl", "--maps"]
    for n in (1, 2):
        arguments = ["score", str(run_folder / "model.onnx"), str(category / "test"), "--shard", f"{n}/2", *options]
        assert cli([*arguments, "--run", str(tmp_path / f"s{n}")]) == 0
    merged = tmp_path / "merged"
    assert cli(["merge", str(tmp_path / "s1"), str(tmp_path / "s2"), "--out", str(merged)]) == 0
    with client_of(merged) as client:
        for number in (0, 5):
            told = client.get(f"/api/images/{number}/map").json()
            kept = (tmp_path / f"s{number % 2 + 1}/maps/{number // 2:08d}.png").read_bytes()
            assert base64.b64decode(told["png"]) == kept
        assert client.put("/api/images/5/label", json={"label": "good"}).status_code == 200
        assert len(client.get("/api/run").json()["models"]) == 1
    (tmp_path / "s2").rename(tmp_path / "away")
    with client_of(merged) as client:
        assert client.get("/api/rows?label=good").json()["items"][0]["number"] == 5
        assert client.get("/api/images/5/picture").status_code == 200
        told = client.get("/api/images/5/map")
        assert told.status_code == 409
        assert "a merged run needs its shards where they were" in told.json()["error"]


def test_images_in_archives_are_shown(run_folder: Path, category: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "shard"), "tar", category / "test")
    run = tmp_path / "run"
    assert cli(["score", str(run_folder / "model.onnx"), archive, "--run", str(run), "--device", "cpu"]) == 0
    with client_of(run) as client:
        for number, row in enumerate(read_rows(run)):
            shown = client.get(f"/api/images/{number}/picture").content
            original = cv2.imread(str(category / "test" / row["path"].partition("::")[2]))
            assert original is not None
            np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(shown, np.uint8), cv2.IMREAD_COLOR), original)

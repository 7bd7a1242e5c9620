"""The verb `score`."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from anomaly.commands.main import run
from anomaly.imaging.image_file import read_image, write_png
from anomaly.inference.scorer import OnnxScorer, Scores
from anomaly.scoring import product_models
from anomaly.system import run_card
from tests.plates import NUM_TEST_DEFECT, NUM_TEST_GOOD, draw_part

NUM_TEST = NUM_TEST_GOOD + NUM_TEST_DEFECT


def score(model: Path, images: Path | str, out: Path, *options: str) -> int:
    return run(["score", str(model), str(images), "--out", str(out), "--device", "cpu", *options])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def scores_of(path: Path) -> dict[str, tuple[str, str]]:
    """Verdict and score by the file's name and folder."""
    return {"/".join(Path(r["path"]).parts[-2:]): (r["verdict"], r["score"]) for r in rows_of(path)}


def test_folder_gives_one_row_per_image(category: Path, model: Path, tmp_path: Path) -> None:
    assert score(model, category / "test", tmp_path / "new" / "rows.csv") == 0
    rows = rows_of(tmp_path / "new" / "rows.csv")
    assert [r["path"] for r in rows] == sorted(str(p) for p in (category / "test").rglob("*.png"))
    assert {r["verdict"] for r in rows if "/scratch/" in r["path"]} == {"defect"}
    assert sum(r["verdict"] == "good" for r in rows) >= NUM_TEST_GOOD // 2
    assert all(json.loads(r["regions"]) for r in rows if r["verdict"] == "defect")


def test_glob_list_stdin_and_one_file_give_the_rows_of_the_folder(
    category: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = sorted(str(p) for p in (category / "test").rglob("*.png"))
    (tmp_path / "list.txt").write_text("\n".join(paths) + "\n", encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(paths)))
    sources: list[Path | str] = [category / "test", category / "test/*/*.png", tmp_path / "list.txt", "-"]
    found = []
    for number, source in enumerate(sources):
        assert score(model, source, tmp_path / f"{number}.csv") == 0
        found.append((tmp_path / f"{number}.csv").read_bytes())
    assert len(rows_of(tmp_path / "0.csv")) == NUM_TEST
    assert set(found) == {found[0]}
    assert score(model, paths[0], tmp_path / "one.csv") == 0
    assert [r["path"] for r in rows_of(tmp_path / "one.csv")] == paths[:1]


@pytest.mark.slow
def test_formats_hold_the_same_rows_and_equal_runs_equal_bytes(category: Path, model: Path, tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv", "a.parquet", "b.parquet", "a.jsonl", "b.jsonl"):
        assert score(model, category / "test", tmp_path / name) == 0
    for ending in ("csv", "parquet", "jsonl"):
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    table = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert [r["score"] for r in table] == [np.float32(line["score"]) for line in lines]
    assert [float(r["score"]) for r in rows_of(tmp_path / "a.csv")] == [line["score"] for line in lines]


def test_invalid_file_gives_exit_code_3_and_the_other_rows(category: Path, model: Path, tmp_path: Path) -> None:
    good = category / "test/good/000.png"
    (tmp_path / "list.txt").write_text(f"{tmp_path}/gone.png\n{good}\n", encoding="utf-8")
    assert score(model, tmp_path / "list.txt", tmp_path / "rows.csv", "--fail-on-defect") == 3
    missing, scored = rows_of(tmp_path / "rows.csv")
    assert (missing["status"], missing["score"], missing["verdict"]) == ("missing", "", "")
    assert (scored["status"], scored["path"]) == ("ok", str(good))


def test_fail_on_defect_gives_exit_code_4_for_a_defect(category: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    assert score(model, category / "test/scratch", out) == 0
    assert score(model, category / "test/scratch", out, "--fail-on-defect") == 4
    assert score(model, category / "test/scratch", out, "--fail-on-defect", "--threshold", "1e6") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", "2", "--alpha", "0.2"], "both set the threshold: give one of them"),
        (["--threshold", ".inf"], "threshold inf is not finite"),
        (["--batch-size", "0"], "batch size 0: give at least 1"),
        (["--threshold", "-1", "--overlays", "never"], "overlays need a threshold above 0"),
        (["--out", "rows.txt"], "results end in .csv, .jsonl, .parquet"),
    ],
)
def test_wrong_usage_gives_exit_code_2_and_no_rows(
    category: Path,
    model: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert score(model, category / "test", tmp_path / "rows.csv", *options) == 2
    assert message in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx"]


def test_failed_run_gives_exit_code_1(
    category: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(tmp_path / "none.onnx", category, tmp_path / "rows.csv") == 1
    assert score(model, tmp_path / "nowhere", tmp_path / "rows.csv") == 1
    assert score(model, category, tmp_path / "rows.csv", "--alpha", "0.001") == 1
    assert not (tmp_path / "rows.csv").exists()
    assert score(model, category, model / "rows.csv") == 1
    assert score(model, category, tmp_path / "rows.csv", "--overlays", str(model / "below")) == 1
    errors = capsys.readouterr().err
    for part in ("no model at", "nowhere does not exist", "at least 999", "results cannot be", "overlays cannot be"):
        assert part in errors
    assert "Traceback" not in errors


def test_threshold_changes_the_verdicts_and_is_a_column_of_the_rows(
    category: Path, model: Path, tmp_path: Path
) -> None:
    score(model, category / "test", tmp_path / "model.csv")
    score(model, category / "test", tmp_path / "moved.csv", "--threshold", "-0.25")
    for before, after in zip(rows_of(tmp_path / "model.csv"), rows_of(tmp_path / "moved.csv"), strict=True):
        assert (before["threshold"], after["threshold"]) == ("1.0", "-0.25")
        assert (before["score"], before["p_value"]) == (after["score"], after["p_value"])
        assert before["verdict"] == ("defect" if float(before["score"]) > 1 else "good")
        assert after["verdict"] == ("defect" if float(before["score"]) > -0.25 else "good")


def test_alpha_sets_the_threshold_on_the_models_calibration_scores(category: Path, model: Path, tmp_path: Path) -> None:
    calibration = OnnxScorer(model, device="cpu", num_threads=1).calibration
    for alpha in (1 / 11, 0.25, 0.4):
        assert score(model, category / "test/good", tmp_path / "rows.csv", "--alpha", str(alpha)) == 0
        expected = calibration.threshold(alpha=alpha, guarantee="expected")
        assert {float(np.float32(r["threshold"])) for r in rows_of(tmp_path / "rows.csv")} == {
            float(np.float32(expected))
        }
    score(model, category / "test/good", tmp_path / "rows.csv", "--alpha", "0.3", "--guarantee", "bound")
    assert float(rows_of(tmp_path / "rows.csv")[0]["threshold"]) == pytest.approx(1, abs=1e-6)


def test_guarantee_of_the_threshold_is_printed(
    category: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score(model, category / "test/good", tmp_path / "rows.csv")
    assert "false alarms: 9.09% expected, at most 25.89% with 95 % confidence" in capsys.readouterr().err
    score(model, category / "test/good", tmp_path / "rows.csv", "--alpha", "0.2")
    assert "false alarms: 18.18% expected" in capsys.readouterr().err
    score(model, category / "test/good", tmp_path / "rows.csv", "--threshold", "0.01")
    assert "threshold 0.01 without a guarantee" in capsys.readouterr().err


def test_overlay_of_a_defect_changes_only_the_defect(category: Path, model: Path, tmp_path: Path) -> None:
    score(model, category / "test", tmp_path / "rows.csv", "--overlays", str(tmp_path / "drawn"))
    rows = rows_of(tmp_path / "rows.csv")
    expected = [f"{n:06d}_{Path(r['path']).stem}.png" for n, r in enumerate(rows) if r["verdict"] == "defect"]
    assert sorted(p.name for p in (tmp_path / "drawn").iterdir()) == expected
    for name in (n for n in expected if int(n[:6]) >= NUM_TEST_GOOD):
        path = Path(rows[int(name[:6])]["path"])
        changed = difference(tmp_path / "drawn" / name, path)
        mask = cv2.imread(str(category / "ground_truth/scratch" / f"{path.stem}_mask.png"), cv2.IMREAD_GRAYSCALE)
        assert mask is not None
        assert (changed[mask > 0] > 10).mean() > 0.3
        assert (changed[cv2.dilate(mask, np.ones((21, 21))) == 0] > 0).mean() < 0.02


def test_overlay_of_a_good_part_is_almost_its_image(category: Path, model: Path, tmp_path: Path) -> None:
    options = ["--overlays", str(tmp_path / "drawn"), "--overlays-of", "all"]
    score(model, category / "test", tmp_path / "rows.csv", *options)
    rows = rows_of(tmp_path / "rows.csv")
    drawn = sorted((tmp_path / "drawn").iterdir())
    assert len(drawn) == len(rows) == NUM_TEST
    for path, row in zip(drawn, rows, strict=True):
        if row["verdict"] == "good":
            assert difference(path, Path(row["path"])).mean() < 0.5


def difference(drawn: Path, image: Path) -> NDArray[np.int_]:
    """Largest change of a channel at each pixel, in grey levels."""
    a, b = (read_image(p, white=255, max_pixels=10_000).astype(int) for p in (drawn, image))
    assert a.shape == b.shape
    return np.asarray(np.abs(a - b).max(axis=2))


def test_run_card_holds_the_options_and_the_result(category: Path, model: Path, tmp_path: Path) -> None:
    score(model, category / "test", tmp_path / "rows.csv", "--batch-size", "3", "--threshold", "1.5")
    card = json.loads((tmp_path / "rows.csv.run.json").read_text(encoding="utf-8"))
    assert card["verb"] == "score"
    assert card["config"]["model"] == str(model)
    assert (card["config"]["batch_size"], card["config"]["threshold"], card["config"]["alpha"]) == (3, 1.5, None)
    rows = rows_of(tmp_path / "rows.csv")
    result = card["result"]
    assert (result["num_images"], result["num_errors"], result["threshold"]) == (NUM_TEST, 0, 1.5)
    assert result["num_defect"] == sum(r["verdict"] == "defect" for r in rows)
    assert result["model"].startswith(rows[0]["model"])
    assert {"decode", "infer", "total"} <= set(card["seconds"])
    assert card["seconds"]["total"] >= card["seconds"]["infer"] >= 0


class Interrupted(OnnxScorer):
    """Raises KeyboardInterrupt at its seventh inference; the first one scores the golden image."""

    num_calls = 0

    def score(self, image: NDArray[np.uint8]) -> Scores:
        self.num_calls += 1
        if self.num_calls == 7:
            raise KeyboardInterrupt
        return super().score(image)


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_interruption_leaves_the_rows_written_so_far(
    category: Path,
    model: Path,
    tmp_path: Path,
    ending: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, cut = tmp_path / f"whole.{ending}", tmp_path / f"cut.{ending}"
    score(model, category / "test", whole, "--batch-size", "1")
    monkeypatch.setattr(
        product_models, "open_for_batches", lambda path, *, device: Interrupted(path, device=device, num_threads=1)
    )
    assert score(model, category / "test", cut, "--batch-size", "1", "--overlays", str(tmp_path / "drawn")) == 130
    assert "interrupted; the written files stay" in capsys.readouterr().err

    def read(path: Path) -> list[Any]:
        if ending == "parquet":
            return list(pq.read_table(path).to_pylist())
        return rows_of(path) if ending == "csv" else [json.loads(s) for s in path.read_text("utf-8").splitlines()]

    assert read(cut) == read(whole)[:4]  # the first window of four batches; the second was interrupted


@pytest.mark.skipif(sys.platform != "linux", reason="file names are valid text here")
def test_image_with_an_invalid_name_is_scored(model: Path, tmp_path: Path) -> None:
    """A whole process reads the list from standard input; the run card holds the folder's name."""
    folder = tmp_path / os.fsdecode(b"f\xf6lder")
    folder.mkdir()
    write_png(folder / os.fsdecode(b"pi\xe8ce.png"), draw_part(3))
    main = [sys.executable, "-c", "from anomaly.commands.main import main; main()"]
    finished = subprocess.run(
        [*main, "score", str(model), "-", "--device", "cpu", "--out", str(tmp_path / "rows.csv")],
        input=os.fsencode(folder / os.fsdecode(b"pi\xe8ce.png")),
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
    )
    assert finished.returncode == 0, finished.stderr.decode()
    (row,) = rows_of(tmp_path / "rows.csv")
    assert row["path"].endswith("f\\udcf6lder/pi\\udce8ce.png")
    assert row["status"] == "ok"
    assert score(model, folder, tmp_path / "again.csv") == 0
    assert rows_of(tmp_path / "again.csv")[0] == row
    card = json.loads((tmp_path / "again.csv.run.json").read_text(encoding="utf-8"))
    assert card["config"]["images"] == str(folder)


def test_commit_belongs_to_the_checkout_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    package = tmp_path / "package" / "run_card.py"
    package.parent.mkdir()
    package.write_text("")
    monkeypatch.setattr(run_card, "__file__", str(package))
    assert run_card.commit() is None
    git("init", "--quiet")
    (tmp_path / "other.txt").write_text("a project that has this package installed, and not in its history")
    git("add", "other.txt")
    git("commit", "--quiet", "--message", "Begin")
    assert run_card.commit() is None
    git("add", "package")
    git("commit", "--quiet", "--message", "Add the package")
    assert run_card.commit() == git("rev-parse", "HEAD")
    (tmp_path / "other.txt").write_text("changed")
    assert run_card.commit() == git("rev-parse", "HEAD") + "+changes"

"""Runs with invalid files of every kind, a folder that changes, and a model that is replaced: the other rows stay."""

from __future__ import annotations

import csv
import io
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomaly.commands.main import run as cli
from anomaly.imaging.image_file import write_png
from anomaly.inference.scorer import OnnxScorer
from anomaly.runs.run_files import check_manifest
from anomaly.runs.score_run import RunOptions, score_run
from anomaly.runs.sinks import read_rows
from anomaly.scoring.pipeline import score_images
from anomaly.scoring.settings import DEFAULT_PRODUCT, Settings
from anomaly.scoring.sources import open_source
from anomaly.scoring.windows import ScoredImage
from anomaly.system.files import sha256_of
from tests.plates import draw_part

NUM_IMAGES = 100


def stored(kind: str, *, mode: str = "RGB", **options: Any) -> bytes:
    """Encode an image in a file format."""
    data = io.BytesIO()
    image = Image.fromarray(draw_part(0)).convert(mode)
    image.save(data, kind, **options)
    return data.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes with a header of 40,000 × 40,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def two_frames() -> bytes:
    return stored("TIFF", save_all=True, append_images=[Image.fromarray(draw_part(1))])


def damaged() -> bytes:
    """A PNG with overwritten compressed pixels."""
    data = bytearray(stored("PNG"))
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    return bytes(data)


KINDS: dict[str, tuple[Callable[[], bytes], set[str]]] = {
    "empty": (lambda: b"", {"truncated", "not_an_image"}),
    "cut png": (lambda: stored("PNG")[:2000], {"truncated"}),
    "cut jpeg": (lambda: stored("JPEG")[:900], {"truncated"}),
    "text": (lambda: b"<html>not here any more</html>", {"not_an_image"}),
    "noise": (lambda: np.random.default_rng(0).bytes(3000), {"not_an_image"}),
    "bomb": (bomb, {"too_large"}),
    "cmyk": (lambda: stored("JPEG", mode="CMYK"), {"unsupported_pixels"}),
    "frames": (two_frames, {"unsupported_pixels"}),
    "damaged": (damaged, {"truncated", "not_an_image"}),
    "gone": (lambda: b"", {"missing"}),
    "folder": (lambda: b"", {"unreadable"}),
}
"""Kind of invalid file -> its bytes, and the allowed error codes of its row"""


def write_images(folder: Path, *, invalid: dict[int, str]) -> Path:
    """Write images, some of them invalid, and a list of their paths; returns the list."""
    folder.mkdir()
    paths = []
    for n in range(NUM_IMAGES):
        path = folder / f"{n:03d}.png"
        kind = invalid.get(n, "")
        if kind == "folder":
            path.mkdir()
        elif kind:
            path.write_bytes(KINDS[kind][0]())
        else:
            write_png(path, draw_part(n % 10))
        if kind == "gone":
            path.unlink()
        paths.append(str(path))
    listed = folder / "night.txt"
    listed.write_text("\n".join(paths), encoding="utf-8")
    return listed


def rows_of(listed: Path, model: Path, run: Path, *, exit_code: int) -> list[dict[str, str]]:
    assert cli(["score", str(model), str(listed), "--run", str(run)]) == exit_code
    check_manifest(run)
    with (run / "rows.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def clean(fitted_plate: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    folder = tmp_path_factory.mktemp("clean")
    return rows_of(write_images(folder / "night", invalid={}), fitted_plate / "model.onnx", folder / "run", exit_code=0)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.01, 0.5])
def test_invalid_files_change_only_their_own_rows(
    share: float, clean: list[dict[str, str]], model: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    kinds = list(KINDS)
    places = rng.choice(NUM_IMAGES, round(share * NUM_IMAGES), replace=False)
    invalid = {int(place): kinds[number % len(kinds)] for number, place in enumerate(places)}
    rows = rows_of(write_images(tmp_path / "night", invalid=invalid), model, tmp_path / "run", exit_code=3)
    assert len(rows) == len(clean) == NUM_IMAGES
    for number, (row, before) in enumerate(zip(rows, clean, strict=True)):
        if number in invalid:
            assert row["status"] in KINDS[invalid[number]][1], (invalid[number], row["status"], row["message"])
            assert row["score"] == row["verdict"] == ""
            assert Path(row["path"]).name in row["message"]
        else:
            assert row["status"] == "ok"
            assert row["verdict"] == before["verdict"]
            assert row["sha256"] == before["sha256"]
            assert abs(float(row["score"]) - float(before["score"])) <= 1e-5 * max(1, abs(float(before["score"])))


def test_circular_links_are_followed_once(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "inner").mkdir(parents=True)
    write_png(folder / "a.png", draw_part(0))
    write_png(folder / "inner" / "b.png", draw_part(1))
    (folder / "inner" / "back").symlink_to(folder, target_is_directory=True)
    (folder / "itself.png").symlink_to(folder / "itself.png")
    (folder / "nowhere.png").symlink_to(folder / "nothing.png")
    rows = rows_of(folder, model, tmp_path / "run", exit_code=3)
    found = {Path(row["path"]).relative_to(folder).as_posix(): row["status"] for row in rows}
    assert len(found) == len(rows)
    assert found["a.png"] == found["inner/b.png"] == "ok"
    assert not any("back" in name for name in found)
    assert {found[name] for name in found if name.endswith(("itself.png", "nowhere.png"))} <= {"missing", "unreadable"}


def test_changed_folder_and_replaced_model_during_a_run(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "night", invalid={}).parent
    settings = Settings(threshold=1.0, batch_size=2, max_pixels=10**6, num_threads=2)
    options = RunOptions(overlays_of="none")
    scorer, before = OnnxScorer(model, device="cpu", num_threads=1), sha256_of(model)

    def meddle(*arguments: Any, **named: Any) -> Iterator[ScoredImage]:
        for number, one in enumerate(score_images(*arguments, **named)):
            if number == 3:
                (images / "090.png").unlink()
                shutil.move(images / "091.png", images / "0915.png")
                write_png(images / "000a.png", draw_part(3))
                model.write_bytes(b"another model, half copied")
            yield one

    run = tmp_path / "run"
    score_run(
        open_source(images), name=str(images), models={DEFAULT_PRODUCT: model}, scorers={DEFAULT_PRODUCT: scorer},
        settings=settings, folder=run, options=options, resume=False, engine=meddle,
    )  # fmt: skip
    check_manifest(run)
    rows = {Path(row["path"]).name: row for row in read_rows(run)}
    assert len(rows) == NUM_IMAGES
    assert {name for name, row in rows.items() if row["status"] != "ok"} == {"090.png", "091.png"}
    assert rows["090.png"]["status"] == "missing"
    assert {row["model"] for row in rows.values()} == {before[:16]}
    (kept,) = (run / "models").iterdir()
    assert sha256_of(kept) == before
    assert cli(["score", str(model), str(images), "--run", str(tmp_path / "again")]) == 1
    assert "model.onnx" in capsys.readouterr().err

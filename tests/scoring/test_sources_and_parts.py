"""Tables, archives and remote file systems as sources; models per product, verdicts per part."""

from __future__ import annotations

import csv
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anomaly.commands.main import run as cli
from anomaly.errors import DataError, ImageError
from anomaly.imaging.image_file import read_file
from anomaly.runs.sinks import read_rows
from anomaly.scoring.part_verdicts import write_parts
from anomaly.scoring.sources import Item, open_source, read_item


def test_tar_archives_give_their_members_in_order_and_any_member_alone(category: Path, tmp_path: Path) -> None:
    images = sorted((category / "test/good").iterdir())
    for number in range(2):
        with tarfile.open(tmp_path / f"shard{number}.tar", "w") as tar:
            for path in images[number::2]:
                tar.add(path, arcname=f"views/{path.name}")
            (tmp_path / "notes.txt").write_text("no image")
            tar.add(tmp_path / "notes.txt", arcname="notes.txt")
    items = list(open_source(str(tmp_path / "shard*.tar")).items)
    assert [item.path.rpartition("/")[2] for item in items] == [p.name for p in (*images[0::2], *images[1::2])]
    for item, path in zip(items, (*images[0::2], *images[1::2]), strict=True):
        assert read_item(item, max_pixels=10**6) == path.read_bytes()
    (tmp_path / "cut.tar").write_bytes((tmp_path / "shard0.tar").read_bytes()[:700])
    (cut,) = [Item(f"{tmp_path / 'cut.tar'}::views/a.png", place=(512, 5000))]
    with pytest.raises(ImageError, match="the archive ends before the image does"):
        read_item(cut, max_pixels=10**6)
    (tmp_path / "none.tar").write_text("no archive at all")
    with pytest.raises(DataError, match="is not a plain tar archive"):
        list(open_source(str(tmp_path / "none.tar")).items)
    with pytest.raises(ImageError, match="the file no longer exists"):
        read_item(Item(f"{tmp_path / 'gone.tar'}::a.png", place=(512, 10)), max_pixels=10**6)


def test_remote_folders_are_listed_and_read(category: Path) -> None:
    root = category / "test/good"
    items = list(open_source(f"file://{root}").items)
    assert [item.path for item in items] == [f"file://{path}" for path in sorted(root.iterdir())]
    assert read_item(items[0], max_pixels=10**6) == read_file(sorted(root.iterdir())[0], max_pixels=10**6)
    with pytest.raises(DataError, match="does not exist"):
        list(open_source(f"file://{root}/nothing").items)
    with pytest.raises(ImageError, match="the file does not exist"):
        read_item(Item(f"file://{root}/nothing.png"), max_pixels=10**6)
    with pytest.raises(DataError, match="no file system for it"):
        list(open_source("nosuchscheme://bucket/folder").items)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_further_columns_of_a_table_are_copied_to_the_rows(
    model: Path, category: Path, tmp_path: Path, ending: str
) -> None:
    images = sorted((category / "test").rglob("*.png"))
    columns = {
        "path": [str(p) for p in images],
        "station": [7 + n for n in range(len(images))],
        "note": [f'a, "quoted"\nnote {n}' for n in range(len(images))],
    }
    table = tmp_path / f"images.{ending}"
    if ending == "csv":
        with table.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
    else:
        pq.write_table(pa.table(columns), table)
    for kind in ("csv", "jsonl", "parquet"):
        out = tmp_path / kind
        assert cli(["score", str(model), str(table), "--run", str(out), "--format", kind, "--device", "cpu"]) == 0
        rows = list(read_rows(out))
        assert [row["path"] for row in rows] == columns["path"]
        assert [str(row["station"]) for row in rows] == [str(value) for value in columns["station"]]
        assert [row["note"] for row in rows] == columns["note"]
        assert list(rows[0])[-2:] == ["station", "note"]
    assert cli(["score", str(model), str(table), "--out", str(tmp_path / "rows.csv"), "--device", "cpu"]) == 0
    assert (tmp_path / "rows.csv").read_bytes() == (tmp_path / "csv" / "rows.csv").read_bytes()


def test_invalid_tables_are_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("file,part\nx.png,1\n")
    (tmp_path / "b.csv").write_text("path,score\nx.png,1\n")
    (tmp_path / "c.parquet").write_bytes(b"no parquet")
    for name, message in (
        ("a.csv", "a column `path` is needed"),
        ("b.csv", "a column 'score'"),
        ("c.parquet", "cannot be read"),
    ):
        out = ["--out", str(tmp_path / "rows.csv")]
        assert cli(["score", str(model), str(tmp_path / name), *out, "--device", "cpu"]) in (1, 2)
        assert message in capsys.readouterr().err


def test_product_chooses_the_model_and_an_unknown_product_is_an_error_row(
    model: Path, category: Path, fresh_good: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.onnx"
    assert cli(["calibrate", str(model), str(fresh_good), "--out", str(other)]) == 0
    (tmp_path / "models.yaml").write_text(json.dumps({"plate": "other.onnx"}))
    image = str(sorted((category / "test/good").iterdir())[0])
    (tmp_path / "images.csv").write_text(f"path,product\n{image},plate\n{image},\n{image},bottle\n")
    command = ["score", str(model), str(tmp_path / "images.csv"), "--run", str(tmp_path / "run"), "--device", "cpu"]
    assert cli([*command, "--models", str(tmp_path / "models.yaml")]) == 3
    rows = list(read_rows(tmp_path / "run"))
    assert [row["status"] for row in rows] == ["ok", "ok", "no_model"]
    assert rows[0]["model"] != rows[1]["model"]
    assert rows[0]["score"] != rows[1]["score"]
    assert rows[2]["model"] in (None, "")
    assert "no model for the product 'bottle'" in rows[2]["message"]


def test_part_gets_the_verdict_of_its_worst_view(tmp_path: Path) -> None:
    def view(part: str, verdict: str, score: float | None, p: float | None) -> dict[str, object]:
        status = "ok" if score is not None else "truncated"
        return {"part": part, "status": status, "verdict": verdict, "score": score, "p_value": p, "threshold": 1.0,
                "path": f"{part}{score}.png", "model": "m"}  # fmt: skip

    rows = [
        view("a", "good", 0.2, 0.5), view("b", "good", 0.1, 0.9), view("a", "defect", 1.5, 0.02), view("c", "", None, None),
        view("a", "good", 0.3, 0.4), view("c", "good", 0.4, 0.3), view("d", "review", 0.9, 0.1), view("", "defect", 9, 0.01),
        view("e", "", None, None),
    ]  # fmt: skip
    assert write_parts(rows, tmp_path / "parts.csv", alpha_of={"m": 0.05}) == 5
    with (tmp_path / "parts.csv").open(encoding="utf-8") as file:
        found = {row["part"]: row for row in csv.DictReader(file)}
    assert list(found) == ["a", "b", "c", "d", "e"]
    assert {part: row["verdict"] for part, row in found.items()} == {
        "a": "defect", "b": "good", "c": "incomplete", "d": "review", "e": "incomplete",
    }  # fmt: skip
    a = found["a"]
    assert (a["num_views"], a["num_errors"], float(a["score"]), a["worst_view"]) == ("3", "0", 1.5, "a1.5.png")
    assert float(a["alpha"]) == pytest.approx(0.15)
    assert float(a["p_value"]) == pytest.approx(0.06)
    assert (found["c"]["num_errors"], float(found["c"]["score"])) == ("1", 0.4)
    assert found["e"]["score"] == ""
    assert [path.name for path in tmp_path.iterdir()] == ["parts.csv"]


def test_run_with_parts_has_a_table_of_parts(model: Path, category: Path, tmp_path: Path) -> None:
    good, bad = (sorted((category / "test" / kind).iterdir()) for kind in ("good", "scratch"))
    (tmp_path / "images.csv").write_text(f"path,part\n{good[0]},p1\n{bad[0]},p2\n{good[1]},p2\n")
    out = tmp_path / "run"
    assert cli(["score", str(model), str(tmp_path / "images.csv"), "--run", str(out), "--device", "cpu"]) == 0
    with (out / "parts.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["part"], row["num_views"], row["verdict"]) for row in rows] == [
        ("p1", "1", "good"),
        ("p2", "2", "defect"),
    ]
    assert json.loads((out / "summary.json").read_text())["num_parts"] == 2
    assert "parts.csv" in json.loads((out / "manifest.json").read_text())["files"]

"""Result tables: equal values in CSV, JSON lines and Parquet."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anomaly.errors import OutputError, UsageError
from anomaly.imaging.regions import Region
from anomaly.scoring.rows import COLUMNS, Row
from anomaly.scoring.table_files import TABLES, ParquetTable, Tables

NAMES = [
    "path", "sha256", "status", "verdict", "score", "threshold", "p_value", "width", "height", "regions", "model", "message",
]  # fmt: skip
ROWS = [
    Row("a/0.png", "ab" * 32, "ok", "good", -0.1, 1.0, 0.7272727, 640, 480, [], "0123456789abcdef", ""),
    Row(
        'line\nbreak, "quoted" Größe.png', "cd" * 32, "ok", "defect", 16777217.3, 1.0, 1 / 11, 1, 1,
        [Region(1, 2, 3, 4, 5, 1 / 3, False), Region(0, 0, 1, 1, 1, 1e-30, True)], "0123456789abcdef", "",
    ),
    Row("gone.png", "", "missing", "", None, 1.0, None, None, None, [], "0123456789abcdef", "gone.png: it does not exist"),
]  # fmt: skip
INVALID_NAME = Row(
    "\udcff.png", "", "missing", "", None, 1.0, None, None, None, [], "", "\udcff.png: the file does not exist"
)


def write(folder: Path, rows: list[Row] = ROWS) -> dict[str, Path]:
    paths = {ending: folder / f"rows{ending}" for ending in TABLES}
    with Tables(list(paths.values())) as tables:
        for row in rows:
            tables.write([row])
    return paths


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV file, with the value types of the other formats."""
    with path.open(encoding="utf-8", newline="") as file:
        found: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in found:
        for name, kind in (("score", float), ("threshold", float), ("p_value", float), ("width", int), ("height", int)):
            row[name] = kind(row[name]) if row[name] else None
        row["regions"] = json.loads(row["regions"])
    return found


def test_all_formats_hold_the_same_values_in_the_same_order(tmp_path: Path) -> None:
    paths = write(tmp_path)
    lines = [json.loads(line) for line in paths[".jsonl"].read_text(encoding="utf-8").splitlines()]
    table = pq.read_table(paths[".parquet"])
    assert COLUMNS == NAMES == table.column_names
    assert [list(line) for line in lines] == [NAMES] * 3
    assert paths[".csv"].read_text(encoding="utf-8").split("\n")[0].strip() == ",".join(NAMES)
    assert read_csv(paths[".csv"]) == lines
    for line, row in zip(lines, table.to_pylist(), strict=True):
        for name in ("score", "p_value"):
            assert row[name] == (None if line[name] is None else np.float32(line[name]))
        assert [r.pop("peak") for r in row["regions"]] == [np.float32(r.pop("peak")) for r in line["regions"]]
        assert row == line | {"score": row["score"], "p_value": row["p_value"]}


def test_parquet_holds_the_values_of_the_rows(tmp_path: Path) -> None:
    for row, found in zip(ROWS, pq.read_table(write(tmp_path)[".parquet"]).to_pylist(), strict=True):
        for name in ("path", "sha256", "status", "verdict", "width", "height", "model", "message"):
            assert found[name] == getattr(row, name)
        for name in ("score", "threshold", "p_value"):
            value = getattr(row, name)
            assert found[name] == (None if value is None else np.float32(value))
        for region, box in zip(row.regions, found["regions"], strict=True):
            assert box == {**vars(region), "peak": np.float32(region.peak)}


def test_parquet_has_the_documented_types(tmp_path: Path) -> None:
    schema = pq.read_schema(write(tmp_path)[".parquet"])
    region = {"x": "int32", "y": "int32", "width": "int32", "height": "int32", "area": "int64", "peak": "float"}
    types = dict.fromkeys(NAMES, "string") | dict.fromkeys(("score", "threshold", "p_value"), "float")
    types |= {"width": "int32", "height": "int32"}
    found = {field.name: str(field.type) for field in schema if field.name != "regions"}
    assert found == {name: kind for name, kind in types.items() if name != "regions"}
    regions = schema.field("regions").type
    assert pa.types.is_list(regions)
    assert {f.name: str(f.type) for f in regions.value_type} == region | {"weak": "bool"}


def test_numbers_are_the_shortest_decimals_of_single_precision(tmp_path: Path) -> None:
    text = write(tmp_path)[".csv"].read_text(encoding="utf-8")
    assert ",-0.1,1.0,0.7272727,640,480," in text
    assert "0.33333334" in text
    assert "0.3333333333" not in text


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    for ending in TABLES:
        assert one[ending].read_bytes() == two[ending].read_bytes()


def test_name_with_invalid_text_is_escaped(tmp_path: Path) -> None:
    paths = write(tmp_path, [INVALID_NAME])
    assert read_csv(paths[".csv"])[0]["path"] == "\\udcff.png"
    assert json.loads(paths[".jsonl"].read_text(encoding="utf-8"))["path"] == "\\udcff.png"
    (row,) = pq.read_table(paths[".parquet"]).to_pylist()
    assert (row["path"], row["message"]) == ("\\udcff.png", "\\udcff.png: the file does not exist")


def test_tables_without_rows_are_readable(tmp_path: Path) -> None:
    paths = write(tmp_path, [])
    assert read_csv(paths[".csv"]) == []
    assert paths[".jsonl"].read_bytes() == b""
    assert pq.read_table(paths[".parquet"]).num_rows == 0


def test_rows_written_before_an_interruption_are_readable(tmp_path: Path) -> None:
    paths = {ending: tmp_path / f"rows{ending}" for ending in TABLES}
    with pytest.raises(KeyboardInterrupt), Tables(list(paths.values())) as tables:  # noqa: PT012
        tables.write(ROWS[:2])
        raise KeyboardInterrupt
    assert len(read_csv(paths[".csv"])) == 2
    assert len(paths[".jsonl"].read_text(encoding="utf-8").splitlines()) == 2
    assert pq.read_table(paths[".parquet"]).num_rows == 2


def test_csv_and_json_lines_are_readable_during_the_run(tmp_path: Path) -> None:
    paths = {ending: tmp_path / f"rows{ending}" for ending in (".csv", ".jsonl")}
    with Tables(list(paths.values())) as tables:
        tables.write(ROWS[:1])
        assert len(read_csv(paths[".csv"])) == 1
        assert len(paths[".jsonl"].read_text(encoding="utf-8").splitlines()) == 1


def test_parquet_keeps_row_groups_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ParquetTable, "GROUP", 4)
    paths = write(tmp_path, ROWS * 3)
    file = pq.ParquetFile(paths[".parquet"])
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [4, 4, 1]
    assert [r["path"] for r in file.read().to_pylist()] == [r.path for r in ROWS * 3]


@pytest.mark.parametrize("ending", list(TABLES))
def test_path_that_cannot_be_written_is_an_error_before_any_row(tmp_path: Path, ending: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / f"folder{ending}").mkdir()
    for path in (tmp_path / "file" / f"rows{ending}", tmp_path / f"folder{ending}"):
        with pytest.raises(OutputError, match=r"the results cannot be written to .*; choose another place"):
            Tables([path])


def test_failure_of_one_table_closes_the_others(tmp_path: Path) -> None:
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(OutputError):
        Tables([tmp_path / "rows.csv", tmp_path / "folder.parquet"])  # an open file would raise a warning


@pytest.mark.parametrize("name", ["rows.txt", "rows", "rows.csv.gz"])
def test_unknown_ending_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"results end in \.csv, \.jsonl, \.parquet"):
        Tables([tmp_path / "new" / "rows.csv", tmp_path / "new" / name])
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full does not exist")
@pytest.mark.parametrize("ending", list(TABLES))
@pytest.mark.parametrize("num_times", [1, 2000])
def test_full_disk_is_an_error_and_the_other_tables_stay_readable(tmp_path: Path, ending: str, num_times: int) -> None:
    (tmp_path / f"full{ending}").symlink_to("/dev/full")
    with (
        pytest.raises(OutputError, match=r"cannot be written to .*: No space left on device; choose another place"),
        Tables([tmp_path / "rows.parquet", tmp_path / f"full{ending}"]) as tables,
    ):
        tables.write(ROWS * num_times)
    assert pq.read_table(tmp_path / "rows.parquet").num_rows == 3 * num_times

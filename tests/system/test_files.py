from __future__ import annotations

import json
from pathlib import Path

import pytest

from anomaly.errors import OutputError, UsageError
from anomaly.system.files import TemporaryFolder, as_path, atomic_write, sha256_of, write_json


def test_file_is_replaced_at_the_end_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    for text in ("one", "two"):
        with atomic_write(path, durable=True) as partial:
            partial.write_text(text)
            assert partial.parent == path.parent
            assert not path.is_file() or path.read_text() == "one"
        assert path.read_text() == text
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]


def test_failed_block_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write() -> None:
        with atomic_write(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_path_below_a_file_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"card\.json cannot be written: .*; choose another place"):
        write_json(tmp_path / "file" / "card.json", {})


def test_json_is_written_from_a_string_path(tmp_path: Path) -> None:
    path = str(tmp_path / "card.json")
    write_json(path, {"name": "größe", "folder": tmp_path})
    assert json.loads(Path(path).read_text(encoding="utf-8")) == {"name": "größe", "folder": str(tmp_path)}
    assert len(sha256_of(path)) == 64


@pytest.mark.parametrize("path", [None, 3, b"file", ["file"]])
def test_path_of_another_type_is_refused(path: object) -> None:
    with pytest.raises(UsageError, match=rf"model is {type(path).__name__} .*: give a path as str or pathlib\.Path"):
        as_path(path, name="model")


def test_empty_path_is_refused() -> None:
    with pytest.raises(UsageError, match="model is empty; give a path"):
        as_path("", name="model")


def test_folder_in_the_way_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "rows.json.partial").mkdir()
    with pytest.raises(OutputError, match=r"rows\.json cannot be written"):
        write_json(tmp_path / "rows.json", {})
    assert (tmp_path / "rows.json.partial").is_dir()


def test_temporary_folder_is_removed_with_its_object() -> None:
    folder = TemporaryFolder()
    path = folder.path
    assert path.is_dir()
    del folder
    assert not path.exists()

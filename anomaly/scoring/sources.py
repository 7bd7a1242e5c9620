"""Where images to score come from: folders, patterns, lists, tables, tar shards and remote file systems, one item each.

a folder, a glob, one image        files by their ending, in the order of their paths
a .txt list, or - for stdin        one path a line, as given
a .csv or .parquet table           the column `path`; `product` and `part` where they are; all others pass through
a .tar, or a glob of them          members by their ending, in the order of the archive; named ARCHIVE::MEMBER
SCHEME://PLACE                     what pyarrow or fsspec can list (s3, gs, file …), below a folder or one file
"""

from __future__ import annotations

import csv
import glob
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from anomaly.data.folders import folder_images, list_images
from anomaly.data.image_files import ENDINGS
from anomaly.errors import DataError, ImageError
from anomaly.imaging.image_file import read_file

MEMBER = "::"
"""Between an archive and the name of its member"""
SCHEME = "://"


@dataclass(frozen=True)
class Item:
    """One image to score."""

    path: str
    """as given; ARCHIVE::MEMBER in a tar shard"""
    part: str = ""
    """the part that it shows, where a table says so"""
    product: str = ""
    """what chooses the model, where a table says so"""
    extra: dict[str, Any] = field(default_factory=dict)
    """columns of the table beside `path`, passed through"""
    place: tuple[int, int] = (0, 0)
    """offset and length within an archive"""


@dataclass(frozen=True)
class Source:
    """The images of a run: a name, the columns that pass through, and the items, which can be gone through once."""

    items: Iterator[Item]
    extra: pa.Schema
    has_parts: bool
    has_products: bool


def open_source(source: str) -> Source:
    """Open a source of images.

    Raises:
        DataError: there is nothing under that name, a table without a column `path`, or an archive that is none.
    """
    if SCHEME in source:
        return source_of(_remote(source))
    ending = Path(source).suffix.lower()
    if ending in (".csv", ".parquet") and Path(source).is_file():
        return _table(Path(source))
    archives = sorted(glob.glob(source)) if ending == ".tar" else []  # noqa: PTH207
    if archives:
        return source_of(item for archive in archives for item in _members(archive))
    paths = folder_images(Path(source)) if Path(source).is_dir() else iter(list_images(source))
    return source_of(map(Item, paths))


def read_item(item: Item, *, max_pixels: int) -> bytes:
    """Read the bytes of an item's image file.

    Raises:
        ImageError: as `read_file`.
    """
    if SCHEME in item.path:
        return _read_remote(item.path, max_pixels=max_pixels)
    if not any(item.place):
        return read_file(item.path, max_pixels=max_pixels)
    archive, _, _ = item.path.partition(MEMBER)
    offset, length = item.place
    if length > 8 * max_pixels + 2**26:
        raise ImageError(
            "too_large", f"{item.path}: has {length:,} bytes; raise --max-pixels or make the image smaller"
        )
    try:
        with Path(archive).open("rb") as file:
            file.seek(offset)
            data = file.read(length)
    except FileNotFoundError as error:
        raise ImageError("missing", f"{archive}: there is no such file any more; put it back") from error
    except OSError as error:
        raise ImageError(
            "unreadable", f"{archive}: cannot be read ({error.strerror}); check permissions and disk"
        ) from error
    if len(data) < length:
        raise ImageError("truncated", f"{item.path}: the archive ends within it; copy the archive again")
    return data


def source_of(items: Iterator[Item]) -> Source:
    """Make a source of items that bring no columns."""
    return Source(items=items, extra=pa.schema([]), has_parts=False, has_products=False)


def _table(path: Path) -> Source:
    try:
        if path.suffix.lower() == ".parquet":
            file = pq.ParquetFile(path)
            schema, rows = file.schema_arrow, _parquet_rows(file)
        else:
            with path.open(encoding="utf-8-sig", newline="") as opened:
                names = next(csv.reader(opened), [])
            schema, rows = pa.schema([(name, pa.string()) for name in names]), _csv_rows(path)
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid, csv.Error) as error:
        raise DataError(f"the table {path} cannot be read ({error}); give CSV in UTF-8, or Parquet") from error
    if "path" not in schema.names:
        raise DataError(f"the table {path} has the columns {', '.join(schema.names)}; a column `path` is needed")
    extra = pa.schema([_plain_column(column) for column in schema if column.name != "path"])

    def items() -> Iterator[Item]:
        for row in rows:
            yield Item(
                path=str(row["path"]),
                part=_text(row.get("part")),
                product=_text(row.get("product")),
                extra={c.name: _text(row[c.name]) if c.type == pa.string() else row[c.name] for c in extra},
            )

    return Source(items(), extra, has_parts="part" in schema.names, has_products="product" in schema.names)


def _plain_column(column: pa.Field) -> pa.Field:
    """A column as it passes through: numbers and truth values stay, all else becomes text."""
    kept = pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type)
    return column if kept else pa.field(column.name, pa.string())


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file, restval="")


def _parquet_rows(file: pq.ParquetFile) -> Iterator[dict[str, Any]]:
    with file:
        for batch in file.iter_batches(batch_size=4096):
            yield from batch.to_pylist()


def _members(archive: str) -> Iterator[Item]:
    try:
        with tarfile.open(archive, "r:") as opened:  # uncompressed, so that a member can be read by its place
            for member in opened:
                if member.isreg() and member.name.lower().endswith(ENDINGS):
                    yield Item(f"{archive}{MEMBER}{member.name}", place=(member.offset_data, member.size))
                opened.members = []  # type: ignore[attr-defined]  # else it remembers every member
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{archive} is no plain tar archive ({error}); make it without compression") from error


@lru_cache(maxsize=16)
def _file_system(root: str) -> pafs.FileSystem:
    """The file system of a URI's scheme and host: pyarrow's own, else fsspec's where that is installed."""
    try:
        return pafs.FileSystem.from_uri(root)[0]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        try:
            import fsspec  # type: ignore[import-untyped]

            return pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem(root.partition(SCHEME)[0])))
        except (ImportError, ValueError) as missing:
            raise DataError(
                f"{root}: no file system for it ({error}; {missing}); install fsspec with its scheme"
            ) from error


def _located(uri: str) -> tuple[pafs.FileSystem, str]:
    scheme, _, rest = uri.partition(SCHEME)
    if scheme == "file":
        return _file_system("file:///"), rest
    return _file_system(f"{scheme}{SCHEME}{rest.partition('/')[0]}"), rest


def _remote(uri: str) -> Iterator[Item]:
    system, place = _located(uri)
    scheme = uri.partition(SCHEME)[0]
    try:
        info = system.get_file_info(place)
        if info.type == pafs.FileType.File:
            found = [place]
        elif info.type == pafs.FileType.Directory:
            listed = system.get_file_info(pafs.FileSelector(place, recursive=True))
            found = sorted(f.path for f in listed if f.is_file and f.path.lower().endswith(ENDINGS))
        else:
            raise DataError(f"{uri} does not exist; give a folder or a file that the file system lists")
    except OSError as error:
        raise DataError(f"{uri} cannot be listed ({error}); check its name and your rights") from error
    if not found:
        raise DataError(f"{uri} is a folder without images; images end in {', '.join(ENDINGS)}")
    yield from (Item(f"{scheme}{SCHEME}{path}") for path in found)


def _read_remote(uri: str, *, max_pixels: int) -> bytes:
    limit = 8 * max_pixels + 2**26
    try:
        system, place = _located(uri)
        with system.open_input_file(place) as file:
            if file.size() > limit:
                raise ImageError(
                    "too_large", f"{uri}: has {file.size():,} bytes, {limit:,} are taken; raise --max-pixels"
                )
            return bytes(file.read())
    except FileNotFoundError as error:
        raise ImageError("missing", f"{uri}: there is no such file; check the path") from error
    except (OSError, DataError) as error:
        raise ImageError("unreadable", f"{uri}: cannot be read ({error}); check the network and your rights") from error

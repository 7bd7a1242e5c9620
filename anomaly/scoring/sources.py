"""Sources of images to score: folders, patterns, lists, tables, tar archives and remote file systems.

a folder, a glob, one image        image files, in the order of their paths
a .txt list, or - for stdin        one path per line, in the given order
a .csv or .parquet table           column `path`, optional columns `product` and `part`; all others are copied to the rows
a .tar, or a glob of them          image members in the order of the archive, named ARCHIVE::MEMBER
SCHEME://PLACE                     a folder or file of a file system of pyarrow or fsspec (s3, gs, file …)
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
"""Separator of an archive and the name of its member"""
SCHEME = "://"


@dataclass(frozen=True)
class Item:
    """One image to score."""

    path: str
    """path as given; ARCHIVE::MEMBER for an archive member"""
    part: str = ""
    """name of the part in the image, from a table"""
    product: str = ""
    """name of the product, from a table; it chooses the model"""
    extra: dict[str, Any] = field(default_factory=dict)
    """further columns of the table"""
    place: tuple[int, int] = (0, 0)
    """offset and length within an archive, in bytes"""


@dataclass(frozen=True)
class Source:
    """The images of a run; `items` can be iterated once."""

    items: Iterator[Item]
    extra: pa.Schema
    """further columns of the table"""
    has_parts: bool
    has_products: bool


def open_source(source: str | Path) -> Source:
    """Open a source of images.

    Args:
        source: folder, glob, list, table, archive or URI, see the module.

    Raises:
        DataError: a missing source, a table without the column `path`, or an invalid archive.
    """
    source = str(source)
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
    """Read the bytes of an image file.

    Args:
        item: image to read.
        max_pixels: largest width × height that is decoded; it bounds the file size.

    Raises:
        ImageError: the file is missing, unreadable, truncated or too large.
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
        raise ImageError("missing", f"{archive}: the file no longer exists; restore it") from error
    except OSError as error:
        raise ImageError(
            "unreadable", f"{archive}: cannot be read ({error.strerror}); check permissions and disk"
        ) from error
    if len(data) < length:
        raise ImageError("truncated", f"{item.path}: the archive ends before the image does; copy the archive again")
    return data


def source_of(items: Iterator[Item]) -> Source:
    """Build a source of items without further columns."""
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
    """Keep numbers and booleans; turn every other column into text."""
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
        with tarfile.open(archive, "r:") as opened:  # uncompressed, so that a member can be read by its offset
            for member in opened:
                if member.isreg() and member.name.lower().endswith(ENDINGS):
                    yield Item(f"{archive}{MEMBER}{member.name}", place=(member.offset_data, member.size))
                opened.members = []  # type: ignore[attr-defined]  # otherwise tarfile keeps every member in memory
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{archive} is not a plain tar archive ({error}); write it without compression") from error


@lru_cache(maxsize=16)
def _file_system(root: str) -> pafs.FileSystem:
    """Open the file system of a URI's scheme and host: pyarrow's, else fsspec's."""
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


def _open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    scheme, _, rest = uri.partition(SCHEME)
    if scheme == "file":
        return _file_system("file:///"), rest
    return _file_system(f"{scheme}{SCHEME}{rest.partition('/')[0]}"), rest


def _remote(uri: str) -> Iterator[Item]:
    system, path = _open_uri(uri)
    scheme = uri.partition(SCHEME)[0]
    try:
        info = system.get_file_info(path)
        if info.type == pafs.FileType.File:
            found = [path]
        elif info.type == pafs.FileType.Directory:
            listed = system.get_file_info(pafs.FileSelector(path, recursive=True))
            found = sorted(f.path for f in listed if f.is_file and f.path.lower().endswith(ENDINGS))
        else:
            raise DataError(f"{uri} does not exist; give an existing folder or file")
    except OSError as error:
        raise DataError(f"{uri} cannot be listed ({error}); check the name and your permissions") from error
    if not found:
        raise DataError(f"{uri} holds no images; images end in {', '.join(ENDINGS)}")
    yield from (Item(f"{scheme}{SCHEME}{name}") for name in found)


def _read_remote(uri: str, *, max_pixels: int) -> bytes:
    limit = 8 * max_pixels + 2**26
    try:
        system, path = _open_uri(uri)
        with system.open_input_file(path) as file:
            if file.size() > limit:
                raise ImageError(
                    "too_large", f"{uri}: has {file.size():,} bytes, more than {limit:,}; raise --max-pixels"
                )
            return bytes(file.read())
    except FileNotFoundError as error:
        raise ImageError("missing", f"{uri}: the file does not exist; check the path") from error
    except (OSError, DataError) as error:
        raise ImageError(
            "unreadable", f"{uri}: cannot be read ({error}); check the network and your permissions"
        ) from error

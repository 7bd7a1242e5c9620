"""Tags of a TIFF's directories, read without its pixels; an EXIF block has the same structure.

Sources: TIFF 6.0 (Aldus 1992) section 2, the BigTIFF design (AWare Systems 2007), Exif 2.32 §4.6.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

# Field type -> (struct code, bytes), for the types of whole numbers
_TYPES = {1: ("B", 1), 3: ("H", 2), 4: ("I", 4), 13: ("I", 4), 16: ("Q", 8), 18: ("Q", 8)}


@dataclass(frozen=True)
class Directory:
    """One image file directory; its tags are read on demand."""

    data: bytes
    order: str
    entries: dict[int, tuple[int, int, int]]
    """tag -> (field type, count, offset of the first value)"""

    def values(self, tag: int) -> tuple[int, ...]:
        """Read the whole numbers of a tag; () if it is missing or has another type.

        Raises:
            struct.error: the file ends before the numbers.
        """
        kind, count, place = self.entries.get(tag, (0, 0, 0))
        if kind not in _TYPES:
            return ()
        return _unpack(f"{self.order}{count}{_TYPES[kind][0]}", self.data, place)

    def value(self, tag: int, *, default: int) -> int:
        """Read the first whole number of a tag, or give `default`."""
        return next(iter(self.values(tag)), default)


def directories(data: bytes) -> Iterator[Directory]:
    """Yield the directories of a TIFF in the order of its chain, each at most once.

    Raises:
        ValueError: the data is not a TIFF.
        struct.error: the file ends before an announced directory.
    """
    if data[:2] not in (b"II", b"MM"):
        raise ValueError("a TIFF without a byte order")
    order = "<" if data[:2] == b"II" else ">"
    (version,) = _unpack(f"{order}H", data, 2)
    # struct codes of the number of entries, an entry's head and an offset; bytes of an entry and of its value
    head, entry, pointer, entry_size, value_size = (
        ("Q", "HHQ", "Q", 20, 8) if version == 43 else ("H", "HHI", "I", 12, 4)
    )
    (following,) = _unpack(order + pointer, data, value_size)
    seen = set()
    while following and following not in seen:
        seen.add(following)
        (count,) = _unpack(order + head, data, following)
        at = following + struct.calcsize(head)
        entries: dict[int, tuple[int, int, int]] = {}
        for _ in range(count):
            tag, kind, length = _unpack(order + entry, data, at)
            place = at + entry_size - value_size
            if kind in _TYPES and length * _TYPES[kind][1] > value_size:
                (place,) = _unpack(order + pointer, data, place)
            entries.setdefault(tag, (kind, length, place))
            at += entry_size
        yield Directory(data, order, entries)
        (following,) = _unpack(order + pointer, data, at)


def _unpack(layout: str, data: bytes, at: int) -> tuple[int, ...]:
    if at > len(data):  # a BigTIFF's offset can exceed the largest index
        raise struct.error(f"offset {at} in {len(data)} bytes")
    return struct.unpack_from(layout, data, at)

"""Find the place of an image within its tar archive from the path in a result row.

The index holds 24 bytes per archive member instead of its name.
"""

from __future__ import annotations

import hashlib
from array import array
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anomaly.scoring.sources import MEMBER, SCHEME, Item, open_source

MAX_ARCHIVES = 64
"""Archives whose index is cached"""


def item_of(path: str) -> Item:
    """Build the item for the path of a row; a member of an existing archive gets its offset and length.

    Args:
        path: path of a row; ARCHIVE::MEMBER for an archive member.

    Raises:
        DataError: the archive is no longer a valid tar archive.
    """
    archive, _, member = path.partition(MEMBER)
    if not member or SCHEME in path or not Path(archive).is_file():
        return Item(path)
    keys, offsets, lengths = _members(archive, Path(archive).stat().st_mtime_ns)
    key = _key(path)
    at = int(np.searchsorted(keys, key))
    if at == len(keys) or keys[at] != key:
        return Item(path)
    return Item(path, place=(int(offsets[at]), int(lengths[at])))


@lru_cache(maxsize=MAX_ARCHIVES)
def _members(archive: str, mtime_ns: int) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """Index the images of an archive: ascending keys, offsets and lengths. `mtime_ns` separates versions in the cache."""
    key, offset, length = array("Q"), array("q"), array("q")
    for item in open_source(archive).items:
        key.append(_key(item.path))
        offset.append(item.place[0])
        length.append(item.place[1])
    keys = np.array(key, dtype=np.uint64)
    order = np.argsort(keys)
    return keys[order], np.array(offset, dtype=np.int64)[order], np.array(length, dtype=np.int64)[order]


def _key(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")

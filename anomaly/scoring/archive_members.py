"""The item of an image by its path alone; of an archive's members it keeps 24 bytes each, not their names."""

from __future__ import annotations

import hashlib
from array import array
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anomaly.scoring.sources import MEMBER, SCHEME, Item, open_source

KEPT_ARCHIVES = 64


def located(path: str) -> Item:
    """Give the item of a row's path, with its place where it lies in an archive that is there.

    Raises:
        DataError: an archive that is no archive any more.
    """
    archive, _, member = path.partition(MEMBER)
    if not member or SCHEME in path or not Path(archive).is_file():
        return Item(path)
    key, begin, length = _members(archive, Path(archive).stat().st_mtime_ns)
    wanted = _key(path)
    place = int(np.searchsorted(key, wanted))
    if place == len(key) or key[place] != wanted:
        return Item(path)
    return Item(path, place=(int(begin[place]), int(length[place])))


@lru_cache(maxsize=KEPT_ARCHIVES)
def _members(archive: str, changed: int) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """Keys of an archive's images, ascending, and the place of each; `changed` only tells versions of a file apart."""
    key, begin, length = array("Q"), array("q"), array("q")
    for item in open_source(archive).items:
        key.append(_key(item.path))
        begin.append(item.place[0])
        length.append(item.place[1])
    keys = np.array(key, dtype=np.uint64)
    order = np.argsort(keys)
    return keys[order], np.array(begin, dtype=np.int64)[order], np.array(length, dtype=np.int64)[order]


def _key(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")

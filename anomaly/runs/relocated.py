"""Images that no longer lie where a run or a label names them, found again by their SHA-256."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from anomaly.data.folders import list_images
from anomaly.errors import DataError
from anomaly.scoring.sources import MEMBER, SCHEME, Item
from anomaly.system.files import sha256_of
from anomaly.system.progress import progress_bar


class Moved:
    """Finds images that no longer lie where they were, by their hash.

    Args:
        images: folder, glob or list in which they are looked for; empty where there is none.
    """

    def __init__(self, images: str) -> None:
        self._images = images
        self._by_hash: dict[str, str] = {}
        self._is_hashed = not images

    def of(self, item: Item, sha256: str) -> Item:
        """Give the item where it is now; as it was, where nothing better is known.

        Raises:
            DataError: it is gone, and no image of that SHA-256 was found.
        """
        remote = SCHEME in item.path
        if remote or not sha256 or Path(item.path.partition(MEMBER)[0]).is_file():
            return item
        if not self._is_hashed:
            self._is_hashed = True
            with progress_bar("look for moved images") as report:
                paths = list_images(self._images)
                for done, path in enumerate(paths):
                    self._by_hash[sha256_of(Path(path))] = path
                    report(done + 1, len(paths))
        if sha256 not in self._by_hash:
            where = self._images or "nowhere: name a folder with --images"
            raise DataError(f"{item.path} is gone, and no image of its SHA-256 {sha256[:16]}… is in {where}")
        return replace(item, path=self._by_hash[sha256], place=(0, 0))

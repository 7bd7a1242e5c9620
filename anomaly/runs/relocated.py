"""Find moved images again by their SHA-256."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from anomaly.data.folders import list_images
from anomaly.errors import DataError
from anomaly.scoring.sources import MEMBER, SCHEME, Item
from anomaly.system.files import sha256_of
from anomaly.system.progress import progress_bar


class ImageFinder:
    """Finds images that are no longer at their recorded path.

    Args:
        images: folder, glob or list to search; None for no search.
    """

    def __init__(self, images: str | Path | None) -> None:
        self._images = str(images) if images else None
        self._by_hash: dict[str, str] = {}
        self._is_hashed = self._images is None

    def find(self, item: Item, sha256: str) -> Item:
        """Find the image of an item; remote images and images without a hash are returned unchanged.

        Args:
            item: image with its recorded path.
            sha256: SHA-256 of the image's bytes.

        Raises:
            DataError: the image is missing, and no image has this SHA-256.
        """
        remote = SCHEME in item.path
        if remote or not sha256 or Path(item.path.partition(MEMBER)[0]).is_file():
            return item
        if self._images is not None and not self._is_hashed:
            self._is_hashed = True
            with progress_bar("search moved images") as report:
                paths = list_images(self._images)
                for done, path in enumerate(paths):
                    self._by_hash[sha256_of(path)] = path
                    report(done + 1, len(paths))
        if sha256 not in self._by_hash:
            searched = f"{self._images} has no image" if self._images else "no folder was searched for an image"
            raise DataError(
                f"{item.path} is missing, and {searched} with its SHA-256 {sha256[:16]}…: name its folder with --images"
            )
        return replace(item, path=self._by_hash[sha256], place=(0, 0))

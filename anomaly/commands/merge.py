"""The verb `merge`: the shards of a run as one run."""

from __future__ import annotations

import sys
from pathlib import Path

from anomaly.runs.merge import MergedRun
from anomaly.runs.merge import merge as merge_runs


def merge(runs: list[Path], *, out: Path) -> MergedRun:
    """Merge the finished shards of a run into one run, in the order of the images.

    Args:
        runs: folders of all shards, in any order.
        out: folder of the merged run, new or empty.
    """
    return merge_runs(runs, out=out)


def show(result: MergedRun) -> None:
    """Print the number of images and shards."""
    print(f"{result.num_images} images of {result.num_shards} shards in {result.path}", file=sys.stderr)

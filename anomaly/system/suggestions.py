"""Names that people type: the nearest valid one for a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """Give the known name that is most like `name`: one that begins with it, else the one of most letters in common."""
    return max(known, key=lambda k: (k.startswith(name), difflib.SequenceMatcher(None, name, k).ratio()), default="")

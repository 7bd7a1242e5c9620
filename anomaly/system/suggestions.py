"""Suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """Find the known name most similar to `name`: a name with this beginning first, then by common letters.

    Args:
        name: misspelt name.
        known: valid names.

    Returns:
        The most similar name, or "" for no known names.
    """
    return max(known, key=lambda k: (k.startswith(name), difflib.SequenceMatcher(None, name, k).ratio()), default="")

"""Commands on the pages have existing verbs and options."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from pathlib import Path

import pytest

from anomaly.commands.main import RENAMED, VERBS, run
from anomaly.registry import MODELS
from tests.docs.pages import PAGES, commands, page_name

EARLIER = {"CHANGELOG.md"}
"""Pages that name earlier verbs and options"""
NOT_IMPORTABLE = ":"
"""Part of a detector's name that stands for a class of the reader"""


@functools.cache
def options_of(verb: str, detector: str | None) -> frozenset[str]:
    """Options of a verb in its `--help`."""
    output = io.StringIO()
    arguments = [verb, *(["--detector", detector] if detector else []), "--help"]
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit):
        run(arguments)
    return frozenset(re.findall(r"(?<!\S)\[?(--[a-z][a-z0-9.-]*)", output.getvalue()))


def detector_of(words: list[str]) -> str | None:
    """Registered detector that a command names by `--detector`."""
    name = words[words.index("--detector") + 1] if "--detector" in words else None
    return name if name in MODELS else None


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in EARLIER], ids=page_name)
def test_verbs_and_options_exist(page: Path) -> None:
    for words in commands(page):
        verb = words[0]
        assert verb in VERBS or verb.isupper() or verb.startswith("-"), f"{page_name(page)}: anomaly {' '.join(words)}"
        if verb not in VERBS:
            continue
        options = options_of(verb, detector_of(words))
        for word in words[1:]:
            name = word.partition("=")[0]
            own = name.startswith("--model.") and NOT_IMPORTABLE in " ".join(words)
            if name.startswith("--") and not own:
                assert name in options, f"{page_name(page)}: anomaly {verb} {name}"


def test_changelog_names_all_renamed_verbs() -> None:
    (changelog,) = [page for page in PAGES if page.name in EARLIER]
    text = changelog.read_text(encoding="utf-8")
    for earlier, now in RENAMED.items():
        assert f"| `anomaly {earlier}` | `anomaly {now}` |" in text

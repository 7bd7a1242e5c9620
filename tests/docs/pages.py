"""Pages of the documentation, and the commands and Python blocks on them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "deploy").rglob("*.md"),
        *(ROOT / "benchmarks").glob("*.md"),
    ]
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def page_name(page: Path) -> str:
    """Path relative to the repository, for the names of tests."""
    return page.relative_to(ROOT).as_posix()


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def python_blocks(page: Path) -> list[str]:
    """Python blocks of a page, in order."""
    return [code for language, code in FENCE.findall(read(page)) if language == "python"]


def commands(page: Path) -> Iterator[list[str]]:
    """Words of every `anomaly` command in an indented block or in inline code of a page."""
    text = FENCE.sub("", read(page)).replace("\\\n", " ")
    lines = re.findall(r"^    (?:\.venv/bin/)?(anomaly .*)$", text, flags=re.MULTILINE)
    inline = re.findall(r"`(?:\.venv/bin/)?(anomaly [a-z]+ [^`\n]*)`", text)
    for line in [*lines, *inline]:
        yield shlex.split(line.replace("…", ""), comments=True)[1:]

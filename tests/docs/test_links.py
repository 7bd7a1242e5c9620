"""Relative links of all pages lead to existing files and headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.pages import FENCE, PAGES, ROOT, page_name, read

LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]*))?\)")


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", read(page)), flags=re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_resolve(page: Path) -> None:
    for name, anchor in LINK.findall(FENCE.sub("", read(page))):
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page_name(page)} links to {name}"
        assert ROOT in target.parents
        if anchor:
            assert anchor in anchors(target), f"{page_name(page)} links to {name}#{anchor}"


@pytest.mark.parametrize("page", [p for p in PAGES if p.parts[-2] != "benchmarks"], ids=page_name)
def test_pages_name_no_other_host(page: Path) -> None:
    hosts = re.findall(r"https?://([\w.-]+)", read(page))
    assert set(hosts) <= {"127.0.0.1", "localhost"}


def pages_of(entry: Any) -> Iterator[str]:
    """Pages of a part of the navigation."""
    if isinstance(entry, str):
        yield entry
    else:
        for inner in entry.values() if isinstance(entry, dict) else entry:
            yield from pages_of(inner)


def test_every_page_is_in_the_navigation() -> None:
    listed = list(pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert len(listed) == len(set(listed))
    assert set(listed) == pages

"""MkDocs hooks: included files of the repository, generated command reference, and links to files outside `docs/`.

    <!-- include PATH -->     replaced by the file at PATH, relative to the page
    <!-- commands -->         replaced by the `--help` of every verb
    <!-- models -->           replaced by the options of every detector and sampler

A link to a file outside `docs/` works in the repository. On the site it leads to the page that includes the file, or to a
copy of the file.
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
INCLUDE = re.compile(r"^<!-- include (\S+) -->$", flags=re.MULTILINE)
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?(?=\))")
COPIED = ("LICENSE", "benchmarks/pictures/*.png", "benchmarks/results/*.json")
COPIES = "files"
"""Folder of the site for copied files"""
HELP_WIDTH = "80"
"""Columns of help texts"""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the files outside `docs/` that pages link to."""
    for pattern in COPIED:
        for path in sorted(ROOT.glob(pattern)):
            name = f"{COPIES}/{path.relative_to(ROOT).as_posix()}"
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Expand the directives of a page and rewrite its links."""
    source = f"docs/{page.file.src_uri}"
    pages = included_files(files)

    def expanded(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[1]))
        return site_links((ROOT / path).read_text(encoding="utf-8"), source=path, page=page.file.src_uri, pages=pages)

    text = INCLUDE.sub(expanded, site_links(markdown, source=source, page=page.file.src_uri, pages=pages))
    for directive, generated in (("commands", command_pages), ("models", model_pages)):
        if f"<!-- {directive} -->" in text:
            text = text.replace(f"<!-- {directive} -->", "\n".join(generated()))
    return text


def included_files(files: Files) -> dict[str, str]:
    """Map each included file, relative to the repository, to the page that includes it."""
    found = {}
    for file in files.documentation_pages():
        for name in INCLUDE.findall(file.content_string):
            path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(file.src_uri), name))
            found[path] = file.src_uri
    return found


def site_links(markdown: str, *, source: str, page: str, pages: dict[str, str]) -> str:
    """Rewrite the relative links of a text for the site.

    Args:
        markdown: the text.
        source: path of its file, relative to the repository.
        page: path of the page that shows it, relative to `docs/`.
        pages: included file -> page.
    """

    def rewritten(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[1]))
        if path in pages:
            target = pages[path]
        elif path.startswith("docs/"):
            target = path.removeprefix("docs/")
        elif any(Path(path).match(pattern) for pattern in COPIED):
            target = f"{COPIES}/{path}"
        else:
            return found[0]  # mkdocs reports it
        return posixpath.relpath(target, posixpath.dirname(page) or ".") + (found[2] or "")

    return LINK.sub(rewritten, markdown)


def command_pages() -> Iterator[str]:
    """Write a section for every verb, with its `--help`."""
    from anomaly.commands.main import RENAMED, VERBS

    earlier = {new: old for old, new in RENAMED.items()}
    for verb, summary in VERBS.items():
        yield f"## {verb}\n\n{summary[0].upper()}{summary[1:]}."
        if verb in earlier:
            yield f"Earlier name: `{earlier[verb]}`."
        yield f"\n```text\n{help_of(verb)}```\n"


def model_pages() -> Iterator[str]:
    """Write a section for every detector and sampler, with its options."""
    from anomaly.detectors import COMPOSED, DETECTORS
    from anomaly.samplers import SAMPLERS

    for title, names in (("Detectors", DETECTORS | COMPOSED), ("Samplers", SAMPLERS)):
        yield f"## {title}\n"
        for name in names:
            options = model_options(help_of("fit", "--detector", name))
            yield f"### {name}\n\n```text\n{options}```\n" if options else f"### {name}\n"


def help_of(verb: str, *arguments: str) -> str:
    """Give the `--help` of a verb."""
    from anomaly.commands.main import run

    output = io.StringIO()
    with columns(HELP_WIDTH), contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        run([verb, *arguments, "--help"])
    return output.getvalue().strip() + "\n"


def model_options(text: str) -> str:
    """Keep the options `--model.NAME` of a help text."""
    options: Any = re.findall(r"^  --model\..*\n(?:^ {8,}.*\n)*", text, flags=re.MULTILINE)
    return "".join(options)


@contextlib.contextmanager
def columns(width: str) -> Iterator[None]:
    """Set the width of help texts."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = width
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before

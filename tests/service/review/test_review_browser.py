"""The review of a run in a real browser: labels by key and button, the file beside the run, filters, undo, 360 pixels."""

from __future__ import annotations

import csv
import io
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from test_service_browser import CHROMIUM, FLAGS

from anomaly.commands.main import run as cli
from anomaly.commands.review import make_review
from anomaly.runs.labels import labels_file, read_labels
from anomaly.runs.sinks import read_rows
from anomaly.service.auth import Guard
from anomaly.service.review.app import create_review_app
from tests.service.served import TOKEN, serving

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")


@contextmanager
def reviewing(run: Path, *, token: str = "") -> Iterator[str]:
    """Serve the review of a run on a free port; gives its address."""
    made = make_review(run, by="Ada", images="", device="cpu")
    app = create_review_app(made, guard=Guard(token=token, loopback=True), log=lambda entry: None)
    with serving(app, limits=made.limits) as address:
        yield f"http://{address}/"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def night(run_folder: Path, category: Path, tmp_path: Path) -> Path:
    """A finished run over test images, one doubled, and a file that is no image."""
    images = tmp_path / "images"
    shutil.copytree(category / "test", images)
    (images / "bad.png").write_bytes(b"no image")
    shutil.copy(images / "scratch/000.png", images / "scratch/copy of 000.png")
    model = run_folder / "model.onnx"
    assert cli(["score", str(model), str(images), "--run", str(tmp_path / "night"), "--device", "cpu"]) == 3
    return tmp_path / "night"


@pytest.fixture
def page(browser: Browser, night: Path) -> Iterator[Page]:
    """The review, loaded; in the end nothing was complained of and nobody else asked."""
    with reviewing(night) as address, browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        opened = context.new_page()
        opened.set_default_timeout(10_000)
        said: list[str] = []
        asked: list[str] = []
        opened.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
        opened.on("pageerror", lambda error: said.append(str(error)))
        opened.on("request", lambda request: asked.append(request.url))
        opened.goto(address)
        expect(opened.locator(".tile")).to_have_count(7)
        yield opened
        assert [text for text in said if "status of 404" not in text and "status of 409" not in text] == []
        assert [url for url in asked if not url.startswith((address, "blob:", "data:"))] == []


def labels_of(night: Path) -> dict[str, str]:
    return {label.path.rpartition("/")[2]: label.label for label in read_labels(labels_file(night)).values()}


def saved(night: Path, expected: dict[str, str]) -> None:
    deadline = time.monotonic() + 10
    while labels_of(night) != expected:
        assert time.monotonic() < deadline, labels_of(night)
        time.sleep(0.02)


def names(page: Page) -> list[str]:
    return [text.rpartition("/")[2] for text in page.locator(".tile-name").all_inner_texts()]


def test_rejects_are_labelled_by_key_and_the_next_follows(page: Page, night: Path) -> None:
    expect(page.locator('[data-filter="defect"] input')).to_be_checked()
    by_score = [float(text) for text in page.locator(".tile .number").all_inner_texts()]
    assert by_score == sorted(by_score, reverse=True)
    order = names(page)
    one = order.index("001.png")
    page.locator(".tile").nth(one).click()
    expect(page.locator("#judged h2")).to_have_text("✕Rejected")
    expect(page.locator("canvas")).to_be_visible()
    expect(page.locator("#opacity")).to_be_enabled()  # the map is there
    expect(page.locator("#map-note")).to_be_hidden()
    page.keyboard.press("g")
    expect(page.locator(".tile-label")).to_have_text("✓ really good")
    saved(night, {"001.png": "good"})
    expect(page.locator("#progress")).to_contain_text("1 of 7 rejected reviewed; 1 labelled really good")
    following = order[one + 1] if one + 1 < len(order) else "001.png"
    expect(page.locator(".judged-name")).to_contain_text(following)
    page.keyboard.press("u")
    saved(night, {})
    expect(page.locator(".judged-name")).to_contain_text("001.png")
    page.keyboard.press("d")
    saved(night, {"001.png": "defect"})
    assert {(label.by, label.verdict) for label in read_labels(labels_file(night)).values()} == {("Ada", "defect")}
    expect(page.locator("#meaning tr", has_text="Confirmed").first).to_contain_text("1")


def test_tiles_are_labelled_without_opening_and_filtered_by_label(page: Page, night: Path) -> None:
    order = names(page)
    page.locator(".tile").first.focus()
    page.keyboard.press("d")
    expect(page.locator(":focus .tile-name")).to_contain_text(order[1])
    expect(page.locator("#picture")).to_be_hidden()
    double = order.index("000.png")
    page.locator(".tile-extra .label-good").nth(double).click()
    double_labels = {"000.png", "copy of 000.png"}
    expect(page.locator(".tile-label.is-good")).to_have_count(2)  # equal bytes have one label
    page.get_by_label("Labels", exact=True).select_option("none")
    expect(page.locator(".tile")).to_have_count(7 - len({order[0]} | double_labels))
    page.get_by_label("Labels", exact=True).select_option("good")
    expect(page.locator(".tile")).to_have_count(1 if order[0] in double_labels else 2)
    page.get_by_label("Labels", exact=True).select_option("all")
    page.locator('[data-filter="all"]').click()
    expect(page.locator(".tile")).to_have_count(14)
    page.get_by_label("Text in path").fill("BAD.png")
    expect(page.locator(".tile")).to_have_count(1)
    page.locator(".tile").click()
    expect(page.locator("#judged h2")).to_have_text("!Not scored")
    expect(page.locator("#labelling .label-good")).to_be_disabled()
    page.keyboard.press("g")
    page.keyboard.press("Escape")
    page.get_by_label("Text in path").fill("scratch/")
    expect(page.locator(".tile")).to_have_count(7)
    page.get_by_label("Order", exact=True).select_option("order")
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Export CSV").click()
    text = Path(downloading.value.path()).read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["sha256"] for row in rows] == [row["sha256"] for row in read_rows(night) if "scratch/" in row["path"]]
    assert {row["label"] for row in rows} >= {"good"}


def test_card_files_and_missing_images_are_told(page: Page, night: Path) -> None:
    expect(page.locator("#card dd").first).to_have_text("night")
    expect(page.locator("#card")).to_contain_text("certified at most")
    page.locator("#check").click()
    expect(page.locator("#card")).to_contain_text("intact: each is that of the manifest")
    expect(page.locator(".command")).to_have_count(3)
    rows = {row["path"].rpartition("/")[2]: row for row in read_rows(night) if row["verdict"] == "defect"}
    Path(rows["003.png"]["path"]).unlink()
    Path(rows["004.png"]["path"]).write_bytes(Path(rows["005.png"]["path"]).read_bytes())
    page.reload()
    expect(page.locator(".tile")).to_have_count(7)
    for name, words in (("003.png", "is not where it was scored"), ("004.png", "was changed since it was scored")):
        page.locator(".tile", has_text=name).click()
        expect(page.locator(".viewer-notice")).to_be_visible()
        expect(page.locator("canvas")).to_be_hidden()
        if "003" in name:
            expect(page.locator(".viewer-notice")).to_contain_text(words)


def test_nothing_scrolls_sideways_at_360_pixels(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.locator(".tile").first.click()
    expect(page.locator("#opacity")).to_be_enabled()
    page.locator("#labelling .label-good").click()
    expect(page.locator(".tile-label")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    wide = page.evaluate(
        """() => [...document.querySelectorAll("body *:not(.unseen)")].filter(e => e.getBoundingClientRect().right > 360.5)
            .map(e => e.outerHTML.slice(0, 80))"""
    )
    assert wide == []


def test_token_is_asked_for(browser: Browser, night: Path) -> None:
    with reviewing(night, token=TOKEN) as address, browser.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.goto(address)
        page.locator("#token-text").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator(".tile")).to_have_count(7)
        expect(page.locator(".tile img").first).to_be_visible()
        page.locator(".tile").first.focus()
        page.keyboard.press("d")
        expect(page.locator("#progress")).to_contain_text(" of 7 rejected reviewed; 0 labelled really good")
        expect(page.locator("#progress")).not_to_contain_text("0 of 7")
        assert list(labels_of(night).values()) == ["defect"]

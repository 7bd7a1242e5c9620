"""The review page in headless Chromium: labels by key and button, their file, filters, undo, and a width of 360 pixels."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from anomaly.commands.main import run as cli
from anomaly.runs.labels import labels_file, read_labels
from anomaly.runs.sinks import read_rows
from anomaly.service.auth import Guard
from anomaly.service.review.app import create_review_app
from anomaly.service.review.serve import open_review
from tests.service.running_service import TOKEN, serving, wait_for

pytestmark = pytest.mark.slow


@contextmanager
def running_review(run: Path, *, token: str | None = None) -> Iterator[str]:
    """Serve the review of a run on a free port; yields its address."""
    service = open_review(run, by="Ada", images=None, device="cpu")
    app = create_review_app(service, guard=Guard(token=token, loopback=True), log=lambda entry: None)
    with serving(app, limits=service.limits) as address:
        yield f"http://{address}/"


@pytest.fixture
def finished_run(fitted_plate: Path, category: Path, tmp_path: Path) -> Path:
    """A finished run over test images, one of them twice, and a file that is not an image."""
    images = tmp_path / "images"
    shutil.copytree(category / "test", images)
    (images / "bad.png").write_bytes(b"not an image")
    shutil.copy(images / "scratch/000.png", images / "scratch/copy of 000.png")
    model = fitted_plate / "model.onnx"
    assert cli(["score", str(model), str(images), "--run", str(tmp_path / "finished_run"), "--device", "cpu"]) == 3
    return tmp_path / "finished_run"


@pytest.fixture
def page(browser: Browser, finished_run: Path) -> Iterator[Page]:
    """The loaded page; at the end, check for errors in the console and requests to other hosts."""
    with (
        running_review(finished_run) as address,
        browser.new_context(viewport={"width": 1280, "height": 900}) as context,
    ):
        opened = context.new_page()
        opened.set_default_timeout(30_000)
        messages: list[str] = []
        requests: list[str] = []
        opened.on("console", lambda m: messages.append(m.text) if m.type in ("error", "warning") else None)
        opened.on("pageerror", lambda error: messages.append(str(error)))
        opened.on("request", lambda request: requests.append(request.url))
        opened.goto(address)
        expect(opened.locator(".tile")).to_have_count(7)
        yield opened
        assert [text for text in messages if "status of 404" not in text and "status of 409" not in text] == []
        assert [url for url in requests if not url.startswith((address, "blob:", "data:"))] == []


def labels_of(finished_run: Path) -> dict[str, str]:
    return {label.path.rpartition("/")[2]: label.label for label in read_labels(labels_file(finished_run)).values()}


def wait_for_labels(finished_run: Path, expected: dict[str, str]) -> None:
    wait_for(lambda: labels_of(finished_run) == expected)


def names(page: Page) -> list[str]:
    return [text.rpartition("/")[2] for text in page.locator(".tile-name").all_inner_texts()]


def test_key_labels_a_rejected_image_and_opens_the_next(page: Page, finished_run: Path) -> None:
    expect(page.locator('[data-filter="defect"] input')).to_be_checked()
    by_score = [float(text) for text in page.locator(".tile .number").all_inner_texts()]
    assert by_score == sorted(by_score, reverse=True)
    order = names(page)
    one = order.index("001.png")
    page.locator(".tile").nth(one).click()
    expect(page.locator("#verdict h2")).to_have_text("✕Rejected")
    expect(page.locator("canvas")).to_be_visible()
    expect(page.locator("#opacity")).to_be_enabled()  # the map is loaded
    expect(page.locator("#map-note")).to_be_hidden()
    page.keyboard.press("g")
    expect(page.locator(".tile-label")).to_have_text("✓ really good")
    wait_for_labels(finished_run, {"001.png": "good"})
    expect(page.locator("#progress")).to_contain_text("1 of 7 rejected reviewed; 1 labelled really good")
    following = order[one + 1] if one + 1 < len(order) else "001.png"
    expect(page.locator(".verdict-name")).to_contain_text(following)
    page.keyboard.press("u")
    wait_for_labels(finished_run, {})
    expect(page.locator(".verdict-name")).to_contain_text("001.png")
    page.keyboard.press("d")
    wait_for_labels(finished_run, {"001.png": "defect"})
    assert {(label.by, label.verdict) for label in read_labels(labels_file(finished_run)).values()} == {
        ("Ada", "defect")
    }
    expect(page.locator("#statistics tr", has_text="True alarms").first).to_contain_text("1")


def test_closed_tiles_are_labelled_and_filtered_by_label(page: Page, finished_run: Path) -> None:
    order = names(page)
    page.locator(".tile").first.focus()
    page.keyboard.press("d")
    expect(page.locator(":focus .tile-name")).to_contain_text(order[1])
    expect(page.locator("#viewer")).to_be_hidden()
    duplicate = order.index("000.png")
    page.locator(".tile-extra .label-good").nth(duplicate).click()
    duplicates = {"000.png", "copy of 000.png"}
    expect(page.locator(".tile-label.is-good")).to_have_count(2)  # identical files share a label
    page.get_by_label("Labels", exact=True).select_option("none")
    expect(page.locator(".tile")).to_have_count(7 - len({order[0]} | duplicates))
    page.get_by_label("Labels", exact=True).select_option("good")
    expect(page.locator(".tile")).to_have_count(1 if order[0] in duplicates else 2)
    page.get_by_label("Labels", exact=True).select_option("all")
    page.locator('[data-filter="all"]').click()
    expect(page.locator(".tile")).to_have_count(14)
    page.get_by_label("Text in path").fill("BAD.png")
    expect(page.locator(".tile")).to_have_count(1)
    page.locator(".tile").click()
    expect(page.locator("#verdict h2")).to_have_text("!Not scored")
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
    assert [row["sha256"] for row in rows] == [
        row["sha256"] for row in read_rows(finished_run) if "scratch/" in row["path"]
    ]
    assert {row["label"] for row in rows} >= {"good"}


def test_card_file_check_and_missing_images_are_shown(page: Page, finished_run: Path) -> None:
    expect(page.locator("#card dd").first).to_have_text("finished_run")
    expect(page.locator("#card")).to_contain_text("certified at most")
    page.locator("#check").click()
    expect(page.locator("#card")).to_contain_text("intact: all files match the manifest")
    expect(page.locator(".command")).to_have_count(3)
    rows = {row["path"].rpartition("/")[2]: row for row in read_rows(finished_run) if row["verdict"] == "defect"}
    Path(rows["003.png"]["path"]).unlink()
    Path(rows["004.png"]["path"]).write_bytes(Path(rows["005.png"]["path"]).read_bytes())
    page.reload()
    expect(page.locator(".tile")).to_have_count(7)
    for name, words in (("003.png", "is missing at"), ("004.png", "changed since it was scored")):
        page.locator(".tile", has_text=name).click()
        expect(page.locator(".viewer-notice")).to_be_visible()
        expect(page.locator("canvas")).to_be_hidden()
        if "003" in name:
            expect(page.locator(".viewer-notice")).to_contain_text(words)


def test_page_has_no_horizontal_scrolling_at_360_pixels(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.locator(".tile").first.click()
    expect(page.locator("#opacity")).to_be_enabled()
    page.locator("#labelling .label-good").click()
    expect(page.locator(".tile-label")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    wide = page.evaluate(
        """() => [...document.querySelectorAll("body *:not(.visually-hidden)")]
            .filter(e => e.getBoundingClientRect().right > 360.5).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert wide == []


def test_rows_are_read_after_pending_labels_are_saved(page: Page) -> None:
    methods = page.evaluate(
        """async () => {
            const {ReviewApi} = await import("/static/review_api.js");
            const order = [];
            const client = {fetch: async (path, {method}) => {
                await new Promise(resolve => setTimeout(resolve));
                order.push(method ?? "GET");
                return {json: async () => ({})};
            }};
            const api = new ReviewApi(client);
            await Promise.all([api.label(0, "good"), api.label(1, "good"), api.rows({})]);
            return order;
        }"""
    )
    assert methods == ["PUT", "PUT", "GET"]


def test_token_is_requested(browser: Browser, finished_run: Path) -> None:
    with running_review(finished_run, token=TOKEN) as address, browser.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.goto(address)
        page.locator("#token-text").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator(".tile")).to_have_count(7)
        expect(page.locator(".tile img").first).to_be_visible()
        page.locator(".tile").first.focus()
        page.keyboard.press("d")
        expect(page.locator("#progress")).to_contain_text(" of 7 rejected reviewed; 0 labelled really good")
        expect(page.locator("#progress")).not_to_contain_text("0 of 7")
        assert list(labels_of(finished_run).values()) == ["defect"]

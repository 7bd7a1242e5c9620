"""The scoring page in headless Chromium: dropped images, verdicts, sliders, keyboard navigation and the CSV export."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Browser, Download, Page, Route, expect

from anomaly.imaging.map_png import map_levels
from anomaly.imaging.overlay import enlarge_map, overlay
from anomaly.inference.scorer import OnnxScorer
from anomaly.scoring.rows import COLUMNS
from tests.plates import draw_part, draw_scratch
from tests.service.running_service import TOKEN, make_service, running

pytestmark = pytest.mark.slow


def png(image: NDArray[Any]) -> bytes:
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def map_png(anomaly_map: NDArray[np.float32]) -> str:
    return base64.b64encode(cv2.imencode(".png", map_levels(anomaly_map))[1].tobytes()).decode()


FILES = {
    "=1+2.png": png(draw_part(1)),
    "fine.png": png(draw_part(2)),
    "scratch a.png": png(draw_scratch(draw_part(3), 3)[0]),
    "scratch b.png": png(draw_scratch(draw_part(4), 4)[0]),
}
BAD = {"notes.png": b"not an image"}


@pytest.fixture(scope="module")
def address(fitted_plate: Path) -> Iterator[str]:
    model = fitted_plate / "model.onnx"
    with running(make_service(f"plate={model}", f"other={model}")) as found:
        yield f"http://{found}/"


@pytest.fixture(scope="module")
def scorer(fitted_plate: Path) -> OnnxScorer:
    return OnnxScorer(fitted_plate / "model.onnx", device="cpu", num_threads=1)


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page, loaded."""
    yield from loaded(browser, address)


@pytest.fixture(scope="module")
def modules(browser: Browser, address: str) -> Iterator[Page]:
    """The page for tests of its modules, without images."""
    yield from loaded(browser, address)


def loaded(browser: Browser, address: str) -> Iterator[Page]:
    """Load the page; at the end, check for errors in the console and requests to other hosts."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        opened = context.new_page()
        opened.set_default_timeout(30_000)
        messages: list[str] = []
        requests: list[str] = []
        opened.on("console", lambda m: messages.append(m.text) if m.type in ("error", "warning") else None)
        opened.on("pageerror", lambda error: messages.append(str(error)))
        opened.on("request", lambda request: requests.append(request.url))
        opened.goto(address)
        opened.wait_for_selector("#card dl")
        yield opened
        assert [text for text in messages if "status of 415" not in text and "status of 503" not in text] == []
        assert requests
        assert [url for url in requests if not url.startswith((address, "blob:", "data:"))] == []


def drop_files(page: Page, files: dict[str, bytes]) -> None:
    """Drop files on the page and wait for their verdicts."""
    before = page.locator(".tile").count()
    page.evaluate(
        """files => {
            const data = new DataTransfer();
            for (const [name, text] of files)
                data.items.add(new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], name, {type: "image/png"}));
            document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
        }""",
        [(name, base64.b64encode(data).decode()) for name, data in files.items()],
    )
    expect(page.locator(".tile")).to_have_count(before + len(files))
    expect(page.locator("#stop")).to_be_hidden()


def set_slider(page: Page, selector: str, value: float) -> None:
    page.locator(selector).evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input')) }", str(value))


def tiles(page: Page) -> list[str]:
    return page.locator(".tile-name").all_inner_texts()


def pixels(page: Page) -> str:
    return str(page.locator("canvas").evaluate("c => c.toDataURL()"))


def test_dropped_image_shows_the_verdict_and_the_map(page: Page, scorer: OnnxScorer) -> None:
    drop_files(page, {"scratch a.png": FILES["scratch a.png"]})
    score = float(scorer.score(draw_scratch(draw_part(3), 3)[0][None]).score[0])
    assert score > 1
    expect(page.locator("#verdict h2")).to_have_text("✕Rejected")
    shown = page.locator("#verdict .big").inner_text()
    assert float(shown) == pytest.approx(score, abs=0.5 * 10 ** -len(shown.partition(".")[2]))
    expect(page.locator("#announcement")).to_contain_text(f"scratch a.png: Rejected, score {shown}, threshold 1.00")
    assert page.locator("#verdict tbody tr").count() >= 1
    set_slider(page, "#opacity", 0)
    bare = pixels(page)
    set_slider(page, "#opacity", 80)
    assert pixels(page) != bare
    drawn = pixels(page)
    page.locator("#outlines").uncheck()
    assert pixels(page) != drawn
    set_slider(page, "#opacity", 0)
    assert pixels(page) != bare  # without heat map and lines


def test_map_is_aligned_and_coloured_as_in_python(modules: Page) -> None:
    anomaly_map = cv2.GaussianBlur(np.random.default_rng(0).normal(1, 9, (32, 40)).astype(np.float32), (0, 0), 2)
    levels = map_levels(anomaly_map).astype(np.float32) / 2048 - 4
    for resize, height, width in (("stretch", 60, 90), ("letterbox", 60, 90), ("letterbox", 90, 50)):
        image = np.full((height, width, 3), 90, dtype=np.uint8)
        values, drawn = modules.evaluate(
            """async ({png, resize, width, height}) => {
                const {readMap, enlargeMap, renderMap} = await import("/static/heat_map.js");
                const map = await readMap({png, step: 1 / 2048, zero: 4, resize});
                const values = enlargeMap(map, {width, height});
                const canvas = new OffscreenCanvas(width, height);
                const drawing = canvas.getContext("2d");
                drawing.fillStyle = "rgb(90 90 90)";
                drawing.fillRect(0, 0, width, height);
                drawing.globalAlpha = 0.6;
                drawing.drawImage(renderMap(values, {width, height, threshold: 1}).heat, 0, 0);
                const text = array => btoa(String.fromCharCode(...new Uint8Array(array.buffer)));
                return [text(values), text(drawing.getImageData(0, 0, width, height).data)];
            }""",
            {"png": map_png(anomaly_map), "resize": resize, "width": width, "height": height},
        )
        expected = enlarge_map(levels, height=height, width=width, resize=resize)
        found = np.frombuffer(base64.b64decode(values), dtype="<f4").reshape(height, width)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        colours = np.frombuffer(base64.b64decode(drawn), dtype=np.uint8).reshape(height, width, 4)[..., :3].astype(int)
        for inside, one_side in (  # a map on one side of the threshold has no contour
            (expected <= 1, np.minimum(expected, 1)),
            (expected > 1, np.maximum(expected, 1 + 1e-6)),
        ):
            assert 0.1 < inside.mean() < 0.9
            drawn_by_python = overlay(image, one_side, threshold=1.0).astype(int)
            inside[[0, -1]] = inside[:, [0, -1]] = False  # Python closes the contour along the border
            assert np.abs(colours - drawn_by_python)[inside].max() <= 3


def test_large_map_keeps_its_peaks(modules: Page) -> None:
    anomaly_map = np.zeros((700, 2500), dtype=np.float32)
    anomaly_map[411, 1333] = 5.0
    found = modules.evaluate(
        """async png => {
            const {readMap} = await import("/static/heat_map.js");
            const {width, height, values} = await readMap({png, step: 1 / 2048, zero: 4, resize: "native"});
            return [width, height, values.reduce((a, b) => Math.max(a, b)), values.indexOf(5)];
        }""",
        map_png(anomaly_map),
    )
    assert found == [834, 234, 5, (411 // 3) * 834 + 1333 // 3]


def test_threshold_slider_shows_changed_verdicts(page: Page, scorer: OnnxScorer) -> None:
    part, scratched = draw_part(3).astype(float), draw_scratch(draw_part(3), 3)[0]
    for share in np.linspace(0, 1, 101):
        image = np.rint(part + share * (scratched - part)).astype(np.uint8)
        faint = float(scorer.score(image[None]).score[0])
        if faint > 1.2:
            break
    assert faint < 2.5
    drop_files(page, FILES | {"faint.png": png(image)})
    result = page.locator(".explorer-result")
    expect(result).to_have_text("Active threshold 1.00: 2 accepted, 3 rejected.")
    expect(page.locator('[data-filter="change"]')).to_be_hidden()
    set_slider(page, "#tried-threshold", faint + 0.1)
    expect(result).to_contain_text(": 3 accepted, 2 rejected; 1 verdict changes.")
    expect(page.locator(".tile-change")).to_have_text("⇄ accepted")
    page.locator('[data-filter="change"]').click()
    assert tiles(page) == ["faint.png"]
    page.get_by_role("button", name="Reset to the active threshold").click()
    expect(page.locator(".tile")).to_have_count(5)
    expect(page.locator(".tile-change")).to_have_count(0)
    expect(result).to_have_text("Active threshold 1.00: 2 accepted, 3 rejected.")


def test_gallery_is_filtered_sorted_and_exported(page: Page, scorer: OnnxScorer) -> None:
    drop_files(page, FILES | BAD)
    expect(page.locator("#verdict h2")).to_have_text("!Not scored")
    expect(page.locator("#verdict .alert")).to_contain_text("convert it to one of these")
    page.locator('[data-filter="defect"]').click()
    assert sorted(tiles(page)) == ["scratch a.png", "scratch b.png"]
    page.locator("#gallery input[type=search]").fill("B.PNG")
    assert tiles(page) == ["scratch b.png"]
    page.locator("#gallery input[type=search]").fill("")
    page.locator('[data-filter="error"]').click()
    assert tiles(page) == ["notes.png"]
    page.locator('[data-filter="all"]').click()
    assert tiles(page)[0] == "notes.png"
    page.locator("#gallery select").select_option("highest")
    by_score = [float(text) for text in page.locator(".tile .number").all_inner_texts() if text]
    assert by_score == sorted(by_score, reverse=True)
    page.locator("#gallery select").select_option("oldest")
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Export CSV").click()
    rows = read_csv(downloading.value)
    assert list(rows[0]) == COLUMNS
    assert [row["path"] for row in rows] == ["'=1+2.png", *list(FILES)[1:], "notes.png"]
    assert [row["status"] for row in rows] == ["ok"] * 4 + ["not_an_image"]
    scores = scorer.score(np.stack([draw_part(1), draw_part(2), *(draw_scratch(draw_part(n), n)[0] for n in (3, 4))]))
    np.testing.assert_allclose([float(row["score"]) for row in rows[:4]], scores.score, rtol=1e-4)
    assert [row["verdict"] for row in rows] == ["good", "good", "defect", "defect", ""]
    assert (rows[4]["score"], rows[4]["width"]) == ("", "")
    assert json.loads(rows[2]["regions"])[0]["peak"] > 1
    assert len(rows[2]["sha256"]) == 64


def read_csv(download: Download) -> list[dict[str, str]]:
    text = Path(download.path()).read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text)))


def test_keyboard_reaches_all_controls(page: Page) -> None:
    drop_files(page, FILES)
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).to_be_hidden()
    focused = page.locator(":focus .tile-name")
    expect(focused).to_have_text("scratch b.png")  # the newest image was open
    page.keyboard.press("ArrowRight")
    expect(focused).to_have_text("scratch a.png")
    page.keyboard.press("End")
    expect(focused).to_have_text("=1+2.png")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator(".verdict-name")).to_have_text("scratch a.png")
    expect(page.locator("#viewer")).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".verdict-name")).to_have_text("fine.png")
    page.keyboard.press("Escape")
    expect(focused).to_have_text("fine.png")
    reached = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        outlined = page.evaluate(
            """() => {
                let at = document.activeElement;
                while (at !== document.body && getComputedStyle(at).outlineStyle === "none") at = at.parentElement;
                return at !== document.body || document.activeElement === document.body;
            }"""
        )
        assert outlined
    assert {"model", "version", "files", "tried-threshold", "Export CSV", "Clear", "Copy"} <= reached


def test_page_has_no_horizontal_scrolling_at_360_pixels(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    drop_files(
        page, {"a_very_long_name_without_a_position_for_a_line_break_" * 3 + ".png": FILES["scratch a.png"]} | BAD
    )
    page.locator(".tile").nth(1).click()
    expect(page.locator("#verdict h2")).to_have_text("✕Rejected")
    set_slider(page, "#tried-threshold", 2.5)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    wide = page.evaluate(
        """() => [...document.querySelectorAll("body *:not(.visually-hidden)")]
            .filter(e => e.getBoundingClientRect().right > 360.5).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert wide == []


def test_busy_service_is_retried_and_another_model_is_selected(page: Page) -> None:
    urls: list[str] = []

    def busy_once(route: Route) -> None:
        urls.append(route.request.url)
        if len(urls) == 1:
            route.fulfill(status=503, headers={"Retry-After": "1"}, json={"error": "later"})
        else:
            route.continue_()

    page.route("**/score?*", busy_once)
    assert page.locator("#model option").all_inner_texts() == ["other", "plate"]
    page.locator("#model").select_option("plate")
    expect(page.locator("#card dd").first).to_have_text("plate, version 1")
    drop_files(page, {"fine.png": FILES["fine.png"]})
    expect(page.locator("#verdict h2")).to_have_text("✓Accepted")
    assert len(urls) == 2
    assert "model=plate&version=1&map=true" in urls[1]


def test_pasted_16_bit_image_is_drawn_by_the_service(page: Page) -> None:
    deep = cv2.imencode(".png", draw_part(5).astype(np.uint16)[..., ::-1] * 257)[1].tobytes()
    page.evaluate(
        """text => {
            const data = new DataTransfer();
            data.items.add(new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], "image.png", {type: "image/png"}));
            document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, bubbles: true}));
        }""",
        base64.b64encode(deep).decode(),
    )
    expect(page.locator(".tile-name")).to_have_text("pasted-1-image.png")
    expect(page.locator(".viewer-notice")).to_contain_text("The service drew the heat map")
    expect(page.locator("#opacity")).to_be_disabled()
    assert page.locator(".tile img").evaluate("e => e.decode().then(() => e.naturalWidth)") == 88


def test_memory_of_the_page_is_limited(modules: Page) -> None:
    found = modules.evaluate(
        """async small => {
            const {ScoringQueue} = await import("/static/scoring_queue.js");
            const bytes = Uint8Array.from(atob(small), c => c.charCodeAt(0));
            const row = {status: "ok", verdict: "good", score: 0, threshold: 1, regions: [], width: 8, height: 8};
            const items = [], dropped = [];
            const end = new Promise(resolve => {
                const queue = new ScoringQueue({score: async () => row}, {
                    onItem: i => items.push(i), onDrop: i => dropped.push(i),
                    onProgress: ({total}) => total === 0 && resolve()});
                const fail = async () => { throw new Error() };
                const many = [...Array(1990).keys()].map(n => ({name: `${n}`, arrayBuffer: fail}));
                const few = [...Array(50).keys()].map(n => new File([bytes], `picture ${n}`));
                queue.add([...many, ...few], {model: "plate", version: "1"});
            });
            await end;
            return [items.length, items.filter(i => i.picture).length, dropped.map(i => i.name).slice(-1)];
        }""",
        base64.b64encode(png(np.zeros((8, 8, 3), np.uint8))).decode(),
    )
    assert found == [2040, 40, ["39"]]


def test_token_is_requested_and_stored_in_the_tab(browser: Browser, fitted_plate: Path) -> None:
    service = make_service(f"plate={fitted_plate / 'model.onnx'}")
    with running(service, token=TOKEN) as address, browser.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.goto(f"http://{address}/")
        expect(page.locator("#token-wrong")).to_be_hidden()
        page.locator("#token-text").fill("not-the-right-token")
        page.keyboard.press("Enter")
        expect(page.locator("#token-wrong")).to_be_visible()
        page.locator("#token-text").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator("#card dd").first).to_have_text("plate, version 1")
        drop_files(page, {"fine.png": FILES["fine.png"]})
        assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
        page.reload()
        expect(page.locator("#card dd").first).to_have_text("plate, version 1")
        expect(page.locator("#token")).to_be_hidden()

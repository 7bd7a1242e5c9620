"""Screenshots of the pages of the service and of the review, with the demo's synthetic parts: light, dark and narrow.

    python -m benchmarks.page_screenshots demo-out --out benchmarks/pictures

Requires a folder of `anomaly demo`, and Chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, FilePayload, Page, expect, sync_playwright

from benchmarks.command_line import command

VIEWS: dict[str, tuple[Literal["light", "dark"], int, int]] = {
    "light": ("light", 1280, 1080),
    "dark": ("dark", 1280, 1080),
    "narrow": ("light", 360, 1240),
}
LABELS = "ggdddd"
"""Keys for the rejects with the lowest scores, in order: g for good, d for defect"""
COLOURS = 256
"""Colours of a screenshot, for small files"""
NUM_EACH = 3
LOW_THRESHOLD = 0.8
"""Threshold of the reviewed run, below the model's own, so that the run rejects some good parts"""


def main() -> None:
    """Serve the demo's model and a run of it, and write the screenshots of both pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    model = str(arguments.demo / "model.onnx")
    kinds = sorted(arguments.demo.glob("data/**/test/*"))
    files = [file for kind in kinds for file in sorted(kind.glob("*.png"))[:NUM_EACH]]
    with TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        with running("serve", f"assembly={model}", cwd=folder) as address:
            for page, name in views(browser, address):
                take(page, files, arguments.out / f"page_{name}.png")
        for kind in kinds:
            shutil.copytree(kind, Path(folder) / "parts" / kind.name)
        score = command("score", model, "parts", "--run", "night", "--threshold", str(LOW_THRESHOLD))
        subprocess.run(score, cwd=folder, check=True)
        with running("review", "night", "--by", "QA", cwd=folder) as address:
            for page, name in views(browser, address):
                review(page, arguments.out / f"review_{name}.png", labels=LABELS if name == "light" else "")
        browser.close()


@contextmanager
def running(verb: str, *arguments: str, cwd: str) -> Iterator[str]:
    """Run a serving verb; yield its address."""
    with subprocess.Popen(
        command(verb, *arguments, "--port", "0"), stderr=subprocess.PIPE, text=True, cwd=cwd
    ) as process:
        try:
            assert process.stderr is not None
            yield next(line.split()[-1] for line in process.stderr if line.startswith("serving on"))
        finally:
            process.terminate()


def views(browser: Browser, address: str) -> Iterator[tuple[Page, str]]:
    """Open a page in each view."""
    for name, (scheme, width, height) in VIEWS.items():
        page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": height})
        page.goto(address)
        expect(page.locator("#card dl")).to_be_visible()
        yield page, name
        page.close()


def review(page: Page, out: Path, *, labels: str) -> None:
    """Label some rejects by keys, open the next one, and take the screenshot; later views show these labels."""
    page.get_by_label("Order", exact=True).select_option("score")
    expect(page.locator(".tile img").first).to_be_visible()
    page.locator(".tile").first.focus()
    for at, key in enumerate(labels):
        page.keyboard.press(key)
        expect(page.locator(".tile-label")).to_have_count(at + 1)
    page.locator(".tile").nth(len(LABELS)).click()
    expect(page.locator("#opacity")).to_be_enabled()
    expect(page.locator("#progress")).to_contain_text(f"{len(LABELS)} of")
    write_screenshot(page, out)


def take(page: Page, files: list[Path], out: Path) -> None:
    """Add the images, open a rejected one, try a threshold, and take the screenshot."""
    given: list[FilePayload] = [
        {"name": f"{f.parent.name}_{f.name}", "mimeType": "image/png", "buffer": f.read_bytes()} for f in files
    ]
    page.locator("#files").set_input_files(given)
    expect(page.locator(".tile")).to_have_count(len(files), timeout=120_000)
    expect(page.locator("#stop")).to_be_hidden()
    page.locator("#gallery select").select_option("highest")
    page.locator(".tile.is-defect").nth(2).click()
    page.locator("#tried-threshold").fill("1.68")
    write_screenshot(page, out)


def write_screenshot(page: Page, out: Path) -> None:
    """Write a screenshot of the window."""
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(600)
    with Image.open(io.BytesIO(page.screenshot())) as screenshot:
        screenshot.convert("RGB").quantize(COLOURS, method=Image.Quantize.FASTOCTREE).save(out, optimize=True)


if __name__ == "__main__":
    main()

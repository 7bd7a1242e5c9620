"""Pictures of the service's page and of the review over the demo's synthetic parts: light, dark and 360 pixels wide.

python -m benchmarks.page_screenshots demo-out --out benchmarks/pictures

needs a folder of `anomaly demo` and Chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, FilePayload, Page, expect, sync_playwright

MAIN = "import sys; from anomaly.commands.main import run; sys.exit(run(sys.argv[1:]))"
VIEWS: dict[str, tuple[Literal["light", "dark"], int, int]] = {
    "light": ("light", 1280, 1080),
    "dark": ("dark", 1280, 1080),
    "narrow": ("light", 360, 1240),
}
MARKS = "ggdddd"
"""Of the least rejects, in order: really good, then really defective"""
COLOURS = 256
"""Of a picture, which keeps the files small"""
NUM_EACH = 3
LOW_LIMIT = 0.8
"""Of the run under review: below the model's own, so that some good parts are rejected"""


def main() -> None:
    """Serve the demo's model and a run of it, and write the pictures of both pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model = str(options.demo / "model.onnx")
    kinds = sorted(options.demo.glob("data/**/test/*"))
    files = [file for kind in kinds for file in sorted(kind.glob("*.png"))[:NUM_EACH]]
    with TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        with running(["serve", f"assembly={model}"], cwd=folder) as address:
            for page, name in views(browser, address):
                take(page, files, options.out / f"page_{name}.png")
        for kind in kinds:
            shutil.copytree(kind, Path(folder) / "parts" / kind.name)
        command = [sys.executable, "-c", MAIN, "score", model, "parts", "--run", "night", "--threshold", str(LOW_LIMIT)]
        subprocess.run(command, cwd=folder, check=True)
        with running(["review", "night", "--by", "QA"], cwd=folder) as address:
            for page, name in views(browser, address):
                review(page, options.out / f"review_{name}.png", labels=MARKS if name == "light" else "")
        browser.close()


@contextmanager
def running(arguments: list[str], *, cwd: str) -> Iterator[str]:
    """Run a verb that serves; gives its address."""
    command = [sys.executable, "-c", MAIN, *arguments, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=cwd) as process:
        try:
            assert process.stderr is not None
            yield next(line.split()[-1] for line in process.stderr if line.startswith("serving on"))
        finally:
            process.terminate()


def views(browser: Browser, address: str) -> Iterator[tuple[Page, str]]:
    """Open a page as each of the views."""
    for name, (scheme, width, height) in VIEWS.items():
        page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": height})
        page.goto(address)
        expect(page.locator("#card dl")).to_be_visible()
        yield page, name
        page.close()


def review(page: Page, out: Path, *, labels: str) -> None:
    """Label some rejects by keys, which the views that follow see labelled, and leave the next one open."""
    page.get_by_label("Order", exact=True).select_option("score")
    expect(page.locator(".tile img").first).to_be_visible()
    page.locator(".tile").first.focus()
    for at, key in enumerate(labels):
        page.keyboard.press(key)
        expect(page.locator(".tile-label")).to_have_count(at + 1)
    page.locator(".tile").nth(len(MARKS)).click()
    expect(page.locator("#opacity")).to_be_enabled()
    expect(page.locator("#progress")).to_contain_text(f"{len(MARKS)} of")
    written(page, out)


def take(page: Page, files: list[Path], out: Path) -> None:
    """Give the images, open one that is rejected, try a threshold and take the picture."""
    given: list[FilePayload] = [
        {"name": f"{f.parent.name}_{f.name}", "mimeType": "image/png", "buffer": f.read_bytes()} for f in files
    ]
    page.locator("#files").set_input_files(given)
    expect(page.locator(".tile")).to_have_count(len(files), timeout=120_000)
    expect(page.locator("#stop")).to_be_hidden()
    page.locator("#gallery select").select_option("highest")
    page.locator(".tile.is-defect").nth(2).click()
    page.locator("#what-if").fill("1.68")
    written(page, out)


def written(page: Page, out: Path) -> None:
    """Write what the window shows."""
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(600)
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        picture.convert("RGB").quantize(COLOURS, method=Image.Quantize.FASTOCTREE).save(out, optimize=True)


if __name__ == "__main__":
    main()

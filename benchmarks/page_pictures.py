"""Pictures of the service's page over the demo's synthetic parts: light, dark and 360 pixels wide.

python -m benchmarks.page_pictures demo-out --out benchmarks/pictures

needs a folder of `anomaly demo` and Chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import FilePayload, Page, expect, sync_playwright

SERVE = "import sys; from anomaly.cli import run; sys.exit(run(['serve', f'assembly={sys.argv[1]}', '--port', '0']))"
VIEWS: dict[str, tuple[Literal["light", "dark"], int, int]] = {
    "page_light": ("light", 1280, 1080),
    "page_dark": ("dark", 1280, 1080),
    "page_narrow": ("light", 360, 1240),
}
COLOURS = 256
"""Of a picture, which keeps the files small"""
NUM_EACH = 3


def main() -> None:
    """Serve the demo's model, give it some of its test images and write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    kinds = sorted(options.demo.glob("data/**/test/*"))
    files = [file for kind in kinds for file in sorted(kind.glob("*.png"))[:NUM_EACH]]
    command = [sys.executable, "-c", SERVE, str(options.demo / "model.onnx")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as service:
        try:
            assert service.stderr is not None
            address = next(line.split()[-1] for line in service.stderr if line.startswith("serving on"))
            with sync_playwright() as driver:
                browser = driver.chromium.launch(
                    executable_path=shutil.which("chromium"), args=["--headless", "--no-sandbox", "--disable-gpu"]
                )
                for name, (scheme, width, height) in VIEWS.items():
                    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": height})
                    page.goto(address)
                    expect(page.locator("#card dl")).to_be_visible()
                    take(page, files, options.out / f"{name}.png")
                    page.close()
                browser.close()
        finally:
            service.terminate()


def take(page: Page, files: list[Path], out: Path) -> None:
    """Give the images, open one that is rejected, try a limit and take the picture."""
    given: list[FilePayload] = [
        {"name": f"{f.parent.name}_{f.name}", "mimeType": "image/png", "buffer": f.read_bytes()} for f in files
    ]
    page.locator("#files").set_input_files(given)
    expect(page.locator(".tile")).to_have_count(len(files), timeout=120_000)
    expect(page.locator("#stop")).to_be_hidden()
    page.locator("#gallery select").select_option("highest")
    page.locator(".tile.is-defect").nth(2).click()
    page.locator("#what-if").fill("1.68")
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(300)
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        picture.convert("RGB").quantize(COLOURS, method=Image.Quantize.FASTOCTREE).save(out, optimize=True)


if __name__ == "__main__":
    main()

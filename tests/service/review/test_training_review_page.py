"""The review page of training images: terms, keys, and the list of excluded images."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.service.review.review_run import client_of
from tests.service.review.test_review_browser import running_review
from tests.service.review.training_ranking import write_ranking
from tests.service.running_service import wait_for

pytestmark = pytest.mark.slow


def test_card_gives_the_command_that_excludes(tmp_path: Path) -> None:
    folder = write_ranking(tmp_path)
    with client_of(folder) as client:
        card = client.get("/api/run").json()
        assert card["kind"] == "training"
        assert card["threshold_without"] == 0.5
        assert f"--exclude {folder / 'exclude.txt'}" in card["commands"][0]
        assert client.get("/api/images/0/map").json()["resize"] == "stretch"
        assert client.get("/api/images/0/picture").status_code == 200
        assert client.post("/api/run/check").status_code == 200


def test_image_without_a_map_is_shown_with_a_reason(tmp_path: Path) -> None:
    folder = write_ranking(tmp_path)
    (folder / "suspects/maps/00000000.png").unlink()
    with client_of(folder) as client:
        response = client.get("/api/images/0/map")
        assert response.status_code == 409
        assert "no map" in response.text


def test_keys_exclude_and_keep_images(browser: Browser, tmp_path: Path) -> None:
    folder = write_ranking(tmp_path)
    with running_review(folder) as address:
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        expect(page.locator(".tile")).to_have_count(2)
        page.locator(".tile").first.click()
        expect(page.locator("#verdict h2")).to_have_text("✕Suspicious")
        page.keyboard.press("d")
        wait_for(lambda: (folder / "exclude.txt").is_file() and (folder / "exclude.txt").read_text() == "0.png\n")
        page.keyboard.press("g")
        expect(page.locator("#progress")).to_contain_text("2 of 2 suspicious reviewed; 1 excluded")
        expect(page.locator(".tile-label").first).to_have_text("✕ excluded")
        expect(page.locator("#statistics")).to_contain_text("Nothing is excluded before you fit again")
        page.keyboard.press("u")
        expect(page.locator("#progress")).to_contain_text("1 of 2 suspicious reviewed")
        assert errors == []
        page.close()

"""A real headless browser, without network, for pages that are opened from the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def browser(dark: bool = False, size: tuple[int, int] = (1200, 900)) -> Iterator[Any]:
    """A Chromium that records what its console and its network say; skips where there is none."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs Debian's chromium and chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--disable-background-networking", f"--window-size={size[0]},{size[1]}",
                     *(["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else [])):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield chrome
    finally:
        chrome.quit()


def opened(chrome: Any, page: Path) -> None:
    """Open a page from the disk and wait until its script is done."""
    from selenium.webdriver.support.ui import WebDriverWait

    chrome.get(page.resolve().as_uri())
    WebDriverWait(chrome, 60).until(lambda one: one.execute_script("return document.documentElement.dataset.ready"))


def complaints(chrome: Any) -> list[str]:
    """What the console has said, and every request for something that is not on the disk or in the page itself."""
    import json

    told = [entry["message"] for entry in chrome.get_log("browser")]
    for entry in chrome.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = message["params"]["request"]["url"]
            if not url.startswith(("file:", "data:", "blob:", "chrome:", "about:")):
                told.append(f"request: {url}")
    return told

"""A headless Chromium for the tests of pages; they skip, with the reason, where it or selenium is missing."""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (  # no sandbox: CI runs as root; the rest keeps the browser from calling home
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--window-size=1300,1000",
)  # fmt: skip

#: For `pytestmark`.
headless = [
    pytest.mark.browser,
    pytest.mark.skipif(
        importlib.util.find_spec("selenium") is None,
        reason="needs selenium, from the dev extra: pip install -e '.[dev]'",
    ),
    pytest.mark.skipif(
        not (BROWSER and DRIVER),
        reason="needs chromium and chromedriver on PATH (Debian: apt-get install chromium chromium-driver)",
    ),
]


def started_browser(profile: Path) -> Iterator[Any]:
    """A browser with its own profile; closed at the end."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER or ""
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


def errors(browser: Any) -> list[str]:
    """What the page's console says."""
    return [entry["message"] for entry in browser.get_log("browser")]


def ask(browser: Any, script: str) -> Any:
    """The value of a JavaScript expression."""
    return browser.execute_script(f"return {script}")


def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Wait until something holds; returns it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "the page did not get there in time"
        time.sleep(0.05)
    return found

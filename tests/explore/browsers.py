"""Chromium without a window, driven as a person would, and the command behind it."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import spawn

EXPLORE = "from convnet.cli.explore import main; sys.exit(main())"
OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --force-device-scale-factor=1"
)
PATIENCE = 120  # seconds for what comes sooner or later, on a busy machine


@contextlib.contextmanager
def served(path: Path, *options: str) -> Iterator[str]:
    """The command in a process of its own; its address."""
    process = spawn(str(path), "--no-browser", *options, code=EXPLORE)
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert " is shown at http://127.0.0.1:" in line, line + process.communicate()[1]
        yield line.partition(" is shown at ")[2].partition(" ")[0]
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (130, "\nconvnet-explore: stopped\n")


def programs() -> tuple[str, str]:
    """Chromium's and its driver's; skips where one is missing."""
    pytest.importorskip("selenium", reason="selenium is not installed: pip install '.[test]'")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    driver = shutil.which("chromedriver")
    if not found or not driver:
        pytest.skip("there is no chromium and chromedriver here: apt-get install chromium chromium-driver")
    return found, driver


class Browser:
    """One page of ``width`` x ``height`` pixels, with what it asked for and complained about."""

    def __init__(self, folder: Path, width: int, height: int):
        from selenium import webdriver

        chromium, driver = programs()
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for option in (*OPTIONS.split(), f"--user-data-dir={folder}"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(driver))
        self.driver.set_script_timeout(PATIENCE)
        self.resize(width, height)

    def resize(self, width: int, height: int) -> None:
        """Windows have a least width, pages have none."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, script: str, wanted: Callable[[Any], bool] = bool) -> Any:
        """What the script returns, when that is what is wanted."""
        from selenium.webdriver.support.wait import WebDriverWait

        seen: list[Any] = []

        def asked(_: Any) -> bool:
            seen.append(self.run(script))
            return wanted(seen[-1])

        WebDriverWait(self.driver, PATIENCE, 0.1).until(asked, f"{script}: {seen[-1:]}")
        return seen[-1]

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        chain = ActionChains(self.driver)
        for key in keys:
            chain.send_keys(getattr(Keys, key, key))
        chain.perform()

    def requests(self) -> list[str]:
        """The addresses that were asked for since the last call, without those inside of the browser."""
        told = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [one["params"]["request"]["url"] for one in told if one["method"] == "Network.requestWillBeSent"]
        return [address for address in asked if not address.startswith(("chrome", "data:"))]

    def complaints(self) -> list[str]:
        """Of the console, since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def close(self) -> None:
        self.driver.quit()

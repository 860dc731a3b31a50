"""Takes the picture of ``convnet-explore`` that the README shows, docs/explore.png.

    convnet-train -o runs/shapes                  # the first command of the README, so named that the page can say it
    python tools/screenshots.py runs/shapes

Needs Chromium, chromedriver and selenium. The page is that of the run: a validation picture, the pixels that matter,
the classes, the nearest training pictures, and the towers as far as they fit.
"""

from __future__ import annotations

import argparse
import base64
import io
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

TARGET = Path(__file__).resolve().parents[1] / "docs" / "explore.png"
OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars"
)
SIZE = {"width": 1240, "height": 1375, "deviceScaleFactor": 1, "mobile": False}
COLOURS = 256  # a smaller file, and nobody sees the difference
READY = """return document.getElementById("nearest-said").textContent.startsWith("By Euclidean") &&
  [...document.querySelectorAll("#nearest img")].every((image) => image.complete) &&
  !document.getElementById("heat").hidden"""


def page_of(run: str) -> tuple[subprocess.Popen[str], str]:
    """The command, and where its page is."""
    command = [sys.executable, "-m", "convnet.cli.explore", run, "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, process.stdout.readline().partition(" is shown at ")[2].partition(" ")[0]


def take(driver: Any, address: str, picture: int) -> Image.Image:
    """The page as it looks at a validation picture, when all that takes longer is there."""
    from selenium.webdriver.support.wait import WebDriverWait

    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", SIZE)
    driver.get(address)
    wait = WebDriverWait(driver, 300, 0.2)
    chosen = f"document.querySelector('#examples li:nth-child({picture}) button')"
    wait.until(lambda _: driver.execute_script(f"return {chosen}"))
    driver.execute_script(f"{chosen}.click(); document.getElementById('matter').click()")
    wait.until(lambda _: driver.execute_script(READY))
    driver.execute_script("scrollTo(0, 0)")
    raw = base64.b64decode(driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"])
    return Image.open(io.BytesIO(raw)).convert("RGB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder")
    parser.add_argument("-o", "--output", type=Path, default=TARGET, help="where to (default: docs/explore.png)")
    parser.add_argument("--picture", type=int, default=2, help="which of the validation pictures (default: 2)")
    chosen = parser.parse_args()

    from selenium import webdriver

    chromium, chromedriver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not chromium or not chromedriver:
        print("chromium and chromedriver are needed: apt-get install chromium chromium-driver", file=sys.stderr)
        return 1
    process, address = page_of(chosen.run)
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for option in (*OPTIONS.split(), f"--user-data-dir={profile}"):
            options.add_argument(option)
        driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
        try:
            take(driver, address, chosen.picture).quantize(COLOURS).save(chosen.output, optimize=True)
        finally:
            driver.quit()
            process.send_signal(signal.SIGINT)
            process.wait()
    print(chosen.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Makes the picture of the tour in the README: a chapter of the built site, as a browser shows it.

    mkdocs build && python tools/screenshot_tour.py site docs/tour.png

Needs selenium, and Chromium with its driver.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from selenium import webdriver

PAGE, FIRST = "tour/8-hopper.html", "img[src$='8-hopper-1.png']"  # and what stands at the top of the window
WIDTH, HEIGHT, HEADER = 1280, 900, 80
FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


def shot(address: str) -> bytes:
    """A window of the page."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("chromium-browser") or ""
    service = webdriver.ChromeService(shutil.which("chromedriver"))  # and none that selenium would look for elsewhere
    with tempfile.TemporaryDirectory() as profile:
        for flag in [*FLAGS, f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        browser = webdriver.Chrome(options=options, service=service)
        try:
            window = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
            browser.get(address)
            first = browser.find_element("css selector", FIRST)
            browser.execute_script("scrollTo(0, arguments[0].offsetTop - arguments[1])", first, HEADER)
            time.sleep(2)  # until the header has changed
            png: bytes = browser.get_screenshot_as_png()
        finally:
            browser.quit()
    return png


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path, help="the folder that mkdocs has built")
    parser.add_argument("picture", type=Path, help="a PNG file to be written")
    options = parser.parse_args()
    page = options.site.resolve() / PAGE
    if not page.exists():
        print(f"screenshot_tour: there is no {page}: mkdocs build makes it", file=sys.stderr)
        return 2
    picture = Image.open(io.BytesIO(shot(page.as_uri()))).convert("RGB")
    picture.quantize(128, dither=Image.Dither.NONE).save(options.picture, optimize=True)
    print(f"written: {options.picture}, {options.picture.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Makes the picture of the tour in the README: a chapter of the built site, as a browser shows it.

    mkdocs build && python tools/screenshot_tour.py site docs/tour.png

Needs Chromium (or its name in $CHROMIUM).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PLACE = "tour/8-hopper.html#watching-the-ring"
WIDTH, HEIGHT = 1280, 960
FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--virtual-time-budget=5000",  # the page has settled before it is shot
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path, help="the folder that mkdocs has built")
    parser.add_argument("picture", type=Path, help="a PNG file to be written")
    options = parser.parse_args()
    page = options.site.resolve() / PLACE.partition("#")[0]
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None or not page.exists():
        missing = "there is no Chromium: install it, or set CHROMIUM" if program is None else f"{page} is not built"
        print(f"screenshot_tour: {missing}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as profile:
        shot = Path(profile) / "shot.png"
        address = f"{page.as_uri()}#{PLACE.partition('#')[2]}"
        size = f"--window-size={WIDTH},{HEIGHT}"
        command = [program, *FLAGS, f"--user-data-dir={profile}", size, f"--screenshot={shot}", address]
        subprocess.run(command, check=True, capture_output=True)
        picture = Image.open(shot).convert("RGB")
    picture.quantize(128, dither=Image.Dither.NONE).save(options.picture, optimize=True)
    print(f"written: {options.picture}, {options.picture.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())

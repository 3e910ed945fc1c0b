"""Takes the picture of the page that the documents show, ``docs/page.png``.

``CLIP_MODEL_DIR=model python -m tests.picture``, with a ``chromium`` on the machine.
"""

import io
from pathlib import Path

from PIL import Image, ImageOps
from playwright.sync_api import sync_playwright

from export import images
from handler.config import Config
from handler.encoder import load_encoder
from tests.conftest import ROOT, serve
from tests.test_page import CHROMIUM, FLAGS, Visit, choose, compare

PICTURE = ROOT / "docs" / "page.png"
LABELS = "a cat, a cup of coffee, an astronaut"


def photographs() -> dict[str, bytes]:
    """Three of one cat, so that there is something alike, and three others."""
    cat = images.photograph("chelsea")
    pictures = {
        "cat": cat,
        "cat nearer": cat.crop((60, 10, 420, 290)),
        "cat mirrored": ImageOps.mirror(cat),
        **{name: images.photograph(name) for name in ("coffee", "astronaut", "rocket")},
    }
    return {
        f"{name}.jpg": images.encoded(picture.convert("RGB"), "JPEG", quality=90)
        for name, picture in pictures.items()
    }


def main(path: Path = PICTURE) -> None:
    """Use the page as a visitor would, and write what is to be seen then to `path`."""
    with serve(load_encoder(Config.from_env())) as client, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS])
        page = Visit(browser, f"{client.base_url}/", width=1040).page
        page.locator("#version").get_by_text("Version").wait_for()
        choose(page, photographs())
        compare(page, LABELS)
        page.locator(".bars .best").first.wait_for()
        page.locator("#texts").blur()
        page.wait_for_timeout(500)  # the bars grow
        shot = Image.open(io.BytesIO(page.screenshot(full_page=True)))
        browser.close()
    shot.convert("RGB").quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    main()

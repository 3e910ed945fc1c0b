"""The page at ``/`` and the viewer at ``/docs``, in a real Chromium before the real server."""

import base64
import copy
import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Error,
    FilePayload,
    Page,
    Request,
    expect,
    sync_playwright,
)

from export import images
from handler.config import Config
from handler.encoder import Encoder
from handler.engines import Embeddings, Pixels, TokenIds
from handler.engines.onnx_cpu import OnnxCpuEngine
from handler.http.app import create_app
from handler.http.page import FILE
from handler.http.policy import policy
from handler.model import Model
from tests.conftest import image_tower, require, serve, with_engine, with_golden, with_settings

CHROMIUM = shutil.which("chromium")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--host-resolver-rules=MAP clip.test 127.0.0.1",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    require("chromium", CHROMIUM, "no chromium on this machine")
    expect.set_options(timeout=60_000)  # on a busy machine; what is expected comes sooner or never
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS])
        yield chromium
        chromium.close()


class Visit:
    """A page in a browser window of its own, and what the browser said and asked meanwhile."""

    def __init__(self, browser: Browser, url: str, dark: bool = False, width: int = 1180) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            permissions=["clipboard-read", "clipboard-write"],
        )
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", self._note_request)
        self.page.on("pageerror", self._note_error)
        self.page.on("console", self._note_message)
        # From the first listener on the browser shows no dialog of its own, but not at once.
        self.page.on("filechooser", lambda _: None)
        self.page.goto(url)

    def _note_request(self, request: Request) -> None:
        self.asked.append(request.url)

    def _note_error(self, error: Error) -> None:
        self.complaints.append(str(error))

    def _note_message(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.complaints.append(message.text)


Open = Callable[..., Visit]


@pytest.fixture
def visit(browser: Browser, client: httpx.Client) -> Iterator[Open]:
    """Opens the page, by default the shared server's, once it knows how the service is."""
    visits = []

    def open_page(url: str = str(client.base_url), **options: bool | int) -> Visit:
        visits.append(Visit(browser, f"{url}/", **options))  # type: ignore[arg-type]
        expect(visits[-1].page.locator("#service")).not_to_contain_text("Asking")
        return visits[-1]

    yield open_page
    for one in visits:
        one.context.close()


def file(name: str, data: bytes) -> FilePayload:
    return {"name": name, "mimeType": "application/octet-stream", "buffer": data}


def pictures() -> dict[str, bytes]:
    """A cat, the same cat nearer, and another picture."""
    cat = images.photograph("chelsea")
    return {
        "cat.jpg": images.encoded(cat, "JPEG", quality=90),
        "closer.png": images.encoded(cat.crop((60, 10, 420, 290)), "PNG"),
        "coffee.webp": images.encoded(images.photograph("coffee"), "WEBP"),
    }


def choose(page: Page, files: dict[str, bytes]) -> None:
    page.set_input_files("#files", [file(name, data) for name, data in files.items()])
    expect(page.locator("#status")).not_to_be_empty()


def card(page: Page, name: str) -> str:
    """The text of one image's card."""
    return page.locator(".card", has=page.locator(f'.name[title="{name}"]')).inner_text()


def test_each_image_has_its_format_size_and_time(visit: Open) -> None:
    page = visit().page
    choose(page, pictures())
    assert re.search(r"\nJPEG · 451 . 300 · \d+ ms\n?", card(page, "cat.jpg"))
    assert re.search(r"\nPNG · 360 . 280 · \d+ ms\n?", card(page, "closer.png"))
    assert re.search(r"\nWebP · 600 . 400 · \d+ ms\n?", card(page, "coffee.webp"))
    expect(page.locator("#progress")).to_have_text("3 encoded")


def test_the_heat_map_and_the_pairs_are_the_cosines(visit: Open, encoder: Encoder) -> None:
    page = visit().page
    files = pictures()
    choose(page, files)
    vectors = [encoder.encode(data) for data in files.values()]
    shown = page.locator("#heat tbody tr").all()
    for row, vector in zip(shown, vectors, strict=True):
        numbers = [float(text) for text in row.locator("td").all_inner_texts()]
        assert numbers == pytest.approx([float(vector @ other) for other in vectors], abs=0.0051)
    cosines = {
        f"{a}, {b}": float(vectors[i] @ vectors[j])
        for i, a in enumerate(files)
        for j, b in enumerate(files)
        if i < j
    }
    nearest = sorted(cosines, key=lambda pair: -cosines[pair])
    assert page.locator("#pairs .name").all_inner_texts() == nearest
    texts = page.locator("#pairs .number").all_inner_texts()
    assert [float(text) for text in texts] == pytest.approx(
        [cosines[pair] for pair in nearest], abs=0.00051
    )
    # The nearest pair is painted hottest, the farthest coldest.
    heat = [
        float(cell.evaluate("cell => cell.style.getPropertyValue('--heat')"))
        for cell in page.locator("#heat td[title]").all()
    ]
    assert (min(heat), max(heat)) == (0, 1)


def test_a_picture_is_pasted(visit: Open) -> None:
    page = visit().page
    png = base64.b64encode(pictures()["closer.png"]).decode()
    page.evaluate(
        """async (png) => {
            const data = Uint8Array.from(atob(png), (c) => c.charCodeAt(0));
            const blob = new Blob([data], {type: "image/png"});
            await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
        }""",
        png,
    )
    page.keyboard.press("Control+V")
    expect(page.locator("#progress")).to_have_text("1 encoded")
    expect(page.locator(".card .name")).to_contain_text("pasted")
    expect(page.locator(".card .meta")).to_have_text(re.compile("PNG · 360 . 280"))


def test_pictures_are_dropped_anywhere(visit: Open) -> None:
    page = visit().page
    dropped = page.evaluate_handle(
        """(files) => {
            const transfer = new DataTransfer();
            for (const [name, text] of Object.entries(files)) {
                const data = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
                transfer.items.add(new File([data], name));
            }
            return transfer;
        }""",
        {name: base64.b64encode(data).decode() for name, data in pictures().items()},
    )
    page.dispatch_event("footer", "dragover", {"dataTransfer": dropped})
    expect(page.locator("body")).to_have_class("dragging")
    page.dispatch_event("footer", "drop", {"dataTransfer": dropped})
    expect(page.locator("#progress")).to_have_text("3 encoded")
    expect(page.locator("body")).not_to_have_class("dragging")


def test_a_bad_file_fails_alone_in_the_services_own_words(
    visit: Open, client: httpx.Client
) -> None:
    page = visit().page
    cat = pictures()["cat.jpg"]
    bad = {"notes.txt": b"dear diary", "half.jpg": cat[:2000], "empty.png": b""}
    choose(page, {**bad, "cat.jpg": cat})
    expect(page.locator("#progress")).to_have_text("1 encoded, 3 failed")
    for name, data in bad.items():
        headers = {"content-type": "application/octet-stream"}
        error = client.post("/encode_image", content=data, headers=headers).json()
        assert f"{error['code']} {error['detail']}" in card(page, name)
        assert "Try again" not in card(page, name)  # it would fail again
    assert "TIFF" not in card(page, "half.jpg")


def test_what_a_browser_cannot_show_is_encoded_all_the_same(visit: Open) -> None:
    page = visit().page
    choose(page, {"scan.tif": images.encoded(images.photograph("coffee"), "TIFF")})
    expect(page.locator("#progress")).to_have_text("1 encoded")
    expect(page.locator(".card span.thumb")).to_have_text("TIFF")


def test_all_of_it_works_by_keyboard(visit: Open, tmp_path: Path) -> None:
    page = visit().page
    for name, data in pictures().items():
        (tmp_path / name).write_bytes(data)
    page.keyboard.press("Tab")
    expect(page.locator("#files")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(sorted(tmp_path.iterdir()))
    expect(page.locator("#progress")).to_have_text("3 encoded")
    page.keyboard.press("Tab")
    page.keyboard.type("a cat, a cup of coffee")
    page.keyboard.press("Enter")
    expect(page.locator(".bars .best")).to_have_count(3)
    focused = "document.activeElement.ariaLabel ?? document.activeElement.textContent"
    for name in ("Compare", "", "Download vectors", "Remove all", "Remove cat.jpg"):
        page.keyboard.press("Tab")
        assert page.evaluate(focused) == name
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # removes the second
    assert page.locator(".card .name").all_inner_texts() == ["cat.jpg", "coffee.webp"]
    # and the focus is at the one that has moved up, so that Enter goes on removing.
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(page.locator("#images")).to_be_hidden()
    assert page.evaluate("document.activeElement.id") == "files"


def test_all_are_removed_by_one_key_and_the_next_can_be_chosen_by_another(visit: Open) -> None:
    page = visit().page
    choose(page, pictures())
    page.focus("#clear")
    page.keyboard.press("Enter")
    expect(page.locator(".card")).to_have_count(0)
    expect(page.locator("#likeness")).to_be_hidden()
    expect(page.locator("#files")).to_be_focused()


def test_the_vectors_can_be_saved(visit: Open, encoder: Encoder) -> None:
    page = visit().page
    files = pictures()
    choose(page, files)
    with page.expect_download() as download:
        page.click("#download")
    saved = json.loads(download.value.path().read_text())
    assert saved["fingerprint"] == encoder.fingerprint
    for image, (name, data) in zip(saved["images"], files.items(), strict=True):
        assert image["name"] == name
        assert image["embedding"] == [float(number) for number in encoder.encode(data)]


def test_more_images_than_the_page_holds_are_left_out_and_said_to_be(visit: Open) -> None:
    page = visit().page
    tiny = images.encoded(images.photograph("coffee").resize((8, 8)), "PNG")
    choose(page, {f"{number}.png": tiny for number in range(50)})
    expect(page.locator("#notice")).to_have_text(
        "This page holds 48 images; 2 of those were left out."
    )
    expect(page.locator("#progress")).to_have_text("48 encoded")
    assert page.locator("#heat td[title]").count() == 48 * 47


# --- labels ---------------------------------------------------------------------------------------

LABELS = ["a cat", "a cup of coffee", "a rocket"]


def compare(page: Page, labels: str) -> None:
    page.fill("#texts", labels)
    page.press("#texts", "Enter")


def bars(page: Page, name: str) -> list[tuple[str, float]]:
    """The labels of one image's bars, and their percentages, from the top."""
    shown = page.locator(".card", has=page.locator(f'.name[title="{name}"]')).locator(".bars")
    return [
        (label, float(percent.removesuffix(" %")))
        for label, percent in zip(
            shown.locator(".label").all_inner_texts(),
            shown.locator(".number").all_inner_texts(),
            strict=True,
        )
    ]


@pytest.mark.parametrize("templates", [["a photo of a {}."], ["{}"]])
def test_labels_have_the_probabilities_that_the_service_gives(
    visit: Open, client: httpx.Client, templates: list[str]
) -> None:
    page = visit().page
    files = pictures()
    choose(page, files)
    page.set_checked("#template", templates != ["{}"])
    compare(page, f" {', '.join(LABELS)},, a cat ,")
    expect(page.locator(".bars .best")).to_have_count(3)
    asked = {
        "queries": [{"image": base64.b64encode(data).decode()} for data in files.values()],
        "candidates": [{"text": label} for label in LABELS],
        "templates": templates,
    }
    probabilities = client.post("/rank", json=asked).json()["probabilities"]
    for name, row in zip(files, probabilities, strict=True):
        expected = sorted(zip(LABELS, row, strict=True), key=lambda bar: -bar[1])
        found = bars(page, name)
        assert [label for label, _ in found] == [label for label, _ in expected]
        assert [percent for _, percent in found] == pytest.approx(
            [100 * share for _, share in expected], abs=0.06
        )
        track = page.locator(f'.card:has(.name[title="{name}"]) .track').first
        fill = page.locator(f'.card:has(.name[title="{name}"]) .fill').first
        page.wait_for_timeout(400)  # the bar grows
        widths = [part.bounding_box() or {"width": 0} for part in (fill, track)]
        assert widths[0]["width"] / widths[1]["width"] == pytest.approx(expected[0][1], abs=0.01)
    # The text tower, which was loaded by the first label, has a name too.
    expect(page.locator("#fingerprint")).to_contain_text(
        client.get("/health").json()["text_fingerprint"]
    )


def test_images_that_come_later_are_compared_with_the_labels_too(visit: Open) -> None:
    page = visit().page
    cat, *others = pictures().items()
    choose(page, dict([cat]))
    compare(page, "a cat, a rocket")
    expect(page.locator(".bars .best")).to_have_count(1)
    choose(page, dict(others))
    expect(page.locator(".bars .best")).to_have_count(3)


def test_of_many_labels_the_likeliest_are_shown(visit: Open) -> None:
    page = visit().page
    choose(page, {"cat.jpg": pictures()["cat.jpg"]})
    compare(page, ",".join(f"label {number}" for number in range(12)))
    expect(page.locator(".bars .label")).to_have_count(8)
    expect(page.locator(".bars")).to_contain_text("and 4 more")


def test_a_label_that_is_refused_is_named_and_costs_no_other(
    visit: Open, client: httpx.Client
) -> None:
    page = visit().page
    choose(page, {"cat.jpg": pictures()["cat.jpg"]})
    long = "very " * 100 + "long"
    page.uncheck("#template")
    compare(page, f"a cat, {long}, a rocket")
    detail = client.post("/encode_text", json={"text": long}).json()["detail"]
    expect(page.locator("#labels-error")).to_have_text(f"“{long[:39]}…”: {detail}")
    assert {label for label, _ in bars(page, "cat.jpg")} == {"a cat", "a rocket"}


def test_too_many_labels_are_refused_in_the_services_words(visit: Open) -> None:
    page = visit().page
    choose(page, {"cat.jpg": pictures()["cat.jpg"]})
    compare(page, ",".join(f"label {number}" for number in range(300)))
    expect(page.locator("#labels-error code")).to_have_text("too_many_texts")


@pytest.mark.parametrize(
    ("files", "labels", "text"),
    [({}, "a cat", "Add an image first."), (["cat.jpg"], " , ", "Type a label first.")],
)
def test_what_is_missing_is_named(visit: Open, files: list[str], labels: str, text: str) -> None:
    page = visit().page
    if files:
        choose(page, {name: pictures()[name] for name in files})
    compare(page, labels)
    expect(page.locator("#labels-error")).to_have_text(text)


def test_a_service_without_words_says_so(visit: Open, encoder: Encoder) -> None:
    images_only = copy.copy(encoder)
    images_only.texts = None
    with serve(images_only) as client:
        page = visit(str(client.base_url)).page
        expect(page.locator("#labels-note")).to_contain_text("no text tower")
        expect(page.locator("#texts")).to_be_disabled()
        choose(page, pictures())
        expect(page.locator("#heat td[title]")).to_have_count(6)


# --- what the service is --------------------------------------------------------------------------


def test_synthetic_weights_are_shouted(visit: Open, encoder: Encoder) -> None:
    page = visit().page
    expect(page.get_by_role("alert").first).to_contain_text("SYNTHETIC WEIGHTS")
    expect(page.get_by_role("alert").first).to_contain_text("mean nothing")
    expect(page.locator("#fingerprint")).to_contain_text(encoder.fingerprint)


def test_other_weights_are_not(visit: Open, encoder: Encoder, model: Model, config: Config) -> None:
    official = dataclasses.replace(model, weights="openai")
    tower = image_tower(encoder)
    healthy = Encoder(tower.engine, official, config, tower.decoder)
    with serve(healthy) as client:
        page = visit(str(client.base_url)).page
        expect(page.locator("#service")).to_have_text("ViT-B/32 · onnx on cpu · healthy")
        expect(page.locator("#banner")).to_be_hidden()


def test_a_failed_self_check_is_shouted(
    visit: Open, encoder: Encoder, model: Model, config: Config
) -> None:
    tower = image_tower(encoder)
    other = with_golden(model, "image", -model.towers["image"].golden.embedding)
    with serve(Encoder(tower.engine, other, config, tower.decoder)) as client:
        page = visit(str(client.base_url)).page
        expect(page.get_by_role("alert").first).to_contain_text("SELF-CHECK FAILED")
        choose(page, {"cat.jpg": pictures()["cat.jpg"]})
        assert "model_unhealthy" in card(page, "cat.jpg")


def test_what_may_work_later_can_be_tried_again(
    visit: Open, encoder: Encoder, model: Model
) -> None:
    class Failing(OnnxCpuEngine):
        broken = True

        def encode(self, inputs: Pixels | TokenIds) -> Embeddings:
            if self.broken:
                raise RuntimeError
            return super().encode(inputs)

    engine = Failing(model, threads=1)
    with serve(with_engine(encoder, engine)) as client:
        page = visit(str(client.base_url)).page
        choose(page, {"cat.jpg": pictures()["cat.jpg"]})
        assert "internal_error the service failed" in card(page, "cat.jpg")
        engine.broken = False
        page.get_by_role("button", name="Try again").click()
        expect(page.locator("#progress")).to_have_text("1 encoded")
        assert "internal_error" not in card(page, "cat.jpg")


def test_a_service_that_has_gone_is_named(visit: Open, encoder: Encoder) -> None:
    with serve(with_settings(encoder)) as client:
        page = visit(str(client.base_url)).page
    choose(page, {"cat.jpg": pictures()["cat.jpg"]})
    assert "no_answer there is no answer: the service is gone" in card(page, "cat.jpg")


def test_behind_a_proxys_path_it_works_as_well(visit: Open, encoder: Encoder) -> None:
    with serve(with_settings(encoder, base_path="/pictures")) as client:
        seen = visit(f"{client.base_url}/pictures")
        page = seen.page
        choose(page, pictures())
        expect(page.locator("#progress")).to_have_text("3 encoded")
        assert page.get_attribute("#docs", "href") == "/pictures/docs"
        page.click("#docs")
        expect(page.locator(".opblock-summary-path").first).to_contain_text("/encode_image")
        # A proxy would pass nothing else on.
        asked = [url for url in seen.asked if not url.startswith(("blob:", "data:"))]
        assert [url for url in asked if not url.startswith(f"{client.base_url}/pictures/")] == []


# --- how it looks ---------------------------------------------------------------------------------

CONTRASTS = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
    const rgba = (color) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = (color) => {
        const [r, g, b] = rgba(color).map((c) => c / 255)
            .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (element) => {
        const color = getComputedStyle(element).backgroundColor;
        return rgba(color)[3] === 255 ? color : ground(element.parentElement);
    };
    const seen = [...document.body.querySelectorAll("*")].filter((element) =>
        element.checkVisibility() && !element.matches(":disabled, script, style, .unseen") &&
        [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
    return seen.map((element) => {
        const [a, b] = [light(getComputedStyle(element).color), light(ground(element))];
        return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.outerHTML.slice(0, 120)];
    });
}"""


@pytest.mark.parametrize("dark", [False, True])
def test_every_word_can_be_read_by_day_and_by_night(visit: Open, dark: bool) -> None:
    """WCAG's AA: a contrast of 4.5 between each text and what is behind it."""
    page = visit(dark=dark).page
    choose(page, {**pictures(), "notes.txt": b"dear diary"})
    found = page.evaluate(CONTRASTS)
    assert len(found) > 30
    assert [(contrast, text) for contrast, text in found if contrast < 4.5] == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in re.findall(r"\d+", background)) / 3
    assert brightness < 64 if dark else brightness > 192


def test_it_fits_a_phone(visit: Open) -> None:
    page = visit(width=360).page
    tiny = images.encoded(images.photograph("coffee").resize((8, 8)), "PNG")
    more = {f"{number}.png": tiny for number in range(6)}  # with a heat map wider than the phone
    choose(page, {**pictures(), **more, "a" * 200 + ".txt": b"dear diary"})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for button in page.locator("button:visible, .button:visible").all():
        box = button.bounding_box()
        assert box
        assert min(box["width"], box["height"]) >= 24  # WCAG's AA for fingers


# --- no other server ------------------------------------------------------------------------------


def test_no_request_goes_to_another_host(visit: Open, client: httpx.Client) -> None:
    # By a name, because some scripts do less on the machine that they are developed on.
    address = f"http://clip.test:{client.base_url.port}"
    seen = visit(address)
    choose(seen.page, pictures())
    seen.page.click("#docs")
    expect(seen.page.locator(".opblock").first).to_be_visible()
    seen.page.wait_for_load_state("networkidle")
    asked = [url for url in seen.asked if not url.startswith(("blob:", "data:"))]
    assert len([url for url in asked if url.endswith("/encode_image")]) == 3
    assert len([url for url in asked if "/docs" in url]) >= 3
    assert [url for url in asked if not url.startswith(f"{address}/")] == []
    assert seen.complaints == []


def test_nothing_foreign_would_run_or_load(visit: Open) -> None:
    """Whatever found its way into the page."""
    page = visit().page
    blocked = page.evaluate(
        """() => new Promise((resolve) => {
            const blocked = [];
            addEventListener("securitypolicyviolation", (event) => {
                blocked.push(event.effectiveDirective);
                if (blocked.length === 4) resolve(blocked.sort());
            });
            setTimeout(() => resolve(blocked.sort()), 10000);
            const script = document.createElement("script");
            script.textContent = "window.foreign = true";
            document.body.append(script);
            document.body.insertAdjacentHTML("beforeend", "<p onclick='foreign = true'>");
            document.body.lastChild.click();
            document.body.insertAdjacentHTML("beforeend", "<img src='http://other.invalid/a.png'>");
            fetch("http://other.invalid/").catch(() => {});
        })"""
    )
    assert blocked == ["connect-src", "img-src", "script-src-attr", "script-src-elem"]
    assert page.evaluate("window.foreign") is None


def test_a_policy_names_what_stands_in_the_page_and_what_else_is_allowed() -> None:
    html = "<style>a{}</style><script>1</script><script src='x'></script><script>2</script>"
    assert policy(html, img="blob:", script="'self'") == (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "style-src 'sha256-X1RutGBrXCt9KkSaXMK7tHftWiRscFHOhxsS8tv8hBk='; "
        "script-src 'sha256-a4ayc/80/OGda4BO/1o/V0etpOqiLx1JwB5S3beHW0s=' "
        "'sha256-1HNeOiZeFu7gP1lxi5tdAwGcB9i2xR+Q2jpmbuwTqzU=' 'self'; img-src blob:"
    )


def test_where_the_viewer_is_not_installed_the_documentation_is_fastapis(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi_offline", None)
    with serve(with_settings(encoder)) as client:
        assert "cdn.jsdelivr.net" in client.get("/docs").text


# --- where it is ----------------------------------------------------------------------------------


def _paths(encoder: Encoder) -> set[str]:
    return {str(getattr(route, "path", "")) for route in create_app(encoder).routes}


@pytest.mark.parametrize(
    ("setting", "on_lambda", "there"),
    [
        ("auto", "", True),
        ("auto", "clip", False),
        ("on", "clip", True),
        ("off", "", False),
        ("off", "clip", False),
    ],
)
def test_where_there_is_a_page(
    encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    on_lambda: str,
    there: bool,
) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", on_lambda)
    assert ("/" in _paths(with_settings(encoder, page=setting))) is there


def test_the_page_is_one_file_that_names_no_other_server() -> None:
    html = FILE.read_text()
    addresses = re.findall(r"https?://[^\s'\"]+", html)
    assert addresses == ["http://www.w3.org/2000/svg"]  # a name, which nobody fetches
    assert not re.findall(r"\bstyle=|\son\w+=", html)  # the policy would ignore them

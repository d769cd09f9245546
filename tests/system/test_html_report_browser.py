"""The page of `photozhpc report` in a browser: what is seen, read out, and reached by keyboard.

With PHOTOZHPC_DOCS_IMAGES set, the page is of the sky of `photozhpc infer --survey roman-sim` and
the screenshots go to docs/images.
"""

import io
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import chdir
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from builders.catalogs import ALONE
from builders.paths import ROOT
from photozhpc.catalog.run import run_inference
from photozhpc.cli import main
from photozhpc.html_report.page import write_report
from photozhpc.model import bundled_checkpoint
from photozhpc.model.calibrate import calibrate

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is there (apt: chromium)")
FOR_DOCS = bool(os.environ.get("PHOTOZHPC_DOCS_IMAGES"))
IMAGES = ROOT / "docs" / "images"
MAX_BYTES = 400_000


def wait_for_images(page) -> None:
    """As page.wait_for_function, which evaluates a string in the page: its CSP forbids that."""
    end = time.monotonic() + 30
    while not page.evaluate("[...document.images].every(i => i.complete)"):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def report(small_store, small_sky, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("browser") / "out"
    if FOR_DOCS:
        with chdir(out.parent):  # paths on the page are as a user sees them
            said = CliRunner().invoke(main, ["infer", "--survey", "roman-sim"])
            assert said.exit_code == 0, said.output
            return write_report("out/roman-sim").absolute()
    bundled = bundled_checkpoint("roman-sim")
    model = calibrate(bundled, small_store, out.with_name("model.safetensors"))
    run_inference(small_store.path, model, out, **ALONE)
    return write_report(out, [f"{small_sky}/*_truth.parquet"])


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = IMAGES if FOR_DOCS else tmp_path_factory.mktemp("images")
    folder.mkdir(exist_ok=True)
    return folder


def opened(browser, report: Path, scheme: str, width: int):
    """Open the page; return it with what it asked for and complained of."""
    page = browser.new_page(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
        reduced_motion="reduce",
    )
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(report.as_uri())
    wait_for_images(page)
    return page, requests, complaints


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_it_renders_alone_and_is_accessible(browser, report, scheme, width):
    page, requests, complaints = opened(browser, report, scheme, width)
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]
    assert complaints == []
    assert page.evaluate("[...document.images].every(i => i.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert "roman-sim" in page.title()
    page.close()


def test_keyboard(browser, report):
    page, _, _ = opened(browser, report, "light", 1280)
    page.keyboard.press("Tab")
    focus = "document.activeElement"
    assert page.evaluate(f"{focus}.textContent") == "Skip to the content"
    box = page.evaluate(f"(r => [r.left, r.top])({focus}.getBoundingClientRect())")
    assert min(box) >= 0  # in sight, now that it has the focus
    seen = []
    for _ in range(8):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(f"{focus}.getAttribute('href')"))
        assert page.evaluate(f"getComputedStyle({focus}).outlineStyle") == "solid"
    assert seen[0] == "#sky"
    assert seen[-1] == "#provenance"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#provenance"
    assert page.evaluate("document.querySelector('#provenance').getBoundingClientRect().top") < 900
    page.close()


def test_structure_and_words(browser, report):
    page, _, _ = opened(browser, report, "light", 1280)
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.locator("main").count() == page.locator("nav").count() == 1
    assert page.get_attribute("html", "lang") == "en"
    for text in page.evaluate("[...document.querySelectorAll('figure img')].map(i => i.alt)"):
        assert any(letter.isdigit() for letter in text), text
    assert page.evaluate("[...document.querySelectorAll('th')].every(h => h.scope)")
    page.close()


def test_dark_is_dark(browser, report):
    grounds, sources = [], []
    for scheme in ("light", "dark"):
        page, _, _ = opened(browser, report, scheme, 1280)
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        grounds.append(sum(map(int, ground.removeprefix("rgb(").removesuffix(")").split(","))))
        sources.append(
            page.evaluate("[...document.querySelectorAll('picture img')].map(i => i.currentSrc)")
        )
        page.emulate_media(media="print")
        wait_for_images(page)
        printed = page.evaluate("document.querySelector('picture img').currentSrc")
        assert printed == sources[0][0]  # on paper, as in the light
        page.close()
    assert grounds[0] > 700 > 100 > grounds[1]
    assert len(sources[0]) >= 6
    assert all(light != dark for light, dark in zip(*sources, strict=True))


@pytest.mark.parametrize(
    ("name", "scheme", "width", "first", "length"),
    [
        ("light", "light", 1280, "header", 2450),
        ("dark", "dark", 1280, "section[aria-labelledby=photometry]", 2000),
        ("phone", "light", 390, "header", 1900),
    ],
)
def test_screenshots(browser, report, images, name, scheme, width, first, length):
    """From the element `first` on; those of a desktop 960 pixels wide, as the docs show them."""
    page, _, _ = opened(browser, report, scheme, width)
    top = page.evaluate(f"document.querySelector('{first}').getBoundingClientRect().top")
    length = min(length, page.evaluate("document.documentElement.scrollHeight") - top)
    clip = {"x": 0, "y": top, "width": width, "height": length}
    content = page.screenshot(full_page=True, clip=clip)
    page.close()
    image = Image.open(io.BytesIO(content)).convert("RGB")
    if width > 960:
        image = image.resize((960, round(image.height * 960 / width)), Image.Resampling.LANCZOS)
    file = images / f"report-{name}.png"
    image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE).save(
        file, optimize=True
    )
    assert 20_000 < file.stat().st_size < MAX_BYTES

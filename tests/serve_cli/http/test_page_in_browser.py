"""The page as people use it, in a real browser: Chromium, driven by Playwright."""

import base64
import io
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("playwright", reason="needs playwright")

from playwright.sync_api import Browser, ConsoleMessage, Page, Response, Route, expect, sync_playwright

from tests.serve_cli.http.serving import serving

SCREENSHOTS = os.environ.get("MNIST_SCREENSHOTS", "")
PREDICT = re.compile(r"/predict\b")
ARGUMENTS = ["--disable-quic", "--disable-background-networking", "--disable-component-update"]

Point = tuple[float, float]
Visit = Callable[..., Page]

SEVEN: list[Point] = [(0.28, 0.25), (0.72, 0.25), (0.6, 0.5), (0.45, 0.82)]
THREE: list[Point] = [
    (0.48 + 0.17 * math.cos(angle), middle + 0.15 * math.sin(angle))
    for middle, start, stop in ((0.32, -2.6, 1.5), (0.63, -1.5, 2.6))
    for angle in np.linspace(start, stop, 12)
]
"""Strokes, as shares of the sheet."""

RECORD = """
const send = window.fetch;
window.sent = [];
window.flying = window.mostFlying = 0;
window.fetch = async (address, options) => {
  const at = performance.now();
  const bytes = new Uint8Array(await options.body.arrayBuffer());
  const text = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  sent.push({ at, headers: options.headers, text });
  mostFlying = Math.max(mostFlying, ++flying);
  try { return await send(address, options); } finally { flying--; }
};
"""
"""What was sent, kept in the page: Playwright does not see the bytes of blobs."""

DEAF = """
const send = window.fetch;
const gate = new Promise((resolve) => { window.release = resolve; });
window.arrived = 0;
window.fetch = async (address, { signal, ...options }) => {
  const response = await send(address, options);
  const answer = await response.json();
  await gate;
  return { ok: true, status: 200, json: async () => { arrived++; return answer; } };
};
"""
"""Answers that come when `release` is called, whether or not the page still wants them."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ["chromium", "chromium-browser", "google-chrome"]
    found = os.environ.get("MNIST_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not found:
        pytest.skip(f"needs Chromium: none of {', '.join(names)} is on the PATH, nor named by MNIST_CHROMIUM")
    sandbox = os.geteuid() != 0  # Chromium refuses to have one as root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS, chromium_sandbox=sandbox)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    with serving() as server:
        yield server.url


@pytest.fixture
def visit(browser: Browser, server_url: str) -> Iterator[Visit]:
    """Open the page; whatever the browser complains of, or asks another host for, fails the test."""
    complaints: list[str] = []
    contexts = []

    def hear(message: ConsoleMessage) -> None:
        expected = message.text.startswith("Failed to load resource") and PREDICT.search(
            message.location["url"]
        )
        if message.type in ("error", "warning") and not expected:
            complaints.append(message.text)

    def check(response: Response) -> None:
        if response.status >= 400 and not PREDICT.search(response.url):
            complaints.append(f"{response.status} {response.url}")

    def ask(url: str) -> None:
        if not url.startswith((f"{server_url}/", "data:", f"blob:{server_url}/")):
            complaints.append(f"asked for {url}")

    def open_page(script: str = "", **options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", hear)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: ask(request.url))
        page.on("response", check)
        if script:
            page.add_init_script(script)
        page.goto(server_url)
        expect(page.locator("#bars li")).to_have_count(10)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def seven_png(digit: np.ndarray, tmp_path: Path) -> Path:
    """A genuine 7 as somebody would have scanned it: large, dark on light."""
    path = tmp_path / "a seven <b>&.png"
    Image.fromarray(255 - np.kron(digit, np.ones((12, 12), np.uint8))).save(path)
    return path


def keep(page: Page, name: str) -> None:
    if SCREENSHOTS:
        page.screenshot(path=Path(SCREENSHOTS, f"{name}.png"), full_page=True, animations="disabled")


def at(page: Page, point: Point) -> Point:
    box = page.locator("#drawing").bounding_box()
    assert box is not None
    return box["x"] + point[0] * box["width"], box["y"] + point[1] * box["height"]


def press(page: Page, stroke: list[Point], steps: int = 3) -> None:
    """Draw with the mouse, and leave its button down."""
    page.mouse.move(*at(page, stroke[0]))
    page.mouse.down()
    for point in stroke[1:]:
        page.mouse.move(*at(page, point), steps=steps)


def draw(page: Page, stroke: list[Point], steps: int = 3) -> None:
    press(page, stroke, steps)
    page.mouse.up()


def expect_seven(page: Page) -> None:
    expect(page.locator("#verdict")).to_have_text("7")
    expect(page.locator("#announcement")).to_have_text(re.compile(r"^7, \d+\.\d\s%$"))


def expect_nothing(page: Page) -> None:
    expect(page.locator("#verdict")).to_have_text("")
    expect(page.locator("#detail")).to_have_text("Nothing to read yet")
    expect(page.locator("#invitation")).to_be_visible()
    expect(page.locator("#seen")).to_have_accessible_name("What the net sees: nothing yet")


def answer(page: Page, status: int = 200, headers: dict[str, str] | None = None, **changes: Any) -> None:
    """Let every request have this answer from now on."""
    found = {
        "file": "-",
        "label": 4,
        "best_guess": 4,
        "confidence": 0.91,
        "probabilities": [0.01] * 4 + [0.91] + [0.01] * 5,
        "preprocessing": {"warnings": []},
        "pixels": [[0] * 28] * 10 + [[0] * 10 + [255] * 8 + [0] * 10] * 8 + [[0] * 28] * 10,
        **changes,
    }
    page.unroute(PREDICT)
    page.route(PREDICT, lambda route: route.fulfill(status=status, headers=headers, json=found))


def sent(page: Page) -> list[dict[str, Any]]:
    return page.evaluate("sent")


def last_picture(page: Page) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(sent(page)[-1]["text"])))


def transfer(page: Page, path: Path, kind: str = "image/png") -> Any:
    """What a drop or a paste of the file carries."""
    return page.evaluate_handle(
        """([text, name, type]) => {
          const transfer = new DataTransfer();
          const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
          transfer.items.add(new File([bytes], name, { type }));
          return transfer;
        }""",
        [base64.b64encode(path.read_bytes()).decode(), path.name, kind],
    )


def paste(page: Page, data: Any) -> None:
    page.evaluate(
        "data => document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data }))", data
    )


@pytest.mark.parametrize(("stroke", "label"), [(SEVEN, "7"), (THREE, "3")])
def test_a_digit_is_drawn_with_the_mouse(visit: Visit, stroke: list[Point], label: str) -> None:
    page = visit()
    expect_nothing(page)
    keep(page, "empty")
    draw(page, stroke)
    expect(page.locator("#verdict")).to_have_text(label)
    expect(page.locator("#bars .best .name")).to_have_text(label)
    expect(page.locator("#bars .share")).to_have_text([re.compile(r"^\d+\.\d\s%$")] * 10)
    expect(page.locator("#seen")).to_have_accessible_name(re.compile("28 by 28"))
    seen = page.evaluate("[...seen.getContext('2d').getImageData(0, 0, 28, 28).data]")
    assert max(seen[::4]) > 128
    assert set(seen[3::4]) == {255}
    keep(page, f"answer-{label}")


def test_the_answer_is_live_and_spoken_at_the_end_of_a_stroke(visit: Visit) -> None:
    page = visit(RECORD)
    press(page, SEVEN, steps=40)
    expect(page.locator("#verdict")).to_have_text("7")
    expect(page.locator("#announcement")).to_have_text("")
    page.mouse.up()
    expect_seven(page)
    starts = [request["at"] for request in sent(page)]
    assert len(starts) >= 2
    assert all(later - start >= 149 for start, later in pairwise(starts[:-1]))
    assert page.evaluate("mostFlying") == 1


@pytest.mark.parametrize("options", [{}, {"device_scale_factor": 3, "color_scheme": "dark"}])
def test_the_drawing_is_sent_black_on_white_in_one_size(visit: Visit, options: dict[str, Any]) -> None:
    page = visit(RECORD, **options)
    draw(page, SEVEN)
    expect_seven(page)
    assert sent(page)[-1]["headers"] == {"Content-Type": "image/png"}
    picture = last_picture(page)
    assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (280, 280))
    levels = np.asarray(picture)
    assert (levels[0] == 255).all()
    assert levels.min() == 0
    assert np.ptp(levels, axis=2).max() == 0
    column = np.asarray(picture.convert("L"))[:, 140]
    assert 12 <= (column[:100] < 128).sum() <= 16


def test_a_digit_is_drawn_with_a_finger(visit: Visit) -> None:
    page = visit(has_touch=True, is_mobile=True, viewport={"width": 390, "height": 844})
    fingers = page.context.new_cdp_session(page)

    def touch(kind: str, *points: Point) -> None:
        places = [dict(zip("xy", at(page, point), strict=True)) for point in points]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    touch("touchStart", SEVEN[0])
    for start, stop in pairwise(SEVEN):
        for share in np.linspace(0, 1, 8):
            touch(
                "touchMove",
                (start[0] + share * (stop[0] - start[0]), start[1] + share * (stop[1] - start[1])),
            )
    touch("touchEnd")
    expect_seven(page)
    assert page.evaluate("scrollY") == 0


def test_a_digit_is_drawn_with_the_keyboard_alone(visit: Visit) -> None:
    page = visit()
    page.keyboard.press("Tab")
    expect(page.locator("#drawing")).to_be_focused()
    for key, times in (("ArrowUp", 5), ("ArrowLeft", 4)):
        for _ in range(times):
            page.keyboard.press(key)
    expect_nothing(page)
    page.keyboard.press("Space")
    expect(page.locator("#announcement")).to_have_text("Pen down")
    for _ in range(8):
        page.keyboard.press("ArrowRight")
    for _ in range(5):
        for key in ("ArrowDown", "ArrowDown", "ArrowLeft"):
            page.keyboard.press(key)
    keep(page, "keyboard")
    page.keyboard.press("Space")
    expect_seven(page)
    page.keyboard.press("Escape")
    expect_nothing(page)


def test_every_control_is_reached_by_tab_and_shows_its_focus(visit: Visit, seven_png: Path) -> None:
    page = visit()
    answer(page, 401, error="an API key is needed")
    paste(page, transfer(page, seven_png))
    expect(page.locator("#key")).to_be_visible()
    reached = []
    for _ in range(7):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        ring = "e => e.closest('.sheet, .button') || e"
        style = page.evaluate(f"getComputedStyle(({ring})(document.activeElement)).outlineStyle")
        assert style == "solid", reached
    assert reached[:6] == ["drawing", "undo", "clear", "file", "key", "Use it"]
    assert "API" in reached[6]


def test_a_picture_is_chosen_shown_and_sent_as_it_is(visit: Visit, seven_png: Path) -> None:
    page = visit(RECORD)
    page.locator("#file").set_input_files(seven_png)
    expect_seven(page)
    expect(page.locator("#caption")).to_have_text(seven_png.name)
    expect(page.locator("#preview")).to_be_visible()
    assert page.locator("#preview").evaluate("e => e.decode().then(() => e.naturalWidth)") == 336
    assert base64.b64decode(sent(page)[-1]["text"]) == seven_png.read_bytes()
    keep(page, "picture")
    draw(page, THREE)
    expect(page.locator("#verdict")).to_have_text("3")
    expect(page.locator("#preview")).to_be_hidden()
    page.locator("#undo").click()
    expect(page.locator("#preview")).to_be_visible()
    expect_seven(page)


def test_a_picture_is_dropped(visit: Visit, seven_png: Path) -> None:
    page = visit()
    data = transfer(page, seven_png)
    page.dispatch_event("body", "dragover", {"dataTransfer": data})
    expect(page.locator("#sheet")).to_have_class("sheet target")
    page.dispatch_event("body", "drop", {"dataTransfer": data})
    expect_seven(page)
    expect(page.locator("#sheet")).to_have_class("sheet")


def test_a_picture_is_pasted(visit: Visit, seven_png: Path) -> None:
    page = visit()
    paste(page, page.evaluate_handle("new DataTransfer()"))
    expect(page.locator("#error")).to_have_text("There is no picture in the clipboard")
    paste(page, transfer(page, seven_png))
    expect_seven(page)
    expect(page.locator("#error")).to_be_hidden()


def test_what_the_browser_cannot_show_is_sent_all_the_same(
    visit: Visit, digit: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "scan"
    Image.fromarray(255 - np.kron(digit, np.ones((12, 12), np.uint8))).save(path, "TIFF")
    page = visit(RECORD)
    page.locator("#file").set_input_files(path)
    expect_seven(page)
    expect(page.locator("#unshown")).to_have_text("This browser cannot show the file. It was sent as it is.")
    assert sent(page)[-1]["headers"] == {"Content-Type": "application/octet-stream"}
    page.locator("#clear").click()
    expect(page.locator("#unshown")).to_be_hidden()
    expect_nothing(page)


@pytest.mark.parametrize("way", ["#clear", "Escape", "Delete"])
def test_clear_empties_the_sheet_and_undo_brings_it_back(visit: Visit, way: str) -> None:
    page = visit(RECORD)
    draw(page, SEVEN)
    expect_seven(page)
    if way.startswith("#"):
        page.locator(way).click()
    else:
        page.keyboard.press(way)
    expect_nothing(page)
    asked = len(sent(page))
    page.keyboard.press("Control+z")
    expect_seven(page)
    assert len(sent(page)) == asked + 1


def test_undo_takes_the_last_stroke_back(visit: Visit) -> None:
    page = visit(RECORD)
    draw(page, SEVEN)
    expect_seven(page)
    before = sent(page)[-1]["text"]
    draw(page, [(0.1, 0.1), (0.9, 0.9)])
    draw(page, [(0.9, 0.1), (0.1, 0.9)])
    page.locator("#undo").click()
    page.locator("#undo").click()
    expect_seven(page)
    assert sent(page)[-1]["text"] == before
    page.locator("#undo").click()
    expect_nothing(page)
    page.locator("#undo").click()
    expect_nothing(page)


def test_an_answer_to_what_is_gone_is_dropped(visit: Visit) -> None:
    page = visit(DEAF)
    draw(page, SEVEN)
    page.locator("#clear").click()
    page.evaluate("release()")
    page.wait_for_function("arrived >= 1")
    expect_nothing(page)
    assert page.locator("#announcement").text_content() == "Cleared"


def test_a_doubtful_picture_is_not_sure(visit: Visit) -> None:
    page = visit()
    draw(page, [(0.15, 0.3), (0.15, 0.7)])
    draw(page, [(0.6, 0.3), (0.9, 0.3), (0.75, 0.7)])
    expect(page.locator("#verdict")).to_have_text("Not sure")
    expect(page.locator("#guess")).to_have_text(re.compile(r"^Best guess \d$"))
    expect(page.locator("#announcement")).to_have_text(re.compile(r"^Not sure: .+; best guess \d$"))
    expect(page.locator("#bars .best")).to_have_count(0)
    keep(page, "not-sure")


def test_reason_guess_and_remarks_are_shown(visit: Visit) -> None:
    page = visit()
    remarks = ["the ink is faint", "2 stray marks left out"]
    answer(page, label=None, reason="confidence is below 95.0%", preprocessing={"warnings": remarks})
    draw(page, SEVEN)
    expect(page.locator("#detail")).to_have_text("confidence is below 95.0%")
    expect(page.locator("#guess")).to_have_text("Best guess 4, 91.0 %")
    expect(page.locator("#notes li")).to_have_text(remarks)
    expect(page.locator("#announcement")).to_have_text(
        "Not sure: confidence is below 95.0%; best guess 4, 91.0 %"
    )
    keep(page, "remarks")


def test_a_blank_picture_has_no_guess(visit: Visit, tmp_path: Path) -> None:
    Image.new("L", (100, 100), 255).save(tmp_path / "blank.png")
    page = visit()
    page.locator("#file").set_input_files(tmp_path / "blank.png")
    expect(page.locator("#detail")).to_have_text("the picture is blank")
    expect(page.locator("#guess")).to_be_hidden()
    expect(page.locator("#announcement")).to_have_text("Not sure: the picture is blank")


def test_labels_may_be_words(visit: Visit) -> None:
    words = [
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Ankle boot",
        "Sandal",
        "Shirt",
        "Bag",
        "Coat",
        "Hat",
    ]
    page = visit(viewport={"width": 320, "height": 640})
    answer(page, label="Ankle boot", best_guess="Ankle boot", labels=words)
    draw(page, SEVEN)
    expect(page.locator("#verdict")).to_have_text("Ankle boot")
    expect(page.locator("#bars .name")).to_have_text(words)
    expect(page.locator("#bars .best .name")).to_have_text("Ankle boot")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    keep(page, "words")


def test_a_file_that_is_no_picture_has_a_readable_error(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("seven")
    page = visit()
    page.locator("#file").set_input_files(tmp_path / "notes.txt")
    expect(page.locator("#error")).to_have_text(re.compile("not a picture but text"))
    expect(page.locator("#verdict")).to_have_text("")
    keep(page, "error")
    page.locator("#clear").click()
    expect(page.locator("#error")).to_be_hidden()


def test_a_name_is_never_markup(visit: Visit, seven_png: Path) -> None:
    page = visit()
    data = transfer(page, seven_png.rename(seven_png.with_name("<img src=x onerror=alert(1)>.png")))
    answer(page, 400, error="<script>alert(1)</script> is not a picture")
    page.dispatch_event("body", "drop", {"dataTransfer": data})
    expect(page.locator("#caption")).to_have_text("<img src=x onerror=alert(1)>.png")
    expect(page.locator("#error")).to_have_text("<script>alert(1)</script> is not a picture")
    assert page.locator("#caption *, #error *").count() == 0


def test_a_server_that_is_gone_is_said(visit: Visit) -> None:
    page = visit()
    page.route(PREDICT, lambda route: route.abort())
    draw(page, SEVEN)
    expect(page.locator("#error")).to_have_text("The server does not answer")
    page.unroute(PREDICT)
    draw(page, [(0.28, 0.25), (0.3, 0.25)])
    expect_seven(page)
    expect(page.locator("#error")).to_be_hidden()


def test_a_busy_server_is_asked_again(visit: Visit) -> None:
    page = visit()
    answer(page, 503, {"Retry-After": "1"}, error="too many pictures at once")
    draw(page, SEVEN)
    expect(page.locator("#error")).to_have_text("too many pictures at once")
    page.unroute(PREDICT)
    expect_seven(page)
    expect(page.locator("#error")).to_be_hidden()


def test_a_key_is_asked_for_sent_and_kept_for_the_session(visit: Visit) -> None:
    page = visit()

    def guard(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer opensesame":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": "this server wants an API key"})

    page.route(PREDICT, guard)
    draw(page, SEVEN)
    expect(page.locator("#error")).to_have_text("This server asks for an API key")
    keep(page, "key")
    page.locator("#key").fill("wrong")
    page.locator("#key").press("Enter")
    expect(page.locator("#error")).to_have_text("This is not the key")
    expect(page.locator("#key")).to_be_focused()
    page.locator("#key").fill("opensesame")
    page.locator("#key").press("Enter")
    expect_seven(page)
    expect(page.locator("#key-form")).to_be_hidden()
    page.reload()
    draw(page, SEVEN)
    expect_seven(page)


def test_a_key_field_keeps_its_own_keys(visit: Visit) -> None:
    page = visit()
    answer(page, 401, error="an API key is needed")
    draw(page, SEVEN)
    page.locator("#key").fill("abc")
    page.locator("#key").press("Delete")
    page.locator("#key").press("Escape")
    expect(page.locator("#invitation")).to_be_hidden()
    expect(page.locator("#key")).to_have_value("abc")


def test_a_small_phone_shows_sheet_and_answer(visit: Visit) -> None:
    page = visit(viewport={"width": 320, "height": 640})
    draw(page, SEVEN)
    expect_seven(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    expect(page.locator("#drawing")).to_be_in_viewport(ratio=1)
    expect(page.locator("#verdict")).to_be_in_viewport(ratio=1)
    keep(page, "narrow")


CONTRASTS = """
() => {
  const light = (rgb) => {
    const linear = (c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
    const [r, g, b] = rgb.map((level) => linear(level / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour.slice(0, 3);
    }
  };
  const hasText = (node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
  const nodes = [...document.querySelectorAll("body *")].filter((node) => node.checkVisibility());
  return nodes.filter(hasText).map((node) => {
    const text = parse(getComputedStyle(node).color).slice(0, 3);
    const [dim, bright] = [text, behind(node)].map(light).sort((a, b) => a - b);
    return [node.id || node.className || node.tagName, (bright + .05) / (dim + .05)];
  });
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_are_readable(visit: Visit, scheme: Any) -> None:
    page = visit(color_scheme=scheme, reduced_motion="reduce")
    ground = [
        int(level)
        for level in re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))
    ]
    assert max(ground) < 64 if scheme == "dark" else min(ground) > 192
    empty = page.evaluate(CONTRASTS)
    answer(page, 401, error="an API key is needed")
    draw(page, SEVEN)
    expect(page.locator("#key")).to_be_visible()
    locked = page.evaluate(CONTRASTS)
    page.reload()
    answer(page, label=None, reason="it is too faint", preprocessing={"warnings": ["the ink is faint"]})
    draw(page, THREE)
    expect(page.locator("#verdict")).to_have_text("Not sure")
    unsure = page.evaluate(CONTRASTS)
    answer(page)
    draw(page, THREE)
    expect(page.locator("#verdict")).to_have_text("4")
    measured = [*empty, *locked, *unsure, *page.evaluate(CONTRASTS)]
    assert len(measured) > 40
    assert [name for name, contrast in measured if contrast < 4.5] == []
    page.unroute(PREDICT)
    page.locator("#clear").click()
    draw(page, THREE)
    expect(page.locator("#verdict")).to_have_text("3")
    keep(page, scheme)


def test_nothing_moves_for_those_who_want_it_still(visit: Visit) -> None:
    page = visit(reduced_motion="reduce")
    assert page.evaluate("getComputedStyle(document.querySelector('.fill')).transitionDuration") == "0s"

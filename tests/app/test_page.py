"""Laws of the page in a real browser, its tokenizers run by torch behind it: all it shows and carries is theirs."""

import base64
import io
import json
import re
import struct
import threading
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import smalti
from smalti.app.serve import open_server
from smalti.app.server import Limits
from smalti.video import to_uint8, to_video
from tests.app.browser import find_browser, open_browser
from tests.token_sets import save_tokenizer

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no chromium here: apt-get install chromium")
IDLE = "!smalti.reading && !document.querySelector('[aria-busy]') && smalti.panes.every((pane) => pane.decoded)"
BYTES = "((bytes) => { let text = ''; for (const v of bytes) text += String.fromCharCode(v); return btoa(text); })"
SET = "((name, x) => { const e = document.querySelector(name); e.value = x; e.dispatchEvent(new Event('input')); })"


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    return ["smalti/tiny-image", str(save_tokenizer(tmp_path_factory.mktemp("served") / "clips"))]


@pytest.fixture(scope="module")
def server(names):
    server = open_server(names, 0, 2**20, "cpu", Limits(body=2**23))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def page(server, browser, tmp_path):
    """The page with an image of 128 x 128 open in it; it must not have failed at the end, nor asked anybody else."""
    browser.requests.clear()
    browser.errors.clear()
    browser.view(1280, 900)
    browser.go("about:blank")
    browser.go(server.address)
    browser.wait(f"window.smalti && {IDLE}")
    open_file(browser, save_image(tmp_path / "photo.png", 128, 128))
    yield browser
    assert not browser.errors
    others = [r["url"] for r in browser.requests if not r["url"].startswith((server.address, f"blob:{server.address}"))]
    assert not [url for url in others if not url.startswith(("about:", "data:"))]


def photo(height, width):
    path = smalti.data.bundled.photos("heldout") / "owl.jpg"
    return Image.open(path).convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def save_image(path, height, width):
    photo(height, width).save(path)
    return path


def open_file(browser, path, *, waits=True):
    browser.drop("#file", path)
    if waits:
        browser.wait(f"smalti.media?.name === '{path.name}' && {IDLE}")


def ids_of(browser, pane=0):
    grid = browser.run(f"(({{data, t, h, w}}) => [[...data], t, h, w])(smalti.panes[{pane}].grid)")
    return np.array(grid[0], dtype=np.int64).reshape(grid[1:])


def bytes_of(browser, expression):
    return np.frombuffer(base64.b64decode(browser.run(f"{BYTES}({expression})")), np.uint8)


def pixels_of(browser, pane=0):
    return bytes_of(browser, f"smalti.panes[{pane}].decoded.pixels")


def encoded(name, frames):
    with torch.inference_mode():
        return smalti.load(name).encode(to_video(frames))


def decoded(name, ids, size):
    with torch.inference_mode():
        return to_uint8(smalti.load(name).decode(torch.from_numpy(ids)[None], size=size))[0].numpy()


def click(browser, name):
    browser.run(f"document.getElementById('{name}').click()")
    browser.wait(IDLE)


@pytest.mark.parametrize("size", [(128, 128), (96, 200), (57, 83), (1, 1)])
def test_ids_and_pixels_of_the_page_are_those_of_the_tokenizer(page, names, tmp_path, size):
    open_file(page, save_image(tmp_path / "other.png", *size))
    ids = encoded(names[0], np.asarray(photo(*size)))
    assert np.array_equal(ids_of(page), ids[0].numpy())
    assert np.array_equal(pixels_of(page), decoded(names[0], ids_of(page), (1, *size)).reshape(-1))


def test_the_slider_shows_the_original_at_its_left_and_the_reconstruction_at_its_right(page, names):
    original = np.asarray(photo(128, 128))
    made = decoded(names[0], ids_of(page), (1, 128, 128))[0]
    for value in (0, 250, 500, 1000):
        page.run(f"{SET}('.slider', {value})")
        canvas = "document.querySelector('canvas.image').getContext('2d')"
        shown = bytes_of(page, f"{canvas}.getImageData(0, 0, 128, 128).data").reshape(128, 128, 4)[..., :3]
        split = round(value / 1000 * 128)
        assert np.array_equal(shown[:, :split], original[:, :split]), value
        assert np.array_equal(shown[:, split:], made[:, split:]), value


def test_a_token_that_is_clicked_shows_its_id_its_digits_and_its_places(page):
    ids = ids_of(page)[0]
    box = "document.querySelector('.map').getBoundingClientRect()"
    x, y, width, height = page.run(f"(({{x, y, width, height}}) => [x, y, width, height])({box})")
    page.click(x + width * (4.5 / 16), y + height * (9.5 / 16))
    one = int(ids[9, 4])
    digits, left = [], one
    for level in smalti.load("smalti/tiny-image").levels:
        digits.append(left % level)
        left //= level
    assert page.run("document.getElementById('token-id').firstChild.textContent").replace(",", "") == str(one)
    assert page.run("[...document.querySelectorAll('#digits input')].map((one) => Number(one.value))") == digits
    count = int((ids == one).sum())
    where = page.run("document.getElementById('token-where').textContent")
    assert where == f"row 10, column 5; {'only here' if count == 1 else f'at {count} places'}."
    click(page, "governs")
    assert re.search(
        r"It moves [\d,]+ pixels, within \d+ x \d+", page.run("document.getElementById('token-where').textContent")
    )


def test_edits_change_the_tokens_that_are_selected_and_can_be_undone(page, names, tmp_path):
    before = ids_of(page)
    page.run("smalti.panes[0].select({y: 2, x: 3}, {y: 5, x: 9})")
    inside = np.zeros_like(before, dtype=bool)
    inside[:, 2:6, 3:10] = True
    click(page, "erase")
    levels = smalti.load(names[0]).levels
    erased = sum(level // 2 * int(np.prod(levels[:j])) for j, level in enumerate(levels))
    assert np.array_equal(ids_of(page), np.where(inside, erased, before))
    assert np.array_equal(pixels_of(page), decoded(names[0], ids_of(page), (1, 128, 128)).reshape(-1))
    click(page, "undo")
    assert np.array_equal(ids_of(page), before)
    click(page, "shuffle")
    assert np.array_equal(ids_of(page)[~inside], before[~inside])
    assert np.array_equal(np.sort(ids_of(page)[inside]), np.sort(before[inside]))
    assert not np.array_equal(ids_of(page), before)
    click(page, "reset")
    assert np.array_equal(ids_of(page), before)
    other = photo(128, 128).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    other.save(tmp_path / "second.png")
    page.drop("#second-file", tmp_path / "second.png")
    page.wait("smalti.second !== null")
    click(page, "paste")
    page.wait("smalti.panes[0].grid !== smalti.panes[0].encoded")
    page.wait(IDLE)
    assert np.array_equal(ids_of(page), np.where(inside, encoded(names[0], np.asarray(other))[0].numpy(), before))
    digit = page.run("smalti.panes[0].select({y: 0, x: 0}); document.querySelector('#digits input').value")
    page.run(f"{SET}('#digits input', {(int(digit) + 1) % 8})")
    page.wait(IDLE)
    assert ids_of(page)[0, 0, 0] - before[0, 0, 0] == (int(digit) + 1) % 8 - int(digit)


def test_a_link_carries_the_image_in_its_fragment(page, server, names):
    click(page, "shuffle")
    ids, pixels = ids_of(page), pixels_of(page)
    click(page, "link")
    said = page.run("document.getElementById('save-text').textContent")
    assert "256 tokens are 512 bytes" in said
    address = page.run("location.href")
    asked = len(page.requests)
    page.go("about:blank")
    page.go(address)
    page.wait(f"window.smalti && {IDLE}")
    assert np.array_equal(ids_of(page), ids)
    assert np.array_equal(pixels_of(page), pixels)
    assert not [r["url"] for r in page.requests[asked:] if "ids=" in r["url"]]  # no server sees what follows the #


HOSTILE_LINKS = {
    "v=1&ids=AAAA": "needs the tokenizer without a name",
    "v=2&ids=AAAA": "another version",
    "v=1&tokenizer=x&of=000000000000&size=1x8x8&ids=AAAA": "needs the tokenizer x (000000000000)",
    "v=1&of={of}&size=1x8x8&ids=AA": "cut or too long",
    "v=1&of={of}&size=1x8x8&ids=AAAAAAAA": "cut or too long",
    "v=1&of={of}&size=1x8x8&ids=__8": "holds the id 65535",
    "v=1&of={of}&size=1x8x8&ids=%3Cscript%3E": "no base64url",
    "v=1&of={of}&size=9999x99999x99999&ids=AAA": "too large for this page",
    "v=1&of={of}&size=0x8x8&ids=": "does not say its size",
    "v=1&of={of}&size=1x8&ids=AAA": "does not say its size",
}


def test_a_hostile_link_is_one_line_and_the_page_goes_on(page, names):
    of = smalti.load(names[0]).fingerprint[:12]
    before = ids_of(page)
    for link, line in HOSTILE_LINKS.items():
        page.run(f"location.hash = {json.dumps(link.format(of=of))}")
        page.wait("!document.getElementById('message').hidden")
        said = page.run("document.getElementById('message').textContent")
        assert line in said, link
        assert np.array_equal(ids_of(page), before), link
        page.run("document.getElementById('message').hidden = true")


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_ids_go_out_and_come_back_as_npy(page, names, tmp_path):
    click(page, "shuffle")
    ids = ids_of(page)
    made = page.run(
        "import('./ids.js').then((m) => [...m.toNpy(smalti.panes[0].grid, smalti.panes[0].tokenizer.codebookSize)])"
    )
    array = np.load(io.BytesIO(bytes(made)))
    assert array.dtype == np.uint16
    assert np.array_equal(array, ids[0])
    for kind in (np.uint16, np.int32, np.int64, np.uint64):
        (tmp_path / "ids.npy").write_bytes(npy(ids[None].astype(kind)))
        page.run("smalti.panes[0].grid = null; smalti.panes[0].decoded = null; smalti.media = {name: 'none'}")
        open_file(page, tmp_path / "ids.npy", waits=False)
        page.wait("smalti.panes[0].grid !== null && smalti.panes[0].decoded !== null")
        assert np.array_equal(ids_of(page), ids)


def bomb():
    """A PNG of a few hundred bytes that says to be 11,000 x 10,000."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 11_000, 10_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 33_001))
        + chunk(b"IEND", b"")
    )


HOSTILE_FILES = {
    "empty.png": (b"", "is empty"),
    "text.png": (b"hello", "no image or video"),
    "bomb.png": (bomb(), "100 million pixels"),
    "none.mp4": (b"\0\0\0\x18ftypmp42", "no video that this browser can read"),
    "page.html": (b"<script>window.broken = 1</script>", "no image or video"),
    "active.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'><script>window.broken = 1</script></svg>", None),
    "float.npy": (npy(np.zeros((4, 4))), "does not hold whole numbers"),
    "large.npy": (npy(np.full((4, 4), 64_000)), "holds the id 64000"),
    "less.npy": (npy(np.full((4, 4), -1)), "holds the id -1"),
    "flat.npy": (npy(np.zeros(16, np.int64)), "ids are (h, w) or (t, h, w)"),
    "cut.npy": (npy(np.zeros((4, 4), np.int64))[:-3], "is cut"),
    "many.npy": (npy(np.zeros((1, 4), np.uint8)).replace(b"(1, 4)", b"(99999, 99999)"), ""),
    "objects.npy": (npy(np.zeros((2, 2))).replace(b"'<f8'", b"'|O' "), "does not hold whole numbers"),
    "none.npy": (b"\x93NUMPY", "is not a .npy file"),
}


def test_a_hostile_file_is_one_line_and_the_page_goes_on(page, tmp_path):
    for name, (data, line) in HOSTILE_FILES.items():
        (tmp_path / name).write_bytes(data)
        page.run("document.getElementById('message').hidden = true")
        open_file(page, tmp_path / name, waits=False)
        if line is None:
            page.wait(f"smalti.media?.name === '{name}' || !document.getElementById('message').hidden")
        else:
            page.wait("!document.getElementById('message').hidden")
            said = page.run("document.getElementById('message').textContent")
            assert line in said, name
            assert name in said
    assert page.run("window.broken") is None
    open_file(page, save_image(tmp_path / "after.png", 64, 64))
    page.errors.clear()  # what the browser itself says of a broken image


def test_two_tokenizers_stand_side_by_side(page, names):
    page.run("document.querySelector('.add').click()")
    page.wait(f"smalti.panes.length === 2 && {IDLE}")
    frames = np.asarray(photo(128, 128))
    for i, name in enumerate(names):
        assert np.array_equal(ids_of(page, i), encoded(name, frames)[0].numpy())


def test_a_clip_is_read_played_and_coloured_by_its_latent_frames(page, names):
    page.run("document.getElementById('clip').value = '17,8'")
    page.run(
        "((list) => { list.value = smalti.tokenizers[1].name; list.onchange(); })(document.querySelector('.tokenizer'))"
    )
    page.run("document.querySelectorAll('#samples .clip')[0].click()")
    page.wait(f"smalti.media?.t > 1 && {IDLE}")
    size = page.run("[smalti.media.t, smalti.media.h, smalti.media.w]")
    assert size[1:] == [144, 256]
    grid = ids_of(page)
    assert grid.shape == (1 + -(-(size[0] - 1) // 2), 36, 64)
    assert np.array_equal(pixels_of(page), decoded(names[1], grid, tuple(size)).reshape(-1))
    page.run("smalti.player.at(4)")
    assert page.run("smalti.panes[0].latent") == 2
    assert page.run("document.getElementById('time-text').textContent") == f"frame 5 of {size[0]}, latent 2"


def test_the_camera_is_recorded_until_it_is_stopped(page):
    page.run("document.getElementById('camera').click()")
    page.wait("smalti.reading && smalti.panes[0].media?.name === 'camera'")
    page.wait("document.getElementById('camera').textContent === 'Stop'")
    page.run("new Promise((done) => setTimeout(done, 600))")
    page.run("document.getElementById('camera').click()")
    page.wait(f"smalti.media?.name === 'camera' && {IDLE}")
    assert page.run("document.getElementById('camera').textContent") == "Camera"
    assert page.run("smalti.media.t") >= 1


def test_the_page_works_by_keys_alone(page):
    page.run("document.querySelector('.map').focus()")
    page.press("ArrowRight")
    assert page.run("smalti.panes[0].box") == {"t0": 0, "t1": 0, "x0": 0, "x1": 0, "y0": 0, "y1": 0}
    page.press("ArrowRight")
    page.press("ArrowDown")
    page.press("ArrowRight", shift=True)
    page.press("ArrowDown", shift=True)
    assert page.run("smalti.panes[0].box") == {"t0": 0, "t1": 0, "x0": 1, "x1": 2, "y0": 1, "y1": 2}
    before = ids_of(page)
    page.press("Delete")
    page.wait(f"smalti.panes[0].history.length === 1 && {IDLE}")
    assert np.array_equal(ids_of(page) != before, np.pad(np.ones((1, 2, 2), bool), ((0, 0), (1, 13), (1, 13))))
    page.press("z", control=True)
    page.wait(f"smalti.panes[0].history.length === 0 && {IDLE}")
    assert np.array_equal(ids_of(page), before)
    page.press("Escape")
    assert page.run("smalti.panes[0].box") is None
    page.run("document.querySelector('.slider').focus()")
    page.press("ArrowRight")
    assert page.run("document.querySelector('.slider').value") == "501"


def test_a_screen_reader_finds_a_name_for_all_that_can_be_used(page):
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "slider", "combobox", "radio", "spinbutton", "image", "img", "Canvas", "application", "textbox"}
    used = [node for node in nodes if node.get("role", {}).get("value") in roles and not node.get("ignored")]
    nameless = [node["role"]["value"] for node in used if not node.get("name", {}).get("value", "").strip()]
    assert len(used) > 25
    assert not nameless


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_no_width_makes_the_page_scroll_sideways(page, width):
    page.view(width, 800, mobile=width < 500)
    page.run("document.querySelector('.add').click()")
    page.wait(f"smalti.panes.length === 2 && {IDLE}")
    assert page.run("document.documentElement.scrollWidth") <= width


def contrast(page, selector):
    """Ratio of WCAG 2 between an element's text and what is behind it."""
    colours = page.run(f"""(() => {{
        const e = document.querySelector({selector!r});
        let b = e;
        while (getComputedStyle(b).backgroundColor.endsWith(', 0)')) b = b.parentElement;
        return [getComputedStyle(e).color, getComputedStyle(b).backgroundColor];
    }})()""")
    lights = []
    for colour in colours:
        channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        lights.append(float(np.dot(linear, (0.2126, 0.7152, 0.0722))))
    return (max(lights) + 0.05) / (min(lights) + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_can_be_read_in_light_and_dark(page, dark):
    page.view(1280, 900, dark=dark)
    page.run("new Promise((done) => setTimeout(done, 300))")  # colours change in 0.12 s
    for selector in (
        "h1",
        ".pill",
        ".soft",
        "#open",
        "#camera",
        "footer p",
        ".figures dt",
        ".figures dd",
        ".choices span",
    ):
        assert contrast(page, selector) >= 4.5, selector
    background = page.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == dark


LAWS = """
import('./ids.js').then((m) => {
  const faults = [];
  for (const levels of [[2], [8, 8, 8, 5, 5, 5], [64000], Array(18).fill(2), [3, 2 ** 40], [2 ** 52]]) {
    const size = levels.reduce((a, b) => a * b, 1);
    const ids = [0, 1, size - 1, Math.floor(size / 2), Math.floor(size / 3)].filter((id) => id < size);
    for (const id of ids) if (m.idOf(m.digitsOf(id, levels), levels) !== id) faults.push(['digits', levels, id]);
    for (const id of ids) for (const by of ['id', 0, levels.length - 1]) {
      if (!m.colouring(levels, by)(id).every((c) => c >= 0 && c <= 255)) faults.push(['colour', levels, id]);
    }
    const packed = m.packIds(ids, size);
    if (packed.length !== Math.ceil(ids.length * Math.ceil(Math.log2(size)) / 8)) faults.push(['length', levels]);
    if (String([...m.unpackIds(packed, ids.length, size)]) !== String(ids)) faults.push(['packed', levels]);
    const grid = {data: Float64Array.from(ids.slice(0, 1)), t: 1, h: 1, w: 1};
    const back = m.fromNpy(m.toNpy(grid, size).buffer, size, 'x');
    if (back.data[0] !== ids[0]) faults.push(['npy', levels]);
  }
  return faults;
})
"""


def test_digits_links_and_files_hold_every_id_of_every_codebook(page):
    assert page.run(LAWS) == []

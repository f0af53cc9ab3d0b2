"""Laws of the page as a folder: the browser itself runs the tokenizers, gives PyTorch's ids, and sends nothing."""

import base64
import functools
import hashlib
import http.server
import json
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

import smalti
from smalti.app.page_files import RUNTIME
from smalti.app.serve import SHIPPED
from smalti.data import bundled, read_clip, read_image
from smalti.errors import ConfigError
from smalti.pipeline.parity import margins
from smalti.video import to_video
from tests.app.browser import find_browser, open_browser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="no chromium here: apt-get install chromium"),
]
NAMES = (*SHIPPED, "smalti/tiny-video-conditional")
FRAMES = 14
"""Of a clip: one more than whole groups of 4, and its last group is not whole."""
OPEN = """
window.page = smalti;
window.take = (text, size) => ({pixels: Uint8Array.from(atob(text), (c) => c.charCodeAt(0)), ...size});
true
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *arguments):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    out = tmp_path_factory.mktemp("page") / "page"
    # A process of its own, as a user has it: the tests' checks of annotations are no part of a graph.
    command = [sys.executable, "-m", "smalti", "serve", *NAMES, "--save", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def page(folder, tmp_path_factory):
    """The page on a plain host, with an example open in it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with open_browser(tmp_path_factory.mktemp("browser"), patience=600) as browser:
        browser.address = f"http://127.0.0.1:{server.server_port}/"
        browser.go(browser.address)
        browser.wait("window.smalti && smalti.panes[0].decoded", 300)
        browser.run(OPEN)
        yield browser
    server.shutdown()
    server.server_close()


def media(name):
    """Frames t h w 3 of held-out photographs, and for a video tokenizer of held-out clips too."""
    for path in sorted(bundled.photos("heldout").glob("*.jpg")):
        frames = read_image(path)
        yield path.name, np.asarray(frames)[None, : 160 + len(path.name), : 200 - len(path.name)]
    if name != "smalti/tiny-image":
        for path in sorted(bundled.videos("heldout").glob("*.mp4")):
            yield path.name, np.asarray(read_clip(path, FRAMES))


def sent(frames):
    t, h, w, _ = frames.shape
    text = base64.b64encode(np.ascontiguousarray(frames).tobytes()).decode()
    return f"take({json.dumps(text)}, {{t: {t}, h: {h}, w: {w}}})"


def in_browser(page, index, frames):
    found = page.run(
        f"page.tokenizers[{index}].encode({sent(frames)}).then(({{grid}}) => [[...grid.data], grid.t, grid.h, grid.w])"
    )
    return np.array(found[0], np.int64).reshape(1, *found[1:])


@pytest.mark.parametrize(("index", "name"), list(enumerate(NAMES)))
def test_the_browser_gives_the_ids_of_pytorch(page, index, name):
    tokenizer, hashes = smalti.load(name), (hashlib.sha256(), hashlib.sha256())
    count, ties = 0, 0
    for medium, frames in media(name):
        video = to_video(frames)
        with torch.inference_mode():
            own = tokenizer.encode(video)
            found = torch.from_numpy(in_browser(page, index, frames))
            assert found.shape == own.shape, medium
            if not torch.equal(own, found):  # by rounding alone
                if "conditional" in name:  # and what comes after it follows from another past
                    last = int((own != found).flatten(2).any(2).any(0).int().argmax()) + 1
                    own, found = own[:, :last], found[:, :last]
                z = tokenizer.latents(video)[:, :, : own.shape[1]]
                off = margins(tokenizer.quantizer, z, own, found)
                assert float(off.max()) < 1e-5, medium
                ties += len(off)
        count += own.numel()
        for digest, ids in zip(hashes, (own, found), strict=True):
            digest.update(ids.numpy().tobytes())
    assert count > 1_000
    assert ties <= count // 10_000
    assert (hashes[0].hexdigest() == hashes[1].hexdigest()) == (ties == 0)
    print(f"{name}: {ties} of {count} ids differ, by rounding; sha256 {hashes[1].hexdigest()[:16]}")


STREAM = """
(async () => {
  const {pixels, t, h, w} = SENT;
  const stream = page.tokenizers[INDEX].stream();
  const ids = [], frames = [], counts = [];
  for (let f = 0; f <= t; f++) {
    const frame = f < t ? pixels.slice(f * h * w * 3, (f + 1) * h * w * 3) : null;
    const found = await stream.push(frame, {h, w}, f === t);
    if (found.grid) ids.push(...found.grid.data);
    counts.push(found.t);
    if (found.pixels) frames.push(found.pixels);
  }
  const all = new Uint8Array(await new Blob(frames).arrayBuffer());
  let text = '';
  for (const v of all) text += String.fromCharCode(v);
  return [ids, counts, btoa(text)];
})()
"""


@pytest.mark.parametrize("index", [1, 2])
@pytest.mark.parametrize("frames", [1, 5, 11])
def test_a_clip_that_streams_has_the_ids_and_frames_of_the_whole(page, frames, index):
    name, clip = next(one for one in media("smalti/tiny-video") if one[0].endswith(".mp4"))
    clip = clip[:frames, :96, :128]
    ids, counts, text = page.run(STREAM.replace("SENT", sent(clip)).replace("INDEX", str(index)))
    whole = in_browser(page, index, clip)
    differing = int((np.array(ids, np.int64) != whole.reshape(-1)).sum())
    assert differing <= 1, name
    assert sum(counts) == frames
    assert counts[0] == 1  # the first frame comes at once, the others by groups of 4
    assert [n for n in counts[1:] if n] == [4] * ((frames - 1) // 4) + [(frames - 1) % 4] * bool((frames - 1) % 4)
    made = np.frombuffer(base64.b64decode(text), np.uint8).reshape(clip.shape)
    grid = (
        "{data: Float64Array.from("
        + json.dumps(ids)
        + f"), t: {whole.shape[1]}, h: {whole.shape[2]}, w: {whole.shape[3]}}}"
    )
    size = f"{{t: {frames}, h: 96, w: 128}}"
    again = page.run(f"page.tokenizers[{index}].decode({grid}, {size}).then(({{pixels}}) => [...pixels])")
    assert np.abs(made.reshape(-1).astype(int) - np.array(again)).max() <= 1


def test_the_page_asks_its_own_host_for_its_files_and_nobody_for_anything_else(page, folder):
    asked = len(page.requests)
    page.run("page.active.edit({...page.active.grid, data: page.active.grid.data.slice().reverse()})")
    page.run("page.copyLink()")
    assert page.requests[asked:] == []
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} | {""}
    for request in page.requests:
        if request["url"].startswith(("blob:", "data:", "about:")):
            continue
        assert request["url"].startswith(page.address)
        assert request["url"].removeprefix(page.address).partition("#")[0] in files
        assert request["method"] == "GET"
    assert page.errors == []


def test_the_folder_holds_all_that_the_page_needs(folder):
    for name, digest in RUNTIME.items():
        assert hashlib.sha256((folder / "ort" / name).read_bytes()).hexdigest() == digest
    facts = json.loads((folder / "tokenizers.json").read_text())
    assert [one["name"] for one in facts["tokenizers"]] == list(NAMES)
    for one in facts["tokenizers"]:
        assert one["fingerprint"] == smalti.load(one["name"]).fingerprint
        assert all((folder / file).is_file() for file in one["files"].values())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert sum(sizes.values()) < 65e6  # 62.4: the programs of conditional tokens, of 7 million parameters, are 24.9
    assert sum(size for name, size in sizes.items() if not name.startswith("models/2/")) < 40e6
    with pytest.raises(ConfigError, match="already exists"):
        smalti.serve(save=folder)

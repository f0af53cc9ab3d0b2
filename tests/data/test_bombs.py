"""One input cannot take the machine: small files that would unpack to gigabytes, under a lid of 2 GB."""

import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from smalti.data import bundled
from smalti.data.files import IMAGE_SUFFIXES, LINKED_FOLDERS, list_files
from smalti.data.parquet import ParquetStore
from smalti.errors import BadFile, IntegrityError, SmaltiError
from smalti.families.checkpoint import load
from smalti.families.names import TINY_IMAGE
from smalti.files import fingerprint, load_tensors, sha256
from smalti.tokenizer import Tokenizer, TokenizerConfig
from smalti.video import rgb_pixels, to_rgb
from tests import programs
from tests.containers import make_file

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402 - as above

FSQ = Path(__file__).parents[1] / "formats" / "v0_1_0" / "tokenizers" / "fsq"
LID, PEAK, LARGE = 2_000_000_000, 1_500_000_000, 1_200_000_000
"""The lid of addresses; the most that is held; and the most for images of 64 million pixels, as large as are read."""


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, kind: int, *extra: bytes) -> bytes:
    """A black PNG of these declared and real sizes."""
    line = b"\0" + bytes((width * depth * {0: 1, 2: 3, 4: 2, 6: 4}[kind] + 7) // 8)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(line) for _ in range(height)) + packer.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Bombs of every kind among three photographs."""
    folder = tmp_path_factory.mktemp("bombs")
    for photo in sorted(bundled.photos("heldout").glob("*.jpg"))[:3]:
        (folder / photo.name).write_bytes(photo.read_bytes())
    for name, form in {"grey": (1, 0), "rgb": (8, 2), "deep": (16, 6)}.items():
        (folder / f"bomb-{name}.png").write_bytes(png(8_000, 8_000, *form))
    (folder / "bomb-larger.png").write_bytes(png(30_000, 30_000, 1, 0))
    note = zlib.compress(bytes(1 << 28), 9)
    (folder / "bomb-text.png").write_bytes(png(64, 64, 8, 2, chunk(b"zTXt", b"a\0\0" + note)))
    (folder / "bomb-profile.png").write_bytes(png(64, 64, 8, 2, chunk(b"iCCP", b"a\0\0" + note)))
    (folder / "bomb-sparse.png").touch()
    os.truncate(folder / "bomb-sparse.png", 8 << 30)
    (folder / "bomb-loop.png").symlink_to("bomb-loop.png")
    (folder / "loop").symlink_to("loop")
    return folder


def frames_of_jpeg(path: Path, sizes: list[tuple[int, int]]) -> None:
    """A video of black JPEG frames of any sizes, whose head tells that of the first."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=5)
        (stream.width, stream.height), stream.pix_fmt = sizes[0], "yuvj420p"
        for time, size in enumerate(sizes):
            data = io.BytesIO()
            Image.new("RGB", size).save(data, "JPEG", quality=10)
            packet = av.Packet(data.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, time, time, Fraction(1, 5)
            container.mux(packet)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Videos that declare sizes, counts and boxes which they have not, or grow in the middle, among good ones."""
    folder, making = tmp_path_factory.mktemp("films"), tmp_path_factory.mktemp("making")
    data = make_file(making, "mp4", "h264", count=8).read_bytes()
    for number in range(3):
        (folder / f"good-{number}.mp4").write_bytes(data)

    def put(name: str, box: bytes, at: int, number: bytes) -> None:
        place = data.index(box) + at
        (folder / f"bomb-{name}.mp4").write_bytes(data[:place] + number + data[place + len(number) :])

    put("count", b"stsz", 8, struct.pack(">II", 1, 2**32 - 1))  # four thousand million frames of a byte
    put("times", b"stts", 12, struct.pack(">I", 2**32 - 1))
    put("entries", b"stts", 8, struct.pack(">I", 2**28 - 1))
    put("box", b"moov", -4, struct.pack(">I4sQ", 1, b"moov", 2**62))
    for suffix in ("mkv", "avi"):
        frames_of_jpeg(folder / f"bomb-grows.{suffix}", [(64, 48)] * 4 + [(16_000, 16_000)])
    frames_of_jpeg(folder / "bomb-large.mkv", [(12_000, 12_000)])
    still = io.BytesIO()
    Image.new("L", (64, 48)).save(still, "GIF")
    screen = still.getvalue()
    (folder / "bomb-screen.gif").write_bytes(screen[:6] + struct.pack("<HH", 65_535, 65_535) + screen[10:])
    return folder


BOMBS_OF_FILMS = (
    "count.mp4",
    "times.mp4",
    "entries.mp4",
    "box.mp4",
    "grows.mkv",
    "grows.avi",
    "large.mkv",
    "screen.gif",
)


def under_the_lid(program: str, *arguments: object, lid: int | None = LID) -> tuple[int, str, str, int]:
    """Run a program in a process that may take 2 GB of addresses; its code, its output, its errors, its peak."""
    start = "import resource\n"
    if lid is not None:
        start += f"resource.setrlimit(resource.RLIMIT_AS, ({lid}, {lid}))\n"
    # Not `ru_maxrss`, which counts what the parent held before it became this process.
    end = "\nprint(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    done = subprocess.run(
        [sys.executable, "-c", start + program + end, *map(str, arguments)], capture_output=True, text=True, timeout=900
    )
    *said, peak = done.stdout.splitlines() or ["0"]
    return done.returncode, "\n".join(said), done.stderr, int(peak) * 1024 if peak.isdigit() else 0


VERB = "import sys; from smalti.cli.main import run; print(run(sys.argv[1:]))"


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of addresses that holds")
@pytest.mark.slow
@pytest.mark.parametrize("verb", ["tokenize", "reconstruct"])
def test_a_folder_of_bombs_is_named_and_its_neighbours_are_done(images, tmp_path, verb):
    if verb == "reconstruct":  # minutes each: of the three that may be read, one
        ignored = shutil.ignore_patterns("*-rgb*", "*-grey*", "*-sparse*")
        images = shutil.copytree(images, tmp_path / "in", symlinks=True, ignore=ignored)
        (images / "bomb-sparse.png").touch()
        os.truncate(images / "bomb-sparse.png", 8 << 30)
    out = tmp_path / "out"
    options = {"tokenize": ["--workers", 0, "--size", 64], "reconstruct": []}[verb]
    code, said, errors, peak = under_the_lid(VERB, verb, TINY_IMAGE, images, "--out", out, "--json", *options)
    assert code == 0, errors[-2000:]
    assert said.splitlines()[-1] == "3", errors[-2000:]
    report = json.loads("\n".join(said.splitlines()[:-1]))
    good = report["ok"] if verb == "tokenize" else len(report["done"])
    assert good == {"tokenize": 6, "reconstruct": 4}[verb]  # the photographs, and the images of 64 million pixels
    for name in ("larger", "text", "profile", "sparse", "loop"):
        assert f"bomb-{name}.png" in errors, name
    print(f"{verb}: peak {peak / 1e9:.2f} GB")
    assert peak < LARGE
    assert "internal error" not in errors


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of addresses that holds")
@pytest.mark.slow
def test_every_verb_takes_an_image_of_64_million_pixels_in_bounded_memory(images, tmp_path):
    """With a small network: what is large here is the image."""
    torch.manual_seed(0)
    config = {
        "width": 4,
        "multipliers": (1, 1),
        "depth": 0,
        "decoder_depth": 0,
        "middle": 0,
        "patch": 8,
        "strides": ((1, 1),),
    }
    Tokenizer(TokenizerConfig(**config)).save(tmp_path / "t")
    image, file, tokens = images / "bomb-rgb.png", tmp_path / "a.smt", tmp_path / "set"
    for verb, *arguments in (
        ("reconstruct", tmp_path / "t", image, "--out", tmp_path / "beside"),
        ("compress", image, file, "--tokenizer", tmp_path / "t"),
        ("decompress", file, tmp_path / "a.png", "--tokenizer", tmp_path / "t"),
        ("tokenize", tmp_path / "t", image, "--out", tokens, "--workers", 0),
        ("decode", tokens, "--out", tmp_path / "out"),
    ):
        # pyarrow may reserve 1 GB of addresses at once, which are no memory.
        lid = None if verb in ("tokenize", "decode") else LID
        code, said, errors, peak = under_the_lid(VERB, verb, *arguments, lid=lid)
        assert (code, said.splitlines()[-1]) == (0, "0"), (verb, errors[-2000:])
        print(f"{verb}: peak {peak / 1e9:.2f} GB")
        assert peak < LARGE, verb
    assert sha256(tmp_path / "a.png") == sha256(tmp_path / "out" / "bomb-rgb.png")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of addresses that holds")
@pytest.mark.slow
@pytest.mark.parametrize("is_large", [False, True])
def test_a_folder_of_films_that_are_bombs_is_named_and_its_neighbours_are_done(films, tmp_path, is_large):
    if is_large:  # frames as large as may be: read, or named where they do not fit
        black = [Image.new("L", (8_000, 8_000), level) for level in range(4)]
        black[0].save(films / "large.gif", save_all=True, append_images=black[1:])
    code, said, errors, peak = under_the_lid(
        VERB, "tokenize", TINY_IMAGE, films, "--out", tmp_path / "out", "--json", "--workers", 0, "--size", 64
    )
    assert code == 0, errors[-2000:]
    assert said.splitlines()[-1] == "3", errors[-2000:]
    report = json.loads("\n".join(said.splitlines()[:-1]))
    assert report["ok"] >= 3
    for name in BOMBS_OF_FILMS:
        assert f"bomb-{name}" in errors, name
    assert "good" not in errors
    assert "internal error" not in errors
    print(f"peak {peak / 1e9:.2f} GB")
    assert peak < (PEAK if is_large else 1_000_000_000)


def safetensors_of(header: bytes | dict[str, Any], data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(shape: tuple[int, ...] = (1,), at: tuple[int, int] = (0, 4)) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": at}


def claims() -> dict[str, bytes]:
    """Files of weights that claim what they have not, or hide much behind little."""
    return {
        "a header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
        "a header that is not there": struct.pack("<Q", 7_000_000) + b'{"a":',
        "a header of blanks": safetensors_of(b'{"a":' + b" " * 60_000_000 + b"1}"),
        "a million tensors": safetensors_of({f"t{number}": tensor((0,), (0, 0)) for number in range(900_000)}),
        "a note of 50 MB": safetensors_of({"__metadata__": {"a": "x" * 50_000_000}}),
        "2^40 numbers": safetensors_of({"a": tensor((2**40,))}, bytes(4)),
        "a size beyond 64 bits": safetensors_of({"a": tensor((2**32, 2**32), (0, 0))}),
        "nothing times 2^62": safetensors_of({"a": tensor((0, 2**62), (0, 0))}),
        "a million dimensions": safetensors_of({"a": tensor((1,) * 1_000_000)}, bytes(4)),
        "tensors that overlap": safetensors_of(
            {f"a{number}": tensor((25_000,), (0, 100_000)) for number in range(9)}, bytes(100_000)
        ),
        "a hole": safetensors_of({"a": tensor(), "b": tensor(at=(1000, 1004))}, bytes(1004)),
        "an end before its beginning": safetensors_of({"a": tensor(at=(4, 0))}, bytes(4)),
        "an end beyond the file": safetensors_of({"a": tensor((2**28,), (0, 2**30))}, bytes(4)),
        "lists in lists": safetensors_of(b'{"a":' + b"[" * 1_000_000),
        "8 GB of holes": safetensors_of({"a": tensor((2**31,), (0, 2**33))}),
    }


NETWORKS = {"wide": {"width": 100_000}, "deep": {"depth": 1024}, "deep below": {"middle": 1024}}
LOAD = """
import sys, time; from pathlib import Path
import smalti
from smalti.errors import SmaltiError
from smalti.foreign import read_checkpoint
for path in sorted(Path(sys.argv[1]).iterdir()):
    began = time.process_time()
    for read in (smalti.load, lambda path: read_checkpoint(path / "model.safetensors")):
        try:
            read(path)
        except SmaltiError as fault:
            print(type(fault).exit_code, str(fault)[:300])
    print("-", f"{time.process_time() - began:.1f}")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of addresses that holds")
@pytest.mark.slow
def test_weights_and_configs_that_claim_more_than_there_is_are_named_under_a_lid(tmp_path):
    """Each in a tokenizer's folder without a manifest, as a stranger sends it; fingerprints of the configs fit."""
    weights = claims()
    for name, data in weights.items():
        whole = shutil.copytree(FSQ, tmp_path / name, ignore=shutil.ignore_patterns("manifest.json"))
        (whole / "model.safetensors").write_bytes(data)
    holes = tmp_path / "8 GB of holes" / "model.safetensors"
    os.truncate(holes, holes.stat().st_size + (8 << 30))
    for name in NETWORKS:
        claim_a_network(tmp_path / name, name)
    code, said, errors, peak = under_the_lid(LOAD, tmp_path)
    assert code == 0, errors[-2000:]
    refused, seconds = Counter[str](), list[float]()
    for line in said.splitlines():
        code, text = line.split(" ", 1)
        if code == "-":
            seconds.append(float(text))
        else:
            assert code == "4" or "8 GB of holes" in text, line
            refused.update(name for name in (*weights, *NETWORKS) if f"/{name}" in text)
    assert all(refused[name] for name in (*weights, *NETWORKS)), refused
    print(f"peak {peak / 1e9:.2f} GB, at most {max(seconds):.1f} s")
    assert max(seconds) < 5
    assert peak < PEAK


def claim_a_network(folder: Path, name: str) -> Path:
    """A tokenizer's folder whose config names another network than its weights, with the fingerprint that fits."""
    shutil.copytree(FSQ, folder, ignore=shutil.ignore_patterns("manifest.json"))
    about = json.loads((folder / "config.json").read_text())
    about["tokenizer"].update(NETWORKS[name])
    config = TokenizerConfig.parse(about["tokenizer"])
    about["fingerprint"] = fingerprint(config.essence(), load_tensors(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize("name", NETWORKS)
def test_a_config_of_another_network_is_refused_before_memory_is_taken_for_it(tmp_path, name):
    with pytest.raises(IntegrityError, match=r"model\.safetensors: does not fit its config: "):
        load(claim_a_network(tmp_path / name, name))


@pytest.mark.parametrize(("field", "blocks"), [("depth", 100_000), ("middle", 1_000_000)])
def test_a_config_deeper_than_any_network_is_refused_by_its_field(tmp_path, field, blocks):
    folder = claim_a_network(tmp_path / "one", "deep")
    about = json.loads((folder / "config.json").read_text())
    about["tokenizer"][field] = blocks
    (folder / "config.json").write_text(json.dumps(about))
    with pytest.raises(SmaltiError, match=rf"config\.json: .*{field}: Input should be less than or equal to 1024"):
        load(folder)


def test_a_link_to_itself_is_named_and_the_rest_is_listed(tmp_path):
    for name in ("loop", "loop.png"):
        (tmp_path / name).symlink_to(name)
    (tmp_path / "good.png").touch()
    listing = list_files(tmp_path, IMAGE_SUFFIXES)
    assert listing.files == ("good.png", "loop.png")  # reading names it, as it does a broken link
    (reason,) = [what for what in listing.left_out if "loop" in what]
    assert reason.startswith("links that lead nowhere: loop (")
    assert LINKED_FOLDERS not in listing.left_out


MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "PA", "I;16", "CMYK", "YCbCr")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(1_100, 1_000), (1, 1_050_000), (1_050_000, 1)])
def test_pixels_in_bands_are_those_of_the_whole_image(mode, size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 255)
    else:
        image = Image.fromarray(noise).convert("RGBA" if mode in ("LA", "PA") else "RGB").convert(mode)
    if mode == "P":
        image.info["transparency"] = 7
    assert np.array_equal(rgb_pixels(image), np.asarray(to_rgb(image)))


@pytest.mark.parametrize("orientation", range(1, 10))
def test_an_image_is_turned_as_its_orientation_says(orientation):
    image = Image.fromarray(np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3))
    image.getexif()[0x0112] = orientation
    assert np.array_equal(rgb_pixels(image), np.asarray(ImageOps.exif_transpose(image)))


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    photo = sorted(bundled.photos("heldout").glob("*.jpg"))[0].read_bytes()
    places = pa.array([0] * 100, pa.int32())
    once: dict[str, Any] = {"compression": "zstd", "dictionary_pagesize_limit": 1 << 30, "store_schema": False}
    many = pa.DictionaryArray.from_arrays(places, pa.array([photo + bytes(24_000_000)]))
    pq.write_table(pa.table({"image": many}), folder / "many.parquet", **once)
    one = pa.table({"image": pa.array([bytes(600_000_000)], pa.large_binary())})
    pq.write_table(one, folder / "one.parquet", compression="zstd", use_dictionary=False)
    label = pa.DictionaryArray.from_arrays(places, pa.array(["x" * 24_000_000]))
    pq.write_table(pa.table({"image": [photo] * 100, "label": label}), folder / "label.parquet", **once)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
    return folder


READ = """
import sys; from pathlib import Path
from typing import Any
from smalti.data.parquet import ParquetStore; from smalti.errors import SmaltiError
for name in ("many", "one", "label"):
    found = []
    try:
        store = ParquetStore(Path(sys.argv[1]), [f"{name}.parquet"], "image", "label")
        for index in range(len(store)):
            try:
                found.append(len(store.media(index)))
            except SmaltiError as fault:
                found.append(fault.code)
    except SmaltiError as fault:
        found = str(fault)
    print(name, found)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_cells_that_unpack_to_gigabytes_are_read_a_few_at_a_time_or_named(tables):
    code, said, errors, peak = under_the_lid(READ, tables, lid=None)  # pyarrow aborts where addresses end
    assert code == 0, errors[-2000:]
    many, one, label = said.splitlines()
    assert many.count("24") == 100
    assert one == "one ['bomb']"
    assert label.startswith("label [")
    print(f"peak {peak / 1e9:.2f} GB")
    assert peak < PEAK


def test_cells_come_in_any_order_and_again(tmp_path):
    tables = tmp_path
    photo = sorted(bundled.photos("heldout").glob("*.jpg"))[0].read_bytes()
    path = tables / "order.parquet"
    cells = [photo + bytes([number]) for number in range(50)]
    pq.write_table(pa.table({"image": cells, "label": [str(n % 3) for n in range(50)]}), path, row_group_size=23)
    store = ParquetStore(tables, [path.name], "image", "label")
    for index in (49, 0, 22, 23, 5, 5, 4, 30, 29, 48):
        assert store.media(index) == cells[index]
        assert store.label(index) == index % 3
    again = pickle.loads(pickle.dumps(store))
    assert again.media(7) == cells[7]


def test_a_member_larger_than_the_memory_is_named(tmp_path):
    """Sparse on the disk: the tar is 12 GB of holes."""
    photo = sorted(bundled.photos("heldout").glob("*.jpg"))[0].read_bytes()
    path = tmp_path / "a.tar"
    head = tarfile.TarInfo("big.png")
    head.size = 12 << 30
    with path.open("wb") as file:
        file.write(head.tobuf())
        file.seek(12 << 30, os.SEEK_CUR)
        info = tarfile.TarInfo("good.jpg")
        info.size = len(photo)
        file.write(info.tobuf() + photo + bytes(-len(photo) % 512) + bytes(1024))
    program = """
import sys, torch; from pathlib import Path
from smalti.data.images import ImagesConfig; from smalti.data import evaluation
source = ImagesConfig(path=Path(sys.argv[1]), size=32).build(); bad = []
good = [batch.keys for batch in evaluation(source, on_bad=bad.append)]
print(good, [(fault.code, fault.path) for fault in bad])
"""
    code, said, errors, peak = under_the_lid(program, path)
    assert code == 0, errors[-2000:]
    assert "good.jpg" in said
    assert "('memory', " in said or "('bomb', " in said
    print(f"peak {peak / 1e9:.2f} GB")
    assert peak < PEAK


STEPS = {
    "names": b"ca\nb\n" * 3_200_000 + b".",
    "instances": b"(ia\nb\n" * 2_600_000 + b".",
    "entries": b"}" + b"NNs" * 5_000_000 + b".",
    "calls": b"ca\nb\n" + b")R" * 8_000_000 + b".",
    "marks": b"(" * 16_000_000,
}


READING = """
import sys, time
from pathlib import Path
from smalti.errors import IntegrityError
from smalti.foreign import read_checkpoint
began = time.process_time()
try:
    read_checkpoint(Path(sys.argv[1]))
except IntegrityError as error:
    print(time.process_time() - began, error)
"""


@pytest.mark.parametrize(
    "kind", [kind if kind == "marks" else pytest.param(kind, marks=pytest.mark.slow) for kind in STEPS]
)
def test_a_pickle_of_16_mb_is_refused_within_a_budget_of_steps(kind, tmp_path):
    """In a process of its own, where nothing checks the types of every call."""
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02" + STEPS[kind])
    ended = programs.run("-c", READING, path)
    assert ended.returncode == 0, ended.stderr
    seconds, fault = ended.stdout.split(maxsplit=1)
    assert "takes more than 1,500,000 reads" in fault
    assert float(seconds) < 20  # 1 to 5 s


def test_weights_that_are_not_finite_are_refused_when_they_are_loaded(tmp_path):
    tokenizer = load(TINY_IMAGE)
    with torch.no_grad():
        weights = next(tokenizer.decoder.parameters())
        weights[(0,) * weights.dim()] = float("nan")
    tokenizer.save(tmp_path / "diverged")
    with pytest.raises(IntegrityError, match=r"model\.safetensors: 1 of .* values of decoder\..* are not finite"):
        Tokenizer.load(tmp_path / "diverged")


def test_a_run_that_is_mostly_bad_ends_early(tmp_path):
    from smalti.data.source import FIRST
    from smalti.errors import InputError
    from smalti.pipeline.reconstruct import reconstruct

    folder, seen = tmp_path / "in", list[BadFile]()
    folder.mkdir()
    for number in range(2 * FIRST):
        (folder / f"{number:03}.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="51 of the first 51 files could not be used, more than `max_bad`"):
        reconstruct(TINY_IMAGE, [folder], tmp_path / "out", max_bad=0.5, on_file=seen.append)
    assert len(seen) == 51
    assert len(reconstruct(TINY_IMAGE, [folder], tmp_path / "out").bad) == 2 * FIRST

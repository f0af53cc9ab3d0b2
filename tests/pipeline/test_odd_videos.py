"""Videos with odd time stamps, edit lists and pixel shapes through the verbs: all frames, their shape, their pace."""

from fractions import Fraction
from pathlib import Path

import pytest

import smalti
from smalti.codec.codec import read_info
from smalti.data import open_video
from smalti.tokens.config import TokenizeOptions
from smalti.tokens.reader import TokenSet
from tests.token_sets import film, make_set, save_tokenizer

REPRO = Path(__file__).parents[1] / "data" / "repro"
SHAPE = Fraction(16, 15)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("made") / "tokenizer")


def test_a_folder_of_odd_videos_is_reconstructed_but_for_the_one_that_shows_nothing(
    tokenizer: Path, tmp_path: Path
) -> None:
    outputs = smalti.reconstruct(str(tokenizer), [REPRO], tmp_path, device="cpu")
    done = {result.source.name: result for result in outputs.done}
    assert sorted(done) == ["11_anamorphic.mp4", "14_untimed_packets.mkv", "17_gap.mp4"]
    assert {Path(bad.path).name: bad.code for bad in outputs.bad} == {
        "03_all_packets_discarded.mp4": "no-frames",
        "07_cut.jpg": "truncated",
        "cover_art.mp4": "no-video",
    }
    for result in done.values():
        with open_video(result.path) as reader:
            assert len(reader) == result.frames == 20
            assert reader.fps == pytest.approx(10)
            assert reader.pixel_aspect == (SHAPE if result.source.name == "11_anamorphic.mp4" else 1)
    assert done["11_anamorphic.mp4"].notes == ()
    assert done["17_gap.mp4"].notes == ("1 pauses of 600.0 s together are left out",)


def test_a_compressed_video_keeps_the_shape_of_its_pixels(tokenizer: Path, tmp_path: Path) -> None:
    pytest.importorskip("constriction")
    square = film(tmp_path / "square.mp4")
    for source, shape in ((REPRO / "11_anamorphic.mp4", SHAPE), (square, Fraction(1))):
        smalti.compress(source, tmp_path / "a.smt", str(tokenizer), overwrite=True, device="cpu")
        smalti.decompress(tmp_path / "a.smt", tmp_path / "a.mp4", str(tokenizer), overwrite=True, device="cpu")
        with open_video(tmp_path / "a.mp4") as reader:
            assert reader.pixel_aspect == shape
        told = read_info(tmp_path / "a.smt").plain()["pixel_aspect"]
        assert told == (None if shape == 1 else "16/15")
        assert (b"pixel_aspect" in (tmp_path / "a.smt").read_bytes()) == (shape != 1)  # as files were before


def test_a_token_set_keeps_the_shape_of_pixels(tokenizer: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "data").mkdir()
    film(tmp_path / "data" / "square.mp4")
    (tmp_path / "data" / "wide.mp4").write_bytes((REPRO / "11_anamorphic.mp4").read_bytes())
    make_set(tokenizer, tmp_path / "data", tmp_path / "set", options=TokenizeOptions(shard_files=1))
    rows = {row.key: row for row in TokenSet(tmp_path / "set")}
    assert {key: row.pixel_aspect for key, row in rows.items()} == {"square.mp4": None, "wide.mp4": "16/15"}
    smalti.decode(tmp_path / "set", tmp_path / "out", device="cpu")
    for name, shape in (("square", Fraction(1)), ("wide", SHAPE)):
        with open_video(tmp_path / "out" / f"{name}.mp4") as reader:
            assert reader.pixel_aspect == shape

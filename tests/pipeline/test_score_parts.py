"""Sharded scoring: any number of parts, also more than clips, gives the report of one, with every clip counted once."""

import pytest
import safetensors.torch
import torch

from smalti.data import ImagesConfig, Subset
from smalti.data.bundled import photos
from smalti.errors import InputError
from smalti.metrics import SMALTI, Features, Scores
from smalti.tokenizer import Tokenizer, TokenizerConfig
from smalti.tokenizer.frames import pairs_of_tokenizer, score_tokenizer
from tests.metrics.test_distance import NETWORK

PROTOCOL = SMALTI.replace({"lpips": None, "features": "efficientnet-lite0"})
FEATURES = Features(NETWORK, {"gain": torch.ones(1)}, digest="ab" * 32)


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    config = TokenizerConfig(width=8, multipliers=(1, 2), depth=1, decoder_depth=1, middle=0, strides=((1, 2),))
    return Tokenizer(config).eval()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Five pictures; the third and the last cannot be read."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, path in enumerate(sorted(photos("heldout").iterdir())[:5]):
        data = path.read_bytes()
        (folder / f"{i}.jpg").write_bytes(data[: len(data) // 3] if i in (2, 4) else data)
    return ImagesConfig(path=folder, size=32, crop="center", flip=False).build()


def in_parts(tokenizer, source, world, protocol=PROTOCOL):
    whole = Scores(protocol, features=FEATURES, levels=tokenizer.levels)
    seen = []
    for rank in range(world):
        scores = whole.fresh()
        pairs = pairs_of_tokenizer(
            tokenizer,
            source,
            share=(rank, world),
            samples=protocol.samples,
            on_bad=scores.bad.__setitem__,
        )
        for pair in pairs:
            if scores.add_pair(pair) is not None:
                seen.append(pair.number)
        sent = safetensors.torch.save(scores.tensors())
        whole = whole.merge(whole.received(safetensors.torch.load(sent)))
    return whole.report(), sorted(seen), sorted(whole.bad)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("limit", [None, 4, 1])
def test_any_number_of_parts_gives_the_report_of_one(tokenizer, source, world, limit):
    clips = Subset(source, range(len(source))[:limit])
    found, seen, left = in_parts(tokenizer, clips, world)
    one = score_tokenizer(tokenizer, source, PROTOCOL, limit=limit, features=FEATURES)
    assert seen == [i for i in range(len(clips)) if i not in (2, 4)]
    assert left == [i for i in range(len(clips)) if i in (2, 4)]
    if one.frechet is not None:
        assert found.frechet.distance == pytest.approx(one.frechet.distance, rel=1e-10)
    assert found.model_copy(update={"frechet": None}) == one.model_copy(update={"frechet": None})
    assert (found.frechet is None) == (one.frechet is None)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_clips_past_those_that_a_protocol_asks_for_count_as_originals_alone(tokenizer, source, world):
    report, seen, _ = in_parts(tokenizer, source, world, PROTOCOL.replace({"samples": 2}))
    assert (seen, report.clips, report.frechet.originals, report.frechet.outputs) == ([0, 1], 2, 3, 2)


@pytest.mark.parametrize("world", [1, 2])
def test_a_bad_file_among_those_asked_for_is_too_few(tokenizer, source, world):
    with pytest.raises(InputError, match=r"asks for 3 clips, 2 can be read; the first that cannot: .*2\.jpg"):
        in_parts(tokenizer, source, world, PROTOCOL.replace({"samples": 3}))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_bad_files_alone_are_an_error(tokenizer, tmp_path, world):
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"all 2 files are bad, the last: .*b\.jpg"):
        in_parts(tokenizer, ImagesConfig(path=tmp_path, size=32).build(), world)

"""A search of ids: never worse by its own measure, causal, read back by the decoder that there was, goals kept."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from smalti.codec import codec, search
from smalti.codec.codec import Compressed, Goal, compress_file, decompress_file, read_frames
from smalti.codec.entropy import _encode, alphabets, split
from smalti.codec.prior import Prior, shipped_prior
from smalti.codec.search import Search
from smalti.data import open_video, read_image, write_video
from smalti.data.bundled import photos
from smalti.errors import ConfigError
from smalti.families import load
from smalti.families.names import TINY_IMAGE
from smalti.nn.causal import Stream
from smalti.quantize import CodebookConfig, DSQConfig, FSQConfig, LFQConfig
from smalti.tokenizer import ConditionalConfig, TokenizerConfig
from smalti.tokenizer.closed_loop import follow
from smalti.tokenizer.frames import ids_to_frames
from smalti.video import pad_to, to_uint8, to_video
from tests.cli.conftest import FPS, moving
from tests.codec.test_prior import arbitrary
from tests.randomise import random_tokenizer

SMALL = {"width": 8, "patch": 4, "multipliers": (1,), "strides": (), "depth": 1, "decoder_depth": 1}
QUANTIZERS = {
    "fsq": FSQConfig(levels=(5, 4, 3)),
    "lfq": LFQConfig(bits=6),
    "dsq": DSQConfig(levels=(4, 3)),
}
IMAGE = TokenizerConfig(**SMALL, quantizer=QUANTIZERS["fsq"])
VIDEO = TokenizerConfig(
    **{**SMALL, "strides": ((2, 2),), "multipliers": (1, 2)}, time_kernel=2, quantizer=IMAGE.quantizer
)
CONDITIONAL = ConditionalConfig(
    image=IMAGE.replace({"patch": 2, "strides": ((1, 2),), "multipliers": (1, 2)}), group=2, width=8
)
KINDS = {
    "image": IMAGE,
    "video": VIDEO,
    "conditional": CONDITIONAL,
    "quarters": CONDITIONAL.replace({"quarters": True}),
}


def prior_of(tokenizer):
    """A prior of whole numbers by a formula, of this tokenizer's ids."""
    made = arbitrary(tokenizer.levels, largest=3000)
    return Prior(tokenizer.fingerprint, made.sizes, made._tensors, made._shifts)


def clip(count, height, width, seed=0):
    """Frames uint8 `t h w 3`: noise over a moving ramp."""
    rng = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(0, 200, width)[None, None, :, None] + 9 * torch.arange(count)[:, None, None, None]
    return (ramp + 40 * torch.rand(count, height, width, 3, generator=rng)).clamp(0, 255).to(torch.uint8)


def measured(tokenizer, prior, ids, images, price):
    """J of ids, from the public doors: squared error in 8-bit values before rounding, and bits of the coder."""
    video = to_video(images)
    with torch.no_grad():
        made = tokenizer.decode(ids, size=video.shape[2:]).clamp(-1, 1)
    squared = float(((made - video) * 127.5).square().sum()) / 3
    planes = split(ids[0].numpy(), tokenizer.levels)
    return squared + price * _encode(planes, alphabets(tokenizer.levels), "prior", prior).bits


def plain_ids(tokenizer, images):
    with torch.inference_mode():
        return tokenizer.encode(to_video(images))


@pytest.mark.parametrize("price", [0.0, 300.0, 1e5])
@pytest.mark.parametrize("size", [(8, 8), (17, 30), (4, 3), (40, 24)], ids=str)
@pytest.mark.parametrize("kind", QUANTIZERS)
def test_what_is_minimized_is_never_above_that_of_the_encoders_ids(kind, size, price):
    tokenizer = random_tokenizer(IMAGE.with_quantizer(QUANTIZERS[kind]))
    prior, image = prior_of(tokenizer), clip(1, *size)
    found = Search(tokenizer, prior, price).image(image[0])
    before = measured(tokenizer, prior, plain_ids(tokenizer, image), image, price)
    after = measured(tokenizer, prior, found.ids, image, price)
    assert after <= before * (1 + 1e-5) + 1
    if size == (40, 24):
        assert after < 0.99 * before


@pytest.mark.parametrize("kind", KINDS)
def test_quality_alone_is_better_in_every_frame_or_the_same(kind):
    tokenizer, images = random_tokenizer(KINDS[kind]), clip(1 if kind == "image" else 7, 24, 32)
    found = list(Search(tokenizer, prior_of(tokenizer), 0.0).video(images))
    ids = torch.cat([one.ids for one in found], 1)
    made = torch.stack(list(ids_to_frames(tokenizer, [(len(images), ids)], (24, 32))))
    wrong = (made.double() - images.double()).square().flatten(1).mean(1)
    told = torch.tensor([quality for one in found for quality in one.psnr])
    assert torch.allclose(10 * torch.log10(255**2 / wrong), told.double(), atol=0.01)
    first = to_uint8(tokenizer.decode(plain_ids(tokenizer, images)[:, :1], size=(1, 24, 32)))[0].double()
    assert wrong[0] <= 1.001 * (first[0] - images[0].double()).square().mean()  # rounding to 8 bits moves it a little


@pytest.mark.parametrize("kind", KINDS)
def test_the_future_never_reaches_ids_that_were_found(kind, monkeypatch):
    """Of conditional tokens a search sees so many groups ahead, and no further."""
    monkeypatch.setattr(search, "AHEAD", 2)
    seen = 5 + (2 * 2 if isinstance(KINDS[kind], ConditionalConfig) else 0)
    tokenizer, images = random_tokenizer(KINDS[kind]), clip(seen + 3, 16, 24)
    searched = Search(tokenizer, prior_of(tokenizer), 200.0)
    whole = [one.ids for one in searched.video(images)]
    changed = torch.cat([images[:seen], 255 - images[seen:]])
    other = [one.ids for one in searched.video(changed)]
    kept = 1 + 4 // tokenizer.strides[0]
    assert all(torch.equal(a, b) for a, b in zip(whole[:kept], other[:kept], strict=True))
    assert not torch.equal(torch.cat(whole[kept:], 1), torch.cat(other[kept:], 1))
    again = [one.ids for one in searched.video(iter(images))]
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def test_a_search_keeps_the_mode_of_a_token_frame_and_gains_in_each(monkeypatch):
    """A quarter's tokens are searched by the pixels of the quarter: J falls there as elsewhere."""
    monkeypatch.setattr(Search, "_choose", lambda self, ids, *others: ids)  # holds nothing
    tokenizer = random_tokenizer(KINDS["quarters"])
    images, size = clip(1, 20, 30).expand(9, -1, -1, -1), tokenizer.codebook_size // 5
    found = Search(tokenizer, prior_of(tokenizer), 0.0).video(images)
    encoding, decoding, gains = Stream(), Stream(), []
    for number, one in enumerate(found):
        frames = to_video(images[: 2 if number else 1])
        with torch.inference_mode():
            ids = tokenizer.encode(pad_to(frames, (frames.shape[2], 20, 32)), encoding)
            assert torch.equal(one.ids // size, ids // size)
            mode = (ids // size).unique()
            assert mode.numel() == 1
            searched, plain = (
                float((tokenizer.decode(which, decoding.fork())[..., :20, :30].clamp(-1, 1) - frames).square().sum())
                for which in (one.ids, ids)
            )
            assert searched <= plain * (1 + 1e-6)
            gains.append((int(mode), 1 - searched / plain))
            tokenizer.decode(one.ids, decoding)
        follow(tokenizer.encoder, encoding, tokenizer.decoder, decoding)
    assert len(gains) == 5
    assert max(gain for mode, gain in gains if mode > 0) > 0.01


def test_an_image_is_the_first_frame_of_a_video():
    tokenizer, images = random_tokenizer(CONDITIONAL), clip(3, 16, 24)
    searched = Search(tokenizer, prior_of(tokenizer), 200.0)
    assert torch.equal(searched.image(images[0]).ids, next(searched.video(images)).ids)


def test_conditional_tokens_after_a_search_follow_what_was_decoded():
    tokenizer, video = random_tokenizer(CONDITIONAL), to_video(clip(5, 16, 24))
    with torch.no_grad():
        encoding, decoding, plain = Stream(), Stream(), Stream()
        ids = tokenizer.encode(video[:, :, :1], encoding)
        tokenizer.encode(video[:, :, :1], plain)
        made = tokenizer.decode((ids + 1) % tokenizer.codebook_size, decoding)
        follow(tokenizer.encoder, encoding, tokenizer.decoder, decoding)
        assert torch.equal(encoding.get(tokenizer.encoder), made.clamp(-1, 1).permute(2, 0, 1, 3, 4))
        later = video[:, :, 1:3]
        assert not torch.equal(tokenizer.encode(later, encoding), tokenizer.encode(later, plain))


def test_a_higher_price_gives_fewer_bits_and_a_lower_quality():
    tokenizer, image = load(TINY_IMAGE), read_image(photos("heldout") / "owl.jpg")[100:164, 200:264]
    prior = shipped_prior(tokenizer.fingerprint)

    def bits(ids):
        return _encode(split(ids[0].numpy(), tokenizer.levels), prior.sizes, "prior", prior).bits

    plain = plain_ids(tokenizer, image[None])
    with torch.inference_mode():
        wrong = (to_uint8(tokenizer.decode(plain, size=(1, 64, 64)))[0, 0].double() - image.double()).square().mean()
    before = 10 * math.log10(255**2 / wrong)
    quality, some, many = (Search(tokenizer, prior, price).image(image) for price in (0.0, 800.0, 1e4))
    assert quality.psnr[0] > before + 0.2
    assert some.psnr[0] > before
    assert bits(some.ids) < 0.93 * bits(plain)
    assert bits(many.ids) < bits(some.ids) < bits(quality.ids)
    assert many.psnr[0] < some.psnr[0] < quality.psnr[0]


def test_a_large_image_is_searched_tile_by_tile(monkeypatch):
    tokenizer, image = random_tokenizer(IMAGE), clip(1, 80, 64)
    prior = prior_of(tokenizer)
    monkeypatch.setattr(search, "LARGEST_WHOLE", 1000)
    monkeypatch.setattr(search, "choose_tile", lambda tokenizer: 32)
    steps = []
    found = Search(tokenizer, prior, 0.0).image(image[0], lambda *at: steps.append(at))
    assert steps == [(n, 6) for n in range(1, 7)]
    before = measured(tokenizer, prior, plain_ids(tokenizer, image), image, 0.0)
    assert measured(tokenizer, prior, found.ids, image, 0.0) < 0.99 * before
    made = to_uint8(tokenizer.decode(found.ids, size=(1, 80, 64)))[0]
    wrong = float((made.double() - image.double()).square().mean())
    assert found.psnr[0] == pytest.approx(10 * math.log10(255**2 / wrong), abs=0.01)


@pytest.mark.parametrize("kind", ["video", "conditional"])
def test_a_file_of_found_ids_is_read_as_any_other(kind, tmp_path):
    tokenizer, film = random_tokenizer(KINDS[kind]), tmp_path / "film.mp4"
    write_video(film, list(moving(6, 16, 24)), FPS)
    done = compress_file(tokenizer, film, tmp_path / "a.smt", prior=prior_of(tokenizer), goal=Goal(price=100.0))
    made = torch.stack(list(read_frames(tokenizer, done.path, prior=prior_of(tokenizer))))
    assert made.shape == (6, 16, 24, 3)
    assert done.price == 100.0
    with open_video(film) as reader:
        source = torch.stack(list(reader.frames()))
    wrong = (made.double() - source.double()).square().flatten(1).mean(1)
    assert done.psnr == pytest.approx(float((10 * torch.log10(255**2 / wrong)).mean()), abs=0.05)
    part = list(read_frames(tokenizer, done.path, 2, 4, prior=prior_of(tokenizer)))
    assert torch.equal(torch.stack(part), made[2:4])


def test_goals_are_kept_from_the_side_that_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(codec, "ATTEMPTS", 4)
    tokenizer, source, seen = load(TINY_IMAGE), tmp_path / "image.png", []
    Image.fromarray(read_image(photos("heldout") / "owl.jpg")[120:160, 320:360].numpy()).save(source)

    def written(goal):
        return compress_file(
            tokenizer, source, tmp_path / "a.smt", goal=goal, progress=lambda at, of, note="": seen.append(note)
        )

    best = written(Goal(price=0.0))
    smaller = written(Goal(psnr=best.psnr - 1))
    assert best.psnr - 1 <= smaller.psnr < best.psnr - 0.2
    assert smaller.bytes < best.bytes
    assert smaller.bytes == (tmp_path / "a.smt").stat().st_size
    assert decompress_file(tokenizer, smaller.path, tmp_path / "back.png").frames == 1
    within = written(Goal(bits=smaller.bits_per_pixel))
    assert within.bits_per_pixel <= smaller.bits_per_pixel
    assert within.psnr > smaller.psnr - 0.3
    assert seen[-1] == "attempt 5 of 5"


def test_tokenizers_that_cannot_be_searched_say_so():
    table = random_tokenizer(TokenizerConfig(**SMALL, quantizer=CodebookConfig(size=64, dim=4)))
    with pytest.raises(ConfigError, match="scalar quantizer"):
        Search(table, prior_of(table), 0.0)
    whole = random_tokenizer(VIDEO.replace({"norm": "clip"}))
    with pytest.raises(ConfigError, match="causal"):
        next(Search(whole, prior_of(whole), 0.0).video(clip(3, 16, 24)))
    with torch.inference_mode():
        frozen = random_tokenizer(IMAGE)
    with pytest.raises(ConfigError, match="inference_mode"):
        Search(frozen, prior_of(frozen), 0.0)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_a_search_is_the_same_in_every_mode_of_gradients(mode):
    tokenizer, images = random_tokenizer(VIDEO), clip(3, 16, 24)
    searched = Search(tokenizer, prior_of(tokenizer), 100.0)
    plain = torch.cat([found.ids for found in searched.video(images)], 1)
    with mode():
        assert torch.equal(torch.cat([found.ids for found in searched.video(images)], 1), plain)
        assert torch.equal(searched.image(images[0]).ids, plain[:, :1])
    assert all(weights.grad is None for weights in tokenizer.parameters())


def test_the_best_of_all_attempts_is_written(tmp_path, monkeypatch):
    """A greedy search is not monotone in its price: white has 49.2 dB at 0, and 55.0 at 500."""
    monkeypatch.setattr(codec, "LEAST_PRICE", 500.0)
    monkeypatch.setattr(codec, "MOST_PRICE", 500.0)
    monkeypatch.setattr(codec, "ATTEMPTS", 1)
    source = tmp_path / "white.png"
    Image.fromarray(torch.full((24, 24, 3), 255, dtype=torch.uint8).numpy()).save(source)
    done = compress_file(load(TINY_IMAGE), source, tmp_path / "a.smt", goal=Goal(psnr=52.0))
    assert done.psnr > 52
    assert done.price == pytest.approx(500)


def test_a_rank_puts_what_was_asked_for_first():
    def file(size, psnr):
        return Compressed(Path(), Path(), 8, 8, 1, None, 1, size, 1.0, 1.0, size / 8, 1.0, 0.0, psnr=psnr)

    files = [file(10, 20.0), file(20, 30.0), file(20, 31.0), file(30, 31.0), file(40, 35.0)]

    def best(goal):
        return max(files, key=goal.rank)

    assert best(Goal(psnr=30.5)) == files[2]  # the smallest with so many dB
    assert best(Goal(bits=30 / 8)) == files[2]  # the best of so many bits, and of equals the smallest
    assert best(Goal(psnr=50.0)) == files[4]  # nearest
    assert best(Goal(bits=1.0)) == files[0]

"""Conditional tokens: the token contract in a closed loop, what an untrained one does, and where gradients stop."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smalti.data import bundled, read_image
from smalti.errors import ConfigError
from smalti.families import load
from smalti.families.names import TINY_IMAGE
from smalti.nn.causal import Stream
from smalti.quantize import CodebookConfig, DSQConfig, FSQConfig, LFQConfig
from smalti.recipes.tokenizers import tiny_video_conditional
from smalti.tokenizer import ConditionalConfig, Tokenizer, TokenizerConfig, inflate, start_conditional, with_quarters
from smalti.training.tokenizer_state import architecture
from smalti.video import to_video
from tests.randomise import random_tokenizer

IMAGES = {
    "two levels": {"patch": 4, "multipliers": (1, 2), "strides": ((1, 2),)},
    "quarters": {"patch": 4, "multipliers": (1, 2), "strides": ((1, 2),)},
    "one level": {"patch": 4, "multipliers": (1,), "strides": ()},
    "frame norms": {"patch": 1, "multipliers": (1, 2, 2), "strides": ((1, 2), (1, 2)), "norm": "frame", "groups": 2},
}
QUANTIZERS = [LFQConfig(bits=10), FSQConfig(levels=(8, 5, 4)), DSQConfig(levels=(8, 5)), CodebookConfig(size=64, dim=4)]


def image_config(name="two levels", quantizer=None):
    small = {"width": 8, "depth": 1, "decoder_depth": 1, "middle": 0}
    return TokenizerConfig(**small, **IMAGES[name], quantizer=quantizer or FSQConfig(levels=(8, 5, 4)))


def built(name="two levels", quantizer=None, dtype=torch.float64, seed=0, **fields):
    """A conditional tokenizer whose every parameter is random: zeros at the ends of its networks would hide faults."""
    fields = {"width": 8, "quarters": name == "quarters", **fields}
    config = ConditionalConfig(image=image_config(name, quantizer), **fields)
    return random_tokenizer(config, seed).to(dtype)


def clip(frames, height=16, width=24, batch=1, dtype=torch.float64, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, frames, height, width, generator=rng, dtype=torch.float64).to(dtype) * 2 - 1


each = pytest.mark.parametrize("name", IMAGES)
some = pytest.mark.parametrize(
    ("name", "group"), [("two levels", 4), ("quarters", 4), ("one level", 1), ("frame norms", 3)]
)


@some
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_future_never_reaches_the_past(name, group, dtype):
    tokenizer, video = built(name, dtype=dtype, group=group), clip(10, dtype=dtype)
    with torch.no_grad():
        ids = tokenizer.encode(video)
        pixels = tokenizer.decode(ids)
        for first in (1, 4, 5, 9):
            changed = video.clone()
            changed[:, :, first:] = clip(10 - first, dtype=dtype, seed=7)
            other = tokenizer.encode(changed)
            whole = 1 + (first - 1) // group
            assert torch.equal(ids[:, :whole], other[:, :whole])
            end = 1 + (whole - 1) * group
            assert torch.equal(pixels[:, :, :end], tokenizer.decode(other)[:, :, :end])


@each
def test_an_image_has_the_ids_and_pixels_of_a_videos_first_frame_and_of_the_image_tokenizer(name):
    tokenizer, video = built(name), clip(9)
    image = Tokenizer(tokenizer.config.image).double().eval()
    image.encoder.load_state_dict(tokenizer.encoder.image.state_dict())
    image.decoder.load_state_dict(tokenizer.decoder.image.state_dict())
    with torch.no_grad():
        ids = tokenizer.encode(video)
        assert torch.equal(tokenizer.encode(video[:, :, 0]), ids[:, 0])
        assert torch.equal(image.encode(video[:, :, 0]), ids[:, 0])
        assert torch.allclose(tokenizer.decode(ids)[:, :, 0], image.decode(ids[:, 0]), rtol=0, atol=1e-12)


@some
@settings(max_examples=2, deadline=None)
@example(cuts=[3, 1, 5, 4, 6], at_once=1)
@given(cuts=st.lists(st.integers(1, 7), min_size=1, max_size=5), at_once=st.integers(1, 3))
def test_any_chunking_gives_the_ids_and_pixels_of_the_whole(name, group, cuts, at_once):
    tokenizer, video = built(name, group=group), clip(sum(cuts), 8, 8)
    with torch.no_grad():
        ids = tokenizer.encode(video)
        assert torch.equal(torch.cat(list(tokenizer.encode_stream(video.split(cuts, 2))), 1), ids)
        size = (sum(cuts), 8, 8)
        parts = list(tokenizer.decode_stream(ids.split(at_once, 1), size=size))
        assert torch.equal(torch.cat(parts, 2), tokenizer.decode(ids, size=size))


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ids_alone_give_the_past_that_the_encoder_knew(name, dtype):
    """The encoder and the decoder keep the same frame, bit for bit, after every group."""
    tokenizer, encoding, decoding = built(name, dtype=dtype), Stream(), Stream()
    with torch.no_grad():
        for number, frames in enumerate((1, 4, 8, 4)):
            ids = tokenizer.encode(clip(frames, seed=number, dtype=torch.float32), encoding)
            tokenizer.decode(ids, decoding)
            known, made = encoding.carries[tokenizer.encoder], decoding.carries[tokenizer.decoder]
            assert torch.equal(known, made)
            assert known.shape == (1, 1, 3, 16, 24)
            assert known.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("quarters", [False, True])
@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda q: q.kind)
def test_a_forward_pass_has_the_ids_of_encode_and_the_pixels_of_decode(quantizer, quarters):
    if quarters and quantizer.kind != "fsq":
        with pytest.raises(ConfigError, match="quarters needs an image tokenizer with FSQ"):
            ConditionalConfig.parse({"image": image_config(quantizer=quantizer).plain(), "quarters": True})
        return
    tokenizer, video = built(quantizer=quantizer, quarters=quarters), clip(9, batch=3)
    made = tokenizer(video)
    ids = tokenizer.encode(video)
    assert torch.equal(made.ids, ids)
    assert torch.allclose(made.video, tokenizer.decode(ids), rtol=0, atol=1e-12)
    rows = [tokenizer.encode(row) for row in video.split(1)]
    assert torch.equal(torch.cat(rows), ids)
    assert torch.equal(tokenizer.quantizer.encode(tokenizer.latents(video)), ids)


@settings(max_examples=5, deadline=None)
@given(
    group=st.integers(1, 5),
    frames=st.integers(1, 11),
    height=st.integers(1, 37),
    width=st.integers(1, 37),
    batch=st.integers(1, 2),
)
def test_any_size_round_trips_to_the_same_shape(group, frames, height, width, batch):
    tokenizer, video = built(dtype=torch.float32, group=group), clip(frames, height, width, batch, torch.float32)
    with torch.no_grad():
        made = tokenizer(video)
        assert made.video.shape == video.shape
        assert made.ids.shape == (batch, 1 + -(-(frames - 1) // group), -(-height // 8), -(-width // 8))
        assert tokenizer.decode(made.ids, size=(frames, height, width)).shape == video.shape


def test_a_stream_holds_no_graph_and_does_not_grow():
    tokenizer, stream, sizes = built(dtype=torch.float32), Stream(), set()
    for frames in (5, 4, 8, 12, 4):
        tokenizer.encode(clip(frames, dtype=torch.float32), stream)
        sizes.add(stream.nbytes)
        assert not any(carry.requires_grad for carry in stream.carries.values())
    assert sizes == {3 * 16 * 24 * 4}


def test_tiles_are_refused_and_so_is_a_chunk_of_a_wrong_length():
    tokenizer = built()
    assert not tokenizer.is_tile_exact
    with pytest.raises(ConfigError, match="tile"):
        tokenizer.encode(clip(5), tile=16)
    with pytest.raises(ValueError, match="a chunk of a stream"):
        tokenizer.encode(clip(4), Stream())


def test_a_fresh_tokenizer_holds_the_frame_of_the_image_tokenizer_that_it_starts_from():
    image = Tokenizer(image_config()).double().eval()
    fresh, video = start_conditional(image, 3, width=8).eval(), clip(8)
    with torch.no_grad():
        frame = image(video[:, :, 0]).video
        assert torch.equal(fresh.encode(video)[:, 0], image.encode(video[:, :, 0]))
        made = fresh(video).video
    assert torch.equal(made[:, :, 0], frame)
    assert torch.equal(made[:, :, 1:], frame.clamp(-1, 1)[:, :, None].expand(-1, -1, 7, -1, -1))
    assert fresh.dtype == image.dtype
    with pytest.raises(ConfigError, match="image tokenizer"):
        start_conditional(fresh)
    with pytest.raises(ConfigError, match="no video form"):
        inflate(fresh, (1,))


def modes(tokenizer, ids):
    """The modes of token frames, `b t`; of each the same in all of its tokens."""
    digits = tokenizer.quantizer.digits(ids)[:, -1].flatten(2)
    assert (digits == digits[..., :1]).all()
    return digits[..., 0]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("size", "loud"), [((16, 24), 1), ((13, 9), 1), ((8, 40), 1), ((16, 24), 5)], ids=str)
def test_each_token_frame_has_the_mode_of_least_error(size, loud, seed):
    """Every token frame is at least as near to its group as each mode's own, counted by hand."""
    plain = built(group=2, seed=seed)
    with torch.no_grad():  # pixels far beyond the range, which errors are of after a clamp
        plain.decoder.to_pixels.now.weight.mul_(loud)
        plain.decoder.image.last_weight.mul_(loud)
    tokenizer, video = with_quarters(plain), plain.pad(clip(9, *size))
    image = Tokenizer(plain.config.image).double().eval()
    image.encoder.load_state_dict(plain.encoder.image.state_dict())
    image.decoder.load_state_dict(plain.decoder.image.state_dict())
    past, chosen, (height, width) = None, [], video.shape[3:]
    with torch.no_grad():
        ids = tokenizer.encode(video)
        made = tokenizer.decode(ids)
        for number, first in enumerate(range(1, 9, 2), start=1):
            group, past = video[:, :, first : first + 2], made[:, :, first - 1].clamp(-1, 1)
            z = plain.encoder(torch.cat(list(group.unbind(2)), 1)[None], past[None])
            codes = plain.quantizer.decode(plain.quantizer.encode(z.permute(1, 2, 0, 3, 4))).permute(2, 0, 1, 3, 4)
            new = plain.decoder.groups(codes, past[None])[0].unflatten(1, (2, 3)).transpose(1, 2)
            tries = [(new, plain.quantizer.encode(z.permute(1, 2, 0, 3, 4))[:, 0])]
            for rows in (slice(0, height // 2), slice(height // 2, None)):
                for columns in (slice(0, width // 2), slice(width // 2, None)):
                    mean = group.mean(2)[..., rows, columns]
                    large = torch.nn.functional.interpolate(mean, size=(height, width), mode="bicubic")
                    own = image.encode(large.clamp(-1.5, 1.5))
                    frame = past.clone()
                    frame[..., rows, columns] = torch.nn.functional.avg_pool2d(image.decode(own), 2)
                    tries.append((frame[:, :, None].expand(-1, -1, 2, -1, -1), own))
            errors = [float((one.clamp(-1, 1) - group).square().mean()) for one, _ in tries]
            best = min(range(5), key=errors.__getitem__)
            chosen.append(best)
            assert torch.equal(ids[:, number] % plain.codebook_size, tries[best][1])
            assert torch.allclose(made[:, :, first : first + 2], tries[best][0], rtol=0, atol=1e-12)
    assert modes(tokenizer, ids)[0].tolist() == [0, *chosen]


@each
def test_a_quarter_is_encoded_alone(name):
    """Which other quarters are tried makes no difference, even where the first layer sees several frames."""
    config = ConditionalConfig(image=image_config(name).replace({"stem_time": 3}), group=2, width=8, quarters=True)
    encoder, groups = random_tokenizer(config).double().encoder, torch.cat(list(clip(2, batch=2).unbind(2)), 1)[None]
    with torch.no_grad():
        all_four = encoder.quarter_latents(groups, torch.arange(1, 5))
        for mode in range(1, 5):
            alone = encoder.quarter_latents(groups, torch.tensor([mode]))
            assert torch.allclose(all_four[mode - 1 : mode], alone, rtol=0, atol=1e-12)


def test_ids_of_the_first_mode_are_those_without_quarters():
    plain = built()
    tokenizer, video = with_quarters(plain), clip(13)
    assert tokenizer.codebook_size == 5 * plain.codebook_size
    assert tokenizer.config.modes == 5
    with torch.no_grad():
        ids = plain.encode(video)
        assert torch.equal(tokenizer.decode(ids), plain.decode(ids))
        assert (modes(tokenizer, tokenizer.encode(video)) > 0).any()


def test_the_mode_of_a_token_frame_is_that_of_most_of_its_tokens():
    tokenizer, video = built("quarters"), clip(5, 16, 24)
    size = tokenizer.codebook_size // 5
    with torch.no_grad():
        ids = tokenizer.encode(video)
        own = ids[:, 1:] % size
        for mode in range(5):
            frame = mode * size + own
            mixed = frame.clone()
            mixed[..., 0, :2] = (mode + 1) % 5 * size + own[..., 0, :2]
            pixels = tokenizer.decode(torch.cat([ids[:, :1], frame], 1))
            assert torch.equal(tokenizer.decode(torch.cat([ids[:, :1], mixed], 1)), pixels)
            is_same = (pixels[:, :, 1:] == pixels[:, :, :1].clamp(-1, 1)).all(1).all(1)[0]
            rows = {1: (0, 8), 2: (0, 8), 3: (8, 16), 4: (8, 16)}.get(mode)
            if rows is not None:
                moved = torch.zeros(16, 24, dtype=torch.bool)
                columns = (0, 12) if mode % 2 else (12, 24)
                moved[rows[0] : rows[1], columns[0] : columns[1]] = True
                assert torch.equal(~is_same, moved)
        half = own.clone()
        half[..., :1, :] += 3 * size
        half[..., 1:, :] += 2 * size
        assert torch.equal(
            tokenizer.decode(torch.cat([ids[:, :1], half], 1)),
            tokenizer.decode(torch.cat([ids[:, :1], own + 2 * size], 1)),
        )


@pytest.mark.parametrize("fields", [{}, {"stem_time": 3}], ids=str)
def test_a_row_of_a_batch_has_its_own_ids_though_modes_tie(fields):
    """Once its quarters are coded, each mode of a still scene gives the same picture, and rounding must not choose."""
    for seed in range(4):
        config = ConditionalConfig(image=image_config().replace(fields), group=2, width=8, quarters=True)
        tokenizer = random_tokenizer(config, seed)
        still = clip(1, batch=2, dtype=torch.float32, seed=seed).expand(-1, -1, 13, -1, -1)
        video = torch.cat([still, clip(13, batch=2, dtype=torch.float32, seed=seed + 50)])
        with torch.no_grad():
            ids = tokenizer.encode(video)
            assert torch.equal(torch.cat([tokenizer.encode(row) for row in video.split(1)]), ids)


def test_codes_without_a_mode_show_in_the_pixels():
    tokenizer = built("quarters")
    codes = tokenizer.indices_to_codes(tokenizer.encode(clip(9)))
    codes[:, -1, 1, 0, 0] = torch.nan
    with torch.no_grad():
        pixels = tokenizer.decode_codes(codes)
    assert pixels[:, :, :1].isfinite().all()
    assert pixels[:, :, 1:5].isnan().all()


def test_quarters_are_switched_on_in_what_is_trained_and_left_out_of_training():
    levels = (64,) * 10 + (4,)
    with pytest.raises(ConfigError, match=r"quarters: .* codes are more than"):
        ConditionalConfig.parse({"image": image_config(quantizer=FSQConfig(levels=levels)).plain(), "quarters": True})
    with pytest.raises(ConfigError, match="conditional-cnn"):
        with_quarters(Tokenizer(image_config()))
    recipe = tiny_video_conditional(2)
    with pytest.raises(ConfigError, match="smalti inflate --quarters"):
        recipe.replace({"tokenizer": recipe.tokenizer.replace({"quarters": True})})
    assert architecture(built("quarters").config) == architecture(built().config)


def test_a_still_scene_gains_detail_from_token_frame_to_token_frame():
    image = load(TINY_IMAGE)
    tokenizer = with_quarters(start_conditional(image).eval())
    photo = to_video(read_image(sorted(bundled.photos("heldout").glob("*.jpg"))[0]))[..., :64, :64]
    video = photo.expand(-1, -1, 17, -1, -1)
    with torch.no_grad():
        made = tokenizer.decode(tokenizer.encode(video))
    errors = (made.clamp(-1, 1) - video).square().mean((0, 1, 3, 4))[::4]
    assert (errors[1:] <= errors[:-1]).all()
    assert errors[-1] < 0.6 * errors[0]


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_those_of_each_group_alone_given_its_past(autocast):
    """Detached streams: the loss of a group moves no earlier group, and every parameter learns, in bfloat16 too."""
    tokenizer, video = built(dtype=torch.float32 if autocast else torch.float64), clip(13, batch=2)
    video = video.to(tokenizer.dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        (tokenizer(video).video.float() if autocast else tokenizer(video).video).square().mean().backward()
    ours = {name: p.grad.clone() for name, p in tokenizer.named_parameters()}
    assert all(g.abs().sum() > 0 for g in ours.values())
    tokenizer.zero_grad()
    with torch.no_grad():
        made = tokenizer.decode(tokenizer.encode(video))
    first = tokenizer(video[:, :, :1]).video
    total = first.square().sum()
    for start in (1, 5, 9):
        frames, past = video[:, :, start : start + 4], made[:, :, start - 1].clamp(-1, 1)
        group = torch.cat(list(frames.unbind(2)), 1)[None]
        z = tokenizer.encoder(group, past[None])
        codes = tokenizer.quantizer(z.permute(1, 2, 0, 3, 4)).codes
        total = total + tokenizer.decoder.groups(codes.permute(2, 0, 1, 3, 4), past[None]).square().sum()
    (total / video.numel()).backward()
    for name, parameter in tokenizer.named_parameters():
        if autocast:
            assert torch.nn.functional.cosine_similarity(ours[name].ravel(), parameter.grad.ravel(), 0) > 0.9, name
        else:
            torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-7, atol=1e-12, msg=name)


def test_the_gradient_of_codes_runs_through_all_that_follows():
    tokenizer = built(group=1)
    codes = torch.randn(1, 3, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.1
    assert torch.autograd.gradcheck(tokenizer.decode_codes, codes.requires_grad_())


def test_numbers_that_are_not_finite_show_in_the_pixels_of_a_step():
    tokenizer, video = built(dtype=torch.float32), clip(9, dtype=torch.float32)
    with torch.no_grad():
        tokenizer.encoder.to_latent.now.bias.fill_(torch.nan)
    made = tokenizer(video).video
    assert made[:, :, :1].isfinite().all()
    assert made[:, :, 1:].isnan().all()
    with torch.no_grad(), pytest.raises(ValueError, match="not finite"):
        tokenizer.encode(video)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"time_kernel": 3}, "image tokenizer"),
        ({"norm": "clip"}, "clip"),
        ({"patch": 1, "multipliers": (1,), "strides": ()}, "even number of pixels"),
    ],
)
def test_an_image_part_that_does_not_fit_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        ConditionalConfig.parse({"image": {**image_config().plain(), **fields}})


def test_a_saved_tokenizer_is_read_back(tmp_path):
    tokenizer, video = built(), clip(9)
    tokenizer.save(tmp_path / "t")
    again = Tokenizer.load(tmp_path / "t")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.config == tokenizer.config
    with torch.no_grad():
        assert torch.equal(again.encode(video), tokenizer.encode(video))


@pytest.mark.parametrize("quarters", [False, True])
def test_a_config_with_its_own_quantizer_is_the_same_config(quarters):
    """With quarters the quantizer has one digit more than that of the image tokenizer, which is taken off again."""
    config = ConditionalConfig(quarters=quarters)
    assert config.with_quantizer(config.quantizer) == config
    assert config.with_quantizer(config.quantizer.replace({"losses": ()})).quantizer.losses == ()

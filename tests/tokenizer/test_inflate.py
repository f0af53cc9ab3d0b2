"""An inflated tokenizer is the image tokenizer on every frame."""

import pytest
import torch

from smalti.errors import ConfigError
from smalti.quantize import DSQConfig, FSQConfig, LFQConfig
from smalti.tokenizer import Tokenizer, TokenizerConfig, inflate
from tests.tokenizer.test_tokenizer import clip

QUANTIZERS = [LFQConfig(bits=12), FSQConfig(), DSQConfig()]


def image_tokenizer(norm="position", quantizer=None, start="repeat", seed=0):
    config = TokenizerConfig(
        width=8, depth=1, decoder_depth=1, middle=1, patch=2, multipliers=(1, 2, 2), strides=((1, 2), (1, 2)),
        norm=norm, quantizer=quantizer or FSQConfig(), start=start,
    )  # fmt: skip
    tokenizer = Tokenizer(config).double()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng, dtype=torch.float64))
    return tokenizer


@pytest.mark.parametrize("norm", ["position", "frame"])
@pytest.mark.parametrize("past", ["full", "point"])
@pytest.mark.parametrize("start", ["repeat", "zero", "grey"])
def test_without_time_strides_every_frame_is_reconstructed_as_an_image(norm, past, start):
    image = image_tokenizer(norm, start=start)
    video = inflate(image, (1, 1), past_kernel=past)
    film = clip(7)
    with torch.no_grad():
        frames = [image(film[:, :, t : t + 1]) for t in range(7)]
        whole = video(film)
    assert torch.equal(whole.ids, torch.cat([frame.ids for frame in frames], 1))
    assert torch.allclose(whole.video, torch.cat([frame.video for frame in frames], 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda q: q.kind)
@pytest.mark.parametrize("time_strides", [(2, 2), (1, 2), (1, 4), (2, 1)])
def test_with_time_strides_latents_are_those_of_every_sth_frame(quantizer, time_strides):
    image = image_tokenizer(quantizer=quantizer)
    video = inflate(image, time_strides, time_kernel=4)
    s, film = video.strides[0], clip(9)
    with torch.no_grad():
        ids = video.encode(film)
        pictures = [image.encode(film[:, :, t : t + 1]) for t in range(0, 9, s)]
        assert torch.equal(ids, torch.cat(pictures, 1))
        decoded = video.decode(ids)
        for t in range(9):
            picture = image.decode(ids[:, -(-t // s)][:, None])
            assert torch.allclose(decoded[:, :, t : t + 1], picture, rtol=0, atol=1e-12)


@pytest.mark.parametrize("start", ["repeat", "zero", "grey"])
def test_norms_over_the_clip_keep_stills_unless_grey_frames_enter_the_statistics(start):
    image, picture = image_tokenizer("frame", start=start), clip(1)
    video = inflate(image, (2, 2), past_kernel="full", norm="clip")
    with torch.no_grad():
        wanted = image(picture)
        for frames in (1, 5, 9):
            made = video(picture.expand(-1, -1, frames, -1, -1))
            error = (made.video - wanted.video).abs().max()
            if start == "grey":
                assert error > 0.1
            else:
                assert torch.equal(made.ids, wanted.ids.expand_as(made.ids))
                assert error < 1e-12


def test_what_cannot_be_inflated_exactly_is_refused():
    for wrong, said in [
        (lambda: inflate(image_tokenizer("clip"), (1, 2)), "norm='clip'"),
        (lambda: inflate(image_tokenizer(), (2,)), "2 time strides"),
        (lambda: inflate(image_tokenizer(), (1, 4), time_kernel=3), "time stride cannot exceed"),
        (lambda: inflate(inflate(image_tokenizer(), (1, 2)), (1, 2)), "already"),
    ]:
        with pytest.raises(ConfigError, match=said):
            wrong()

"""What a tokenizer takes and refuses: a table of inputs, each with the one line that says how to get it right."""

import copy

import numpy as np
import pytest
import torch

from smalti.errors import BadTensor, ConfigError, SmaltiError
from smalti.nn.causal import Stream
from smalti.quantize import DSQConfig, FSQConfig, LFQConfig
from smalti.tokenizer import Tokenizer
from tests.tokenizer.test_tokenizer import built, clip

INTEGERS = [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int16, torch.int32]
SMALL = {"fsq": FSQConfig(levels=(5, 4)), "lfq": LFQConfig(bits=4), "dsq": DSQConfig(levels=(5, 3))}


@pytest.fixture(scope="module", params=["patch", "image", "grey"])
def tokenizer(request):
    return built(request.param, quantizer=FSQConfig(levels=(5, 5, 4)))


def test_four_axes_in_four_axes_out(tokenizer):
    """An image is a video of one frame, so both forms give the same ids and pixels."""
    images = clip(1, 20, 12, batch=3)
    with torch.no_grad():
        ids, whole = tokenizer.encode(images[:, :, 0]), tokenizer.encode(images)
        assert torch.equal(ids, whole[:, 0])
        assert torch.equal(tokenizer.decode(ids), tokenizer.decode(whole)[:, :, 0])
        assert torch.equal(tokenizer.decode(ids, size=(20, 12)), tokenizer.decode(whole, size=(1, 20, 12))[:, :, 0])
        assert torch.equal(tokenizer.latents(images[:, :, 0]), tokenizer.latents(images)[:, :, 0])
        flat, deep = tokenizer(images[:, :, 0]), tokenizer(images)
        assert torch.equal(flat.video, deep.video[:, :, 0])
        assert torch.equal(flat.ids, deep.ids[:, 0])
        assert torch.equal(tokenizer.indices_to_codes(ids), tokenizer.indices_to_codes(whole)[:, :, 0])


def test_latents_codes_and_ids_lead_to_each_other(tokenizer):
    with torch.no_grad():
        video = clip(5)
        ids = tokenizer.encode(video)
        assert torch.equal(tokenizer.quantizer.encode(tokenizer.latents(video)), ids)
        assert torch.equal(tokenizer.codes_to_indices(tokenizer.indices_to_codes(ids)), ids)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_ids_of_any_integer_type_are_decoded(tokenizer, dtype):
    ids = torch.randint(100, (2, 2, 3, 2), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(tokenizer.decode(ids.to(dtype)), tokenizer.decode(ids))


def test_ids_of_numpy_files_are_decoded(tokenizer, tmp_path):
    ids = torch.randint(100, (1, 1, 3, 2), generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "ids.npy", ids.numpy().astype(np.uint16))
    with torch.no_grad():
        again = tokenizer.decode(torch.from_numpy(np.load(tmp_path / "ids.npy")))
        assert torch.equal(again, tokenizer.decode(ids))


def test_ids_in_a_row_are_decoded_by_their_grid(tokenizer):
    with torch.no_grad():
        for ids in (tokenizer.encode(clip(5)), tokenizer.encode(clip(1)[:, :, 0])):
            assert torch.equal(tokenizer.decode(ids.flatten(1), shape=ids.shape[1:]), tokenizer.decode(ids))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_of_any_width_are_taken(dtype):
    tokenizer = built(dtype=torch.float32)
    assert tokenizer.encode(clip(1).to(dtype)).shape == (1, 1, 2, 3)


def test_values_a_little_beyond_are_taken():
    """A filter or a decoder may exceed [-1, 1]."""
    built().encode(clip(1) * 1.49)


VIDEO = torch.rand(2, 3, 5, 8, 8) * 2 - 1
VIDEOS = {
    "uint8": ((VIDEO * 127 + 128).to(torch.uint8), "smalti.video.to_video"),
    "uint8, channels last": ((VIDEO * 127 + 128).to(torch.uint8).movedim(1, -1), "smalti.video.to_video"),
    "integers": (VIDEO.long(), "smalti.video.to_video"),
    "numpy": (VIDEO.numpy(), "numpy float32 of shape"),
    "a list": ([VIDEO], "found list"),
    "nothing": (None, "found NoneType"),
    "0 to 255": ((VIDEO + 1) * 127.5, "video / 127.5 - 1"),
    "beyond": (VIDEO * 9, "wanted are pixels in [-1, 1]"),
    "NaN": (VIDEO.masked_fill(VIDEO > 0.9, torch.nan), "not finite"),
    "infinite": (VIDEO.masked_fill(VIDEO > 0.9, torch.inf), "not finite"),
    "grey": (VIDEO[:, :1], "video.expand(-1, 3, -1, -1, -1)"),
    "grey image": (VIDEO[:, :1, 0], "video.expand(-1, 3, -1, -1)"),
    "RGBA": (torch.cat([VIDEO, VIDEO[:, :1]], 1), "video[:, :3]"),
    "channels last": (VIDEO.movedim(1, -1), "video.movedim(-1, 1)"),
    "images, channels last": (VIDEO[:, :, 0].movedim(1, -1), "video.movedim(-1, 1)"),
    "unbatched video": (VIDEO[0], "video[None]"),
    "unbatched image": (VIDEO[0, :, 0], "video[None]"),
    "too many axes": (VIDEO[None], "b 3 t h w"),
    "no axes": (torch.tensor(0.0), "b 3 t h w"),
    "no frames": (VIDEO[:, :, :0], "empty"),
    "no batch": (VIDEO[:0], "empty"),
    "no width": (VIDEO[..., :0], "empty"),
    "another device": (VIDEO.to("meta"), "video.to(tokenizer.device)"),
}


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("case", VIDEOS)
def test_what_cannot_be_a_video_is_refused_in_one_line(case):
    wrong, said = VIDEOS[case]
    tokenizer = built(dtype=torch.float32)
    doors = [tokenizer.encode, tokenizer, tokenizer.latents, lambda x: list(tokenizer.encode_stream([x]))]
    doors = [*doors, lambda x: tokenizer.encode(x, Stream()), lambda x: tokenizer.encode(x, tile=8)]
    for number, door in enumerate(doors):
        if number == 3 and case == "no frames":
            continue  # chunks of a stream are of any length
        with pytest.raises(SmaltiError) as error, torch.no_grad():
            door(wrong)
        assert isinstance(error.value, BadTensor | ConfigError), number
        assert "\n" not in str(error.value)
        assert said.replace("video", "chunk" if number == 3 and "smalti" not in said else "video") in str(
            error.value
        ), number


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_batch_that_is_not_finite_shows_in_the_loss_while_gradients_are_recorded(value):
    """A training step skips such a batch; nothing may look as if all were well."""
    tokenizer, video = built(dtype=torch.float32), clip(1, dtype=torch.float32)
    video[0, 0, 0, 0, 0] = value
    assert tokenizer(video).video.isnan().any()
    with pytest.raises(BadTensor, match="not finite"), torch.no_grad():
        tokenizer(video)


REMEDIES = [
    case for case, (_, said) in VIDEOS.items() if said.startswith(("video.expand", "video[", "video.mov", "video /"))
]


@pytest.mark.parametrize("case", REMEDIES)
def test_what_was_said_makes_it_right(case):
    wrong, remedy = VIDEOS[case]
    right = eval(remedy, {"video": wrong})  # the words of the message are Python
    assert built(dtype=torch.float32).encode(right).dtype == torch.int64


def test_there_are_remedies():
    assert len(REMEDIES) > 6


IDS = torch.zeros(1, 2, 3, 4, dtype=torch.int64)
WRONG_IDS = {
    "a row": (IDS.flatten(1), {}, "shape=(t, h, w)"),
    "a row of a grid below zero": (IDS.flatten(1), {"shape": (-6, -4)}, "shape: (-6, -4) is not the grid"),
    "a row without a batch": (IDS.flatten(), {}, "ids[None]"),
    "another grid": (IDS.flatten(1), {"shape": (2, 3, 5)}, "shape: (2, 3, 5) is not the grid"),
    "a grid of a grid": (IDS, {"shape": (2, 3, 4)}, "shape: (2, 3, 4) is not the grid"),
    "a number for a grid": (IDS.flatten(1), {"shape": 24}, "shape: must be two or three whole numbers"),
    "floats": (IDS.float(), {}, "must be integers (found float32)"),
    "booleans": (IDS.bool(), {}, "must be integers (found bool)"),
    "numpy": (IDS.numpy(), {}, "torch.from_numpy(ids)"),
    "a list": (IDS.tolist(), {}, "found list"),
    "empty": (IDS[:, :0], {}, "none"),
    "too many axes": (IDS[None], {}, "b t h w"),
    "negative": (IDS - 1, {}, "-1 is outside [0, 64000)"),
    "out of range": (IDS + 64000, {}, "64000 is outside [0, 64000)"),
    "another device": (IDS.to("meta"), {}, "ids.to(tokenizer.device)"),
    "a size beyond": (
        IDS,
        {"size": (9, 9, 99)},
        "size: (9, 9, 99) is not within (frames, height, width) = (5, 24, 32)",
    ),
    "a size of no frames": (IDS, {"size": (0, 9, 9)}, "size: (0, 9, 9) is not within"),
    "a number for a size": (IDS, {"size": 8}, "size: must be two or three whole numbers"),
    "a size of two for a video": (IDS, {"size": (9, 9)}, "size: (9, 9) is not within (frames, height, width)"),
    "a size of three for images": (IDS[:, 0], {"size": (1, 9, 9)}, "size: (1, 9, 9) is not within (height, width)"),
    "floats for a size": (IDS, {"size": (1.0, 9.0, 9.0)}, "size: must be two or three whole numbers"),
    "a tile that does not fit": (IDS, {"tile": 3}, "tile: must be a multiple of 8 pixels"),
    "a tile that is no number": (IDS, {"tile": "8"}, "tile: must be a multiple of 8 pixels"),
    "a tile of a stream": (IDS, {"tile": 8, "stream": Stream()}, "tile: a stream has"),
    "images in a stream": (IDS[:, 0], {"stream": Stream()}, "ids.unsqueeze(1)"),
    "a size without its name": (IDS, {"stream": (5, 24, 32)}, "the second argument is a Stream, and others are named"),
}


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("case", WRONG_IDS)
def test_what_cannot_be_ids_is_refused_in_one_line(case):
    wrong, options, said = WRONG_IDS[case]
    tokenizer = built(dtype=torch.float32)
    with pytest.raises(SmaltiError) as error, torch.no_grad():
        tokenizer.decode(wrong, **copy.copy(options))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("unchecked_types")
def test_chunks_of_a_stream_belong_together():
    tokenizer, video = built(), clip(5)
    ids = tokenizer.encode(video)
    for call, said in (
        (
            lambda: list(tokenizer.encode_stream([video, video[..., :16]])),
            "(1, 16, 24) as the first one (found (1, 16, 16))",
        ),
        (lambda: list(tokenizer.encode_stream([video, video.expand(2, -1, -1, -1, -1)])), "found (2, 16, 24)"),
        (lambda: list(tokenizer.decode_stream([ids, ids[..., :1]])), "as the first one"),
        (lambda: list(tokenizer.encode_stream(video)), "video.split(16, 2)"),
        (lambda: tokenizer.encode(video, 8), "as tile=8"),
        (lambda: list(tokenizer.encode_stream(None)), "found NoneType"),
        (lambda: list(tokenizer.decode_stream(ids)), "ids.split(4, 1)"),
        (lambda: list(tokenizer.encode_stream([video[:, :, 0]])), "chunk.unsqueeze(2)"),
        (lambda: list(tokenizer.decode_stream([ids], size=(5, 99, 9))), "size: (5, 99, 9) is not within"),
        (lambda: list(tokenizer.decode_stream([ids], size=5)), "size: must be two or three whole numbers"),
    ):
        with pytest.raises(SmaltiError) as error:
            call()
        assert said in str(error.value)
    stream = Stream()
    tokenizer.encode(video, stream)
    with pytest.raises(BadTensor, match="as the first one"):
        tokenizer.encode(video[:, :, :4, :8], stream)


@pytest.mark.parametrize("quantizer", SMALL)
def test_one_line_says_what_it_is(quantizer):
    tokenizer = Tokenizer(built(quantizer=SMALL[quantizer]).config)
    (first,) = repr(tokenizer).splitlines()
    assert first.startswith("video tokenizer: 4x8x8 pixels a token")
    assert f"{tokenizer.codebook_size:,} codes" in first
    assert f"{sum(p.numel() for p in tokenizer.parameters()):,} parameters, float32 on cpu" in first
    assert len(repr(tokenizer.encoder).splitlines()) > 10

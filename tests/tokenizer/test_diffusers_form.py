"""A tokenizer behind the methods of diffusers' autoencoders is the tokenizer."""

import pytest
import torch

import smalti
from smalti.errors import BadTensor
from smalti.quantize import LFQConfig
from smalti.tokenizer import Tokenizer, TokenizerConfig
from smalti.tokenizer.diffusers_form import DiffusersForm

CONFIG = TokenizerConfig(
    quantizer=LFQConfig(bits=6), width=8, multipliers=(1, 2), strides=((2, 2),), time_kernel=2, depth=1, decoder_depth=1
)


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return Tokenizer(CONFIG).eval()


@torch.no_grad()
@pytest.mark.parametrize("shape", [(2, 3, 6, 8), (2, 3, 5, 6, 8), (1, 3, 7, 5)], ids=str)
def test_latents_decode_to_what_the_tokenizer_gives(tokenizer, shape):
    vae, x = DiffusersForm(tokenizer), torch.rand(shape) * 2 - 1
    (z,) = vae.encode(x, return_dict=False)
    assert torch.equal(z, vae.encode(x).latents)
    assert z.shape[1] == vae.config.latent_channels == 6
    ids = tokenizer.encode(x)
    wanted = tokenizer.decode(ids)
    assert torch.equal(tokenizer.quantizer.encode(z), ids)
    assert torch.equal(vae.decode(z).sample, wanted)
    assert torch.equal(vae.decode(tokenizer.indices_to_codes(ids), force_not_quantize=True).sample, wanted)
    assert torch.equal(vae(x).sample, tokenizer(x).video)
    assert (vae.device, vae.dtype) == (tokenizer.device, tokenizer.dtype)
    assert vae.config.spatial_compression_ratio == vae.config.temporal_compression_ratio == 2


def test_what_lies_between_codes_is_decoded_with_gradients(tokenizer):
    codes = torch.zeros(1, 6, 2, 3, requires_grad=True)
    tokenizer.decode_codes(codes).sum().backward()
    assert codes.grad.abs().sum() > 0


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("shape", [(1, 5, 2, 3), (6, 2, 3), (1, 6, 1, 1, 2, 3)], ids=str)
def test_codes_of_another_shape_are_refused(tokenizer, shape):
    with pytest.raises(BadTensor, match=r"^codes must be b 6 t h w or b 6 h w \(found"):
        tokenizer.decode_codes(torch.zeros(shape))


def test_a_batch_of_one_size_is_the_image_alone(tokenizer):
    rng = torch.Generator().manual_seed(0)
    sizes = [(6, 8), (5, 7), (6, 8), (9, 4), (6, 8)]
    images = [torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=rng) for size in sizes]
    batches = smalti.batch(images, most=2)
    assert [batch.places for batch in batches] == [[0, 2], [1], [3], [4]]
    for video, places in batches:
        for place, ids in zip(places, tokenizer.encode(video), strict=True):
            assert torch.equal(ids, tokenizer.encode(smalti.video.to_video(images[place]))[0])
    assert [batch.places for batch in smalti.batch([image.numpy() for image in images])] == [[0, 2, 4], [1], [3]]


@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_list_of_images_is_refused_by_its_place():
    image = torch.zeros(4, 4, 3, dtype=torch.uint8)
    with pytest.raises(BadTensor, match=r"^images: 1: pixels must be uint8"):
        smalti.batch([image, image.float()])
    with pytest.raises(BadTensor, match=r"^images: 0: is a batch already"):
        smalti.batch([image.expand(2, 1, 4, 4, 3)])
    for wrong in ([], image, 3):
        with pytest.raises(smalti.errors.ConfigError, match=r"^images: "):
            smalti.batch(wrong)
    with pytest.raises(smalti.errors.ConfigError, match=r"^most: 0 is below 1"):
        smalti.batch([image], most=0)

"""What must hold on a CUDA device; run with `pytest -m gpu`."""

import copy

import pytest
import torch

from smalti.data import Batch, ImagesConfig
from smalti.data.bundled import photos
from smalti.discriminators import Magvit3DConfig, StyleGAN2Config
from smalti.nn.causal import Stream
from smalti.tokenizer import TokenizerConfig
from smalti.training.ahead import Copies
from smalti.training.config import GANConfig, TokenizerTraining
from smalti.training.distributed import World
from smalti.training.generator_task import begin_generator, generator_step, read_generator
from smalti.training.tokenizer_figures import read
from smalti.training.tokenizer_state import start_tokenizer
from smalti.training.tokenizer_step import begin, step
from tests.randomise import random_tokenizer
from tests.reference import token_models
from tests.reference.plain_step import ALONE
from tests.training.test_recorded import CASES, recipe

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:Synchronization debug mode")]  # torch's, of its alarm
SMALL = {
    "width": 32,
    "depth": 1,
    "decoder_depth": 1,
    "middle": 1,
    "multipliers": (1, 2),
    "strides": ((2, 2),),
    "patch": 2,
}
PLANS = {
    "image": TokenizerConfig(**SMALL | {"strides": ((1, 2),), "norm": "frame", "adaptive": "frame"}),
    "point": TokenizerConfig(**SMALL, time_kernel=3),
    "full": TokenizerConfig(**SMALL, time_kernel=3, past_kernel="full", start="grey", norm="frame"),
}


def built(plan, dtype=torch.float64):
    """A tokenizer whose every parameter is random."""
    return random_tokenizer(PLANS[plan]).to(dtype)


def clip(frames, dtype=torch.float64):
    rng = torch.Generator().manual_seed(1)
    return (torch.rand(2, 3, frames, 32, 48, generator=rng, dtype=torch.float64) * 2 - 1).to(dtype)


@pytest.mark.parametrize("plan", PLANS)
def test_ids_and_pixels_in_float64_are_those_of_the_cpu(plan):
    tokenizer, video = built(plan), clip(1 if plan == "image" else 9)
    with torch.inference_mode():
        ids = tokenizer.encode(video)
        pixels = tokenizer.decode(ids)
        tokenizer.to("cuda")
        assert torch.equal(tokenizer.encode(video.cuda()).cpu(), ids)
        torch.testing.assert_close(tokenizer.decode(ids.cuda()).cpu(), pixels, rtol=0, atol=1e-10)


def test_bytes_become_the_same_pixels_to_the_bit():
    """Division by a number of the host would be a product with its rounded inverse, off in 111 of 256 values."""
    pixels = torch.arange(256 * 3).remainder(256).to(torch.uint8).view(1, 1, 16, 16, 3)
    batch = Batch(pixels, ("all",), 0, (None,), (0,), 1)
    assert torch.equal(batch.to(torch.device("cuda")).video.cpu(), batch.video)


@pytest.mark.parametrize("plan", PLANS)
def test_ids_in_float32_are_those_of_the_cpu_but_for_ties(plan):
    """As torch is set: its TF32, 10 bits for convolutions, would move latents by 1e-3 and more.

    A tie is within what float32 costs on the CPU: 1e-6, but 6e-3 where the grey frames before a video have hardly any
    variance, which a norm of the frame divides by (the GPU is at 6e-5 there)."""
    assert torch.backends.cudnn.allow_tf32
    tokenizer, video = built(plan, torch.float32), clip(1 if plan == "image" else 9, torch.float32)
    with torch.inference_mode():
        z, ids = tokenizer.latents(video), tokenizer.encode(video)
        exact = copy.deepcopy(tokenizer).double().latents(video.double())
        margin = 2 * float((z - exact).abs().max()) + 1e-5
        around = [tokenizer.quantizer.encode(exact + e) for e in (-margin, margin)]
        tokenizer.to("cuda")
        moved = float((tokenizer.latents(video.cuda()).cpu() - exact).abs().max())
        differ = tokenizer.encode(video.cuda()).cpu() != ids
    assert moved < margin
    assert not (differ & (around[0] == around[1])).any()
    assert differ.float().mean() < 0.01
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("plan", PLANS)
def test_ids_of_a_sample_are_the_same_in_any_batch(plan):
    """But for ties: cuDNN takes another algorithm for another size."""
    tokenizer = built(plan, torch.float32).to("cuda")
    video = clip(1 if plan == "image" else 9, torch.float32).cuda()
    with torch.inference_mode():
        alone = tokenizer.encode(video[:1])
        for batch in (2, 5, 16):
            differ = tokenizer.encode(video[:1].expand(batch, -1, -1, -1, -1)) != alone
            assert differ.float().mean() < 1e-3


def test_chunks_of_a_stream_give_the_whole_on_the_gpu():
    tokenizer, video, stream = built("full").to("cuda"), clip(9).cuda(), Stream()
    with torch.inference_mode():
        parts = [tokenizer.encode(chunk, stream) for chunk in video.split([1, 4, 2, 2], 2)]
        assert torch.equal(torch.cat(parts, 1), tokenizer.encode(video))


@pytest.mark.parametrize("order", ["together", "alternate"])
@pytest.mark.parametrize(
    "judge", [StyleGAN2Config(size=32, width=32), Magvit3DConfig(width=16, multipliers=(2,), grid=2)]
)
def test_bfloat16_steps_are_finite_and_learn(judge, order):
    config = TokenizerTraining(
        tokenizer=PLANS["full"],
        data=ImagesConfig(path=photos("train")),
        steps=100,
        batch_size=2,
        weights={"l1": 1.0},
        precision="bfloat16",
        gan=GANConfig(discriminator=judge, adaptive=True, penalty="gradient_norm", order=order),
    )
    state = start_tokenizer(config, World(0, 1, torch.device("cuda")))
    video = clip(9, torch.float32)
    found = [step(state, video) for _ in range(20)]
    assert not any(measured.skipped for measured in found)
    assert found[-1].losses["l1"] < found[0].losses["l1"]
    assert all(p.dtype == torch.float32 for p in state.tokenizer.parameters())


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_gradients_of_recorded_steps_are_those_of_steps_that_are_not(case, fast):
    """From the same weights at each step, for two shapes in turns; cuDNN may choose other kernels."""
    name, changes, _ = CASES[case]
    config = recipe(name, [*changes, f"fast_kernels={fast}"])
    frames = 1 if name == "tiny" else 5
    states, found = [], []
    for is_recorded in (False, True):
        state = start_tokenizer(config.replace({"cuda_graph": is_recorded}), World(0, 1, torch.device("cuda")))
        gradients = []
        state.optimizer.register_step_pre_hook(
            lambda *_, s=state, g=gradients: g.append(
                [p.grad.clone() for p in s.tokenizer.parameters() if p.requires_grad]
            )
        )
        states, found = [*states, state], [*found, gradients]
    plain, recorded = states
    for number in range(8):
        video = clip(frames, torch.float32)[: 1 + number % 2, ..., :16, :16] * (1 - 0.1 * number)
        recorded.tokenizer.load_state_dict(plain.tokenizer.state_dict())
        lines = [step(state, video) for state in states]
        assert not any(line.skipped for line in lines)
        assert lines[1].losses == pytest.approx(lines[0].losses, rel=1e-2, abs=1e-4)
        wanted, given = (torch.cat([g.flatten() for g in gradients[-1]]) for gradients in found)
        assert (wanted - given).norm() < 1e-2 * wanted.norm()
    assert len(recorded.recorded) == 2


@pytest.mark.parametrize("is_recorded", [False, True])
@pytest.mark.parametrize("muon", ["optimizer.muon={turns: 2}", "optimizer.muon=null"])
def test_steps_wait_for_nothing_and_skip_what_is_not_finite(muon, is_recorded):
    """torch raises where the program would wait for the GPU."""
    config = recipe("tiny", ["data.size=16", muon, f"cuda_graph={is_recorded}"])
    state = start_tokenizer(config, World(0, 1, torch.device("cuda")))
    good, copies = torch.randint(0, 256, (2, 1, 16, 16, 3), dtype=torch.uint8), Copies(torch.device("cuda"))
    batch = Batch(good, ("", ""), 0, (None, None), (0, 1), 2)
    bad = torch.full((2, 3, 1, 16, 16), torch.nan, device="cuda")
    for _ in range(3):  # the second is recorded
        step(state, batch.to(torch.device("cuda")).video)
    before = {name: tensor.clone() for name, tensor in state.tokenizer.state_dict().items()}
    torch.cuda.set_sync_debug_mode("error")
    try:
        begun = [begin(state, bad)]
        after = {name: tensor.clone() for name, tensor in state.tokenizer.state_dict().items()}
        begun += [begin(state, copies.finish(copies.begin(batch)).video) for _ in range(3)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [result.skipped for result in read(state, begun)] == [True, False, False, False]
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert state.updates == 6


@pytest.mark.parametrize("muon", [{"turns": 2}, None])
@pytest.mark.parametrize("model", token_models.MODELS)
def test_steps_of_a_token_model_wait_for_nothing_and_skip_what_is_not_finite(model, muon):
    optimizer = {"lr": 1e-3, "warmup": 2, "muon": muon}
    steps_wait_for_nothing(token_models.training(model, optimizer=optimizer, loss={"visible": 0.3}), 5)


def test_steps_with_hints_wait_for_nothing(tmp_path):
    tokenizer = token_models.save_tokenizer(tmp_path / "tokenizer")
    steps_wait_for_nothing(token_models.training("classes", tokenizer=str(tokenizer)), 11)


def steps_wait_for_nothing(config, count):
    """Run some steps, in which all tasks come, after one that is skipped; torch raises where they would wait."""
    device, bad = torch.device("cuda"), []
    state, copies = token_models.started(config, World(0, 1, device)), Copies(device)
    state.objective.register_forward_hook(
        lambda _, __, losses: losses._replace(total=losses.total * torch.nan) if bad else losses
    )
    for _ in range(3):
        assert not generator_step(state, token_models.batch()).skipped
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    torch.cuda.set_sync_debug_mode("error")
    try:
        bad.append(True)
        begun = [begin_generator(state, copies.finish(copies.begin(token_models.batch())))]
        after = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
        bad.clear()
        begun += [begin_generator(state, copies.finish(copies.begin(token_models.batch()))) for _ in range(count)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert {one.task for one in begun} == {share.task.kind for share in config.tasks}
    assert [result.skipped for result in read_generator(state, begun)] == [True, *count * [False]]
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in state.model.state_dict().items())
    assert state.updates == 3 + count


@pytest.mark.parametrize("model", token_models.MODELS)
def test_a_token_model_sees_the_masks_of_the_cpu_and_has_its_loss(model):
    """Without dropout, whose numbers are those of the device."""
    config = token_models.training(model)
    generator = config.generator.replace({"dropout": 0.0, "attention_dropout": 0.0})
    config, seen = config.replace({"generator": generator}), []
    for world in (ALONE, World(0, 1, torch.device("cuda"))):
        state = token_models.started(config, world)
        state.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        seen.append([generator_step(state, token_models.batch()) for _ in range(4)])
    inputs = [one if isinstance(one, torch.Tensor) else one.subtokens for one in seen if not isinstance(one, list)]
    assert all(torch.equal(ours, theirs.cpu()) for ours, theirs in zip(inputs[:4], inputs[4:], strict=True))
    wanted, found = (steps for steps in seen if isinstance(steps, list))
    for ours, theirs in zip(wanted, found, strict=True):
        assert theirs.task == ours.task
        assert theirs.loss == pytest.approx(ours.loss, rel=1e-3)
        assert theirs.bits_per_token == pytest.approx(ours.bits_per_token, rel=1e-3)

"""A batch that is cut in micro-batches, or over ranks, has the gradients of the whole: every loss x discriminator."""

import itertools
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from smalti.data import ImagesConfig
from smalti.data.bundled import photos
from smalti.discriminators import Magvit3DConfig, PatchConfig, StyleGAN2Config
from smalti.losses.perceptual import LPIPSConfig, lpips_shapes
from smalti.quantize import FSQConfig, LFQConfig
from smalti.tokenizer import ConditionalConfig, TokenizerConfig
from smalti.training.config import GANConfig, HeldTokens, OptimizerConfig, TokenizerTraining
from smalti.training.distributed import World, cut
from smalti.training.tokenizer_state import start_tokenizer
from smalti.training.tokenizer_step import step
from tests import programs
from tests.reference.plain_step import ALONE

FREE = OptimizerConfig(clip=None, warmup=0)
ENTROPIES = {"l1": 0.7, "l2": 1.3, "token_entropy": 0.1, "batch_entropy": -0.1, "commitment": 0.25}
QUANTIZERS = {
    "lfq": (LFQConfig(bits=6, temperature=0.3), ENTROPIES),
    "fsq": (FSQConfig(levels=(5, 4, 3), losses=("batch_entropy",)), {"l2": 1.0, "batch_entropy": -0.5}),
    "held": (LFQConfig(bits=6, temperature=0.3), ENTROPIES),
}
"""Quantizers and the weights of losses; `held` is that of conditional tokens, some of which are held."""
DISCRIMINATORS = {
    "none": None,
    "patch": PatchConfig(width=4),
    "patch-all": PatchConfig(width=4, norm="none", frames="all"),
    "style": StyleGAN2Config(size=16, width=4),
    "style-all": StyleGAN2Config(size=16, width=4, group=2, frames="all"),
    "clip": Magvit3DConfig(width=4, multipliers=(2,), grid=2),
}
GANS = {
    "fixed": {"loss": "non_saturating", "penalty": "r1", "penalty_weight": 2.0},
    "adaptive": {"adaptive": True, "weight": 0.75, "penalty": "gradient_norm"},
    "lecam": {"lecam": 0.3, "weight": 0.5},
    "all": {"adaptive": True, "weight": 0.75, "penalty": "r1", "lecam": 0.3, "loss": "non_saturating"},
}
CASES = [("lfq", "none", "fixed"), ("fsq", "none", "fixed"), *itertools.product(["lfq"], [*DISCRIMINATORS][1:], GANS)]
CASES += [("held", "none", "fixed"), ("held", "patch", "all")]


def config_of(quantizer, discriminator, gan, **changes):
    network, weights = QUANTIZERS[quantizer]
    small = {"width": 4, "depth": 1, "decoder_depth": 1, "middle": 0, "patch": 2, "multipliers": (1, 1)}
    model, held = TokenizerConfig(**small, strides=((2, 2),), time_kernel=3, quantizer=network), None
    if quantizer == "held":
        image = TokenizerConfig(**small, strides=((1, 2),), quantizer=network)
        model, held = ConditionalConfig(image=image, group=1, width=4, decoder_depth=(1, 1)), HeldTokens()
    judge = DISCRIMINATORS.get(discriminator, discriminator)
    settings = {
        "tokenizer": model, "data": ImagesConfig(path=photos("train")), "steps": 10, "batch_size": 8,
        "weights": weights, "optimizer": FREE, "held_tokens": held, "still_frames": 1 if held is None else 3,
        "gan": None if judge is None else GANConfig(discriminator=judge, optimizer=FREE, **GANS[gan]),
    }  # fmt: skip
    return TokenizerTraining(**(settings | changes))


def start(config, world=ALONE):
    """A state in float64 that has left its start: no part is zero."""
    torch.set_default_dtype(torch.float64)  # DDP keeps the type that its module has when it is made
    try:
        state = start_tokenizer(config, world)
    finally:
        torch.set_default_dtype(torch.float32)
    rng = torch.Generator().manual_seed(3)
    for module in [state.tokenizer, state.ema, *([state.gan.discriminator] if state.gan else [])]:
        module.double()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng, dtype=torch.float64))
    if state.lpips is not None:
        state.lpips.double()
    return state


def gradients_of(state, video, *more):
    """The gradients that the optimizers of a step have, its losses, and what it left behind."""
    found = {}

    def note(name, module):
        def hook(*_):
            found.update({f"{name}.{n}": p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})

        return hook

    state.optimizer.register_step_pre_hook(note("tokenizer", state.tokenizer))
    if state.gan is not None:
        state.gan.optimizer.register_step_pre_hook(note("discriminator", state.gan.discriminator))
    measured = step(state, video, *more)
    assert not measured.skipped
    for name, value in {**measured.losses, "total": measured.total, "weight": measured.gan_weight}.items():
        found[f"loss.{name}"] = torch.tensor(value, dtype=torch.float64)
    if state.gan is not None and state.gan.anchors is not None:
        found |= {f"anchors.{name}": value for name, value in state.gan.anchors._asdict().items()}
    return found


def assert_equal(found, wanted):
    """To 1e-10 of the whole gradient: a tensor whose gradient is nothing but rounding cannot be compared alone."""
    assert found.keys() == wanted.keys()
    for kind in sorted({name.split(".")[0] for name in wanted}):
        names = [name for name in wanted if name.split(".")[0] == kind]
        size = torch.stack([wanted[name].norm() for name in names]).norm()
        for name in names:
            error = (found[name] - wanted[name]).abs().max()
            assert error <= 1e-10 * size, f"{name}: {error / size:.1e} of the norm of all"


def clips(n=8, frames=3, size=16, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, frames, size, size, generator=rng, dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_micro_batches_have_the_gradients_of_the_whole(case):
    config = config_of(*case)
    whole = gradients_of(start(config), clips())
    several = [config.replace({"accumulate": parts}) for parts in (2, 4, 8)]
    exact = [other for other in several if not other.cut_note()]
    assert len(exact) == {"style": 1, "style-all": 2}.get(case[1], 3)
    for other in exact[:1] + exact[1:][-1:]:
        assert_equal(gradients_of(start(other), clips()), whole)


def test_micro_batches_have_the_adversarial_weight_of_a_step_of_the_ramp():
    config = config_of("fsq", "patch", "adaptive")
    config = config.replace({"gan": config.gan.replace({"ramp": 4})})
    whole = gradients_of(start(config), clips())
    assert_equal(gradients_of(start(config.replace({"accumulate": 4})), clips()), whole)


def test_a_row_has_the_frame_of_its_place():
    state = start(config_of("fsq", "none", "fixed"))
    frames = torch.cat([part.frames for part in cut(state.config, state.step, state.world, clips(8, 9), None)])
    assert len({*frames.tolist()}) > 2
    places = [1, 4, 5, 7]
    (part,) = cut(state.config, state.step, state.world, clips(4, 9), places)
    assert (part.places, part.share, part.batch) == (tuple(places), 1.0, 4)
    assert torch.equal(part.frames, frames[places])


@pytest.mark.parametrize("discriminator", ["patch", "clip"])
@pytest.mark.parametrize(("rows", "parts"), [(7, 2), (5, 4), (2, 8)])
def test_bad_rows_leave_parts_of_several_sizes_and_the_gradients_of_the_rest(discriminator, rows, parts):
    config, video, places = config_of("lfq", discriminator, "all"), clips(rows), [2 * i for i in range(rows)]
    wanted = gradients_of(start(config), video, places)
    assert_equal(gradients_of(start(config.replace({"accumulate": parts})), video, places), wanted)


@pytest.fixture(scope="module")
def lpips(tmp_path_factory):
    """LPIPS of random weights, with dropout."""
    rng, path = torch.Generator().manual_seed(0), tmp_path_factory.mktemp("lpips") / "alex.safetensors"
    shapes = lpips_shapes("alex").items()
    save_file({name: torch.randn(shape, generator=rng).abs() / 50 for name, shape in shapes}, path)
    return LPIPSConfig(net="alex", weights=path, dropout=0.5)


@pytest.mark.parametrize("frames", ["random", "all"])
def test_dropped_differences_of_lpips_are_those_of_a_clip_and_not_of_a_part(lpips, frames):
    weights = ENTROPIES | {"lpips": 1.0}
    config = config_of("lfq", "none", "fixed", weights=weights, lpips=lpips, lpips_frames=frames)
    video = clips(4, 2, 32)
    whole = gradients_of(start(config), video)
    assert_equal(gradients_of(start(config.replace({"accumulate": 4})), video), whole)
    alike = video[:1].expand(2, -1, -1, -1, -1)
    lone = [gradients_of(start(config), alike[:1], [place])["loss.lpips"] for place in (0, 1)]
    assert lone[0] != lone[1]  # each clip loses its own
    turned = [3, 1, 0, 2]
    assert_equal(gradients_of(start(config), video[turned], turned), whole)


def test_a_discriminator_that_compares_samples_says_where_it_sees_a_part_alone():
    batch, deviation = (config_of("lfq", d, "fixed") for d in (PatchConfig(width=4, norm="batch"), "style"))
    assert batch.cut_note() is deviation.cut_note() is deviation.cut_note(2) is None
    assert "batch norm is computed on the 4 rows" in batch.cut_note(2)
    assert "in groups of 4 is computed on the 2 rows" in deviation.replace({"accumulate": 2}).cut_note(2)
    for config in (batch, deviation):
        halved = config.replace({"accumulate": 2})
        assert (halved.cut_note() is None) == (config.compared_samples == 4)
        assert halved.fixed_in_resumption(halved) == []
    assert batch.fixed_in_resumption(batch.replace({"accumulate": 2})) == ["accumulate"]
    assert deviation.fixed_in_resumption(deviation.replace({"accumulate": 2})) == []
    assert deviation.fixed_in_resumption(deviation.replace({"accumulate": 4})) == ["accumulate"]


def test_a_batch_norm_sees_its_part_and_the_gradients_are_the_mean_of_the_parts():
    """What is not that of the whole, is that of each part alone; running averages move once a part."""
    config = config_of("lfq", PatchConfig(width=4, norm="batch"), "fixed", weights={"l2": 1.0, **ENTROPIES})
    found = gradients_of(start(config.replace({"accumulate": 2})), clips())
    halves = [gradients_of(start(config), clips()[rows], rows) for rows in ([0, 1, 2, 3], [4, 5, 6, 7])]
    for name in (name for name in found if name.startswith(("discriminator", "loss.discriminator", "loss.penalty"))):
        mean = torch.stack([half[name] for half in halves]).mean(0)
        assert torch.allclose(found[name], mean, rtol=1e-9, atol=1e-12), name


def test_a_survey_of_the_parts_leaves_no_trace_in_running_averages():
    """A batch norm's averages move once a part, fakes and reals, whether or not the parts are surveyed first."""
    moved = []
    for gan in ("fixed", "adaptive"):
        state = start(config_of("lfq", PatchConfig(width=4, norm="batch"), gan, accumulate=2))
        step(state, clips())
        moved.append({n: b.clone() for n, b in state.gan.discriminator.named_buffers()})
    assert {int(b) for n, b in moved[0].items() if n.endswith("tracked")} == {4}
    assert all(torch.equal(b, moved[1][n]) for n, b in moved[0].items())


RANK = """
import sys
import torch
from tests.training.test_cut import save_gradients_of_rank
torch.set_num_threads(1)
save_gradients_of_rank(int(sys.argv[1]), sys.argv[2])
"""
RANK_CASES = [
    ("lfq", "none", "fixed", 1, (4, 4)), ("lfq", "none", "fixed", 2, (0, 3)), ("lfq", "patch", "all", 2, (4, 1)),
    ("lfq", "patch", "adaptive", 1, (0, 3)), ("lfq", "style", "all", 1, (4, 4)), ("lfq", "clip", "lecam", 1, (0, 3)),
    ("held", "patch", "all", 2, (4, 4)), ("held", "none", "fixed", 1, (0, 3)),
]  # fmt: skip
"""Quantizer, discriminator, its losses, micro-batches, good rows of each rank."""


def rows_of_rank(rows):
    """The places of the good rows of each rank: their first ones."""
    return [list(range(rank, rank + 2 * count, 2)) for rank, count in enumerate(rows)]


def storages(module):
    return [p.grad.untyped_storage().data_ptr() for p in module.parameters()]


def save_gradients_of_rank(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    world, found = World(rank, 2, torch.device("cpu")), {}
    for number, (quantizer, discriminator, gan, parts, rows) in enumerate(RANK_CASES):
        config, places = config_of(quantizer, discriminator, gan, accumulate=parts), rows_of_rank(rows)[rank]
        known = [places] if rows != (4, 4) else []  # those of a rank that has all of its rows need not be said
        state, buffers = start(config, world), []
        state.optimizer.register_step_pre_hook(lambda *_, found=buffers, of=state: found.extend(storages(of.tokenizer)))
        gradients = gradients_of(state, clips()[places], *known)
        assert len({*buffers}) == 1 < len(buffers)  # gradients lie in the buffer that ranks exchange
        found |= {f"{number}/{name}": value for name, value in gradients.items()}
    save_file(found, f"{folder}/{rank}.safetensors")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_ranks_have_the_gradients_of_the_whole_whatever_rows_each_of_them_has(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [programs.Program("-c", RANK, rank, tmp_path, env=environment) for rank in range(2)]
    ended = [rank.wait(300) for rank in ranks]
    assert [rank.returncode for rank in ended] == [0, 0], ended
    found = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    for number, (quantizer, discriminator, gan, _, rows) in enumerate(RANK_CASES):
        places = sorted(place for rank in rows_of_rank(rows) for place in rank)
        wanted = gradients_of(start(config_of(quantizer, discriminator, gan)), clips()[places], places)
        for one in found:
            mine = {name.split("/")[1]: value for name, value in one.items() if name.startswith(f"{number}/")}
            assert_equal(mine, wanted)

"""Tables of codes in training: rows as moving averages, and dead rows that begin anew, for any cut of the batch."""

import os

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from smalti.data import ImagesConfig
from smalti.data.bundled import photos
from smalti.errors import ConfigError
from smalti.quantize import CodebookConfig
from smalti.tokenizer import TokenizerConfig
from smalti.training.codebook import CodebookState
from smalti.training.config import CodebookTraining, OptimizerConfig, TokenizerTraining
from smalti.training.distributed import Part, World
from smalti.training.tokenizer_step import accumulate, step
from tests import programs
from tests.reference.plain_step import ALONE
from tests.training.test_cut import clips, start

SIZE, DIM = 24, 3


def config_of(rows, restart=0.9, **changes):
    losses = ("commitment",) if rows == "averages" else ("codebook", "commitment")
    model = TokenizerConfig(
        width=4, depth=1, decoder_depth=1, middle=0, patch=4, multipliers=(1, 1), strides=((1, 2),),
        quantizer=CodebookConfig(size=SIZE, dim=DIM, losses=losses),
    )  # fmt: skip
    settings = {
        "tokenizer": model, "data": ImagesConfig(path=photos("train")), "steps": 10, "batch_size": 8, "ema": 0.9,
        "weights": {"l2": 1.0, **dict.fromkeys(losses, 0.5)}, "optimizer": OptimizerConfig(clip=None, warmup=0),
        "codebook": CodebookTraining(rows=rows, restart=restart, decay=0.8),
    }  # fmt: skip
    return TokenizerTraining(**(settings | changes))


def images(seed=1, n=8):
    return clips(n, 1, 16, seed)


def tensors_of(state):
    """All that a step of the table leaves behind."""
    moments = state.optimizer.state.get(state.tokenizer.quantizer.codebook, {})
    return {
        "table": state.tokenizer.quantizer.codebook.detach(),
        "averaged": state.ema.quantizer.codebook.detach(),
        **state.codebook.state_dict(),
        **{name: moment for name, moment in moments.items() if name != "step"},
    }


def after(config, count=3, world=ALONE, places=None):
    """The state after some steps, and how many rows began anew in each."""
    state = start(config, world)
    state.codebook.fresh = True
    restarted = []
    for seed in range(count):
        batch = images(seed)
        mine = list(range(world.rank, 8, world.size)) if places is None else places
        restarted.append(step(state, batch[mine], mine).restarted)
    return state, restarted


@pytest.mark.parametrize("by", ["euclidean", "cosine"])
def test_rows_are_the_moving_averages_of_their_latents(by):
    """Van den Oord et al. 2017, appendix A.1, equations 6 to 8, row by row in float64."""
    torch.manual_seed(0)
    table = CodebookConfig(size=SIZE, dim=DIM, by=by).build().double()
    torch.nn.init.constant_(table.codebook[0], 100.0)
    state = CodebookState(CodebookTraining(rows="averages", decay=0.9), table, seed=0, batch_size=2, fresh=True)
    optimizer = torch.optim.AdamW(table.parameters())
    counts, sums = [0.0] * SIZE, [torch.zeros(DIM, dtype=torch.float64) for _ in range(SIZE)]
    for number in range(6):
        z = torch.randn(2, DIM, 1, 4, 5, dtype=torch.float64)
        before, ids = table.codebook.detach().clone(), table.encode(z)
        state.collect(z, ids, (0, 1), number)
        assert len(state.update(ALONE, optimizer)) == 0
        rows = z.movedim(1, -1).reshape(-1, DIM)
        rows = F.normalize(rows, dim=1) if by == "cosine" else rows
        for k in range(SIZE):
            mine = rows[ids.flatten() == k]
            counts[k] = 0.9 * counts[k] + 0.1 * len(mine)
            sums[k] = 0.9 * sums[k] + 0.1 * mine.sum(0)
            wanted = sums[k] / counts[k] if counts[k] else before[k]
            torch.testing.assert_close(table.codebook[k].detach(), wanted, rtol=1e-12, atol=1e-12)
    assert (counts[0] == 0) == (by == "euclidean")  # a row far away has none, and stays


def test_rows_of_a_trained_table_move_from_where_they_are():
    table = CodebookConfig(size=4, dim=1).build().double()
    with torch.no_grad():
        table.codebook.copy_(torch.tensor([[0.0], [1.0], [2.0], [3.0]]))
    config = CodebookTraining(rows="averages", decay=0.5, restart=0.9)
    state = CodebookState(config, table, seed=0, batch_size=1, fresh=False)
    z = torch.tensor([0.1, 0.1, 0.9, 2.2]).double().view(1, 1, 1, 1, 4)
    state.collect(z, table.encode(z), (0,), 0)
    assert len(state.update(ALONE, torch.optim.AdamW(table.parameters()))) == 0
    # Each has the count 1 of even use: (1 * 0 + 0.2) / (1 + 2), (1 + 0.9) / 2, (2 + 2.2) / 2, and row 3 stays.
    torch.testing.assert_close(table.codebook[:, 0].detach(), torch.tensor([0.2 / 3, 0.95, 2.1, 3.0]).double())
    assert state.dead.tolist() == [3]  # counts 1.5, 1, 1 and 0.5, of 4 / 4 in even use


class Twins(World):
    """A rank beside another whose tensors are equal to its own."""

    def sum(self, x):
        return 2 * x


def moved(world, z):
    """A table of averages and its state after three batches, the same for any number of ranks."""
    torch.manual_seed(0)
    table = CodebookConfig(size=SIZE, dim=DIM).build().double()
    config = CodebookTraining(rows="averages", decay=0.8)
    state = CodebookState(config, table, seed=0, batch_size=4, fresh=True)
    for number, batch in enumerate(z):
        state.collect(batch, table.encode(batch), range(len(batch)), number)
        state.update(world, torch.optim.AdamW(table.parameters()))
    return {"table": table.codebook.detach(), **state.state_dict()}


def test_counts_and_sums_are_those_of_all_ranks():
    """Two ranks of the same clips leave what one leaves that has each of them twice."""
    z = torch.randn(3, 2, DIM, 1, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found, wanted = moved(Twins(0, 2, torch.device("cpu")), z), moved(ALONE, z.repeat(1, 2, 1, 1, 1, 1))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)
    assert wanted["latents"] == 80


@pytest.mark.parametrize("rows", ["averages", "gradient"])
@pytest.mark.parametrize("parts", [2, 8])
def test_micro_batches_leave_the_table_of_the_whole_batch(rows, parts):
    (whole, restarted), (other, again) = (after(config_of(rows, accumulate=n)) for n in (1, parts))
    assert restarted == again
    assert restarted[0] == SIZE
    assert sum(restarted[1:]) > 0
    for name, wanted in tensors_of(whole).items():
        torch.testing.assert_close(tensors_of(other)[name], wanted, rtol=1e-9, atol=1e-10)


RANK = """
import sys
import torch
from tests.training.test_codebook import save_table_of_rank
torch.set_num_threads(1)
save_table_of_rank(int(sys.argv[1]), sys.argv[2])
"""
RANK_CASES = [("averages", 1), ("gradient", 2)]


def save_table_of_rank(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for rows, parts in RANK_CASES:
        state, restarted = after(config_of(rows, accumulate=parts), world=World(rank, 2, torch.device("cpu")))
        found |= {f"{rows}/{name}": value.contiguous() for name, value in tensors_of(state).items()}
        found[f"{rows}/restarted"] = torch.tensor(restarted)
    save_file(found, f"{folder}/{rank}.safetensors")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_ranks_leave_the_table_of_the_whole_batch(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [programs.Program("-c", RANK, rank, tmp_path, env=environment) for rank in range(2)]
    ended = [rank.wait(300) for rank in ranks]
    assert [rank.returncode for rank in ended] == [0, 0], ended
    for one in (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)):
        for rows, _ in RANK_CASES:
            state, restarted = after(config_of(rows))
            for name, wanted in {**tensors_of(state), "restarted": torch.tensor(restarted)}.items():
                torch.testing.assert_close(one[f"{rows}/{name}"], wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("rows", ["averages", "gradient"])
def test_a_dead_row_becomes_a_latent_of_the_batch_that_seed_and_step_choose(rows):
    chosen = []
    for seed, number in ((0, 0), (0, 0), (1, 0), (0, 1)):
        state = start(config_of(rows))
        state.codebook.seed, state.codebook.fresh, state.step = seed, True, number
        before = state.tokenizer.quantizer.codebook.detach().clone()
        state.codebook.latents.fill_(SIZE)  # one latent a row in even use
        state.codebook.usage.copy_(torch.arange(SIZE) / 6)  # 0 to 5/6 are dead
        z = state.tokenizer.latents(images()).detach().movedim(1, -1).reshape(-1, DIM)
        step(state, images())
        table = state.tokenizer.quantizer.codebook.detach()
        same = (table[:, None] == z).all(2)
        assert same.any(1).tolist() == [True] * 6 + [False] * (SIZE - 6)
        chosen.append(same[:6].int().argmax(1).tolist())
        assert len({*chosen[-1]}) == 6  # no latent twice
        assert torch.equal(state.ema.quantizer.codebook[:6], table[:6])
        assert torch.equal(state.codebook.usage[:6], torch.full((6,), len(z) / SIZE, dtype=torch.float64))
        if state.codebook.sums is not None:
            assert torch.equal(state.codebook.sums[:6], state.codebook.usage[:6, None] * table[:6])
        if rows == "gradient":
            moments = state.optimizer.state[state.tokenizer.quantizer.codebook]
            assert not moments["exp_avg"][:6].any()
            assert not moments["exp_avg_sq"][:6].any()
            assert moments["exp_avg"][6:].any()
        assert not torch.equal(table[6:], before[6:])
    assert chosen[0] == chosen[1]
    assert len({*map(tuple, chosen)}) == 3


def test_a_clip_that_cannot_be_read_leaves_its_rows_dead_and_without_restarts_none_moves():
    _, restarted = after(config_of("averages"), 1, places=[0, 2, 5])
    assert 0 < restarted[0] < SIZE
    _, restarted = after(config_of("averages", restart=0.0), 2)
    assert restarted == [0, 0]


def test_a_step_that_is_skipped_leaves_counts_and_rows_alone():
    state, _ = after(config_of("averages"), 2)
    before = {name: tensor.clone() for name, tensor in tensors_of(state).items()}
    broken = images(5)
    broken[0, 0, 0, 0, 0] = torch.nan
    assert step(state, broken).skipped
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_of(state).items())
    assert not step(state, images(5)).skipped


def test_the_step_after_one_that_was_skipped_counts_its_own_latents_alone():
    state, _ = after(config_of("averages", restart=0.0))
    before, latents, broken = state.codebook.usage.clone(), float(state.codebook.latents), images(5)
    broken[0, 0, 0, 0, 0] = torch.nan
    assert step(state, broken).skipped
    counts = torch.bincount(state.tokenizer.encode(images(6)).flatten(), minlength=SIZE).to(before)
    assert not step(state, images(6)).skipped
    assert float(state.codebook.latents) == latents == float(counts.sum())
    torch.testing.assert_close(state.codebook.usage, 0.8 * before + 0.2 * counts)


def test_a_row_that_a_rank_has_from_another_is_not_counted_twice():
    state, _ = after(config_of("averages", restart=0.0))
    latents = float(state.codebook.latents)
    for count, share in ((8, 1.0), (1, 0.0)):
        frames = torch.zeros(count, dtype=torch.int64)
        accumulate(state, Part(images(6)[:count], tuple(range(count)), frames, share, 8), None)
    state.codebook.update(ALONE, state.optimizer)
    assert float(state.codebook.latents) == latents


def test_what_cannot_be_is_refused():
    losses = {"l2": 1.0, "codebook": 1.0, "commitment": 0.5}
    config = config_of("averages")

    def quantizer(**fields):
        return config.tokenizer.replace({"quantizer": config.tokenizer.quantizer.replace(fields)})

    with pytest.raises(ConfigError, match="take `codebook` out of weights"):
        config.replace({"weights": losses})
    with pytest.raises(ConfigError, match="has by inner, which does not take the nearest row"):
        config.replace({"tokenizer": quantizer(by="inner")})
    with pytest.raises(ConfigError, match="has gradient indices, which gives rows a gradient"):
        config.replace({"tokenizer": quantizer(gradient="indices")})
    with pytest.raises(ConfigError, match="is fsq, which has no table"):
        config.replace({"tokenizer": TokenizerConfig()})

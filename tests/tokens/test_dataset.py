"""Token sets for training: the order is a function of the seed, whoever reads it."""

import pytest
import torch

from smalti.errors import ConfigError, InputError
from smalti.tokens.config import TokenizeOptions
from smalti.tokens.dataset import TokenDataset, token_batches
from smalti.tokens.reader import TokenSet
from tests.token_sets import encoded, make_set, picture, save_tokenizer

COUNT = 11


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    work = tmp_path_factory.mktemp("set")
    (work / "data").mkdir()
    for i in range(COUNT):
        (work / "data" / f"{i:02d}.png").write_bytes(encoded(picture(16, 16, i), "PNG"))
    options = TokenizeOptions(shard_files=3)
    make_set(save_tokenizer(work / "tokenizer"), work / "data", work / "tokens", options=options)
    return TokenDataset(work / "tokens")


def taken(batches, steps):
    return [next(batches) for _ in range(steps)]


def test_every_epoch_has_every_row_once(rows):
    batches = taken(token_batches(rows, batch_size=1, seed=3), 3 * COUNT)
    epochs = [[int(b.rows) for b in batches[at : at + COUNT]] for at in range(0, 3 * COUNT, COUNT)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_a_restart_at_any_step_goes_on_as_if_nothing_was(rows):
    whole = taken(token_batches(rows, batch_size=4, seed=1), 6)
    for step in range(6):
        again = next(token_batches(rows, batch_size=4, seed=1, start_step=step))
        assert again.step == step
        assert torch.equal(again.ids, whole[step].ids)
        assert torch.equal(again.rows, whole[step].rows)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_share_the_global_batch_by_turns(rows, world):
    whole = taken(token_batches(rows, batch_size=4, seed=1), 4)
    ranks = [taken(token_batches(rows, batch_size=4, seed=1, part=(r, world)), 4) for r in range(world)]
    for step in range(4):
        for r in range(world):
            assert torch.equal(ranks[r][step].ids, whole[step].ids[r::world])


def test_workers_change_nothing(rows):
    alone, helped = (taken(token_batches(rows, batch_size=4, seed=1, workers=w), 5) for w in (0, 2))
    assert all(torch.equal(a.ids, b.ids) and a.step == b.step for a, b in zip(alone, helped, strict=True))


def test_the_ids_of_a_batch_are_those_of_its_rows(rows):
    batch = next(token_batches(rows, batch_size=5, seed=0))
    for ids, row in zip(batch.ids, batch.rows, strict=True):
        assert torch.equal(ids, rows.tokens.row(int(row)).tensor())
        assert torch.equal(ids, rows[int(row)].ids)
    assert batch.labels.tolist() == [-1] * 5


def test_a_small_cache_changes_nothing(rows):
    tokens = TokenSet(rows.tokens.path, cache=1)
    assert [tokens.ids(i).tolist() for i in range(COUNT)] == [rows.tokens.ids(i).tolist() for i in range(COUNT)]


def test_rows_of_two_shapes_make_no_batch(tmp_path):
    (tmp_path / "data").mkdir()
    for i, side in enumerate((16, 24)):
        (tmp_path / "data" / f"{i}.png").write_bytes(encoded(picture(side, side, i), "PNG"))
    make_set(save_tokenizer(tmp_path / "tokenizer"), tmp_path / "data", tmp_path / "tokens")
    with pytest.raises(InputError, match="make the set with `size`"):
        next(token_batches(TokenDataset(tmp_path / "tokens"), batch_size=2, seed=0))


@pytest.mark.parametrize("part", [(2, 2), (0, 5), (-1, 2)])
def test_more_ranks_than_rows_are_refused(rows, part):
    with pytest.raises(ConfigError, match="ranks count from 0"):
        token_batches(rows, batch_size=4, seed=0, part=part)

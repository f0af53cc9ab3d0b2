"""The batch of the next step is read while this one runs: the same batches, and nothing is read at any other time."""

import threading
import time

import numpy as np
import pytest
import torch

from smalti.data import batches
from smalti.errors import BadFile, InputError
from smalti.files import read_rows
from smalti.training.tokenizer_task import TokenizerTask
from tests.reference.plain_step import ALONE
from tests.training.test_step import training

STEPS, ROWS = 5, 4


class Clips:
    """Clips of noise that say when they are read; those in `bad` cannot be, and those in `odd` are larger."""

    def __init__(self, bad=(), odd=(), seconds=0.0):
        self.bad, self.odd, self.seconds = bad, odd, seconds
        self.reads, self.reading = 0, 0
        self.moved = threading.Condition()

    def __len__(self):
        return 32

    def key(self, index):
        return f"clip-{index}"

    def label(self, index):
        return None

    def load(self, index, rng):
        with self.moved:
            self.reads, self.reading = self.reads + 1, self.reading + 1
            self.moved.notify_all()
        try:
            time.sleep(self.seconds)
            if index in self.bad:
                raise BadFile(self.key(index), "truncated", "cut short")
            size = 32 if index in self.odd else 16
            return torch.randint(0, 256, (3, size, size, 3), generator=rng, dtype=torch.uint8)
        finally:
            with self.moved:
                self.reading -= 1


def task_of(source, **changes):
    task = TokenizerTask(training(steps=STEPS, batch_size=ROWS, **changes), ALONE)
    task.source = source
    return task


def alone(source, steps=STEPS, **options):
    """The batches of the steps, read by themselves."""
    stream = batches(source, batch_size=ROWS, seed=0, **options)
    return [next(stream) for _ in range(steps)]


def test_the_next_batch_is_read_during_a_step_and_nothing_between_steps_or_after_the_last(tmp_path):
    source, begun = Clips(seconds=0.05), []
    task = task_of(source)

    def wait(*_):
        """Hold the step until a file of the next batch is being read."""
        with source.moved:
            wanted = ROWS * (task.state.step + 1) + 1
            begun.append(task.state.step + 1 == STEPS or source.moved.wait_for(lambda: source.reads >= wanted, 30))

    task.state.tokenizer.register_forward_pre_hook(wait)
    for result in task.steps(tmp_path):
        assert source.reading == 0
        assert source.reads == ROWS * min(result.step + 1, STEPS)
    assert begun == [True] * STEPS


def test_steps_see_the_pixels_of_their_batches_to_the_bit_and_count_bad_files_at_their_own_step(tmp_path):
    bad, seen, counts = (1, 5, 6, 12, 20, 27), [], []
    task, faults, wanted = task_of(Clips(bad)), set(), []
    task.state.tokenizer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    counts = [result.bad_files for result in task.steps(tmp_path)]
    stream = batches(Clips(bad), batch_size=ROWS, seed=0, on_bad=lambda fault: faults.add(fault.path))
    for found in seen:
        assert torch.equal(next(stream).video, found)
        wanted.append(len(faults))
    assert counts == wanted
    assert 0 <= wanted[0] < wanted[-1]
    assert {row["path"] for row in read_rows(tmp_path / "bad_files.jsonl", "path")} == faults


def test_what_is_wrong_with_a_batch_is_told_at_its_own_step(tmp_path):
    keys = alone(Clips())[2].keys
    odd = int(keys[1].removeprefix("clip-"))
    results = task_of(Clips(odd=(odd,))).steps(tmp_path)
    assert [next(results).step, next(results).step] == [1, 2]
    with pytest.raises(InputError, match="set `size`"):
        next(results)


def test_a_batch_has_its_pixels_as_bytes_and_makes_the_video_of_them():
    (batch,) = alone(Clips(), 1)
    assert batch.pixels.dtype == torch.uint8
    assert batch.pixels.shape == (ROWS, 3, 16, 16, 3)
    assert torch.equal(batch.to(torch.device("cpu")).video, batch.video)
    numbers = batch.pixels.numpy().astype(np.float32) / np.float32(127.5) - np.float32(1)
    assert torch.equal(batch.video, torch.from_numpy(numbers).permute(0, 4, 1, 2, 3))
    empty = next(batches(Clips(range(32)), batch_size=ROWS, seed=0))
    assert empty.to(torch.device("cpu")).video.shape == (0, 3, 0, 0, 0)

"""The next batch is copied to the device on a stream of its own while a step is computed; here with streams and tensors
that write down what is asked of them, in its order."""

import shutil
import threading
from contextlib import contextmanager

import pytest
import torch

from smalti.data import batches
from smalti.devices import send
from smalti.errors import InputError
from smalti.files import read_json
from smalti.model_folder import checkpoints
from smalti.training import tokenizer_task
from smalti.training.ahead import Copies
from smalti.training.fit import fit
from tests.training.test_read_ahead import ROWS, STEPS, Clips, task_of
from tests.training.test_run import final_digests

CUDA = torch.device("cuda", 0)


class Pixels(torch.Tensor):
    """Pixels that say they are on a device once they were copied there."""

    calls: list

    def pin_memory(self):
        self.note("pin")
        return self.like(self)

    def to(self, *args, **kwargs):
        if args[:1] != (CUDA,):
            return super().to(*args, **kwargs).as_subclass(torch.Tensor)
        self.note("copy" if kwargs == {"non_blocking": True} else "copy and wait")
        found = self.like(self)
        found.there = True
        return found

    @property
    def is_cuda(self):
        return getattr(self, "there", False)

    def record_stream(self, stream):
        self.calls.append((self.number, f"kept until {stream.name} is done"))

    def note(self, what):
        self.calls.append((self.number, f"{what} on {current().name}"))

    def like(self, other):
        found = torch.Tensor.clone(other).as_subclass(Pixels)
        found.calls, found.number = other.calls, other.number
        return found


class Stream:
    def __init__(self, name="side", calls=None):
        self.name, self.calls = name, calls

    def wait_stream(self, other):
        self.calls.append((None, f"{self.name} waits for {other.name}"))


LOCAL = threading.local()


def current():
    return getattr(LOCAL, "stream", None) or Stream("main")


class Cuda:
    """As much of `torch.cuda` as copies need."""

    def __init__(self, calls):
        self.calls = calls

    def Stream(self, device):
        assert device == CUDA
        return Stream("side", self.calls)

    def current_stream(self, device):
        assert device == CUDA
        return Stream(current().name, self.calls)

    @contextmanager
    def stream(self, stream):
        before, LOCAL.stream = getattr(LOCAL, "stream", None), stream
        yield
        LOCAL.stream = before


def watched(monkeypatch, task, calls):
    """Let the batches of a task be copied by streams that write down what happens; its steps write theirs."""

    def numbered(*args, **kwargs):
        for batch in batches(*args, **kwargs):
            pixels = batch.pixels.as_subclass(Pixels)
            pixels.calls, pixels.number = calls, batch.step
            calls.append((batch.step, "read"))
            yield batch._replace(pixels=pixels)

    monkeypatch.setattr(tokenizer_task, "batches", numbered)
    monkeypatch.setattr(tokenizer_task, "Copies", lambda device: Copies(CUDA, Cuda(calls)))
    begin = tokenizer_task.begin

    def noted(state, video, places):
        calls.append((state.step, "step"))
        return begin(state, video.as_subclass(torch.Tensor), places)

    monkeypatch.setattr(tokenizer_task, "begin", noted)
    return task


def of_batch(calls, number):
    return [what for n, what in calls if n == number]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_next_batch_is_copied_beside_a_step_and_used_once_it_is_there(tmp_path, monkeypatch, workers):
    calls: list = []
    task = watched(monkeypatch, task_of(Clips(), workers=workers), calls)
    for result in task.steps(tmp_path):
        calls.append((None, f"figures of {result.step}"))
    for number in range(STEPS):
        assert of_batch(calls, number) == [
            "read", "pin on side", "copy on side", "kept until main is done", "step",
        ]  # fmt: skip
    assert not of_batch(calls, STEPS)  # nothing is read that no step trains on
    order = [call for call in calls if call[1] in ("main waits for side", "step")]
    assert [what for _, what in order] == ["main waits for side", "step"] * STEPS
    for number in range(1, STEPS):
        assert calls.index((number, "copy on side")) < calls.index((None, f"figures of {number}"))
        waits = [at for at, call in enumerate(calls) if call[1] == "main waits for side"]
        assert waits[number - 1] < calls.index((number, "copy on side")) < waits[number]
    if workers:  # from the program's own thread, once it has begun the step
        for number in range(1, STEPS):
            assert calls.index((number - 1, "step")) < calls.index((number, "read"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_with_copies_ahead_has_the_bits_and_samples_of_one_without_also_when_it_is_resumed(
    tmp_path, monkeypatch, workers
):
    def run(name, *, resume=False):
        task = task_of(Clips(bad=(5, 12)), workers=workers, save_every=2)
        if name == "ahead":
            watched(monkeypatch, task, [])
        fit(task, tmp_path / name, resume=resume)

    run("plain")
    run("ahead")
    for folder in checkpoints(tmp_path / "ahead"):
        about, wanted = (read_json(tmp_path / name / folder.name / "state.json") for name in ("ahead", "plain"))
        assert (about["step"], about["samples"]) == (wanted["step"], wanted["samples"])
    assert final_digests(tmp_path / "ahead") == final_digests(tmp_path / "plain")
    shutil.rmtree(checkpoints(tmp_path / "ahead")[-1])
    run("ahead", resume=True)
    assert final_digests(tmp_path / "ahead") == final_digests(tmp_path / "plain")


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_wrong_with_a_batch_that_is_copied_ahead_is_told_at_its_own_step(tmp_path, monkeypatch, workers):
    stream = batches(Clips(), batch_size=ROWS, seed=0)
    odd = int([next(stream) for _ in range(3)][2].keys[1].removeprefix("clip-"))
    task = watched(monkeypatch, task_of(Clips(odd=(odd,)), workers=workers), [])
    results = task.steps(tmp_path)
    assert [next(results).step, next(results).step] == [1, 2]
    with pytest.raises(InputError, match="set `size`"):
        next(results)


def test_on_a_cpu_nothing_is_copied_and_nothing_ahead():
    copies, pixels = Copies(torch.device("cpu")), torch.zeros(1)

    class Batch(tuple):
        def to(self, device):
            assert device == torch.device("cpu")
            return self

    batch = Batch((pixels,))
    assert not copies.are_ahead
    assert copies.finish(copies.begin(batch)) is batch


class Sent(torch.Tensor):
    """A tensor of which a pinned copy can be made and sent: torch makes none of memory that is written twice."""

    def pin_memory(self):
        assert self.is_contiguous()
        return self

    def to(self, device, *, non_blocking):
        assert (device, non_blocking) == (CUDA, True)
        return self.as_subclass(torch.Tensor)


def test_columns_and_expanded_tensors_are_pinned_as_they_are_read():
    whole = torch.arange(12).view(3, 4).as_subclass(Sent)
    for part in (whole, whole[:, 1], whole.T, whole[:1].expand(3, -1)):
        assert torch.equal(send(part, CUDA), part)

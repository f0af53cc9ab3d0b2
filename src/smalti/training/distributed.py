"""The processes of a run, the device of each and the values that they exchange; and the micro-batches of a step over
all of them: their rows, their shares of the global batch, what must know all of it.

Losses are means over rows, so the gradients of parts, weighted by their shares, add up to those of the batch. Three
things are no such means: the batch entropy (of the mean code), the adaptive weight (a ratio of norms) and LeCAM (its
anchors move by the mean logits). `Whole` has their values for the whole batch. Layers of a discriminator that compare
the samples of a call see those of one part: minibatch deviation is exact if parts are made of whole groups, and `cut`
makes them so where it can; a batch norm is always that of a part.
"""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from smalti import losses as loss
from smalti.data.source import sample_rng
from smalti.devices import pick_device
from smalti.errors import ConfigError, MachineError, PeerFailed, SmaltiError
from smalti.text import one_line
from smalti.training.config import TokenizerTraining

_FAULT, _TOLD, _ALIVE = "smalti/fault", "smalti/told", "smalti/alive"
"""Keys of the store that the ranks share: that one has failed, how many wanted to tell why, who is alive after it."""
_HELD = 0x68656C64
"""Number of the choice of held tokens among the random choices of a step."""
_MARKS = 1.5
"""Seconds in which the other ranks notice a failure and say that they are alive."""


class World(NamedTuple):
    """This process among its peers. Tensors are exchanged by their devices; what the processes themselves must know, by
    the hosts, so that none of them waits for its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and prints."""
        return self.rank == 0

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean over ranks, without gradient."""
        if self.size == 1:
            return x
        x = x.detach().clone()
        dist.all_reduce(x)
        return x / self.size

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum over ranks, without gradient."""
        if self.size == 1:
            return x
        x = x.detach().clone()
        dist.all_reduce(x)
        return x

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        if self.size == 1:
            return flag
        return bool(self.highest(torch.tensor(int(flag))))

    def highest(self, x: Tensor) -> Tensor:
        """Return the largest over ranks, on the device of `x`."""
        if self.size > 1:
            dist.all_reduce(x, op=dist.ReduceOp.MAX)
        return x

    def gather(self, data: bytes) -> list[bytes]:
        """Return the bytes of every rank, in the order of ranks."""
        if self.size == 1:
            return [data]
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(data)]))
        longest = max(int(length) for length in lengths)
        mine = torch.frombuffer(bytearray(data.ljust(longest + 1)), dtype=torch.uint8)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine)
        return [part[: int(n)].numpy().tobytes() for part, n in zip(parts, lengths, strict=True)]

    def table(self, numbers: Sequence[int]) -> list[list[int]]:
        """Return the whole numbers of every rank, equally many of each, in the order of ranks."""
        if self.size == 1:
            return [list(numbers)]
        table = torch.zeros(self.size, len(numbers), dtype=torch.int64)
        table[self.rank] = torch.tensor(numbers)
        dist.all_reduce(table)
        return [[int(number) for number in row] for row in table.tolist()]

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        """Return the tensor of that rank on this device; the others give one of its shape and type."""
        x = x.to(self.device).contiguous()
        if self.size > 1:
            dist.broadcast(x, source)
        return x

    def min(self, number: int) -> int:
        """Return the smallest over ranks."""
        if self.size == 1:
            return number
        tensor = torch.tensor(number)
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
        return int(tensor.item())

    def all_equal(self, number: int) -> bool:
        """Return whether all ranks have the same number, less than 2^63 in size."""
        return self.min(number) == -self.min(-number)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_world(device: str | None = None, *, timeout: timedelta) -> Iterator[World]:
    """Join the processes that torchrun started, or be alone; a `device` of None takes an accelerator if there is one.

    A rank waits `timeout` for the others wherever all of them meet. Where one raises, dies, stops or is slower, the
    others raise PeerFailed; the cause is told by one rank alone.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    chosen = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1:
        yield World(0, 1, chosen)
        return
    store = _join(chosen, size, timeout)
    try:
        if dist.get_world_size() != size:
            raise ConfigError(f"asked for {size} processes, but {dist.get_world_size()} joined")
        yield World(rank, size, chosen)
    except Exception as error:
        with _unhurried():
            cause = _first_cause(store, rank, size, timeout, error)
        raise cause from error
    dist.destroy_process_group()


def _join(device: torch.device, size: int, timeout: timedelta) -> Store:
    """Meet the other ranks; return the store that all of them share."""
    try:
        store, rank, _ = next(rendezvous("env://", timeout=timeout))
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    except (dist.DistError, RuntimeError) as error:
        seconds = timeout.total_seconds()
        what = f"the {size} processes of this run did not meet within {seconds:g} s ({one_line(error)[:120]})"
        raise MachineError(f"{what}; see which is missing, and that each can reach MASTER_ADDR") from None
    shared: Store = PrefixStore(f"smalti/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    return shared


@contextmanager
def _unhurried() -> Iterator[None]:
    """Pass over the SIGTERM that torchrun sends to the others when one process has ended: they have yet to tell why."""
    before = None
    with suppress(ValueError):  # not in the main thread
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _first_cause(store: Store, rank: int, size: int, timeout: timedelta, error: Exception) -> Exception:
    """Return what this rank raises for an error: its own where it is the first cause, else PeerFailed."""
    if not _is_of_peers(error):
        with suppress(RuntimeError):
            store.set(_FAULT, str(rank))
            if store.add(_TOLD, 1) > 1:  # all ranks found it, and the first to say so was another
                silent = PeerFailed("")
                silent.exit_code = error.exit_code if isinstance(error, SmaltiError) else SmaltiError.exit_code
                return silent
        return error
    try:
        store.set(f"{_ALIVE}/{rank}", "1")
        end = time.monotonic() + _MARKS
        others = [other for other in range(size) if other != rank]
        while time.monotonic() < end and not store.check([_FAULT]):
            others = [other for other in others if not store.check([f"{_ALIVE}/{other}"])]
            time.sleep(0.05)
        if store.check([_FAULT]) or store.add(_TOLD, 1) > 1:
            return PeerFailed("")
    except RuntimeError:  # the store went with the process that held it
        others = []
    which = f"rank {', '.join(map(str, others))}" if others else "another rank"
    what = f"{which} of {size} has died or did not answer for {timeout.total_seconds():g} s (rank_timeout)"
    return PeerFailed(f"{what}; see its own last lines, then start the run again with `resume`")


def _is_of_peers(error: Exception) -> bool:
    """Return whether an error says that another rank is gone: that of a collective of gloo or NCCL."""
    text = str(error).lower()
    words = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "timed out", "timeout")
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and any(word in text for word in words))


class Part(NamedTuple):
    """Rows of the global batch that go through the networks together."""

    video: Tensor
    """Float `b 3 t h w` in [-1, 1], on the device."""
    places: tuple[int, ...]
    """Place of each row in the global batch."""
    frames: Tensor
    """One frame number per row, for what is trained on one frame of a clip."""
    share: float
    """Rows / rows of the global batch * ranks: the mean over ranks of the weighted sums is then that over all rows.
    0 for a rank without rows of its own, which goes along with a row of another."""
    batch: int
    """Rows of the global batch, over all ranks."""
    hold_below: Tensor | None = None
    """One threshold per row, below which tokens are held (`Tokenizer.forward`); None where none ever is."""


class Whole(NamedTuple):
    """Facts about the whole batch that a part needs; None where no loss needs it or one part finds it out."""

    mean_code: Tensor | None = None
    """Mean soft code, the argument of the batch entropy."""
    gan_weight: Tensor | None = None
    """Weight of the adversarial loss."""
    logits: tuple[Tensor, Tensor] | None = None
    """Mean logits of real and of reconstructed samples, by which LeCAM's anchors move."""


def cut(config: TokenizerTraining, step: int, world: World, video: Tensor, places: Sequence[int] | None) -> list[Part]:
    """Cut this rank's rows into `accumulate` micro-batches, equally many on each rank; none if no rank has a row.

    Without `places` rank r of W has the rows r, r + W, ... of the global batch.
    """
    table = world.table([*video.shape])
    rows = [shape[0] for shape in table]
    if not any(rows):
        return []
    mine = rows[world.rank]
    if places is None:
        places = range(world.rank, world.rank + mine * world.size, world.size)
    if not all(rows):
        source = next(rank for rank, count in enumerate(rows) if count)
        spare = world.broadcast(video[:1] if mine else video.new_empty(1, *table[source][1:]), source)
        video, places = (video, places) if mine else (spare, (0,))
    count = min(config.accumulate, max(rows))
    frames = _frame_index(config, step, places, video.shape[2])
    thresholds = _thresholds(config, step, places)
    parts = []
    for part in rows_of_parts(mine, count, config.compared_samples or 1):
        chosen = part or [0]
        share = len(part) * world.size / sum(rows)
        taken = tuple(places[i] for i in chosen)
        index = torch.tensor(chosen).to(video.device, non_blocking=True)
        one_of_each = frames[chosen].to(world.device, non_blocking=True)
        hold_below = None if thresholds is None else thresholds[chosen].to(world.device, non_blocking=True)
        parts.append(Part(video[index].to(world.device), taken, one_of_each, share, sum(rows), hold_below))
    return parts


def rows_of_parts(rows: int, count: int, group: int) -> list[list[int]]:
    """Return the rows of each of `count` parts, each made of whole groups if there are enough.

    Of n rows i, i + n / group, i + 2 n / group, ... are a group (`minibatch_deviation`). Without whole groups for each
    part, the rows are cut in order; with fewer rows than parts, the last ones are empty.
    """
    whole = rows % group == 0 and rows // group >= count
    strides = group if whole else 1
    firsts = torch.arange(rows // strides).tensor_split(count)
    return [[int(i) + k * (rows // strides) for k in range(strides) for i in first] for first in firsts]


def _frame_index(config: TokenizerTraining, step: int, places: Sequence[int], frames: int) -> Tensor:
    """Return a frame number for each place of the global batch."""
    rng = sample_rng(config.seed, step, 0)
    numbers = loss.random_frames(max(config.batch_size, max(places) + 1), frames, rng)
    return numbers[list(places)]


def _thresholds(config: TokenizerTraining, step: int, places: Sequence[int]) -> Tensor | None:
    """Return the threshold of held tokens for each place of the global batch; None where none are held."""
    if config.held_tokens is None:
        return None
    rng, count = sample_rng(config.seed, step, _HELD), max(config.batch_size, max(places) + 1)
    chance = torch.rand(count, 2, generator=rng, dtype=torch.float64)  # a place has its two, whatever the count
    return config.held_tokens.thresholds(chance.T)[list(places)]

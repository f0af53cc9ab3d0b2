"""The processes of a run and the values that they exchange; the device of each."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from smalti.devices import pick_device
from smalti.errors import ConfigError

RANK_TIMEOUT = timedelta(minutes=5)
"""The defaults are 10 minutes (NCCL) and 30 (gloo): a dead peer should end the run soon."""


class World(NamedTuple):
    """This process among its peers."""

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
        tensor = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return bool(tensor.item())

    def gather(self, data: bytes) -> list[bytes]:
        """Return the bytes of every rank, in the order of ranks."""
        if self.size == 1:
            return [data]
        lengths = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(data)], device=self.device))
        longest = max(int(length) for length in lengths)
        mine = torch.frombuffer(bytearray(data.ljust(longest + 1)), dtype=torch.uint8).to(self.device)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine)
        return [part[: int(n)].cpu().numpy().tobytes() for part, n in zip(parts, lengths, strict=True)]

    def table(self, numbers: Sequence[int]) -> list[list[int]]:
        """Return the whole numbers of every rank, equally many of each, in the order of ranks."""
        if self.size == 1:
            return [list(numbers)]
        table = torch.zeros(self.size, len(numbers), dtype=torch.int64, device=self.device)
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
        tensor = torch.tensor(number, device=self.device)
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
def join_world(device: str | None = None, *, timeout: timedelta = RANK_TIMEOUT) -> Iterator[World]:
    """Join the processes that torchrun started, or be alone; a `device` of None takes an accelerator if there is one.

    A rank waits `timeout` for the others wherever all of them meet.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    chosen = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1:
        yield World(0, 1, chosen)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timeout)
    try:
        if dist.get_world_size() != size:
            raise ConfigError(f"asked for {size} processes, but {dist.get_world_size()} joined")
        yield World(rank, size, chosen)
    finally:
        dist.destroy_process_group()

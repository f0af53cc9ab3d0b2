"""Losses and gradients of a training step as CUDA graphs: recorded once for each shape of batch, then replayed.

The kernels of a small network take a GPU less time than Python takes to start them, some thousand in a step. A
recording is of the forward and the backward pass; clipping, the optimizer and the EMA come after it, as without one.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from smalti.errors import ConfigError, MachineError
from smalti.nn.replay import Recording
from smalti.training.config import TokenizerTraining
from smalti.training.distributed import World

Measured = tuple[dict[str, Tensor], Tensor]
"""Losses by name, and ids."""


class _Recorded(NamedTuple):
    recording: Recording
    names: tuple[str, ...]
    """Losses, whose values are the first results; then come the ids, then gradients."""
    owners: tuple[Tensor, ...]
    """Parameters of the gradients: a shape of batch may leave some networks out."""


class RecordedGradients:
    """The recordings of a step: at most `kept`, of the first shapes that come twice; others run as they always do.

    `record` makes a recording of a function for inputs like some, as `smalti.nn.replay.CudaGraphs` does.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        record: Callable[[Callable[..., tuple[Tensor, ...]], Sequence[Tensor]], Recording],
        *,
        kept: int = 4,
    ) -> None:
        self._parameters, self._record, self._kept = tuple(parameters), record, kept
        self._recorded: dict[Hashable, _Recorded] = {}
        self._once: set[Hashable] = set()

    def __len__(self) -> int:
        """The number of recordings."""
        return len(self._recorded)

    def run(self, accumulate: Callable[..., Measured], inputs: Sequence[Tensor]) -> Measured:
        """Return what `accumulate` gives for the inputs, and give parameters their gradients, of which they have none.

        It is the same function of its inputs and of the weights at each call: what else it reads is as it was when it
        was recorded. Gradients lie in a recording, and the next replay writes over them; results are copies.
        """
        key = tuple((x.shape, x.stride()) for x in inputs)
        if key not in self._recorded:
            if key not in self._once or len(self) == self._kept:
                self._once.add(key)
                return accumulate(*inputs)
            self._recorded[key] = self._made(accumulate, inputs)
        recording, names, owners = self._recorded[key]
        for inside, given in zip(recording.inputs, inputs, strict=True):
            inside.copy_(given)
        recording.replay()
        count = len(names) + 1
        *values, ids = (result.clone() for result in recording.results[:count])
        for parameter, gradient in zip(owners, recording.results[count:], strict=True):
            parameter.grad = gradient
        return dict(zip(names, values, strict=True)), ids

    def _made(self, accumulate: Callable[..., Measured], inputs: Sequence[Tensor]) -> _Recorded:
        """Record a function, whose gradients are results too, so that running it leaves nothing behind."""
        names, owners = list[str](), list[Tensor]()

        def run(*given: Tensor) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                measured, ids = accumulate(*given)
            found = [(p, p.grad) for p in self._parameters if p.grad is not None]
            for parameter, _ in found:
                parameter.grad = None
            names[:], owners[:] = measured, [parameter for parameter, _ in found]
            return *measured.values(), ids, *(gradient for _, gradient in found)

        return _Recorded(self._record(run, inputs), tuple(names), tuple(owners))


def check_recordable(config: TokenizerTraining, world: World) -> None:
    """Raise ConfigError or MachineError where a run asks for `cuda_graph` and cannot have it; what its config alone
    forbids is refused there."""
    if not config.cuda_graph:
        return
    if world.size > 1:
        raise ConfigError(f"cuda_graph: the gradients of {world.size} ranks cannot be recorded; set it to false")
    if world.device.type != "cuda":
        raise MachineError(
            f"cuda_graph: recording a step needs a CUDA device, and the run is on {world.device}; set it to false"
        )

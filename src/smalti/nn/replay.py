"""CUDA graphs: calls of networks that are recorded once for each size and replayed after that.

The layers of a small network take a GPU less time than Python takes to start them: one image by `smalti/tiny-image` is
encoded in 1.7 ms at any size, and the same latents as a replayed graph took 0.14 ms in place of 0.99 on an H200.

    with torch.inference_mode(), replayed(tokenizer):
        ids = tokenizer.encode(video)      # the second call of a size is recorded, later ones are replayed

A recording is of one size, order in memory and type of every input, of one past of a stream, and of torch's switches as
they were. Its kernels are those of the call that was recorded, on the same weights. Inputs are copied into it and
results out of it, so nothing that a caller holds is ever overwritten.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from smalti.arguments import check_least
from smalti.errors import ConfigError, MachineError
from smalti.nn.causal import Stream
from smalti.video import describe

_REMEMBERED = 1_000
"""Sizes that came once, after which they are forgotten: images may have any."""


@runtime_checkable
class Replayable(Protocol):
    """A model some of whose calls can be recorded: a `Tokenizer`, a `MaskedTransformer`."""

    @property
    def replayable(self) -> tuple[Callable[..., Tensor], ...]:
        """Methods of its modules, from tensors and at most one `Stream` to one tensor, that never look at a value."""


class Recording(NamedTuple):
    """A function of tensors that is replayed from what lies in its inputs into its results."""

    inputs: tuple[Tensor, ...]
    results: tuple[Tensor, ...]
    replay: Callable[[], None]


class _Like(NamedTuple):
    """Shape, order in memory, type and device of a tensor."""

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, x: Tensor) -> "_Like":
        return cls(x.shape, x.stride(), x.dtype, x.device)


class _Past(NamedTuple):
    """Layers of a stream and the form of what they carry over."""

    is_ending: bool
    layers: tuple[nn.Module, ...]
    carries: tuple[_Like, ...]


class _Recorded(NamedTuple):
    recording: Recording
    layers: tuple[nn.Module, ...]
    """Layers whose past follows the result."""


class Replays:
    """The recordings of some calls: at most `kept`, of the first sizes that come twice; others run as they always do.

    As a context it takes the place of the methods, for one thread. `record` makes a recording of a function for inputs
    like some.
    """

    def __init__(
        self,
        calls: Sequence[Callable[..., Tensor]],
        record: Callable[[Callable[..., tuple[Tensor, ...]], Sequence[Tensor]], Recording],
        *,
        kept: int,
    ) -> None:
        self._calls, self._record, self._kept = calls, record, kept
        self._recorded: dict[Hashable, _Recorded] = {}
        self._once: set[Hashable] = set()
        self._layers = {call: frozenset(_owner(call).modules()) for call in calls}
        self._weights = [place for call in calls for place in _weights(_owner(call))]
        self._places = self._found()

    def __len__(self) -> int:
        """The number of recordings."""
        return len(self._recorded)

    def __enter__(self) -> "Replays":
        """Let the methods be replayed."""
        if any(call.__name__ in vars(_owner(call)) for call in self._calls):
            raise ConfigError("replayed: the model is in such a block already")
        for call in self._calls:
            setattr(_owner(call), call.__name__, partial(self.run, call))
        return self

    def __exit__(self, *_: object) -> None:
        """Put the methods back and forget the recordings."""
        for call in self._calls:
            delattr(_owner(call), call.__name__)
        self._recorded.clear()

    def run(self, call: Callable[..., Tensor], *arguments: object) -> Tensor:
        """Return what the call gives, for a size that was recorded by replaying it.

        Raises ConfigError while gradients are recorded and under autocast, where weights were moved since the block
        began, and for arguments that cannot be recorded."""
        if torch.is_grad_enabled():
            raise ConfigError("replayed: gradients are recorded; call it under torch.inference_mode()")
        if torch.is_autocast_enabled(next(_owner(call).parameters()).device.type):
            raise ConfigError("replayed: autocast is on; load the model with its `dtype` instead")
        if self._found() != self._places:
            raise ConfigError("replayed: weights were moved or replaced since the block began; begin it again")
        tensors, streams = list[Tensor](), list[Stream]()
        likes = _map(arguments, lambda leaf: self._like(call, leaf, tensors, streams))
        key = call, likes, _switches()
        if key not in self._recorded:
            if key not in self._once or len(self) == self._kept:
                y = call(*arguments)
                if not (streams and _grew(likes, streams[0])):
                    self._remember(key)
                return y
            self._recorded[key] = self._made(call, likes, tensors)
        recording, layers = self._recorded[key]
        for inside, given in zip(recording.inputs, tensors, strict=True):
            inside.copy_(given)
        recording.replay()
        y, *carries = (result.clone() for result in recording.results)
        for layer, carry in zip(layers, carries, strict=True):
            streams[0].put(layer, carry)
        return y

    def _found(self) -> list[int]:
        """Return where the weights lie: a recording reads them there."""
        return [named[name].data_ptr() for named, name in self._weights]

    def _remember(self, key: Hashable) -> None:
        if len(self._once) == _REMEMBERED:
            self._once.clear()
        self._once.add(key)

    def _carries(self, call: Callable[..., Tensor], stream: Stream) -> dict[nn.Module, Tensor]:
        """Return what a stream carries for the layers of a call."""
        return {layer: carry for layer, carry in stream.carries.items() if layer in self._layers[call]}

    def _like(self, call: Callable[..., Tensor], leaf: object, tensors: list[Tensor], streams: list[Stream]) -> object:
        """Return what of an argument is part of a recording, and list its tensors."""
        if isinstance(leaf, Tensor):
            tensors.append(leaf)
            return _Like.of(leaf)
        if isinstance(leaf, Stream) and not streams:
            streams.append(leaf)
            carries = self._carries(call, leaf)
            tensors.extend(carries.values())
            return _Past(leaf.is_ending, tuple(carries), tuple(map(_Like.of, carries.values())))
        if leaf is None or isinstance(leaf, int | float | str):
            return leaf
        raise ConfigError(f"replayed: an argument is {describe(leaf)}, which cannot be recorded")

    def _made(self, call: Callable[..., Tensor], likes: Any, tensors: Sequence[Tensor]) -> _Recorded:
        """Record a call with arguments like some."""
        layers: list[nn.Module] = []

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            left, streams = iter(inputs), list[Stream]()

            def restored(leaf: object) -> object:
                if isinstance(leaf, _Like):
                    return next(left)
                if isinstance(leaf, _Past):
                    streams.append(Stream.continued({layer: next(left) for layer in leaf.layers}))
                    streams[0].is_ending = leaf.is_ending
                    return streams[0]
                return leaf

            y = call(*_map(likes, restored))
            after = self._carries(call, streams[0]) if streams else {}
            layers[:] = after
            return y, *after.values()

        return _Recorded(self._record(run, tensors), tuple(layers))


class CudaGraphs:
    """Records CUDA graphs. They share their working memory, for only one is replayed at a time: it is that of the
    largest. What each has of its own are inputs and results."""

    def __init__(self, device: torch.device, *, warm_ups: int = 1) -> None:
        self._warm_ups = warm_ups
        self._device, self._stream, self._pool = device, torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[..., tuple[Tensor, ...]], tensors: Sequence[Tensor]) -> Recording:
        """Run the function aside, so that libraries have what they need, and record it."""
        graph, caller = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        # Results of inference mode could not be written outside of it.
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(self._device):
            inputs = tuple(torch.empty_like(x).copy_(x) for x in tensors)
            self._stream.wait_stream(caller)
            with torch.cuda.stream(self._stream):
                for _ in range(self._warm_ups):
                    run(*inputs)
            caller.wait_stream(self._stream)
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                results = run(*inputs)
        return Recording(inputs, results, graph.replay)


@contextmanager
def replayed(model: Replayable, *, kept: int = 16) -> Iterator[Replays]:
    """Replay the calls of a model on a CUDA device inside the block, whose sizes repeat: its first `kept` sizes that
    come twice are recorded. Calls come from one thread, and record no gradients.

    Of a `Tokenizer` these are its networks, in `encode`, `decode`, `latents` and in streams; of a `MaskedTransformer`
    its features, at each step of sampling. A stream whose past grows (attention over time) is never recorded, and so an
    autoregressive model cannot be. Raises MachineError where the model is on another device.
    """
    check_least({"kept": (kept, 1)})
    calls = model.replayable
    device = next(weight.device for call in calls for weight in _owner(call).parameters())
    if device.type != "cuda":
        raise MachineError(f"replayed: CUDA graphs need a CUDA device, and the model is on {device}")
    with Replays(calls, CudaGraphs(device), kept=kept) as replays:
        yield replays


def calls_of(network: nn.Module) -> tuple[Callable[..., Tensor], ...]:
    """Return the calls of a network that can be recorded: those that it lists as `replayable`, or its `forward`."""
    calls: tuple[Callable[..., Tensor], ...] = getattr(network, "replayable", (network.forward,))
    return calls


def _owner(call: Callable[..., Tensor]) -> nn.Module:
    owner: nn.Module = call.__self__  # type: ignore[attr-defined]
    return owner


def _weights(network: nn.Module) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield where a network finds each of its weights and tables."""
    for module in network.modules():
        for named in (module._parameters, module._buffers):
            yield from ((named, name) for name, weight in named.items() if weight is not None)


def _map(value: Any, change: Callable[[object], object]) -> Any:
    """Return arguments with each that is no tuple of arguments changed."""
    if not isinstance(value, tuple) or isinstance(value, _Like | _Past):
        return change(value)
    items = [_map(item, change) for item in value]
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


def _grew(likes: Any, stream: Stream) -> bool:
    """Return whether a past that was there has another size now: no later call has the one that it had."""
    pasts = list[_Past]()
    _map(likes, lambda leaf: pasts.append(leaf) if isinstance(leaf, _Past) else None)
    after = stream.carries
    pairs = (pair for past in pasts for pair in zip(past.layers, past.carries, strict=True))
    return any(after[layer].shape != before.shape for layer, before in pairs)


def _switches() -> tuple[bool, ...]:
    """Return the settings by which torch chooses kernels."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    deterministic = cudnn.deterministic, torch.are_deterministic_algorithms_enabled()
    return cudnn.allow_tf32, cudnn.benchmark, products.allow_tf32, *deterministic

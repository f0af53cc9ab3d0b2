"""The floating-point operations of anything, as torch counts them: matrix products, convolutions, attention."""

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class _Counter(TorchDispatchMode):
    """torch's own FlopCounterMode without its hooks in modules, which gradients of gradients do not get past."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and count it."""
        given = kwargs or {}
        out = func(*args, **given)
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.total += count(*args, **given, out_val=out)
        return out


def operations(call: Callable[[], object]) -> float:
    """How many a call makes, backward passes within it too; two for a product that is added."""
    with _Counter() as counter:
        call()
    return float(counter.total)

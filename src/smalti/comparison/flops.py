"""The floating-point operations of any call, as torch counts them: matrix products, convolutions, attention."""

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class FlopCounter(TorchDispatchMode):
    """Adds up the operations within it in `total`: two for a product that is added.

    It is torch's own FlopCounterMode without its hooks in modules, which gradients of gradients do not get past.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and count it."""
        kwargs = kwargs or {}
        count = flop_registry.get(func.overloadpacket)
        if count is None:
            with self:  # in inference mode a product arrives as the operation that is made of it
                parts = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if parts is NotImplemented else parts
        out = func(*args, **kwargs)
        self.total += count(*args, **kwargs, out_val=out)
        return out


def count_flops(call: Callable[[], object]) -> float:
    """Return the operations of a call, backward passes within it included."""
    with FlopCounter() as counter:
        call()
    return float(counter.total)

"""What checks annotations while the tests run."""

import jaxtyping
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from tests.typecheck import CALLS, begin_anew, first_calls, free


@jaxtyping.jaxtyped(typechecker=first_calls)
def transposed(matrix: Float[Tensor, "n m"]) -> Float[Tensor, "m n"]:
    return matrix if matrix.shape[0] == 5 else matrix.mT


@pytest.mark.parametrize("calls", [0, 1, CALLS - 1])
@pytest.mark.parametrize("wrong", [torch.zeros(2, 3, 4), torch.zeros(5, 3)], ids=["argument", "result"])
def test_a_wrong_shape_is_seen_in_the_first_calls(calls, wrong):
    for _ in range(calls):
        transposed(torch.zeros(2, 3))
    with pytest.raises(jaxtyping.TypeCheckError):
        transposed(wrong)


def test_later_calls_are_not_checked_until_the_next_test():
    for _ in range(CALLS):
        transposed(torch.zeros(2, 3))
    transposed(torch.zeros(5, 3))
    begin_anew()
    with pytest.raises(jaxtyping.TypeCheckError):
        transposed(torch.zeros(5, 3))


class Shapes:
    """What can be wrapped once more around a checked function."""

    @property
    @jaxtyping.jaxtyped(typechecker=first_calls)
    def wrong(self) -> Float[Tensor, "1 2 3"]:
        return torch.zeros(2)

    @classmethod
    @jaxtyping.jaxtyped(typechecker=first_calls)
    def columns(cls, matrix: Float[Tensor, "n m"]) -> int:
        return str(matrix.shape[-1])


@pytest.mark.parametrize("call", [lambda: Shapes().wrong, lambda: Shapes.columns(torch.zeros(3, 3))])
def test_a_function_that_had_its_calls_is_free_in_this_test_alone(call):
    for _ in range(CALLS):
        with pytest.raises(jaxtyping.TypeCheckError):
            call()
    call()
    assert free
    begin_anew()
    assert not free
    with pytest.raises(jaxtyping.TypeCheckError):
        call()

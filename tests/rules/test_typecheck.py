"""What checks annotations while the tests run."""

import jaxtyping
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from tests.typecheck import CALLS, checked, first_calls


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
    checked.clear()
    with pytest.raises(jaxtyping.TypeCheckError):
        transposed(torch.zeros(5, 3))

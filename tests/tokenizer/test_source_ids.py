"""Ids in the form of another project and back: rows or grids, counted from any number."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smalti.errors import InputError
from smalti.tokenizer_info import SourceIds

SIZES = st.lists(st.integers(1, 5), min_size=3, max_size=4)


@given(size=SIZES, layout=st.sampled_from(["flat", "grid"]), offset=st.integers(-3, 70_000))
def test_ids_come_back_from_the_form_of_their_project(size, layout, offset):
    form = SourceIds(layout=layout, offset=offset)
    ids = torch.arange(torch.Size(size).numel()).view(size)
    there = form.to_source(ids)
    assert there.shape == ((size[0], ids[0].numel()) if layout == "flat" else ids.shape)
    assert torch.equal(there.flatten(), ids.flatten() + offset)
    assert torch.equal(form.from_source(there, tuple(size[1:])), ids)


def test_a_row_needs_a_grid_that_it_fills():
    for grid in (None, (2, 2)):
        with pytest.raises(InputError, match=r"6 ids in a row need their grid"):
            SourceIds().from_source(torch.arange(6)[None], grid)

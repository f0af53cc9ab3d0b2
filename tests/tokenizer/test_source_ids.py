"""Ids in the form of another project and back: rows or grids, counted from any number."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smalti.errors import BadTensor, InputError, SmaltiError
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
    for grid in (None, (2, 2), (-2, -3), (6,), (1, 1, 2, 3)):
        with pytest.raises(InputError, match=r"6 ids in a row need their grid"):
            SourceIds().from_source(torch.arange(6)[None], grid)


INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64]


@pytest.mark.parametrize("layout", ["flat", "grid"])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_any_type_of_integer_holds_the_same_ids_and_no_offset_wraps_around(dtype, layout):
    form = SourceIds(layout=layout, offset=100)
    ids = torch.arange(24).view(2, 3, 4)
    there = form.to_source(ids + 0)
    for narrow in (form.to_source(ids.to(dtype)), form.to_source((ids + 76).to(dtype)) - 76):
        assert narrow.dtype == torch.int64
        assert torch.equal(narrow, there)
    back = form.from_source(there.to(dtype), (3, 4))
    assert back.dtype == torch.int64
    assert torch.equal(back, ids)


IDS = torch.arange(24).view(2, 3, 4)
NO_IDS = {
    "floats": (IDS.float(), "must be integers (found float32"),
    "booleans": (IDS > 3, "must be integers (found bool"),
    "of numpy": (IDS.numpy(), "torch.from_numpy(ids)"),
    "a list": (IDS.tolist(), "found list"),
    "below": (IDS - 1, "-1 is outside [0, 24)"),
    "above": (IDS + 1, "24 is outside [0, 24)"),
    "without a batch": (IDS[0], "ids[None]"),
    "a row": (IDS[0, 0], "ids[None]"),
    "an axis too many": (IDS[None, None], "found int64 of shape (1, 1, 2, 3, 4)"),
}


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("case", NO_IDS)
def test_what_are_no_ids_of_the_tokenizer_is_refused_in_one_line(case):
    wrong, said = NO_IDS[case]
    with pytest.raises(BadTensor) as error:
        SourceIds(offset=7).to_source(wrong, 24)
    assert said in str(error.value)
    if case in ("floats", "booleans", "of numpy", "a list", "a row"):
        with pytest.raises(BadTensor):
            SourceIds(offset=7).from_source(wrong, (3, 4), 24)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("layout", ["flat", "grid"])
def test_ids_of_another_vocabulary_are_refused_on_their_way_back(layout):
    form = SourceIds(layout=layout, offset=7)
    for there in (IDS, IDS + 8):
        with pytest.raises(BadTensor, match=r"(0|31) is outside \[7, 31\)"):
            form.from_source(there, (3, 4), 24)
    for grid in ((3.0, 4.0), "34", 12):
        if layout == "flat":
            with pytest.raises(SmaltiError, match="grid: must be"):
                form.from_source(IDS.flatten(1) + 7, grid, 24)

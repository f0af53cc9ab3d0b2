"""What users of mindone and MagicMaster ran into, where no other test shows that it is not here (docs/migrating.md)."""

import importlib
import pkgutil

import pytest
import torch

import smalti
from smalti.data.list_formats import read_list
from smalti.nn.causal import CausalUpsample, Window
from smalti.recipes import find
from smalti.training.tokenizer_state import start_tokenizer
from smalti.training.tokenizer_step import step
from tests.reference.plain_step import ALONE


def test_every_module_can_be_imported():
    names = [module.name for module in pkgutil.walk_packages(smalti.__path__, "smalti.")]
    assert len(names) > 80
    for name in names:
        if name != "smalti.__main__":
            importlib.import_module(name)


@pytest.mark.parametrize("strides", [(1, 2), (2, 2), (4, 2)])
def test_upsampling_puts_the_channels_of_a_position_into_its_own_pixels(strides):
    """Where a bare reshape to the larger size would put them side by side in one row."""
    time, space = strides
    up = CausalUpsample(1, 1, Window(1, 1, "full"), strides=strides).double()
    with torch.no_grad():
        up.conv.now.weight.zero_()[:, :, 1, 1] = 1
        up.conv.now.bias.zero_()
    frames = torch.arange(3 * 4 * 5, dtype=torch.float64).view(3, 1, 1, 4, 5)
    nearest = frames.repeat_interleave(time, 0).repeat_interleave(space, 3).repeat_interleave(space, 4)
    with torch.no_grad():
        assert torch.equal(up(frames), nearest[time - 1 :])


def test_a_penalty_of_weight_0_trains():
    config = find("magicmaster-imagenet-style2-64000-128-8x8-ep20", tiny=True).override(["gan.penalty_weight=0"])
    assert not step(start_tokenizer(config, ALONE), torch.rand(4, 3, 1, 32, 32) * 2 - 1).skipped


def test_a_comma_in_the_name_of_a_video_starts_no_column(tmp_path):
    for name in ("a, b and c.mp4", "d.mp4"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "train_new.txt").write_text("a, b and c.mp4,juggling\nd,archery\n")
    listing = read_list(tmp_path / "train_new.txt", format="k600")
    assert listing.files == ("a, b and c.mp4", "d.mp4")
    assert [listing.classes.names[label] for label in listing.classes.labels] == ["juggling", "archery"]

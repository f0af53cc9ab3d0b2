"""Losses: functions of tensors that return unweighted scalars; networks are passed in, never owned."""

from smalti.losses.adversarial import (
    Anchors,
    LastLayerNorms,
    adaptive_weight,
    follow,
    hinge_discriminator,
    hinge_generator,
    input_gradient_norms,
    last_layer_norms,
    lazy,
    lecam,
    non_saturating_discriminator,
    non_saturating_generator,
    one_centred,
    zero_centred,
)
from smalti.losses.frame_choice import Frames, random_frames, select_frames
from smalti.losses.pixel import l1, l2
from smalti.losses.weigh import weigh

__all__ = [
    "Anchors",
    "Frames",
    "LastLayerNorms",
    "adaptive_weight",
    "follow",
    "hinge_discriminator",
    "hinge_generator",
    "input_gradient_norms",
    "l1",
    "l2",
    "last_layer_norms",
    "lazy",
    "lecam",
    "non_saturating_discriminator",
    "non_saturating_generator",
    "one_centred",
    "random_frames",
    "select_frames",
    "weigh",
    "zero_centred",
]

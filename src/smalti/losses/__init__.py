"""Losses: functions of tensors that return unweighted scalars; networks are passed in, never owned."""

from smalti.losses.adversarial import (
    Anchors,
    LastLayerNorms,
    adaptive_weight,
    gradient_penalty,
    hinge_discriminator,
    hinge_generator,
    input_gradient_norms,
    last_layer_norms,
    lazy_factor,
    lecam,
    non_saturating_discriminator,
    non_saturating_generator,
    r1_penalty,
    update_lecam_ema,
)
from smalti.losses.pixel import Frames, l1, l2, random_frames, select_frames, weigh, widen

__all__ = [
    "Anchors",
    "Frames",
    "LastLayerNorms",
    "adaptive_weight",
    "gradient_penalty",
    "hinge_discriminator",
    "hinge_generator",
    "input_gradient_norms",
    "l1",
    "l2",
    "last_layer_norms",
    "lazy_factor",
    "lecam",
    "non_saturating_discriminator",
    "non_saturating_generator",
    "r1_penalty",
    "random_frames",
    "select_frames",
    "update_lecam_ema",
    "weigh",
    "widen",
]

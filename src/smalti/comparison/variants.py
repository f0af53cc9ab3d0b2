"""Variants by name: each is a recipe with some fields set, and all of a comparison share the rest."""

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import ClassVar

from smalti.config import Config, Tuple
from smalti.data.source import Medium
from smalti.errors import ConfigError
from smalti.recipes import catalogue, find
from smalti.recipes.quantizers import CODEBOOK_WEIGHTS, named_quantizer
from smalti.text import nearest
from smalti.training.config import TokenizerTraining

BASE: dict[Medium, str] = {"images": "tiny", "videos": "tiny-video"}
"""The recipe that variants change: the backbone, the losses, the optimizer."""


class Variant(Config):
    """A recipe with some fields set."""

    name: str
    recipe: str | None = None
    """Null takes the base of the comparison: `tiny` for images, `tiny-video` for videos."""
    set: Tuple[str] = ()
    """`field=value`, as in `smalti train --set`."""

    def training(self, medium: Medium, steps: int, common: tuple[str, ...] = ()) -> TokenizerTraining:
        """Return the whole config with schedules of `steps` steps; `common` is set for all variants, before its own."""
        base = find(self.recipe or BASE[medium])
        if not isinstance(base, TokenizerTraining):
            raise ConfigError(f"{self.name}: the recipe {self.recipe} trains no tokenizer")
        changes: dict[str, object] = {"steps": steps, "validation": None}
        if base.entropy_boost_steps == base.steps:
            changes["entropy_boost_steps"] = steps
        changes["optimizer"] = base.optimizer.replace({"warmup": min(base.optimizer.warmup, max(1, steps // 5))})
        try:
            return base.replace(changes).override([*common, *self.set])
        except ConfigError as error:
            raise ConfigError(f"{self.name}: {error}") from None


class VariantList(Config):
    """A list of variants, in a file."""

    former_names: ClassVar[Mapping[str, str]] = {"contenders": "variants"}

    variants: Tuple[Variant]


Groups = dict[str, tuple[Variant, ...]]

PLAIN = Variant(name="base")
"""The base as it is: the variants of a group are compared with it."""


def find_variants(text: str, groups: Groups) -> list[Variant]:
    """Return what `NAME` or `NAME: field=value ...` means: a named variant, a recipe, or all variants of a group.

    Raises ConfigError with the nearest name.
    """
    name, colon, rest = text.partition(":")
    name, label = name.strip(), " ".join(text.split())
    try:
        more = tuple(shlex.split(rest))
    except ValueError as error:
        raise ConfigError(f"`variant` {label}: {error}") from None
    if colon and not more:
        raise ConfigError(f"`variant` {label}: nothing after the colon; give field=value, or leave it out")
    if name in groups and not more:
        return [PLAIN, *groups[name]]
    ready = {one.name: one for one in (PLAIN, *(one for members in groups.values() for one in members))}
    recipes = {recipe.name: Variant(name=recipe.name, recipe=recipe.name) for recipe in catalogue()}
    variant = ready.get(name) or recipes.get(name)
    if variant is None:
        lists = f"groups: {', '.join(groups)}; variants: {', '.join(ready)}; or a recipe"
        raise ConfigError(f"`variant` {name}: no such variant{nearest(name, [*groups, *ready, *recipes])} ({lists})")
    return [variant.replace({"name": label if more else variant.name, "set": (*variant.set, *more)})]


def variant_groups(medium: Medium, steps: int) -> Groups:
    """Return the named variants for images or videos; a discriminator starts at a quarter of the steps."""
    groups = {
        "quantizers": _quantizers(),
        "norms": _norms(medium),
        "adaptive": _adaptive(medium),
        "stems": _stems(medium),
        "losses": _losses(),
        "gans": _gans(medium, steps),
    }
    return {name: tuple(Variant(name=n, set=changes) for n, changes in members) for name, members in groups.items()}


_Members = Iterator[tuple[str, tuple[str, ...]]]

_CODEBOOK = (f"weights={json.dumps({'l2': 1.0, **CODEBOOK_WEIGHTS})}", "entropy_boost=0.0")
_PAPER = ("weights={l2: 1.0, token_entropy: 0.1, batch_entropy: -0.1, commitment: 0.25}", "entropy_boost=2.0")


def _quantizers() -> _Members:
    """The base has FSQ 64,000 with a little batch entropy. The entropies of `lfq` weigh as much as that one's;
    MAGVIT-v2's, in `lfq18-paper`, a hundred times as much. `vq8192` are tables of codes: the rows found by distance or
    cosine, or, as IBQ does, by inner product; learning by their loss, by index back-propagation or as moving averages;
    with dead rows beginning anew."""
    for name in ("fsq64000", "dsq64000", "fsq15360", "dsq15360", "lfq14", "lfq18"):
        quantizer, weights, boost = named_quantizer(name)
        whole = json.dumps({"l2": 1.0, **weights})
        text = json.dumps(quantizer.plain())
        yield name, (f"tokenizer.quantizer={text}", f"weights={whole}", f"entropy_boost={boost}")
    table = "tokenizer.quantizer={kind: codebook, size: 8192, dim: 8"
    laws = {"": "", "-cosine": ", by: cosine", "-indices": ", gradient: indices"}
    for name, fields in {**laws, "-inner": ", by: inner, gradient: indices"}.items():
        yield f"vq8192{name}", (f"{table}{fields}}}", *_CODEBOOK)
    for name, share in (("", 0), ("-restart", 0.1)):
        codebook = f"codebook={{rows: averages, restart: {share}}}"
        averages = (f"{table}, losses: [commitment]}}", codebook)
        yield f"vq8192-averages{name}", (*averages, "weights={l2: 1.0, commitment: 0.25}", _CODEBOOK[1])
    for name, fields in (("", ""), ("-cosine", ", by: cosine")):
        yield f"vq8192{name}-restart", (f"{table}{fields}}}", "codebook={restart: 0.1}", *_CODEBOOK)
    yield "lfq18-paper", ("tokenizer.quantizer={kind: lfq, bits: 18, temperature: 0.01}", *_PAPER)


def _norms(medium: Medium) -> _Members:
    """The base has one per position; of one frame, `clip` is `frame`."""
    yield "norm-frame", ("tokenizer.norm=frame",)
    if medium == "videos":
        yield "norm-clip", ("tokenizer.norm=clip",)


def _adaptive(medium: Medium) -> _Members:
    """Norms of the decoder that the codes modulate: those of the position in the base; pooled over a frame, a clip."""
    yield "adaptive-frame", ("tokenizer.adaptive=frame",)
    if medium == "videos":
        yield "adaptive-clip", ("tokenizer.adaptive=clip",)
    yield "adaptive-none", ("tokenizer.adaptive=none",)


def _stems(medium: Medium) -> _Members:
    """Strides of 8: at one resolution in the base, over two to four here; time is reduced at the innermost stride."""
    time = 1 if medium == "images" else 4
    for patch, width, multipliers in ((4, 48, (1, 2)), (2, 16, (1, 2, 4)), (1, 8, (1, 2, 4, 8))):
        strides = [[1, 2]] * (len(multipliers) - 2) + [[time, 2]]
        shape = (f"tokenizer.patch={patch}", f"tokenizer.width={width}", "tokenizer.middle=1")
        yield f"patch{patch}", (*shape, f"tokenizer.multipliers={list(multipliers)}", f"tokenizer.strides={strides}")
    yield "deeper-decoder", ("tokenizer.decoder_depth=3",)


def _losses() -> _Members:
    yield "lpips", ("lpips={kind: lpips}", "weights.lpips=0.1", "lpips_frames=random")


def _gans(medium: Medium, steps: int) -> _Members:
    """Each with the pixel loss of the base, which has none."""
    losses = {
        "patch": ("gan.discriminator={kind: patch, width: 32}", "gan.lecam=0.001"),
        "stylegan2": (
            "gan.discriminator={kind: stylegan2, width: 32}",
            "gan.penalty=r1",
            "gan.penalty_weight=10.0",
            "gan.penalty_every=4",
        ),
    }
    if medium == "videos":
        clips = "gan.discriminator={kind: magvit3d, width: 16, multipliers: [2, 4, 4, 4]}"
        losses["magvit3d"] = (clips, "gan.lecam=0.001")
    place = (f"gan.start={steps // 4}", f"gan.ramp={max(1, steps // 10)}")
    for name, fields in losses.items():
        yield name, (*fields, "gan.weight=0.1", "gan.adaptive=true", *place)

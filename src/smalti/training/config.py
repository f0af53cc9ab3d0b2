"""The config of a training run: model, data, losses, optimizers, and when to save, validate and sample."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from torch import Tensor

from smalti.config import Config, PathField, Tuple, Two
from smalti.data import ImagesConfig, JointConfig, OneKindConfig, SourceConfig
from smalti.data.mixture import even_batches
from smalti.data.views import SizeField
from smalti.devices import Precision
from smalti.discriminators import DiscriminatorConfig
from smalti.losses import Frames
from smalti.losses.logits import LogitsConfig
from smalti.losses.perceptual import LPIPSConfig
from smalti.nn.blocks import Initialisation
from smalti.quantize import CodebookConfig
from smalti.tokenizer import AnyTokenizerConfig, ConditionalConfig

TrackerName = Literal["trackio", "wandb"]


class MuonConfig(Config):
    """Muon (Jordan et al. 2024): for a matrix of weights the nearest orthogonal one to its momentum is the update."""

    lr: float = Field(0.01, gt=0)
    """Peak learning rate of Muon, in place of AdamW's; it rises and falls as that does."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Decay of the momentum, which is Nesterov's."""
    turns: int = Field(5, ge=1)
    """Turns of the Newton-Schulz iteration towards an orthogonal matrix; 3 are faster and nearly as good."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Data type of that iteration: bfloat16, as published, is faster on a GPU and on a CPU that multiplies it, and many
    times slower on one that does not."""


class OptimizerConfig(Config):
    """AdamW, a linear warm-up, then cosine or constant. Weight decay is on convolutions and linear layers only."""

    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    muon: MuonConfig | None = None
    """Muon for the weights of convolutions and linear layers, AdamW for the rest; null is AdamW for all."""
    betas: Two[float] = (0.9, 0.99)
    """Decay rates of AdamW's two moments."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay, applied to the weights of convolutions and linear layers only: not to biases, norms, embeddings,
    learned positions and the parameters of quantizers."""
    warmup: int = Field(100, ge=0)
    """Steps of the linear warm-up from 0 to `lr`."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up: a cosine down to `final`, or constant."""
    final: float = Field(0.02, ge=0, le=1)
    """Learning rate at the end of the cosine, as a share of `lr`."""
    clip: float | None = Field(1.0, gt=0)
    """Largest norm of the whole gradient; null switches clipping off."""

    def lr_at(self, step: int, steps: int) -> float:
        """Return the learning rate of a step in [0, steps)."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.lr
        along = (step - self.warmup) / max(1, steps - self.warmup)
        return self.lr * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * along)))


class GANConfig(Config):
    """The GAN loss: the discriminator, the adversarial loss, its weight and its regularisers."""

    discriminator: DiscriminatorConfig
    """Discriminator: `patch`, `stylegan2` and `magvit2d` see frames, `magvit3d` sees clips."""
    loss: Literal["hinge", "non_saturating"] = "hinge"
    """Adversarial loss of the discriminator, and of the tokenizer unless `tokenizer_loss` says otherwise."""
    tokenizer_loss: Literal["hinge", "non_saturating"] | None = None
    """Adversarial loss of the tokenizer; null is that of the discriminator. Open-MAGVIT2 has `non_saturating` beside a
    discriminator with `hinge`."""
    weight: float = Field(0.1, ge=0)
    """Weight of the adversarial loss; with `adaptive`, a factor of the ratio of the two gradients at the last layer."""
    adaptive: bool = False
    """Whether the weight is `weight` * norm of the other losses' gradient / norm of the adversarial gradient, both at
    the decoder's last layer."""
    order: Literal["together", "alternate"] = "together"
    """Updates of the two networks: both from one forward, or the discriminator first and then the tokenizer against the
    updated one (MagicMaster, VQGAN), which costs another discriminator pass and needs `accumulate` 1."""
    start: int = Field(0, ge=0)
    """First step with a discriminator."""
    ramp: int = Field(0, ge=0)
    """Steps after `start` over which the adversarial weight rises linearly to its full value."""
    penalty: Literal["none", "r1", "gradient_norm"] = "none"
    """Penalty on the discriminator's gradient at real samples: `r1`, or MagicMaster's (norm - 1)^2."""
    penalty_weight: float = Field(1.0, ge=0)
    """Weight of the penalty. For R1, a weight published for pixels in [0, 1] is four times as large here."""
    penalty_every: int = Field(1, ge=1)
    """Steps between two penalties; each is then as many times as heavy."""
    lecam: float = Field(0.0, ge=0)
    """Weight of the LeCAM regulariser (MAGVIT-v2: 0.001)."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=4e-4, betas=(0.5, 0.9), schedule="constant", weight_decay=0.0)
    """Optimizer of the discriminator."""

    @field_validator("penalty", mode="before")
    @classmethod
    def _read_former_penalty(cls, value: Any) -> Any:
        former = {"zero_centred": "r1", "one_centred": "gradient_norm"}
        return former.get(value, value) if isinstance(value, str) else value

    @property
    def losses(self) -> tuple[str, str]:
        """Names of the adversarial losses of the tokenizer and of the discriminator."""
        return self.tokenizer_loss or self.loss, self.loss

    def share(self, step: int) -> float:
        """Return how much of `weight` holds at a step: 0 before `start`, then up to 1 along the ramp."""
        if step < self.start:
            return 0.0
        return min(1.0, (step - self.start + 1) / self.ramp) if self.ramp else 1.0


class CodebookTraining(Config):
    """Learning of a table of codes, beside the gradient that `tokenizer.quantizer` gives it."""

    rows: Literal["gradient", "averages"] = "gradient"
    """Rows learn by the loss `codebook` and the optimizer, or are moving averages of their latents (EMA codebook),
    without that loss and without a gradient."""
    decay: float = Field(0.99, gt=0, lt=1)
    """Decay of the averages, and of the counts by which dead rows are known."""
    restart: float = Field(0.0, ge=0, lt=1)
    """Share of the mean count below which a row is dead, and becomes a latent of the batch; 0 leaves dead rows. A fresh
    table has dead rows alone: it begins with latents of the first batches."""


class HeldTokens(Config):
    """Tokens of conditional tokenizers that steps hold, as a file may: without codes, with the pixels of the past."""

    share: float = Field(0.7, gt=0, le=1)
    """Share of the clips in which tokens are held."""
    least: float = Field(1.0, gt=0)
    """Smallest threshold of such a clip. A token is held unless the mean squared error of its pixels, in 8-bit values,
    is lower with it by as much as the threshold, which is log-uniform."""
    most: float = Field(120.0, gt=0)
    """Largest threshold of such a clip."""

    @model_validator(mode="after")
    def _ordered(self) -> "HeldTokens":
        if self.least > self.most:
            raise ValueError(f"least ({self.least:g}) must not exceed most ({self.most:g})")
        return self

    def thresholds(self, chance: Tensor) -> Tensor:
        """Return the thresholds `n` of clips from two uniform random numbers in [0, 1) of each, `2 n`: -inf, which
        holds nothing, for all but `share` of them."""
        some = (chance[1] * math.log(self.most / self.least)).exp() * self.least
        return some.masked_fill(chance[0] >= self.share, -math.inf).float()


class OtherView(Config):
    """Another size or length of the samples of `data`; what is null is as there."""

    size: SizeField = None
    """Height and width of a sample, or one number for a square."""
    frames: int | None = Field(None, ge=1, le=1 << 16)
    """Frames of a clip, of videos alone."""


class RunConfig(Config):
    """The fields of every training run. `batch_size` is global: over all ranks and micro-batches."""

    changeable: ClassVar[frozenset[str]] = frozenset(
        ("workers", "log_every", "save_every", "keep", "sample_every", "eval_every", "validation_limit")
        + ("tracker", "rank_timeout", "shard")
    )
    """Fields that may differ between a run and its resumption: none of them changes the result."""

    kind: str
    """Kind of the model that is trained."""
    steps: int = Field(ge=1)
    """Number of training steps."""
    batch_size: int = Field(16, ge=1, le=1 << 20)
    """Global batch size, over all ranks and micro-batches."""
    seed: int = Field(0, ge=0)
    """Seed of weights, data order and every other random choice."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer of the model."""
    ema: float = Field(0.999, ge=0, lt=1)
    """Decay of the EMA weights, which are evaluated, sampled from and exported; 0 uses the weights themselves."""
    precision: Precision = "float32"
    """Data type of convolutions and matrix products; parameters, norms, quantizer and losses stay float32."""
    fast_kernels: bool = False
    """Whether steps on a CUDA device round the inputs of float32 matrix products to TF32, as torch does those of
    convolutions anyway, and cuDNN times its kernels at each new size and takes the fastest. Its choice may differ when
    a run is resumed, which then has other bits."""
    validation_limit: int = Field(32, ge=1)
    """Largest number of clips or rows of `validation` that are scored."""
    workers: int = Field(0, ge=0, le=1024)
    """Data loading processes per rank; with 0 a thread reads, or the steps of a token model themselves."""
    rank_timeout: float = Field(300.0, ge=1)
    """Seconds in which each of several processes waits for the others; the run ends where one is dead, stopped or
    slower. Must exceed what a validation takes, which the first process does alone."""
    shard: bool = False
    """Whether the ranks of a run hold its weights, gradients, moments and EMA weights in shards, each a part, in place
    of all of them each (FSDP2): for a model that does not fit. A discriminator stays whole. One process holds all."""
    log_every: int = Field(10, ge=1)
    """Steps between lines of the log."""
    save_every: int = Field(500, ge=1)
    """Steps between checkpoints."""
    keep: int = Field(2, ge=1)
    """Number of newest checkpoints to keep."""
    sample_every: int = Field(500, ge=1)
    """Steps between sample images."""
    eval_every: int = Field(500, ge=1)
    """Steps between validations."""
    tracker: TrackerName | None = None
    """Service that shows the run beside log.jsonl and TensorBoard, where it is installed: `wandb` or `trackio`."""

    def fixed_in_resumption(self, other: "RunConfig") -> list[str]:
        """Return the fields in which a run of this config and its resumption by `other` differ and may not.

        `steps` may, where no learning rate depends on it."""
        free = self.changeable | ({"steps"} if self.length_note is None else set())
        return [n for n in type(self).model_fields if n not in free and getattr(self, n) != getattr(other, n)]

    @property
    def optimizers(self) -> dict[str, OptimizerConfig]:
        """Optimizers by their fields."""
        return {"optimizer": self.optimizer}

    @property
    def length_note(self) -> str | None:
        """Return why a run cannot be made longer or shorter once it has begun; None if it can."""
        bent = [f"{name}.schedule" for name, one in self.optimizers.items() if one.schedule == "cosine"]
        if not bent:
            return None
        return (
            f"{' and '.join(bent)} {'are cosines' if len(bent) > 1 else 'is a cosine'} over {self.steps:,} steps, so"
            " that another length has other learning rates from the start; start a run with init=THIS RUN, or begin"
            " with schedule=constant"
        )

    def ema_decay(self, updates: int) -> float:
        """Return the decay of the EMA weights at the update after `updates` others."""
        return min(self.ema, (1 + updates) / (10 + updates))


def _has_whole_groups(rows: int, ranks: int, parts: int, group: int) -> bool:
    """Return whether each of the `parts` of each rank's rows can be made of whole groups."""
    each, rest = divmod(rows, ranks)
    return not rest and each % group == 0 and each // group >= parts


def _pixels(view: OneKindConfig) -> int:
    assert view.size is not None
    height, width = (view.size, view.size) if isinstance(view.size, int) else view.size
    frames = 1 if isinstance(view, ImagesConfig) else view.frames
    assert frames is not None
    return frames * height * width


class TokenizerTraining(RunConfig):
    """The config of a tokenizer's training run."""

    former_names: ClassVar[Mapping[str, str]] = {"adversary": "gan"}
    changeable: ClassVar[frozenset[str]] = RunConfig.changeable | frozenset(
        ("accumulate", "checkpoint_activations", "cuda_graph", "max_bad")
    )
    """`accumulate` only changes rounding, and is fixed where it does more (`cut_note`)."""

    kind: Literal["tokenizer"] = "tokenizer"
    tokenizer: AnyTokenizerConfig
    """Architecture of the tokenizer."""
    data: SourceConfig
    """Training data: a source of any kind."""
    validation: OneKindConfig | None = None
    """Held-out images or videos, scored every `eval_every` steps with the EMA weights under the protocol `smalti`
    without LPIPS. With `held_out`, the view of the samples that are held out of `data`: its path is then that of
    `data`; null is the view of `data`, center crop, not mirrored."""
    held_out: int | None = Field(None, ge=0)
    """Samples of `data` that are held out for validation and never trained on, chosen by `seed` and their names: at
    most a tenth of all. In place of null, `smalti train` sets `validation_limit` where `validation` shows media that
    ship with smalti and `data` does not, and else 0. Of joint data, videos are held out."""
    views: Tuple[OtherView] = ()
    """Other sizes and lengths of `data`, as in [{size: 256}, {size: [128, 192]}]: each batch is of one view, all in
    turn, with about as many pixels as `batch_size` samples of `data` have. Not for joint data."""
    init: PathField | None = None
    """Tokenizer to start from, by a name as `smalti.load` takes it (an inflated one, or one of another project, for
    instance); null starts from random weights. Its architecture is taken too, where no field of `tokenizer` is set."""
    init_training: bool = False
    """Whether the run also takes what the training of `init` had, of a file of MagicMaster's trainer: the live weights,
    the discriminator, the moments of both optimizers. What the file lacks starts anew, and is said."""
    initialisation: Initialisation = "smalti"
    """Rule of the first weights, where `init` gives none: smalti's own, with zeros at the end of every residual block,
    or that of `torch` (mindone), `magicmaster` or `flax` (MAGVIT)."""
    frozen: Tuple[str] = ()
    """Parts of the tokenizer that keep their first weights, by the beginning of their names: `encoder.image`,
    `decoder.image`."""
    still_frames: int = Field(1, ge=1)
    """Frames of a clip that stands still, as which images of `data` are learnt from; 1 takes them as images."""
    held_tokens: HeldTokens | None = None
    """Tokens that steps hold at random, which teaches the decoder of a conditional tokenizer to do without the codes
    that `smalti compress --lambda` leaves out; null holds none. Validation and samples never do."""
    accumulate: int = Field(1, ge=1)
    """Gradient accumulation steps: micro-batches per batch. Must divide `batch_size`. The gradients are those of the
    whole batch, but a discriminator that compares samples (batch norm, minibatch deviation) may see one micro-batch."""
    checkpoint_activations: bool = False
    """Whether the layers of encoder and decoder keep their inputs alone and are computed again on the way back: less
    memory, a tenth to a fifth more time, the same bits."""
    cuda_graph: bool = False
    """Whether losses and gradients of a step are recorded as a CUDA graph, once for each shape of batch that comes
    twice (of four at most), and replayed after that: Python starts one graph and not each kernel, some thousand a step.
    For one CUDA device, without `gan`, `accumulate`, `codebook` and `lpips.dropout`."""
    max_bad: float = Field(0.5, ge=0, le=1)
    """Largest share of rows that cannot be read among the last 1,000; with more, the run ends. Until then a row is left
    out, and a step without any."""
    weights: dict[str, float]
    """Weight of each loss by name: `l1`, `l2` and `flat` (`l2` where the original is flat) on [-1, 1] pixels, `lpips`,
    `logits`, and those of the quantizer. Every loss that is computed needs a weight and every weight a loss."""
    entropy_boost: float = Field(0.0, ge=0)
    """Boost b of the entropies' weights, annealed linearly from (1 + b) times to 1 times their value (MAGVIT-v2: 2)."""
    entropy_boost_steps: int = Field(2000, ge=1)
    """Steps over which the entropies' weights are annealed."""
    last_frame_weight: float = Field(1.0, gt=0)
    """Weight in `l1`, `l2` and `flat` of the last frame of each token, against 1 for its other frames: of a conditional
    tokenizer, the next token builds on it."""
    lpips: LPIPSConfig | None = None
    """LPIPS network, as `{net: vgg}`; null trains without LPIPS."""
    lpips_frames: Frames = "all"
    """Frames of a clip that LPIPS is computed on: all, or one at random."""
    logits: LogitsConfig | None = None
    """Classifier whose logits are compared, as `{net: resnet50}` (MAGVIT-v2); null trains without."""
    gan: GANConfig | None = None
    """GAN loss; null trains without a discriminator."""
    codebook: CodebookTraining | None = None
    """Moving averages and restarts of a table of codes; null leaves it to its gradient alone."""
    ema_rise: Literal["ratio", "exponential", "none"] = "ratio"
    """Rise of the decay to `ema` with the number of updates n: (1 + n) / (10 + n) for `ratio`, 1 - exp(-n / 2000) for
    `exponential` (mindone), or none (MagicMaster)."""
    ema_start: int = Field(0, ge=0)
    """Updates before the EMA starts; until then its weights are those of the model (MagicMaster: 2,000 to 200,000)."""
    ema_moves: int = Field(1, ge=1)
    """EMA updates per optimizer step, which `ema_rise` counts (mindone: 16, one for each micro-batch)."""

    @model_validator(mode="after")
    def _consistent(self) -> "TokenizerTraining":
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate ({self.accumulate}) must divide batch_size ({self.batch_size})")
        for name in ("lpips", "logits"):
            if (getattr(self, name) is None) != (name not in self.weights):
                raise ValueError(f"{name} and weights.{name} go together: give both or neither")
        if self.accumulate > 1 and self.gan is not None and self.gan.order == "alternate":
            raise ValueError("gan.order alternate needs accumulate 1: the discriminator moves within the batch")
        if self.tokenizer.modes > 1:
            raise ValueError("tokenizer.quarters: train without, then switch it on by smalti inflate --quarters")
        if self.cuda_graph:
            self._check_recordable()
        if self.shard and self.codebook is not None:
            raise ValueError(
                "shard: rows of a table that `codebook` sets cannot be cut; set shard to false, or codebook to null"
            )
        if self.views:
            self._check_views()
        if self.init_training and self.init is None:
            raise ValueError("init_training is of the training of `init`, which is null")
        if self.codebook is not None:
            self._check_codebook(self.codebook)
        if self.init is None and (note := self.held_note) is not None:  # else the architecture may be another
            raise ValueError(note)
        if (
            self.data.kind != "videos"
            and self.still_frames == 1
            and {"encoder.image", "decoder.image"} <= {*self.frozen}
        ):
            raise ValueError(
                "still_frames: images train the networks of a first frame alone, which `frozen` keeps; set 2+"
            )
        if self.held_out and self.validation is not None:
            own, shown = ((part.kind, part.path) for part in (self.split_data, self.validation))
            if own != shown:
                what = f"held_out is of the {own[0]} of {own[1]}, and validation shows the {shown[0]} of {shown[1]}"
                raise ValueError(f"{what}: set held_out to 0, or validation to null")
        return self

    @property
    def held_note(self) -> str | None:
        """Why no token can be held as `held_tokens` asks; None if some can, or it is null."""
        if self.held_tokens is None:
            return None
        if not isinstance(self.tokenizer, ConditionalConfig):
            return (
                f"held_tokens: tokens of conditional-cnn alone can be held, not {self.tokenizer.kind}; set it to null"
            )
        if self.still_frames == 1 and all(view.kind == "images" or view.frames == 1 for view in self.all_views):
            one, field = (
                ("an image", "still_frames") if self.data.kind == "images" else ("one frame", "frames of videos")
            )
            return f"held_tokens: no token of {one} can be held; set {field} to 2+, or held_tokens to null"
        return None

    def _check_recordable(self) -> None:
        hindrances = {
            "gan": self.gan is not None,
            "accumulate above 1": self.accumulate > 1,
            "codebook": self.codebook is not None,
            "lpips.dropout": self.lpips is not None and self.lpips.dropout > 0,
        }
        if found := [name for name, is_there in hindrances.items() if is_there]:
            raise ValueError(f"cuda_graph: a step with {' and '.join(found)} cannot be recorded; set it to false")

    def _check_views(self) -> None:
        if isinstance(self.data, JointConfig):
            raise ValueError("views: are of one kind of data, and joint data has two; take images or videos alone")
        if self.data.kind == "images" and any(view.frames is not None for view in self.views):
            raise ValueError("views: images have no frames; take `frames` out")
        if self.data.size is None or (self.data.kind == "videos" and self.data.frames is None):
            raise ValueError("views: the pixels of a batch must be known; set data.size, and data.frames of videos")

    @property
    def all_views(self) -> tuple[OneKindConfig, ...]:
        """`data` in its own view and in all others; of joint data, the videos."""
        own = self.split_data
        changes = [{name: value for name, value in view if value is not None} for view in self.views]
        return (own, *(own.replace(change) for change in changes))

    @property
    def view_pixels(self) -> tuple[int, ...]:
        """Pixels of a sample in each of `all_views`, over all its frames; nothing where there are no other views."""
        return tuple(map(_pixels, self.all_views)) if self.views else ()

    def _check_codebook(self, codebook: CodebookTraining) -> None:
        quantizer = self.tokenizer.quantizer
        if not isinstance(quantizer, CodebookConfig):
            if self.init is not None:  # the run takes another architecture, and is checked again
                return
            raise ValueError(f"codebook: tokenizer.quantizer is {quantizer.kind}, which has no table; set it to null")
        if codebook.rows == "gradient":
            return
        if "codebook" in {*self.weights, *quantizer.losses}:
            raise ValueError(
                "codebook.rows averages have no gradient: take `codebook` out of weights and tokenizer.quantizer.losses"
            )
        if quantizer.gradient == "indices" or quantizer.by == "inner":
            what = "gradient indices" if quantizer.gradient == "indices" else "by inner"
            why = "gives rows a gradient" if quantizer.gradient == "indices" else "does not take the nearest row"
            raise ValueError(f"codebook.rows averages: tokenizer.quantizer has {what}, which {why}; take rows=gradient")

    @property
    def split_data(self) -> OneKindConfig:
        """Source that `held_out` is taken from: `data`, or the videos of joint data."""
        return self.data.videos if isinstance(self.data, JointConfig) else self.data

    def cut_note(self, ranks: int = 1) -> str | None:
        """Return how the discriminator's scores depend on the cut into ranks and micro-batches; None if they do not.

        A minibatch deviation does not where every part can have whole groups.
        """
        compared, parts = self.compared_samples, self.accumulate * ranks
        if parts == 1 or compared == 1:
            return None
        sizes = even_batches(self.batch_size, self.view_pixels) if self.views else (self.batch_size,)
        if compared is not None and all(_has_whole_groups(size, ranks, self.accumulate, compared) for size in sizes):
            return None
        layer = "batch norm is" if compared is None else f"minibatch deviation in groups of {compared} is"
        return (
            f"gan.discriminator: its {layer} computed on the {self.batch_size / parts:g} rows of one micro-batch on "
            f"one rank (batch_size {self.batch_size}, accumulate {self.accumulate}, {ranks} ranks), not on the batch"
        )

    def fixed_in_resumption(self, other: RunConfig) -> list[str]:
        """Return the fields in which a run of this config and its resumption by `other` differ and may not."""
        fixed = super().fixed_in_resumption(other)
        if (
            isinstance(other, TokenizerTraining)
            and self.accumulate != other.accumulate
            and (self.cut_note() or other.cut_note())
        ):
            fixed.append("accumulate")
        return fixed

    @property
    def optimizers(self) -> dict[str, OptimizerConfig]:
        """Optimizers by their fields: that of the tokenizer, and of the discriminator if there is one."""
        return super().optimizers | ({} if self.gan is None else {"gan.optimizer": self.gan.optimizer})

    @property
    def compared_samples(self) -> int | None:
        """Samples whose scores by the discriminator depend on each other: 1 for none, None for all of a call."""
        return 1 if self.gan is None else self.gan.discriminator.compared_samples

    def ema_decay(self, updates: int) -> float:
        """Return the decay at the update after `updates` others: the product of its moves' decays."""
        if updates < self.ema_start:
            return 0.0
        moves = range(updates * self.ema_moves, (updates + 1) * self.ema_moves)
        return math.prod(self._decay_of_move(n) for n in moves)

    def _decay_of_move(self, n: int) -> float:
        if self.ema_rise == "exponential":
            return self.ema * (1 - math.exp(-n / 2000))
        return min(self.ema, (1 + n) / (10 + n)) if self.ema_rise == "ratio" else self.ema

"""The state of a tokenizer's run: tokenizer, discriminator, EMA weights, optimizers, the step."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from smalti.discriminators import Discriminator
from smalti.errors import ConfigError, IntegrityError
from smalti.families import load as load_tokenizer
from smalti.families.magicmaster_training import read_training
from smalti.losses import Anchors
from smalti.losses.logits import LogitDistance
from smalti.losses.perceptual import LPIPS
from smalti.nn.blocks import initialise
from smalti.nn.replay import CudaGraphs
from smalti.quantize import Codebook
from smalti.text import nearest, say
from smalti.tokenizer import AnyTokenizerConfig, ConditionalConfig, Tokenizer
from smalti.tokenizer.inflate import take_image_part
from smalti.training.codebook import CodebookState
from smalti.training.config import GANConfig, TokenizerTraining
from smalti.training.distributed import World
from smalti.training.memory import layers_of, recompute
from smalti.training.optimizer import OptimizerState, make_optimizer, wrap_ddp
from smalti.training.recorded import RecordedGradients, check_recordable
from smalti.training.sharded import ModuleWeights, ShardedRun, shard
from smalti.training.task import RunState, Stateful


@dataclass
class GANState:
    """The discriminator's part of a run. As a `Stateful` it holds what no module or optimizer does: LeCAM's anchors."""

    config: GANConfig
    discriminator: Discriminator
    ddp: nn.Module
    """The discriminator, wrapped for several ranks."""
    optimizer: Optimizer
    anchors: Anchors | None = None
    """LeCAM's moving means of the logits."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the anchors, if there are any yet."""
        return {} if self.anchors is None else self.anchors._asdict()

    def load_state_dict(self, tensors: Mapping[str, Tensor], /) -> None:
        """Put them back."""
        device = next(self.discriminator.parameters()).device
        self.anchors = Anchors(**{name: t.to(device) for name, t in tensors.items()}) if tensors else None


@dataclass(kw_only=True)
class TrainState(RunState):
    """The state of a run. Data order, augmentation and choice of frames have none: they follow from (seed, step)."""

    config: TokenizerTraining
    tokenizer: Tokenizer
    ddp: nn.Module
    """The tokenizer, wrapped for several ranks, or in shards over them."""
    ema: Tokenizer
    """The tokenizer with the EMA weights: it is validated, sampled from and kept."""
    optimizer: Optimizer
    gan: GANState | None = None
    codebook: CodebookState | None = None
    """Counts and averages of a table of codes, if the config has them."""
    lpips: LPIPS | None = None
    logits: LogitDistance | None = None
    recorded: RecordedGradients | None = None
    """Recordings of the steps, if the config has them."""

    @property
    def averaged(self) -> nn.Module:
        """The EMA weights that a step moves: this rank's shards of them where the run is in shards."""
        return self.ema if self.sharded is None else self.sharded.averages

    def tensors(self) -> dict[str, Stateful]:
        """Return what a checkpoint holds beside the EMA weights."""
        parts: dict[str, Stateful] = {
            "tokenizer": ModuleWeights(self.tokenizer),
            "optimizer": OptimizerState(self.optimizer, self.tokenizer),
        }
        if self.gan is not None:
            parts["discriminator"] = self.gan.discriminator
            parts["discriminator-optimizer"] = OptimizerState(self.gan.optimizer, self.gan.discriminator)
            parts["anchors"] = self.gan
        if self.codebook is not None:
            parts["codebook"] = self.codebook
        return parts


def architecture(config: AnyTokenizerConfig) -> AnyTokenizerConfig:
    """Return a config without the losses of its quantizer, which belong to a run, and as it is trained, without
    quarters."""
    if isinstance(config, ConditionalConfig):
        config = config.replace({"quarters": False})
    return config.with_quantizer(config.quantizer.replace({"losses": ()}))


def is_image_part(image: AnyTokenizerConfig, config: AnyTokenizerConfig) -> bool:
    """Return whether a conditional tokenizer of `config` has `image` for its first frame."""
    return isinstance(config, ConditionalConfig) and architecture(image) == architecture(config.image)


def freeze(tokenizer: Tokenizer, parts: Sequence[str]) -> None:
    """Keep weights whose names begin with one of these parts. Raises ConfigError for a part that has none, and where
    nothing is left to train."""
    named = dict(tokenizer.named_parameters())
    for part in parts:
        own = [p for name, p in named.items() if name == part or name.startswith(f"{part}.")]
        if not own:
            known = sorted({".".join(name.split(".")[:2]) for name in named})
            raise ConfigError(f"frozen: no weights begin with {part!r}{nearest(part, known)}")
        for parameter in own:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in named.values()):
        raise ConfigError("frozen: nothing is left to train")


def start_tokenizer(config: TokenizerTraining, world: World) -> TrainState:
    """Return a fresh state; random weights are a function of the seed."""
    check_recordable(config, world)
    if (note := config.held_note) is not None:
        raise ConfigError(note)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        tokenizer = Tokenizer(config.tokenizer)
        initialise(tokenizer, config.initialisation)
        discriminator = None if config.gan is None else config.gan.discriminator.build()
    if config.init is not None:
        initial = load_tokenizer(str(config.init))
        if architecture(initial.config) == architecture(config.tokenizer):
            tokenizer.load_state_dict(initial.state_dict())
        elif is_image_part(initial.config, config.tokenizer):
            take_image_part(tokenizer, initial)
        else:
            raise IntegrityError(f"{config.init}: holds another architecture than `tokenizer` of this run")
        tokenizer.source = initial.source
    is_sharded = config.shard and world.size > 1
    tokenizer.to("cpu" if is_sharded else world.device).train()  # shards move to the device one after the other
    freeze(tokenizer, config.frozen)
    codebook = _start_codebook(config, tokenizer)  # before the optimizer: rows that are averages are not trained by it
    ema = copy.deepcopy(tokenizer).requires_grad_(False).eval()
    sharded = None
    if is_sharded:
        ddp = shard(tokenizer, [*layers_of(tokenizer.encoder), *layers_of(tokenizer.decoder)], world)
        sharded = ShardedRun(ema, tokenizer, world)
    else:  # a step on images leaves the networks of later frames out
        ddp = wrap_ddp(tokenizer, world, unused=isinstance(config.tokenizer, ConditionalConfig))
    state = TrainState(
        config=config,
        world=world,
        tokenizer=tokenizer,
        ddp=ddp,
        ema=ema,
        sharded=sharded,
        optimizer=make_optimizer(tokenizer, config.optimizer),
        codebook=codebook,
        lpips=None if config.lpips is None else config.lpips.build().to(world.device),
        logits=None if config.logits is None else config.logits.build().to(world.device),
    )
    if discriminator is not None and config.gan is not None:
        discriminator = discriminator.to(world.device).train()
        optimizer = make_optimizer(discriminator, config.gan.optimizer)
        state.gan = GANState(config.gan, discriminator, wrap_ddp(discriminator, world), optimizer)
    if config.init_training:
        _take_training(state)
    if config.checkpoint_activations:
        for network in (tokenizer.encoder, tokenizer.decoder):  # once the EMA weights are a copy
            recompute(network)
    if config.cuda_graph:
        # Three runs aside, in which libraries choose their kernels.
        state.recorded = RecordedGradients(tokenizer.parameters(), CudaGraphs(world.device, warm_ups=3))
    return state


def _take_training(state: TrainState) -> None:
    """Put what the training of `init` had into a fresh state, whose EMA weights stay those of the checkpoint."""
    gan, name = state.gan, str(state.config.init)
    foreign = read_training(name, state.tokenizer, None if gan is None else gan.discriminator)
    ModuleWeights(state.tokenizer).load_state_dict(foreign.live)
    OptimizerState(state.optimizer, state.tokenizer).load_state_dict(foreign.moments)
    if gan is not None and foreign.discriminator:
        gan.discriminator.load_state_dict(foreign.discriminator)
        OptimizerState(gan.optimizer, gan.discriminator).load_state_dict(foreign.discriminator_moments)
    if state.world.is_main and foreign.lacking:
        say(f"note: init_training: {name} has no {', no '.join(foreign.lacking)}: they start anew")


def _start_codebook(config: TokenizerTraining, tokenizer: Tokenizer) -> CodebookState | None:
    if config.codebook is None:
        return None
    table = tokenizer.quantizer
    if not isinstance(table, Codebook):
        raise ConfigError(f"codebook: {config.init} has no table of codes; set it to null")
    table.codebook.requires_grad_(config.codebook.rows == "gradient")
    return CodebookState(
        config.codebook, table, seed=config.seed, batch_size=config.batch_size, fresh=config.init is None
    )

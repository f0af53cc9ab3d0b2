"""The recipes: every published row to the number, and buildable at full size with the parameters that it counts."""

import math
import shlex
from pathlib import Path

import pytest
import torch

from smalti.config import load_yaml, parse_yaml
from smalti.errors import ConfigError
from smalti.losses.perceptual import LPIPS
from smalti.recipes import catalogue, find
from smalti.recipes.recipe import IMAGENET, KINETICS_600
from smalti.tokenizer import Tokenizer, inflate
from smalti.training.config import TokenizerTraining
from smalti.training.tokenizer_state import start_tokenizer
from smalti.training.tokenizer_step import step
from tests.losses.test_lpips import golden_weights
from tests.reference.plain_step import ALONE

RECIPES = {recipe.name: recipe for recipe in catalogue() if recipe.kind == "tokenizer"}
NAMES = list(RECIPES)
MAGICMASTER = [name for name in NAMES if name.startswith("magicmaster-")]
COUNTS = {
    "paper-video-128": 370_575_253,  # 370.5 M
    "paper-image-128": 112_049_557,  # 112.0 M
    "paper-image-256": 115_157_781,  # 115.1 M
    "mindone-image": 111_958_528,
    "mindone-video": 349_247_488,
    "mindone-video-gan": 349_247_488,
    # Published, less the tensors that are stored and never run.
    **{name: 113_756_041 - 263_680 - 256 for name in NAMES if name.startswith("magicmaster-imagenet-")},
    "magicmaster-k600-fsq-64000-d64-ep40": 93_111_881 - 66_304 - 128,
    "magicmaster-k600-fsq-15360-d64-ep40": 93_111_881 - 66_304 - 128,
    "magicmaster-k600-fsq-64000-d64-ep100": 93_111_881 - 66_304 - 128,
    "magicmaster-k600-fsq-64000-d128-ep100": 372_214_921 - 263_680 - 256,
    **{name: 71_882_889 for name in NAMES if name.startswith("magicmaster-vqgan-")},
}
JUDGES = {"style2-128": 28_389_121, "style2-256": 28_864_129, "patch": 663_361}


def test_there_is_a_recipe_for_every_published_row():
    groups = {prefix: sum(name.startswith(prefix) for name in NAMES) for prefix in ("paper-", "mindone-")}
    groups |= {part: sum(f"-{part}-" in name for name in MAGICMASTER) for part in ("imagenet", "k600", "vqgan")}
    assert groups == {"paper-": 4, "mindone-": 3, "imagenet": 7, "k600": 6, "vqgan": 5}
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_full_recipe_is_built_on_the_meta_device_with_the_published_parameters(name):
    config = find(name)
    with torch.device("meta"):
        tokenizer = Tokenizer(config.tokenizer)
    count = sum(p.numel() for p in tokenizer.parameters())
    assert count == COUNTS.get(name, count)
    if "dsq" in name:
        # Published: 57 more than FSQ's for 64,000 codes, whose bins are shared by channels. Every channel of ours has
        # start, two scales, bias and the 7 bins of 8 levels, of which those of 5 levels leave 3 unused.
        assert count == COUNTS["magicmaster-k600-fsq-64000-d64-ep40"] + 6 * (4 + 7)


@pytest.mark.parametrize("name", MAGICMASTER)
def test_the_judges_have_the_published_parameters(name):
    config = find(name)
    with torch.device("meta"):
        judge = config.gan.discriminator.build()
    key = "patch" if "-patch-" in name else f"style2-{256 if config.data.size == 256 else 128}"
    assert sum(p.numel() for p in judge.parameters()) == JUDGES[key]


@pytest.mark.parametrize("name", MAGICMASTER)
def test_what_all_of_magicmasters_runs_share(name):
    config = find(name)
    tokenizer, judge = config.optimizer, config.gan.optimizer
    assert (tokenizer.lr, judge.lr) == (5.4e-5, 4.32e-4)
    for optimizer in (tokenizer, judge):
        assert (optimizer.betas, optimizer.weight_decay, optimizer.clip) == ((0.5, 0.9), 0.0, None)
        assert {optimizer.lr_at(step, 1000) for step in (0, 500, 999)} == {optimizer.lr}
    assert config.weights == {"l1": 1.0, "lpips": 1.0}
    assert (config.gan.weight, config.gan.adaptive, config.gan.loss) == (0.75, True, "hinge")
    assert config.gan.penalty == ("none" if "vqgan" in name else "gradient_norm")
    assert (config.gan.penalty_weight, config.gan.penalty_every) == (1.0, 1)
    assert (config.gan.start, config.gan.ramp, config.gan.lecam) == (0, 0, 0.0)
    assert (config.lpips.net, config.lpips_frames, config.gan.discriminator.frames) == ("vgg", "random", "random")
    assert (config.accumulate, config.entropy_boost, config.init) == (1, 0.0, None)
    if config.gan.discriminator.kind == "stylegan2":
        assert (config.gan.discriminator.group, config.gan.discriminator.channel_multiplier) == (4, 2)
    state = start_tokenizer(find(name, tiny=True), ALONE)
    for optimizer in (state.optimizer, state.gan.optimizer):
        assert {group["eps"] for group in optimizer.param_groups} == {1e-8}
        assert {(group["betas"], group["weight_decay"]) for group in optimizer.param_groups} == {((0.5, 0.9), 0.0)}


@pytest.mark.parametrize("name", MAGICMASTER)
def test_the_averages_of_magicmasters_runs_start_late_and_have_their_whole_decay_at_once(name):
    config = find(name)
    start = 20_000 if config.tokenizer.time_kernel == 1 else 200_000 if "-d128-" in name else 2_000
    decay = 0.9999 if "vqgan-patch" in name else 0.9998
    assert [config.ema_decay(n) for n in (0, start - 1, start, 10**7)] == [0.0, 0.0, decay, decay]


@pytest.mark.parametrize("name", MAGICMASTER)
def test_ours_is_the_better_default_and_theirs_an_option(name):
    ours, theirs = find(name), find(name).override(RECIPES[name].exact)
    assert (ours.gan.order, ours.lpips.dropout, ours.initialisation) == ("together", 0.0, "smalti")
    assert theirs.initialisation == "magicmaster"
    assert ours.precision == ("bfloat16" if "-imagenet-" in name else "float32")  # where they declare it
    assert (theirs.gan.order, theirs.lpips.dropout, theirs.precision) == ("alternate", 0.5, "float32")
    codes = math.prod(theirs.tokenizer.quantizer.digit_levels)
    assert codes == (25_600 if "dsq-15360" in name else 15_360 if "15360" in name else 64_000)
    assert math.prod(ours.tokenizer.quantizer.digit_levels) == (15_360 if "15360" in name else 64_000)


@pytest.mark.parametrize("name", ["paper-image-128", "paper-image-256", "paper-image-512", "paper-video-128"])
def test_the_papers_numbers(name):
    config, recipe = find(name), RECIPES[name]
    epoch = (KINETICS_600 if "video" in name else IMAGENET) // 256
    for optimizer in (config.optimizer, config.gan.optimizer):
        assert (optimizer.lr, optimizer.betas, optimizer.weight_decay) == (1e-4, (0.0, 0.99), 0.0)
        assert optimizer.clip is None
        assert optimizer.lr_at(epoch - 1, config.steps) == pytest.approx(1e-4)
        assert optimizer.lr_at(config.steps, config.steps) == pytest.approx(0, abs=1e-12)
    # In [0, 1]: l2 5, R1 10. A square is a quarter as large there, and a gradient twice as large.
    assert (config.weights["l2"] * 4, config.gan.penalty_weight / 4) == (5.0, 10.0)
    assert {key: w for key, w in config.weights.items() if key != "l2"} == {
        "logits": 0.1, "token_entropy": 0.1, "batch_entropy": -0.1, "commitment": 0.25,
    }  # fmt: skip
    assert (config.logits.net, config.logits.frames, config.lpips) == ("resnet50", "all", None)
    gan = config.gan
    assert (gan.loss, gan.losses, gan.weight, gan.adaptive) == ("non_saturating", ("non_saturating",) * 2, 0.1, False)
    assert (gan.penalty, gan.penalty_every, gan.lecam, gan.order) == ("r1", 1, 0.001, "together")
    assert (gan.discriminator.width, gan.discriminator.multipliers) == (128, (2, 4, 4, 4, 4))
    if "image" in name:
        assert (gan.discriminator.kind, gan.discriminator.grid * 32) == ("magvit2d", config.data.size)
    else:
        assert (gan.discriminator.kind, gan.discriminator.initialisation) == ("magvit3d", "xavier")
        assert "Kinetics-600" in recipe.data
        assert "UCF-101" not in recipe.score
    assert {config.ema_decay(n) for n in (0, 1, 10**6)} == {0.999}
    assert (config.initialisation, config.entropy_boost, config.entropy_boost_steps) == ("flax", 2.0, 2000)
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    assert not [difference for difference in recipe.differs if f"- {difference}\n" not in page]
    for part in ("logits", "norms", "LeCAM", "schedule", "discriminator"):
        assert any(difference.startswith(part) for difference in recipe.differs), part


def test_mindones_numbers():
    image, video, played = (find(f"mindone-{name}") for name in ("image", "video", "video-gan"))
    for config, warmup in ((image, 125), (video, 62), (played, 62)):
        optimizer = config.optimizer
        assert (optimizer.lr, optimizer.betas, optimizer.weight_decay) == (2e-5, (0.9, 0.999), 0.01)
        assert (optimizer.clip, optimizer.warmup) == (1.0, warmup)
        assert optimizer.lr_at(config.steps, config.steps) == pytest.approx(1e-7)
        weights = {"l1": 10.0, "lpips": 0.1, "token_entropy": 0.1, "batch_entropy": -0.1, "commitment": 0.25}
        assert config.weights == weights
        assert (config.precision, config.lpips_frames) == ("bfloat16", "all")
    assert [c.batch_size for c in (image, video)] == [64, 128]
    assert image.ema_decay(10**6) == 0.0
    assert video.ema_decay(10**6) == pytest.approx(0.9999**16)
    assert video.ema_decay(100) == pytest.approx(
        math.prod(0.9999 * (1 - math.exp(-n / 2000)) for n in range(1600, 1616))
    )
    assert (played.gan.weight, played.gan.loss, played.gan.lecam) == (0.1, "hinge", 0.001)
    assert video.gan is None
    assert (image.initialisation, image.override(RECIPES["mindone-image"].exact).initialisation) == ("smalti", "torch")
    for name in ("mindone-video", "mindone-video-gan"):
        assert not find(name).override(RECIPES[name].exact).tokenizer.is_causal
        assert find(name).tokenizer.is_causal


@pytest.mark.parametrize("name", ["magicmaster-k600-fsq-64000-d64-ep40", "magicmaster-k600-dsq-15360-d64-ep40"])
@pytest.mark.parametrize("order", ["together", "alternate"])
def test_lpips_sees_the_frame_that_the_judge_sees(name, order):
    lpips = {"lpips": {"kind": "lpips"}, "lpips_frames": "random"}
    config = find(name, tiny=True).replace({"weights": {"l1": 1.0, "lpips": 1.0}, **lpips})
    config = config.override([f"gan.order={order}"])
    state = start_tokenizer(config.replace({"weights": {"l1": 1.0}, "lpips": None}), ALONE)
    state.config, state.lpips = config, LPIPS("alex", golden_weights("alex"))
    video = torch.rand(4, 3, 5, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    by_lpips, by_judge, made = [], [], []
    state.lpips.register_forward_pre_hook(lambda _, inputs: by_lpips.append([v.detach().clone() for v in inputs[:2]]))
    state.gan.discriminator.register_forward_pre_hook(lambda _, inputs: by_judge.append(inputs[0].detach().clone()))
    state.tokenizer.register_forward_hook(lambda _, __, output: made.append(output.video.detach().clone()))
    step(state, video)
    assert len(made) == 1  # one forward for both players, where MagicMaster runs two
    (ours, theirs), (fake, real, *again) = by_lpips[0], (seen.squeeze(2) for seen in by_judge)
    assert torch.equal(ours, fake)
    assert torch.equal(theirs, real)
    assert len(again) == (order == "alternate")
    assert all(torch.equal(ours, seen) for seen in again)
    chosen = [[torch.equal(real[i], video[i, :, t]) for t in range(5)].index(True) for i in range(4)]
    assert torch.equal(fake, torch.stack([made[0][i, :, t] for i, t in enumerate(chosen)]))
    assert len(set(chosen)) > 1


def test_inflation_leads_to_the_video_recipes():
    for name in ("paper-video-128", "mindone-video", "mindone-video-gan"):
        words = shlex.split(RECIPES[name].prepare)
        assert words[:2] == ["smalti", "inflate"]
        source = words[2].removeprefix("runs/")
        strides = tuple(int(n) for n in words[words.index("--time-strides") + 1].split(","))
        assert words[words.index("--past") + 1] == "full"
        assert RECIPES[name].command.endswith("--set init=" + words[words.index("--out") + 1])
        image = Tokenizer(find(source, tiny=True).tokenizer)
        for norm, settings in ((None, []), ("clip", ["tokenizer.norm=clip"])):
            wanted = find(name, tiny=True).override(settings).tokenizer
            assert inflate(image, strides, time_kernel=3, past_kernel="full", norm=norm).config == wanted


@pytest.mark.parametrize("name", NAMES)
def test_a_recipes_command_is_a_valid_run_and_its_config_reads_back(name):
    words = shlex.split(RECIPES[name].command)
    assert words[:3] == ["smalti", "train", name]
    config = find(name)
    assert config.override([word for word in words[3:] if word != "--set"]) is not None
    assert TokenizerTraining.parse(parse_yaml(config.to_yaml(), name)) == config
    assert (RECIPES[name].score != "none published") == RECIPES[name].score.endswith(")")  # a score has its source


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("magicmaster-imagenet-style2-64000-128-8x8-ep20", 20 * 20_018),
        ("magicmaster-imagenet-style2-64000-128-32x8-ep200", 200 * 5_004),
        ("mindone-image", 40_036),
        ("mindone-video", 4_440),
        ("magicmaster-k600-fsq-64000-d64-ep40", 40 * 3_068),
        ("magicmaster-vqgan-patch-ep20", 20 * 13_346),
        ("magicmaster-vqgan-style2-ep20", 20 * 13_345),
        ("paper-image-128", 270 * 5_004),
        ("paper-video-128", 190 * 1_533),
    ],
)
def test_epochs_become_steps(name, steps):
    assert find(name).steps == steps
    assert IMAGENET // 64 == 20_018
    assert KINETICS_600 == 392_622


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_has_a_small_form_that_is_valid_and_round_trips(name, tmp_path):
    small = find(name, tiny=True)
    (tmp_path / "small.yaml").write_text(small.to_yaml())
    assert load_yaml(TokenizerTraining, tmp_path / "small.yaml") == small
    assert small.steps <= 2300
    tokenizer = Tokenizer(small.tokenizer)
    kept = tuple(f"{part}." for part in small.frozen)  # weights that come from elsewhere
    assert (
        sum(p.numel() for part, p in tokenizer.named_parameters() if not part.startswith(kept))
        < (4 if kept else 2) * 10**6
    )
    full = find(name)
    assert small.tokenizer.quantizer.kind == full.tokenizer.quantizer.kind
    assert math.prod(small.tokenizer.total_strides) == math.prod(tokenizer.strides)
    if not name.startswith(("tiny", "demo", "finetune")) and name not in (
        "image",
        "video",
    ):  # smaller runs of their own
        assert small.tokenizer.total_strides == full.tokenizer.total_strides
        assert (small.gan is None) == (full.gan is None)


def test_images_that_could_train_nothing_are_refused_and_as_still_clips_are_not():
    frozen = ("frozen=[encoder.image, decoder.image]", "init=smalti/tiny-image")
    with pytest.raises(ConfigError, match="still_frames: images train the networks of a first frame alone"):
        find("tiny-video-conditional").override((*frozen, "still_frames=1"))
    find("tiny-video-conditional").override((*frozen, "still_frames=2"))

"""A small file of every kind that smalti writes or reads but for media, each with the reader that meets it."""

import hashlib
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import smalti
from smalti.codec.codec import Goal, compress_file, read_frames, read_info
from smalti.codec.prior import Prior
from smalti.comparison.learner import TokenizerLearner
from smalti.comparison.manifest import prepare_comparison
from smalti.comparison.runner import LearnerSource, VariantRun, read_points
from smalti.comparison.variants import VariantList
from smalti.config import load_yaml
from smalti.data import write_video
from smalti.data.bundled import photos
from smalti.data.list_formats import read_list
from smalti.files import MANIFEST, fingerprint
from smalti.foreign import leaves, naming_file, read_checkpoint
from smalti.generation.model import Generator
from smalti.metrics import Moments, read_published_statistics
from smalti.metrics.statistics import StatisticsKey, load_statistics, save_statistics
from smalti.pipeline.doctor import check_run
from smalti.pipeline.train import find_config
from smalti.tokenizer.card import read_evaluation
from smalti.tokens.plan import load_plan
from smalti.tokens.reader import TokenSet, describe_set
from smalti.tokens.shard import read_report
from smalti.training.config import TokenizerTraining
from smalti.training.distributed import World
from smalti.training.fit import load_checkpoint
from smalti.training.generator_task import GeneratorTask
from smalti.training.task import Task
from smalti.training.tokenizer_task import TokenizerTask
from tests.codec.test_held import still_then_moving
from tests.codec.test_prior import arbitrary
from tests.codec.test_search import CONDITIONAL, prior_of
from tests.damage import Kind
from tests.goldens import rule
from tests.randomise import random_tokenizer

FROZEN = Path(__file__).parent / "v0_1_0"


def content(tensors: Mapping[str, Tensor]) -> str:
    return fingerprint({}, tensors)


def hashed(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def of_tokenizers() -> dict[str, Kind]:
    found = {}
    for name in ("config.json", "model.safetensors", MANIFEST):
        path = Path("tokenizers/fsq", name)
        found[f"tokenizer/{name}"] = Kind(path, lambda: smalti.load(Path("tokenizers/fsq")).fingerprint, names=("fsq",))
    shutil.copytree("tokenizers/lfq", "bare", ignore=shutil.ignore_patterns(MANIFEST))
    for name in ("config.json", "model.safetensors"):  # as they come from a hub: the fingerprint alone tells
        found[f"bare tokenizer/{name}"] = Kind(
            Path("bare", name), lambda: smalti.load(Path("bare")).fingerprint, names=("bare",)
        )
    for name in ("config.json", "model.safetensors", MANIFEST):
        folder = Path("runs/classes/generator")
        found[f"generator/{name}"] = Kind(
            folder / name,
            lambda folder=folder: content(Generator.load(folder).model.state_dict()),
            names=("generator",),
        )
    return found


def of_runs() -> dict[str, Kind]:
    tasks: dict[str, Callable[[], Task]] = {
        "images": lambda: TokenizerTask(find_config("runs/images"), World(0, 1, torch.device("cpu"))),
        "masked": lambda: GeneratorTask(find_config("runs/masked"), World(0, 1, torch.device("cpu"))),
    }
    found = {}
    for run, make in tasks.items():
        checkpoint = Path("runs", run, "step-00000002")

        def read(task: Task = make(), checkpoint: Path = checkpoint) -> object:  # noqa: B008
            about = load_checkpoint(task, checkpoint)
            states = {name: source.state_dict() for name, source in task.tensors().items()}
            return about, content(task.ema.state_dict()), {name: content(state) for name, state in states.items()}

        for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
            found[f"checkpoint of {run}/{path.relative_to(checkpoint)}"] = Kind(path, read, names=(checkpoint.name,))
        config = Path("runs", run, "config.yaml")
        found[f"run of {run}/config.yaml"] = Kind(config, lambda path=config: find_config(path), exact=False)
    log = Path("runs/images/log.jsonl")
    found["run of images/log.jsonl"] = Kind(log, lambda: len(check_run("runs/images")), exact=False)
    for name in ("images", "masked", "vqgan"):
        path = Path("configs", f"{name}.yaml")
        found[f"recipe {name}"] = Kind(path, lambda path=path: find_config(path), exact=False)
    return found


def read_set(folder: Path) -> object:
    """Read everything that there is of a set."""
    plan = load_plan(folder)
    reports = [read_report(plan, shard) for shard in range(plan.shards)]
    inputs = [plan.inputs_of(shard) for shard in range(plan.shards)]
    about = describe_set(folder)
    rows = [(row.key, row.label, row.ids.tobytes()) for row in TokenSet(folder)]
    return hashed(repr((reports, inputs, {**about, "provenance": None}, rows)).encode())


def of_token_sets() -> dict[str, Kind]:
    found = {}
    for name in ("images", "videos"):
        folder = Path("sets", name)
        for path in sorted(path for path in folder.rglob("*") if path.suffix != ".md" and path.is_file()):
            shown = f"token set of {name}/{path.relative_to(folder)}"
            found[shown] = Kind(path, lambda folder=folder: read_set(folder))
    return found


def of_codec() -> dict[str, Kind]:
    found = {}
    for name, tokenizer in (("image_adaptive", "lfq"), ("image_static", "vqgan"), ("video_groups", "dsq")):
        path = Path("compressed", f"{name}.smt")
        coder = smalti.load(Path("tokenizers", tokenizer))

        def read(path: Path = path, coder: smalti.Tokenizer = coder) -> object:
            return hashed(*(frame.numpy().tobytes() for frame in read_frames(coder, path)))

        found[f"smt/{name}"] = Kind(path, read)
    Image.open(photos("heldout") / "owl.jpg").resize((48, 32)).save("owl.png")
    smalti.compress("owl.png", "prior.smt", "smalti/tiny-image", device="cpu")
    small = smalti.load("smalti/tiny-image")
    found["smt/prior"] = Kind(
        Path("prior.smt"), lambda: hashed(*(f.numpy().tobytes() for f in read_frames(small, Path("prior.smt"))))
    )
    film = random_tokenizer(CONDITIONAL)
    known = prior_of(film)
    write_video(Path("still.mp4"), list(still_then_moving()[:9]), 24)
    compress_file(film, Path("still.mp4"), Path("held.smt"), prior=known, goal=Goal(price=2e4))
    assert read_info(Path("held.smt")).head.holds
    found["smt/held"] = Kind(
        Path("held.smt"),
        lambda: hashed(*(f.numpy().tobytes() for f in read_frames(film, Path("held.smt"), prior=known))),
    )
    arbitrary((8, 5, 5, 5)).save(Path("own.safetensors"))
    # Its weights have no digest of their own; a .smt names the digest of the prior that it needs.
    found["prior"] = Kind(Path("own.safetensors"), lambda: Prior.load(Path("own.safetensors")).digest, exact=False)
    return found


def of_statistics() -> dict[str, Kind]:
    vectors = np.random.default_rng(0).normal(size=(40, 6))
    mean, covariance = vectors.mean(0), np.cov(vectors, rowvar=False)
    np.savez("published.npz", mu=mean, sigma=covariance)
    Path("published.pkl").write_bytes(pickle.dumps({"real_mean": mean, "real_cov": covariance}))

    def read(name: str) -> object:
        found = read_published_statistics(name, 6)
        return found.mean.tolist(), found.covariance().tolist()

    moments, about = Moments(6), {"features": "i3d", "features_digest": "0" * 64, "rounding": "round", "data": {}}
    moments.update(torch.from_numpy(vectors))
    key = StatisticsKey.parse({**about, "listed": "0" * 64, "count": 40})
    path = save_statistics(Path("statistics"), key, moments)

    def read_own() -> object:
        found = load_statistics(Path("statistics"), key)
        return None if found is None else (found.n, found.mean.tolist(), found.scatter.tolist())

    return {
        "statistics.npz": Kind(Path("published.npz"), lambda: read("published.npz"), is_known=False),
        "statistics.pkl": Kind(Path("published.pkl"), lambda: read("published.pkl"), exact=False),
        "statistics.safetensors": Kind(path, read_own),
    }


def of_reports() -> dict[str, Kind]:
    settings = {"contenders": {"base": find_config("configs/images.yaml").plain()}, "terms": {"seeds": 1, "steps": 9}}
    asked = Path("comparison/asked.json")
    prepare_comparison(asked.parent, settings, resume=False)
    bench = TokenizerTraining.parse(json.loads(Path("bench/asked.json").read_text())["contenders"]["frame norm"])
    source = LearnerSource("frame norm", lambda seed: TokenizerLearner(bench, torch.device("cpu")))
    folder = Path("bench/runs/frame-norm/0")

    def restored() -> object:
        run = VariantRun(source, 0, Path("bench"))
        assert isinstance(run.learner, TokenizerLearner)
        return run.steps, run.points, content(run.learner.ema.state_dict())

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    variants, report = Path("configs/contenders.yaml"), Path("reports/eval.json")
    return {
        "comparison/variants.yaml": Kind(variants, lambda: load_yaml(VariantList, variants), exact=False),
        "comparison/points.jsonl": Kind(Path("bench/points.jsonl"), lambda: read_points(Path("bench")), exact=False),
        "comparison/asked.json": Kind(
            asked, lambda: prepare_comparison(asked.parent, settings, resume=True), names=("comparison",)
        ),
        **{f"comparison/{path.relative_to(folder)}": Kind(path, restored, names=("frame-norm",)) for path in files},
        "report.json": Kind(report, lambda: read_evaluation(report), exact=False),
    }


def of_foreign() -> dict[str, Kind]:
    tree = {
        "state_dict": {f"layer.{i}.weight": torch.arange(3.0 * (i + 1)).view(3, i + 1) for i in range(4)},
        "meta": {"epoch": 7, "betas": (0.5, 0.9), "bytes": b"\x00\xff", "name": "model = 1"},
        "callbacks": [{"best": torch.tensor(0.5)}],
    }
    torch.save(tree, "zip.pth")
    torch.save(tree, "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({**tree, "pytorch-lightning_version": "2.1.0", "hyper_parameters": {"lr": 0.1}}, "lightning.ckpt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it will go, its files stay
        torch.jit.trace(torch.nn.Linear(3, 2), torch.zeros(1, 3)).save("script.jit")
    Path("plain.pkl").write_bytes(pickle.dumps({"a": np.arange(6.0), "b": [1, "x"]}))
    smalti.files.save_tensors(Path("foreign.safetensors"), tree["state_dict"])

    def read(name: str) -> object:
        def plain(leaf: object) -> object:
            if isinstance(leaf, np.ndarray):
                leaf = torch.from_numpy(leaf.copy())
            return (leaf.shape, leaf.tolist()) if isinstance(leaf, Tensor) else repr(leaf)

        with naming_file(Path(name)):
            return [(path, plain(leaf)) for path, leaf in leaves(read_checkpoint(name))]

    def kind(name: str, *, exact: bool) -> Kind:
        return Kind(Path(name), lambda: read(name), exact=exact, is_known=False)

    shutil.copytree(rule.FOLDER / "diffusers_tiny", "diffusers")
    shutil.copy(rule.FOLDER / "om2_tiny_lightning.ckpt", "om2.ckpt")
    shutil.copy(rule.FOLDER / "maskbit_tiny.bin", "maskbit.bin")
    whole = {
        "diffusers/config.json": "diffusers:pixels=unit",
        "diffusers/diffusion_pytorch_model.safetensors": "diffusers:pixels=unit",
        "om2.ckpt": "om2.ckpt",
        "maskbit.bin": "maskbit.bin",
    }
    return {
        "foreign zip": kind("zip.pth", exact=True),  # its CRC-32 are checked
        "foreign legacy": kind("legacy.pt", exact=False),
        "foreign lightning": kind("lightning.ckpt", exact=True),
        "foreign TorchScript": kind("script.jit", exact=True),
        "foreign pickle": kind("plain.pkl", exact=False),
        "foreign safetensors": kind("foreign.safetensors", exact=False),
        **{
            f"import of {name}": Kind(
                Path(name), lambda call=call: smalti.load(call).fingerprint, exact=False, names=("diffusers",)
            )
            for name, call in whole.items()
        },
    }


def of_lists() -> dict[str, Kind]:
    found = {}
    names = sorted(path.name for path in Path("inputs/images").iterdir() if path.suffix != ".txt")
    Path("inputs/images/metadata.csv").write_text(
        "file_name,label\n" + "".join(f"{n},{i}\n" for i, n in enumerate(names))
    )
    rows = [json.dumps({"file_name": f"images/{name}", "label": "a", "text": "é"}) for name in names]
    Path("inputs/metadata.jsonl").write_text("\n".join(rows))
    for name in ("list.txt", "imagenet.json", "images/metadata.csv", "metadata.jsonl"):
        path = Path("inputs", name)
        found[f"list {name}"] = Kind(path, lambda path=path: read_list(path), exact=False)
    return found


GROUPS = (of_tokenizers, of_runs, of_token_sets, of_codec, of_statistics, of_reports, of_foreign, of_lists)


def kinds(folder: Path) -> dict[str, Kind]:
    """Make all of them in a folder, which becomes the working directory."""
    shutil.copytree(FROZEN, folder / "old")
    os.chdir(folder / "old")
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # imports keep what they have converted
    found = {name: kind for group in GROUPS for name, kind in group().items()}
    return {name: kind for name, kind in found.items() if kind.path.stat().st_size}

"""smalti's tokenizers against those of other projects: equal CPU time or equal steps, one thread, in turns.

    export SMALTI_PEERS=peers SMALTI_MAGICMASTER=MagicMaster
    python -m benchmarks.against check    # each peer forward, backward, and one batch that it learns
    RACE="python -m benchmarks.against images --data photos --size 64 --steps 1000 --limit 32"
    $RACE --seconds 30 --seeds 1 --points 1 --rate 3e-4 --rate 1e-3 --rate 3e-3 --rate 1e-2 --out looks
    $RACE --seconds 600 --seeds 1 --rate 1e-3 --rate 3e-3 --out race
    $RACE --seconds 600 --seeds 3 --rate 1e-3 --rate 3e-3 --only "MagicMaster 2-D, FSQ 64,000, rate 0.003" \\
        --only "smalti, FSQ 64,000, rate 0.003" --out race --test heldout.txt --keep

A peer is its encoder, decoder and quantizer with the quantizer's own loss, as narrow as its norms allow (32). Equal
for all are L1 (and LPIPS by --lpips), AdamW with a warm-up and a cosine, batches, averaging of weights, the evaluator,
and the search of a learning rate: short looks at four, whole runs at two. Three splits never mix: `data` without one
file in five (learnt from), that fifth (choices), and --test, which is scored when all runs have ended. What was
stopped continues by the same command.
"""

import argparse
import hashlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import trivial
from benchmarks.measure import RESULTS, machine
from benchmarks.peers import architectures
from benchmarks.peers.architectures import Peer
from benchmarks.peers.learner import PeerLearner, Shared
from benchmarks.rate_distortion import by_ffmpeg
from smalti.app.compare import write_comparison
from smalti.comparison import (
    Budget,
    ComparisonData,
    Evaluator,
    LearnerSource,
    Point,
    TokenizerLearner,
    Variant,
    VariantRun,
    compare_variants,
    load_parts,
    read_points,
    summarise_runs,
    variant_groups,
)
from smalti.comparison.manifest import prepare_comparison
from smalti.comparison.summary import compare_means
from smalti.data import bundled, evaluation, source_of
from smalti.data.source import Medium
from smalti.errors import InputError
from smalti.files import read_json, write_json
from smalti.losses.perceptual import LPIPS, LPIPSConfig
from smalti.metrics import SMALTI, evaluate_pairs, pairs_of
from smalti.training.config import OptimizerConfig
from smalti.video import to_uint8, to_video

CPU = torch.device("cpu")
SECONDS = 120.0
"""Of each contender by `python -m benchmarks peers`, a first look; the runs that are quoted are longer."""


def ours(medium: Medium, steps: int) -> list[Variant]:
    """The network of smalti/tiny-image, the base on film; once with its quantizer exchanged for a peer's."""
    groups = variant_groups(medium, steps)
    lfq = next(one for one in groups["quantizers"] if one.name == "lfq14")
    pixels = ("weights.l1=1.0", "weights.l2=0.0")
    of_images = ("tokenizer.patch=4", "tokenizer.multipliers=[1, 2]", "tokenizer.strides=[[1, 2]]")
    shape = of_images if medium == "images" else ()
    return [
        Variant(name="smalti, FSQ 64,000", set=(*shape, *pixels)),
        Variant(name="smalti, LFQ 2^14", set=(*lfq.set, *shape, *pixels)),
    ]


def entries(medium: Medium, shared: Shared, rates: Sequence[float]) -> list[LearnerSource]:
    """Return all contenders, each at all learning rates; the rest of the optimizer is one for all."""
    more = () if shared.lpips is None else (f"weights.lpips={shared.lpips_weight}", "lpips={kind: lpips}")
    trainings = {one.name: one.training(medium, shared.steps, more) for one in ours(medium, shared.steps)}
    if shared.lpips is not None:
        trainings = {name: config.replace({"lpips_frames": "random"}) for name, config in trainings.items()}

    def own(name: str, rate: float) -> LearnerSource:
        config = trainings[name].replace({"optimizer": optimizer(rate, shared.steps)})
        build = lambda seed: TokenizerLearner(config.replace({"seed": seed}), CPU, shared.lpips)  # noqa: E731
        return LearnerSource(at_rate(name, rate), build)

    def theirs(peer: Peer, rate: float) -> LearnerSource:
        settings = optimizer(rate, shared.steps)
        return LearnerSource(at_rate(peer.name, rate), lambda seed: PeerLearner(peer, seed, shared, settings))

    peers = architectures.images() if medium == "images" else architectures.videos()
    return [own(name, rate) for name in trainings for rate in rates] + [
        theirs(peer, rate) for peer in peers for rate in rates
    ]


def optimizer(rate: float, steps: int) -> OptimizerConfig:
    """AdamW with a warm-up of a twentieth, a cosine and clipping at 1."""
    return OptimizerConfig(lr=rate, warmup=max(1, steps // 20))


def at_rate(name: str, rate: float) -> str:
    """The name of a contender at a learning rate."""
    return f"{name}, rate {rate:g}"


def compete(
    media: ComparisonData,
    budget: Budget,
    shared: Shared,
    out: Path,
    rates: Sequence[float] = (1e-3,),
    only: Sequence[str] = (),
    tests: Sequence[Path] = (),
) -> tuple[str, Sequence[Mapping[str, object]]]:
    """Compare all variants; continue with what is in `out`. Write its page there, return a row per variant.

    Held-out clips are for choices. Those of `tests` are read when all runs have ended, and choose nothing.
    """
    kept = {path.name: read_test_split(media, path) for path in tests}
    chosen = [entry for entry in entries(media.medium, shared, rates) if not only or any(o in entry.name for o in only)]
    asked = {"media": media.plain(), "terms": budget.plain(), "steps": shared.steps, "lpips": shared.lpips is not None}
    prepare_comparison(out, {**asked, "contenders": {}}, resume=True)  # they come and go: no run knows of others
    parts = load_parts(media)
    evaluator, absent = Evaluator.with_weights(parts.heldout, CPU)
    about: dict[str, Any] = {"terms": budget.plain(), "data": parts.about, "absent": absent}
    about |= {"protocol": evaluator.protocol.plain(), "machine": machine()}

    def watch(share: float, run: VariantRun, point: Point | None) -> None:
        said = f"{share:.1%} {run.source.name}, seed {run.seed}, {run.steps:,} steps, {run.seconds:,.0f} s"
        print(said + (f": {point.psnr:.2f} dB" if point else ""), file=sys.stderr, flush=True)

    runs = compare_variants(
        chosen,
        *(parts, budget, evaluator, out),
        device=CPU,
        on_advance=watch,
        each_round=lambda runs: write_comparison(out, runs, parts, about),
    )
    write_comparison(out, runs, parts, about)
    split = {"split": "validation"}
    rows = [split | row for row in trivial_rows(media, parts.heldout)]
    alike = at_equal_flops(runs)
    for row in summarise_runs(runs):
        scores = {name: effect.mean for name, effect in row.effects.items()}
        spreads = {f"{name}_spread": effect.spread for name, effect in row.effects.items() if name == "psnr"}
        costs = {
            "steps": row.steps,
            "seconds": row.seconds,
            "gflop_an_image": row.flops_per_step / 1e9 / budget.batch_size,
        }
        equal = {"psnr_at_equal_flops": alike[row.name]} if row.name in alike else {}
        rows.append(
            split | {"contender": row.name, "parameters": row.parameters, **costs, **scores, **spreads, **equal}
        )
    for name, clips in kept.items():
        rows += [{"split": name} | row for row in (*trivial_rows(media, clips), *final_rows(runs, clips))]
    data = parts.about
    equal_budget = f"{budget.amount:g} {budget.budget} each, {budget.seeds} seeds"
    return f"{equal_budget}; {data['measured_on']} held-out clips, {media.size} px, L1; protocol smalti-learn", rows


def read_test_split(media: ComparisonData, path: Path) -> list[tuple[str, torch.Tensor]]:
    """A split on which nothing is chosen. Raises InputError if it has an image of those that are learnt from or
    chosen on, under this or another name: what counts is their pixels, in the box that is scored."""
    whole = media.data or (bundled.photos if media.medium == "images" else bundled.videos)("train")
    settings = {"size": media.size, "frames": media.frames, "prefer": media.medium, "root": media.root}
    known = {digest(b.video): b.keys[0] for b in evaluation(source_of(whole, **settings).build())}
    known |= {digest(video): key for key, video in load_parts(media).heldout}
    found = [(b.keys[0], b.video) for b in evaluation(source_of(path, **settings).build())]
    for key, video in found:
        if digest(video) in known:
            raise InputError(
                f"{path}: {key} is {known[digest(video)]} of {whole}; nothing of a test split may be there"
            )
    return found


def digest(video: torch.Tensor) -> bytes:
    """A digest of all pixels."""
    return hashlib.sha256(video.numpy().tobytes()).digest()


def final_rows(runs: Sequence[VariantRun], clips: Sequence[tuple[str, torch.Tensor]]) -> list[dict[str, object]]:
    """The scores of all runs as they are at their ends: means over seeds, and the spread of PSNR."""
    evaluator, _ = Evaluator.with_weights(clips, CPU)
    scores = ("psnr", "ssim", "lpips")
    found: dict[str, dict[str, list[float]]] = {score: {} for score in scores}
    for run in runs:
        report = None if run.fault else evaluator.score(run.learner)
        for score in scores if report is not None else ():
            if (value := getattr(report, score)) is not None:
                found[score].setdefault(run.source.name, []).append(value)
    effects = {score: compare_means(found[score]) for score in scores}
    return [
        {"contender": name, "seeds": len(values), **{s: effects[s][name].mean for s in scores if name in effects[s]}}
        | {"psnr_spread": effects["psnr"][name].spread, "psnr_of_seeds": values}
        for name, values in found["psnr"].items()
    ]


def at_equal_flops(runs: Sequence[VariantRun]) -> dict[str, float]:
    """The PSNR of each contender, the mean over its runs, when a run had spent as many operations as the cheapest run
    in all: on the line between the points of the validation split. Those that have no point before have none."""
    runs = [run for run in runs if run.points and run.fault is None]
    spent = min((run.points[-1].flops for run in runs), default=0.0)
    found: dict[str, list[float]] = {}
    for run in runs:
        flops, psnrs = [p.flops for p in run.points], [p.psnr for p in run.points]
        if flops[0] <= spent:
            found.setdefault(run.source.name, []).append(float(np.interp(spent, flops, psnrs)))
    return {name: sum(values) / len(values) for name, values in found.items()}


def trivial_rows(media: ComparisonData, heldout: Sequence[tuple[str, torch.Tensor]]) -> list[dict[str, object]]:
    """What needs no network, on the same held-out clips: without these rows a table of tokenizers says nothing.

    JPEG and x264 have the bits of 64,000 codes at a token for 8 x 8 pixels, of 4 frames in video, and take more where
    even their coarsest setting does. JPEG's are those of the file, x264's (tuned for PSNR) those of the frames alone.
    """
    length = 1 if media.medium == "images" else 4

    def bytes_of_tokens(frames: torch.Tensor) -> int:
        t, h, w, _ = frames.shape
        return int((1 + math.ceil((t - 1) / length)) * math.ceil(h / 8) * math.ceil(w / 8) * math.log2(64_000) / 8)

    def x264(frames: torch.Tensor) -> tuple[int, torch.Tensor]:
        most, low, high = bytes_of_tokens(frames), 0, 51
        while low < high:  # the finest that is small enough: sizes fall with crf
            middle = (low + high) // 2
            size, _ = by_ffmpeg("libx264 psnr", middle, parameter_sets=False)(frames)
            low, high = (low, middle) if size <= most else (middle + 1, high)
        return by_ffmpeg("libx264 psnr", low, parameter_sets=False)(frames)

    baselines: dict[str, Callable[[torch.Tensor], tuple[int, torch.Tensor]]] = {
        "grey": trivial.grey,
        "mean colour": trivial.mean_colour,
        "16x16 means": trivial.block_means,
        "JPEG": lambda frames: trivial.jpeg(frames, bytes_of_tokens(frames)),
        "x264, tune=psnr": x264,
    }
    rows: list[dict[str, object]] = []
    for name, there_and_back in baselines.items():
        spent = 0

        def reconstruct(video: torch.Tensor, code: Callable[[torch.Tensor], Any] = there_and_back) -> torch.Tensor:
            nonlocal spent
            size, made = code(to_uint8(video)[0])
            spent += size
            return to_video(made)

        report = evaluate_pairs(pairs_of(reconstruct, heldout), SMALTI.replace({"lpips": None, "ms_ssim": False}))
        pixels = sum(math.prod(video.shape[2:]) for _, video in heldout)
        scores = {"psnr": report.psnr, "ssim": report.ssim, "bits_per_pixel": 8 * spent / pixels}
        rows.append({"contender": name, **scores})
    return rows


def measure() -> tuple[str, Sequence[Mapping[str, object]]]:
    """A first look at pictures, on the photographs that smalti ships."""
    budget = Budget(budget="seconds", amount=SECONDS, seeds=1, points=4, batch_size=4)
    return compete(ComparisonData(limit=16), budget, Shared(steps=1000, size=128), Path("runs/peers-images"))


def check() -> None:
    """Each peer on one batch: shapes and ids are right, and it learns it: 1 dB or more in 30 steps."""
    for medium, peers in (("images", architectures.images()), ("videos", architectures.videos())):
        rng = torch.Generator().manual_seed(0)
        frames, size = (1, 64) if medium == "images" else (5, 32)
        coarse = torch.rand(2, 3, 1, 4, 4, generator=rng) * 2 - 1
        video = torch.nn.functional.interpolate(coarse, size=(frames, size, size), mode="trilinear")
        for peer in peers:
            rate = OptimizerConfig(lr=1e-3, warmup=0, schedule="constant")
            learner = PeerLearner(peer, 0, Shared(steps=100, size=size), rate)
            psnrs = [learner.step(video, 0.0).psnr for _ in range(30)]
            made, ids = learner.round_trip(video)
            grid = (2, 1 if frames == 1 else 2, size // 8, size // 8)
            assert made.shape == video.shape, (peer.name, made.shape)
            assert tuple(ids.shape) == grid, (peer.name, ids.shape, grid)
            assert psnrs[-1] > psnrs[0] + 1, (peer.name, psnrs)
            print(
                f"{peer.name}: {learner.parameters:,} parameters, one batch from {psnrs[0]:.2f} to {psnrs[-1]:.2f} dB"
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, run the compare_variants."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against")
    parser.add_argument("what", choices=("images", "videos", "check"))
    for name in ("--data", "--heldout", "--root", "--out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--seconds", type=float, help="CPU time of each; without it the budget is --steps")
    parser.add_argument("--steps", type=int, default=300, help="of the schedules, and the budget without --seconds")
    for name, value in (("--size", 128), ("--frames", 17), ("--seeds", 2), ("--points", 8), ("--limit", 16)):
        parser.add_argument(name, type=int, default=value)
    parser.add_argument("--rate", type=float, action="append", help="learning rate; repeatable (1e-3)")
    parser.add_argument(
        "--test", type=Path, action="append", default=[], help="a split scored when all have ended; repeatable"
    )
    parser.add_argument("--batch", type=int, help="4 pictures, 1 clip")
    parser.add_argument("--lpips", type=float, default=0.0, help="weight of LPIPS (VGG) beside L1")
    parser.add_argument("--keep", action="store_true", help="write results/against_MEDIUM.json")
    parser.add_argument("--only", action="append", default=[], help="contenders whose names hold this; repeatable")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if asked.what == "check":
        check()
        return
    places = {"data": asked.data, "heldout": asked.heldout, "root": asked.root}
    fields = {"medium": asked.what, "size": asked.size, "frames": asked.frames, "limit": asked.limit}
    media = ComparisonData.parse({**fields, **places}, where="against")
    budget = Budget(
        budget="seconds" if asked.seconds else "steps",
        amount=float(asked.seconds or asked.steps),
        seeds=asked.seeds,
        points=asked.points,
        batch_size=asked.batch or (4 if asked.what == "images" else 1),
    )
    network: LPIPS | None = LPIPSConfig(net="vgg").build() if asked.lpips else None
    shared = Shared(steps=asked.steps, size=asked.size, lpips=network, lpips_weight=asked.lpips or 1.0)
    out = asked.out or Path("runs") / f"peers-{asked.what}"
    note, rows = compete(media, budget, shared, out, asked.rate or [1e-3], asked.only, asked.test)
    print(note)
    for row in rows:
        print(row)
    if asked.keep:
        points = [point.plain() for point in read_points(out)]
        write_json(
            RESULTS / f"against_{asked.what}.json",
            {**read_json(out / "report.json"), "points": points, "rows": list(rows)},
        )
    print(f"{out / 'index.html'}: open this page to see it all")


if __name__ == "__main__":
    main()

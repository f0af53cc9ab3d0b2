"""smalti's tokenizers against those of other projects: equal CPU time or equal steps, one thread, in turns.

    SMALTI_PEERS=peers SMALTI_MAGICMASTER=MagicMaster python -m benchmarks.against images --seconds 600
    python -m benchmarks.against videos --seconds 900 --size 64
    python -m benchmarks.against rates         # four learning rates of each peer, in a few steps; video-rates on film
    python -m benchmarks.against check         # each peer forward, backward, and one batch that it learns

A peer is its encoder, decoder and quantizer with the quantizer's own loss, as narrow as its norms allow (32). What is
equal for all: L1 (and LPIPS by --lpips), the batches, the averaging of weights, the evaluator. Each peer is there
twice: with its published optimizer, which was chosen for runs of days, and `tuned`: AdamW at a rate for short runs
(`rates` tries four), warm-up, cosine, clipping at 1. A comparison that was stopped continues by the same command.
"""

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks import trivial
from benchmarks.measure import RESULTS, machine
from benchmarks.peers import architectures
from benchmarks.peers.architectures import Peer
from benchmarks.peers.learner import PeerLearner, Shared
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
from smalti.data import batches
from smalti.data.source import Medium
from smalti.files import read_json, write_json
from smalti.losses.perceptual import LPIPS, LPIPSConfig
from smalti.metrics import SMALTI, evaluate_pairs, pairs_of
from smalti.training.config import OptimizerConfig
from smalti.video import to_uint8, to_video

CPU = torch.device("cpu")
SECONDS = 120.0
"""Of each contender by `python -m benchmarks peers`, a first look; the runs that are quoted are longer."""


def ours(medium: Medium, steps: int) -> list[Variant]:
    """The base, its quantizer exchanged for a peer's, and a network of the shape that the peers have."""
    groups = variant_groups(medium, steps)
    lfq = next(one for one in groups["quantizers"] if one.name == "lfq14")
    strides = [[1, 2], [1, 2], [1, 2]] if medium == "images" else [[1, 2], [2, 2], [2, 2]]
    shape = (
        *("tokenizer.patch=1", "tokenizer.width=32", "tokenizer.multipliers=[1, 2, 2, 4]"),
        *(f"tokenizer.strides={strides}", "tokenizer.depth=2", "tokenizer.decoder_depth=2", "tokenizer.middle=2"),
        "optimizer.lr=1e-3",
    )
    pixels = ("weights.l1=1.0", "weights.l2=0.0")
    return [
        Variant(name="smalti base, FSQ 64,000", set=pixels),
        Variant(name="smalti base, LFQ 2^14", set=(*lfq.set, *pixels)),
        Variant(name="smalti, MAGVIT-v2's shape, FSQ 64,000", set=(*shape, *pixels)),
    ]


def entries(medium: Medium, shared: Shared) -> list[LearnerSource]:
    """Return all variants."""
    more = () if shared.lpips is None else (f"weights.lpips={shared.lpips_weight}", "lpips={kind: lpips}")
    trainings = {one.name: one.training(medium, shared.steps, more) for one in ours(medium, shared.steps)}
    if shared.lpips is not None:
        trainings = {name: config.replace({"lpips_frames": "random"}) for name, config in trainings.items()}

    def own(name: str) -> LearnerSource:
        config = trainings[name]
        return LearnerSource(name, lambda seed: TokenizerLearner(config.replace({"seed": seed}), CPU, shared.lpips))

    def theirs(peer: Peer, name: str, optimizer: OptimizerConfig) -> LearnerSource:
        return LearnerSource(name, lambda seed: PeerLearner(peer, seed, shared, optimizer))

    peers = architectures.images() if medium == "images" else architectures.videos()
    found = [own(name) for name in trainings]
    for peer in peers:
        tuned = OptimizerConfig(lr=peer.rate, warmup=max(1, shared.steps // 20))
        found += [theirs(peer, peer.name, peer.optimizer), theirs(peer, f"{peer.name}, tuned", tuned)]
    return found


def compete(
    media: ComparisonData, budget: Budget, shared: Shared, out: Path, only: Sequence[str] = ()
) -> tuple[str, Sequence[Mapping[str, object]]]:
    """Compare all variants; continue with what is in `out`. Write its page there, return a row per variant."""
    chosen = [entry for entry in entries(media.medium, shared) if not only or any(o in entry.name for o in only)]
    asked = {"media": media.plain(), "terms": budget.plain(), "steps": shared.steps, "lpips": shared.lpips is not None}
    prepare_comparison(out, {**asked, "contenders": {entry.name: {} for entry in chosen}}, resume=True)
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
    rows = trivial_rows(media, parts.heldout)
    for row in summarise_runs(runs):
        scores = {name: effect.mean for name, effect in row.effects.items()}
        spreads = {f"{name}_spread": effect.spread for name, effect in row.effects.items() if name == "psnr"}
        costs = {"steps": row.steps, "seconds": row.seconds, "gflop_a_step": row.flops_per_step / 1e9}
        rows.append({"contender": row.name, "parameters": row.parameters, **costs, **scores, **spreads})
    data = parts.about
    equal = f"{budget.amount:g} {budget.budget} each, {budget.seeds} seeds"
    return f"{equal}; {data['measured_on']} held-out clips, {media.size} px, L1; protocol smalti-learn", rows


def trivial_rows(media: ComparisonData, heldout: Sequence[tuple[str, torch.Tensor]]) -> list[dict[str, object]]:
    """What needs no network, on the same held-out clips: without these rows a table of tokenizers says nothing.

    JPEG has the bits of 64,000 codes at a token for 8 x 8 pixels, of 4 frames in video, and takes more where even its
    coarsest setting does.
    """
    length = 1 if media.medium == "images" else 4

    def at_the_rate_of_tokens(frames: torch.Tensor) -> tuple[int, torch.Tensor]:
        t, h, w, _ = frames.shape
        tokens = (1 + math.ceil((t - 1) / length)) * math.ceil(h / 8) * math.ceil(w / 8)
        return trivial.jpeg(frames, int(tokens * math.log2(64_000) / 8))

    baselines: dict[str, Callable[[torch.Tensor], tuple[int, torch.Tensor]]] = {
        "grey": trivial.grey,
        "mean colour": trivial.mean_colour,
        "16x16 means": trivial.block_means,
        "JPEG": at_the_rate_of_tokens,
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
            rate = OptimizerConfig(lr=peer.rate, warmup=0, schedule="constant")
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


def rates(media: ComparisonData, steps: int = 60, batch_size: int = 4) -> None:
    """The held-out PSNR of each peer after a few steps at several rates, to choose `Peer.rate` by."""
    parts = load_parts(media)
    evaluator = Evaluator(parts.heldout)
    for peer in architectures.images() if media.medium == "images" else architectures.videos():
        for lr in (1e-4, 3e-4, 1e-3, 3e-3):
            settings = OptimizerConfig(lr=lr, warmup=max(1, steps // 20))
            learner = PeerLearner(peer, 0, Shared(steps=steps, size=media.size), settings)
            order = batches(parts.train, batch_size=batch_size, seed=0)
            for number, batch in enumerate(islice(order, steps)):
                learner.step(batch.video, number / steps)
            scored = evaluator.score(learner)
            print(f"{peer.name}, {lr:g}: {'not finite' if scored is None else f'{scored.psnr:.2f} dB'}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, run the compare_variants."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against")
    parser.add_argument("what", choices=("images", "videos", "rates", "video-rates", "check"))
    for name in ("--data", "--heldout", "--root", "--out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--seconds", type=float, help="CPU time of each; without it the budget is --steps")
    parser.add_argument("--steps", type=int, default=300, help="of the schedules, and the budget without --seconds")
    for name, value in (("--size", 128), ("--frames", 17), ("--seeds", 2), ("--points", 8), ("--limit", 16)):
        parser.add_argument(name, type=int, default=value)
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
    if asked.what == "rates":
        rates(ComparisonData(data=asked.data, size=64, limit=16))
        return
    if asked.what == "video-rates":
        film = {"medium": "videos", "size": 32, "frames": 9, "limit": 6}
        rates(ComparisonData.parse({**film, **places}, where="against"), batch_size=1)
        return
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
    note, rows = compete(media, budget, shared, out, asked.only)
    print(note)
    for row in rows:
        print(row)
    if asked.keep:
        points = [point.plain() for point in read_points(out)]
        write_json(RESULTS / f"against_{asked.what}.json", {**read_json(out / "report.json"), "points": points})
    print(f"{out / 'index.html'}: open this page to see it all")


if __name__ == "__main__":
    main()

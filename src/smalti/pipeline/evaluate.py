"""`smalti.evaluate`: score a tokenizer or a token set on media, two folders, or generated media against real media."""

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeGuard

import safetensors.torch
import torch
from torch import Tensor

from smalti.arguments import check_arguments, check_least, check_out_folder
from smalti.data import (
    read_image,
)
from smalti.data.files import IMAGE_SUFFIXES
from smalti.data.loader import evaluation
from smalti.data.source import check_bad_share
from smalti.devices import pick_device
from smalti.errors import BadFile, ConfigError, MachineError, SmaltiError
from smalti.families import load
from smalti.families.checkpoint import as_tokenizer
from smalti.files import write_bytes
from smalti.metrics import (
    GENERATION_PROTOCOLS,
    PROTOCOLS,
    Contender,
    Features,
    GenerationProtocol,
    GenerationReport,
    Leaderboard,
    Pair,
    Perceptual,
    Protocol,
    Report,
    Scores,
    contact_sheet,
    difference,
    find_features,
    find_lpips,
    find_protocol,
    leaderboard,
    pairs_of_folders,
)
from smalti.metrics.evaluate import matching_files
from smalti.metrics.frechet import Moments
from smalti.metrics.statistics import (
    STATISTICS_SUFFIXES,
    StatisticsKey,
    load_statistics,
    read_published_statistics,
    save_statistics,
)
from smalti.pipeline.decode import open_set_tokenizer
from smalti.pipeline.evaluate_generated import evaluate_generated
from smalti.pipeline.evaluation_clips import FRAMES, EvaluationClips, EvaluationOptions, clips_of
from smalti.text import Progress
from smalti.tokenizer import Tokenizer
from smalti.tokenizer.frames import megapixels_per_second, pairs_of_tokenizer
from smalti.tokens.reader import TokenSet, is_token_set
from smalti.tokens.score import pairs_of_token_set
from smalti.training.distributed import World, join_world
from smalti.video import to_uint8, to_video

_PREVIEWS = 8
"""Clips on a contact sheet, each by its middle frame."""
_RANK_TIMEOUT = timedelta(days=2)
"""How long a rank waits for the slowest; torchrun ends all ranks if one dies."""


class Evaluation(NamedTuple):
    """The result of `evaluate`."""

    report: Report | GenerationReport | Leaderboard
    bad: list[BadFile]
    """Files that could not be read."""
    columns: dict[str, list[Tensor]]
    """Images of the contact sheet by the title of their column, each uint8 `h w 3`."""

    @property
    def clips(self) -> int:
        """Number of clips that were scored or compared with."""
        if not isinstance(self.report, GenerationReport):
            return self.report.clips
        return self.report.real + sum(generated.clips for generated in self.report.sets)

    def write(self, folder: str | Path) -> None:
        """Write report.json and sheet.png, each whole or not at all."""
        write_bytes(Path(folder) / "report.json", self.report.to_json().encode())
        titles = list(self.columns)
        rows = [[image.numpy() for image in row] for row in zip(*self.columns.values(), strict=False)]
        if isinstance(self.report, Report):
            rows, titles = [[*row, difference(*row)] for row in rows], [*titles, "difference x4"]
        sheet = io.BytesIO()
        contact_sheet(rows, titles).save(sheet, "PNG")
        write_bytes(Path(folder) / "sheet.png", sheet.getvalue())


def evaluate(
    target: Tokenizer | str | Path | Sequence[str | Path],
    data: str | Path | None = None,
    *,
    against: str | Path | None = None,
    real: str | Path | None = None,
    protocol: str = "smalti",
    limit: int | None = None,
    size: int | None = None,
    frames: int | None = None,
    root: str | Path | None = None,
    lpips: str | Path | None = None,
    features: str | Path | None = None,
    statistics: str | Path | None = None,
    bootstrap: int = 0,
    max_bad: float = 1.0,
    device: str | None = None,
    progress: Progress | None = None,
) -> Evaluation | None:
    """Do what `smalti eval` does, and return the report, the files that could not be read, and images to look at.

    Args:
        target: A tokenizer or its name, or a token set, to score on `data`; several tokenizers, to be compared on it
            clip by clip with the first; a folder of originals with `against`; a generated set, or several, with `real`.
        data: A folder, list, file, tar or Parquet table of media.
        against: A folder of images to compare with the folder `target`.
        real: Real media to compare generated sets with.
        protocol: Name of the evaluation protocol; docs/metrics.md lists them.
        limit: Use only the first so many clips.
        size: Height and width of a clip (128); 0 keeps the file's.
        frames: Frames of a clip of video (17), from its middle.
        root: Folder where the paths of a list start (default: the folder of the list).
        lpips: File of LPIPS weights (default: wherever they are installed).
        features: File of the weights of the protocol's feature network (default: likewise).
        statistics: Folder that caches the feature statistics of the originals, or a file of them by another project
            (.npz of ADM or pytorch-fid, .pkl of MagicMaster) in their place; `real` takes such a file too.
        bootstrap: Resamples behind an interval of each distance of generated sets; 0 takes none.
        max_bad: Largest share of the files of `data` that cannot be read; with more, the evaluation ends early.
        device: cpu, cuda, mps, ... (default: that of a `Tokenizer`, else the best).
        progress: Callback after each clip.

    Under torchrun the ranks share the clips of `data`; the first rank returns the result of all, the others None.
    Raises ConfigError for options that contradict each other, InputError for media that cannot be used, MachineError
    for weights that are not found.
    """
    check_arguments(evaluate, locals())
    check_least({"limit": (limit, 1), "size": (size, 0), "frames": (frames, 1), "bootstrap": (bootstrap, 0)})
    check_least({"max_bad": (max_bad, 0)})
    lpips, features, statistics, root = (None if p is None else Path(p) for p in (lpips, features, statistics, root))
    if not _is_file_of_statistics(statistics):
        check_out_folder("statistics", statistics)
    files = lpips, features, statistics
    options = EvaluationOptions(protocol, limit, size, frames, root, *files, device, bootstrap, max_bad)
    targets = [target] if isinstance(target, str | Path | Tokenizer) else list(target)
    if real is not None:
        if data is not None or against is not None:
            raise ConfigError("eval: `real` is the other side already; leave out `data` and `against`")
        return _evaluate_generated([str(name) for name in targets], Path(real), options, progress)
    if bootstrap:
        raise ConfigError(f"`bootstrap` {bootstrap}: intervals are of generated sets; it goes with `real`")
    if len(targets) > 1 and data is not None and against is None:
        return _evaluate_tokenizers(targets, Path(data), options, progress)
    if len(targets) != 1:
        names = " ".join(str(name) for name in targets)
        raise ConfigError(f"eval: {len(targets)} targets ({names}); several go with `data` or `real`")
    (only,) = targets
    if data is not None and against is None:
        if not isinstance(only, Tokenizer) and Path(only).is_dir() and is_token_set(Path(only)):
            return _evaluate_token_set(Path(only), Path(data), options, progress)
        return _evaluate_tokenizer(only, Path(data), options, progress)
    if against is not None and data is None and not isinstance(only, Tokenizer):
        return _evaluate_folders(Path(only), Path(against), options, progress)
    raise ConfigError(
        "eval: give `data` FOLDER to measure a tokenizer, `against` FOLDER to compare two folders, or `real` FOLDER to "
        "compare generated media with real ones"
    )


def _of_all(report: Report, listed: int) -> Report:
    """Return a report that says of how many clips it is."""
    return report.model_copy(update={"listed": listed})


Previews = dict[int, tuple[Tensor, Tensor]]
"""Middle frames of originals and reconstructions, uint8 `h w 3`, by the place of the clip in its source."""


class _Ready(NamedTuple):
    """Everything that scoring a tokenizer needs, complete before the first clip is read."""

    tokenizer: Tokenizer
    clips: "EvaluationClips"
    scores: Scores
    key: StatisticsKey | None
    """Key under which the statistics of the originals are stored."""


def _evaluate_tokenizer(
    target: Tokenizer | str | Path, data: Path, options: EvaluationOptions, progress: Progress | None
) -> Evaluation | None:
    device = options.device
    if device is None and isinstance(target, Tokenizer):
        device = str(next(target.parameters()).device)
    with join_world(device, timeout=_RANK_TIMEOUT) as world:
        with _one_error_for_all(world):
            tokenizer, clips, scores, key = _prepare(target, data, options, world.device)
        source, share = clips.source, (world.rank, world.size)

        def note(number: int, bad: BadFile) -> None:
            scores.bad[number] = bad
            check_bad_share(len(scores.bad), number // world.size + 1, options.max_bad)

        pairs = pairs_of_tokenizer(tokenizer, source, share=share, samples=scores.protocol.samples, on_bad=note)
        previews = _score(pairs, scores, len(source), progress if world.is_main else None, world.size)
        images = {f"preview.{number}": torch.stack(pair) for number, pair in previews.items()}
        sent = world.gather(b"" if world.is_main else safetensors.torch.save({**scores.tensors(), **images}))
    if not world.is_main:
        return None
    for tensors in map(safetensors.torch.load, sent[1:]):
        scores = scores.merge(scores.received(tensors))
        for name, stacked in tensors.items():
            if name.startswith("preview."):
                original, reconstruction = stacked
                previews[int(name.removeprefix("preview."))] = original, reconstruction
    report, moments = _of_all(scores.report(), clips.listed), scores.moments
    if key is not None and moments is not None and moments.reference is None and not scores.bad:
        assert options.statistics is not None
        save_statistics(options.statistics, key, moments.originals)
    return Evaluation(report, [scores.bad[number] for number in sorted(scores.bad)], _columns(previews))


def _evaluate_tokenizers(
    targets: Sequence[Tokenizer | str | Path], data: Path, options: EvaluationOptions, progress: Progress | None
) -> Evaluation:
    """Score several tokenizers on the same clips, one after the other, and set them side by side."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("eval: one process compares several tokenizers; leave torchrun out, or give one")
    contenders, columns, bad = list[Contender](), dict[str, list[Tensor]](), list[BadFile]()
    protocol = find_protocol(options.protocol, PROTOCOLS)
    for number, target in enumerate(targets, start=1):
        name = f"tokenizer {number}" if isinstance(target, Tokenizer) else str(target)
        if name in columns:
            raise ConfigError(f"eval: {name} is given twice; give each once")
        if not isinstance(target, Tokenizer) and Path(target).is_dir() and is_token_set(Path(target)):
            raise ConfigError(f"eval: {name} is a token set; several targets are tokenizers")
        tokenizer = as_tokenizer(target, options.device)
        result = _evaluate_tokenizer(tokenizer, data, options, progress)
        assert result is not None, "there is one rank"
        assert isinstance(result.report, Report), "it was scored on originals"
        clips = clips_of(data, protocol, options, is_image_model=tokenizer.config.time_kernel == 1)
        video = next(evaluation(clips.source, on_bad=lambda _: None)).video
        parameters = sum(parameter.numel() for parameter in tokenizer.parameters())
        speed = megapixels_per_second(tokenizer, video)
        contenders.append(Contender(name, result.report, tokenizer.strides, parameters, speed))
        columns.setdefault("original", result.columns["original"])
        columns[name], bad = result.columns["reconstruction"], result.bad
    return Evaluation(leaderboard(contenders), bad, columns)


def _prepare(target: Tokenizer | str | Path, data: Path, options: EvaluationOptions, device: torch.device) -> _Ready:
    protocol = find_protocol(options.protocol, PROTOCOLS)
    tokenizer = target.to(device) if isinstance(target, Tokenizer) else load(target, device=device)
    clips = clips_of(data, protocol, options, is_image_model=tokenizer.config.time_kernel == 1)
    lpips = _find_lpips(protocol, options.lpips, device)
    features = _find_features(protocol, options.features, device)
    key = _statistics_key(clips, features, options)
    reference: Moments | None = None
    if key is not None and options.statistics is not None:
        reference = load_statistics(options.statistics, key)
    elif features is not None and _is_file_of_statistics(options.statistics):
        reference = read_published_statistics(options.statistics, features.network.dim)
    scores = Scores(clips.protocol, lpips=lpips, features=features, reference=reference, levels=tokenizer.levels)
    return _Ready(tokenizer, clips, scores, key)


def _evaluate_folders(
    originals: Path, reconstructions: Path, options: EvaluationOptions, progress: Progress | None
) -> Evaluation | None:
    """Compare the images of two folders, paired by name, at their own size; under torchrun one rank does it all."""
    if not _is_first_rank():
        return None
    protocol = find_protocol(options.protocol, PROTOCOLS)
    if protocol.media == "videos":
        raise ConfigError(f"`protocol` {protocol.name} is for video; `against` compares images")
    if options.statistics is not None:
        raise ConfigError("`statistics` goes with `data`; `against` looks at every original anyhow")
    for option, value in (("size", options.size), ("frames", options.frames), ("root", options.root)):
        if value is not None:
            raise ConfigError(f"`{option}` {value}: `against` compares whole images of two folders; leave it out")
    protocol = protocol.replace({"convention": None, "resize": "none", "crop": "none", "size": None})
    scores = _scores(protocol, options, torch.device("cpu"))
    total = len(matching_files(originals, reconstructions, IMAGE_SUFFIXES))
    pairs = pairs_of_folders(originals, reconstructions, lambda path: to_video(read_image(path)), IMAGE_SUFFIXES)
    previews = _score(islice(pairs, options.limit), scores, min(total, options.limit or total), progress)
    return Evaluation(_of_all(scores.report(), total), [], _columns(previews))


def _evaluate_token_set(
    path: Path, data: Path, options: EvaluationOptions, progress: Progress | None
) -> Evaluation | None:
    """Compare decoded rows with their originals below `data`; under torchrun one rank does it all."""
    if not _is_first_rank():
        return None
    protocol, tokens, bad = find_protocol(options.protocol, PROTOCOLS), TokenSet(path), list[BadFile]()
    if protocol.convention is not None:
        raise ConfigError(f"`protocol` {protocol.name} reads files in its own way; a token set holds what was encoded")
    for option, value in (("`size`", options.size), ("`root`", options.root), ("`statistics`", options.statistics)):
        if value is not None:
            raise ConfigError(f"{option} {value}: {path} is a token set, whose options are fixed; leave it out")
    device = pick_device(options.device)
    tokenizer = open_set_tokenizer(tokens, device=str(device))
    frames, view = options.frames or FRAMES, tokens.options.view
    declared: dict[str, object] = {"size": view.size, "resize": view.resize, "crop": "center"} if view.size else {}
    scores = _scores(protocol.replace(declared), options, device, tokens.tokenizer_info.levels)
    root = data if data.is_dir() else data.parent
    pairs = pairs_of_token_set(tokenizer, tokens, root, rows=options.limit, frames=frames, on_bad=bad.append)
    previews = _score(pairs, scores, options.limit or len(tokens), progress)
    report = _of_all(scores.report(), len(tokens))
    if any(row.frames > 1 for row in report.rows):
        protocol = report.protocol.replace({"frames": frames, "sampling": "start"})
        report = report.model_copy(update={"protocol": protocol})
    return Evaluation(report, bad, _columns(previews))


def _evaluate_generated(
    targets: Sequence[str], real: Path, options: EvaluationOptions, progress: Progress | None
) -> Evaluation | None:
    """Compare generated sets with real clips; under torchrun one rank does it all."""
    if not _is_first_rank():
        return None
    protocol: GenerationProtocol = find_protocol(options.protocol, GENERATION_PROTOCOLS)
    for option, value in (("lpips", options.lpips), ("statistics", options.statistics)):
        if value is not None:
            raise ConfigError(f"`{option}` {value}: protocol {protocol.name} takes none; leave it out")
    if options.frames is not None:
        if protocol.media == "images":
            raise ConfigError(f"`frames` {options.frames}: protocol {protocol.name} is for images; leave it out")
        protocol = protocol.replace({"frames": options.frames})
    if options.size:
        protocol = protocol.replace({"size": (options.size, options.size)})
    folders = {target: Path(target) for target in targets}
    if len(folders) < len(targets):
        raise ConfigError(f"{targets[0]}: a set is given twice; give each once")
    features = find_features(protocol.features, options.features).to(pick_device(options.device))
    result = evaluate_generated(
        folders,
        real,
        protocol,
        features,
        limit=options.limit,
        root=options.root,
        bootstrap=options.bootstrap,
        progress=progress,
    )
    return Evaluation(*result)


def _scores(
    protocol: Protocol, options: EvaluationOptions, device: torch.device, levels: Sequence[int] | None = None
) -> Scores:
    lpips = _find_lpips(protocol, options.lpips, device)
    return Scores(protocol, lpips=lpips, features=_find_features(protocol, options.features, device), levels=levels)


def _score(
    pairs: Iterable[Pair], scores: Scores, total: int, progress: Progress | None = None, step: int = 1
) -> Previews:
    """Score pairs, and return the middle frames of the first; each clip counts as `step` of `total`."""
    previews: Previews = {}
    done = 0
    for pair in pairs:
        row = scores.add_pair(pair)
        if row is None or pair.reconstruction is None:
            continue
        if len(previews) < _PREVIEWS:
            previews[pair.number] = _middle(pair.original), _middle(pair.reconstruction)
        done = min(done + step, total)
        if progress is not None:
            progress(done, total, f"PSNR {row.psnr:.2f}")
    return previews


def _middle(video: Tensor) -> Tensor:
    middle = video.shape[2] // 2
    return to_uint8(video[:, :, middle : middle + 1].cpu())[0, 0]


def _columns(previews: Previews) -> dict[str, list[Tensor]]:
    pairs = [previews[number] for number in sorted(previews)[:_PREVIEWS]]
    return {"original": [original for original, _ in pairs], "reconstruction": [again for _, again in pairs]}


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _one_error_for_all(world: World) -> Iterator[None]:
    """End all ranks if one has an error, which the first of those raises; the others exit with its exit code."""
    fault: SmaltiError | None = None
    try:
        yield
    except SmaltiError as error:
        if world.size == 1:
            raise
        fault = error
    codes = [int(code) for code in world.gather(b"0" if fault is None else str(fault.exit_code).encode())]
    first = next((rank for rank, code in enumerate(codes) if code), None)
    if fault is not None and world.rank == first:
        raise fault
    if first is not None:
        raise SystemExit(codes[first])


def _statistics_key(
    clips: EvaluationClips, features: Features | None, options: EvaluationOptions
) -> StatisticsKey | None:
    if options.statistics is None:
        return None
    if features is None:
        raise ConfigError(f"`statistics`: protocol {options.protocol} takes no features, so there is nothing to store")
    if _is_file_of_statistics(options.statistics):
        return None
    return StatisticsKey(
        features=features.network.name,
        features_digest=features.digest,
        rounding=clips.protocol.original_rounding or clips.protocol.rounding,
        data=clips.data,
        listed=clips.digest(),
        count=len(clips.source),
    )


def _is_file_of_statistics(path: Path | None) -> TypeGuard[Path]:
    return path is not None and path.suffix.lower() in STATISTICS_SUFFIXES and not path.is_dir()


def _find_lpips(protocol: Protocol, weights: Path | None, device: torch.device) -> Perceptual | None:
    """Load the LPIPS network that the protocol names, if it names one and its weights are found.

    Without weights the report says that it has no LPIPS; a file that the caller names must be readable.
    """
    if protocol.lpips is None:
        if weights is not None:
            raise ConfigError(f"`lpips` {weights}: protocol {protocol.name} has no LPIPS; leave it out")
        return None
    try:
        return find_lpips(protocol.lpips, weights, device)
    except MachineError:
        if weights is not None:
            raise
        return None


def _find_features(protocol: Protocol, weights: Path | None, device: torch.device) -> Features | None:
    """Load the feature network that the protocol names, if it names one; raise MachineError if it is not found."""
    if protocol.features is None:
        if weights is not None:
            raise ConfigError(f"`features` {weights}: protocol {protocol.name} takes no features; leave it out")
        return None
    return find_features(protocol.features, weights).to(device)

"""Tokenizers and token models behind the page: bytes in, bytes out, one piece of work at a time."""

import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.app.page_files import tokenizer_facts
from smalti.devices import pick_device
from smalti.errors import BadTensor, ConfigError, InputError
from smalti.families import load
from smalti.generation import (
    Condition,
    GenerationTask,
    Generator,
    MaskedConfig,
    PredictionTask,
    SamplingConfig,
    TaskConfig,
    task_tokens,
)
from smalti.model_folder import find_model
from smalti.pipeline.generate import own_tokenizer, sample_ids, start_ids
from smalti.tokenizer import Tokenizer
from smalti.video import Size, to_uint8, to_video

_STEPS = 12
"""Sampling steps of a masked model, as in `smalti generate`."""
_LONGEST_SIDE = 8192
_LARGEST_SEED = 2**31


class Busy(InputError):
    """More work is waiting than the queue holds, or a piece of it took too long."""


class Answer(NamedTuple):
    """Bytes for the page, and the numbers that say what they are."""

    body: bytes
    numbers: Mapping[str, tuple[int, ...]]
    """`grid` or `size` -> three numbers: frames, height and width."""


class Line:
    """One thread that does one piece of work after the other, with so many waiting at most."""

    def __init__(self, waiting: int, seconds: float) -> None:
        self._most, self._seconds = waiting, seconds
        self._pieces: deque[tuple[Future[Answer], Callable[[], Answer]]] = deque()
        self._changed = threading.Condition()
        self._is_stopped = False
        threading.Thread(target=self._work, name="smalti-work", daemon=True).start()

    @property
    def waiting(self) -> int:
        """Number of pieces of work that wait."""
        return len(self._pieces)

    def do(self, work: Callable[[], Answer]) -> Answer:
        """Do a piece of work in its turn. Raises Busy if too many wait or it takes too long, and what the work does."""
        piece = (Future[Answer](), work)
        with self._changed:
            if len(self._pieces) >= self._most:
                raise Busy("too much is waiting; try again in a moment")
            self._pieces.append(piece)
            self._changed.notify()
        try:
            return piece[0].result(self._seconds)
        except FutureTimeoutError:
            with self._changed:
                if piece in self._pieces:  # it has not begun: it leaves its place to others
                    self._pieces.remove(piece)
            raise Busy(f"this took longer than {self._seconds:g} s; take a smaller image or a shorter clip") from None

    def stop(self) -> None:
        """Begin no more work."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pieces or self._is_stopped)
                if self._is_stopped:
                    return
                future, work = self._pieces.popleft()
            try:
                future.set_result(work())
            except BaseException as error:  # is raised where it is waited for
                future.set_exception(error)
            del future, work  # or the last body would stay until the next one comes


class _Model(NamedTuple):
    """A token model and the tokenizer of its ids."""

    generator: Generator
    tokenizer: str

    def facts(self, name: str) -> dict[str, Any]:
        """Return what the page must know of it."""
        model, origin = self.generator.model.config, self.generator.origin
        names = [str(i) for i in range(model.classes)]
        known = list(origin.classes) if len(origin.classes) == model.classes else names
        continues = self.generator.size[0] > 1 and (not model.tasks or "prediction" in model.tasks)
        return {"name": name, "tokenizer": self.tokenizer, "classes": known, "continues": continues}


class Service:
    """Tokenizers and token models by the names that the user gave."""

    def __init__(self, names: Sequence[str | Path], device: str | None, most_pixels: int) -> None:
        self.most_pixels = most_pixels
        self.tokenizers: dict[str, Tokenizer] = {}
        self._models: dict[str, _Model] = {}
        for name in names:
            self._open(str(name), device)

    def _open(self, name: str, device: str | None) -> None:
        if name in self.tokenizers or name in self._models:
            raise ConfigError(f"tokenizers: {name} comes twice; name each once")
        folder = find_model(Path(name), "generator") if Path(name).is_dir() else None
        if folder is None:
            self.tokenizers[name] = load(name, pick_device(device))
            return
        generator = Generator.load(folder, pick_device(device))
        of_tokenizer = own_tokenizer(Path(name), folder)
        if of_tokenizer not in self.tokenizers:
            self.tokenizers[of_tokenizer] = load(of_tokenizer, pick_device(device))
        generator.origin.check(self.tokenizers[of_tokenizer].fingerprint, folder)
        self._models[name] = _Model(generator, of_tokenizer)

    def facts(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return what the page must know of the tokenizers, and of the token models."""
        about = [{**tokenizer_facts(name, one), "place": "server"} for name, one in self.tokenizers.items()]
        return about, [model.facts(name) for name, model in self._models.items()]

    def encode(self, query: Mapping[str, str], body: bytes) -> Answer:
        """Encode uint8 pixels t h w 3 to int64 ids, little-endian."""
        tokenizer, video = self._tokenizer(query), self._video(query, body)
        with torch.inference_mode():
            return _ids_answer(tokenizer.encode(video.to(tokenizer.device)))

    def decode(self, query: Mapping[str, str], body: bytes) -> Answer:
        """Decode int64 ids, little-endian, to uint8 pixels t h w 3."""
        tokenizer, size = self._tokenizer(query), self._size(query)
        grid = _numbers(query, "grid", 3)
        self._check_pixels(tuple(n * s for n, s in zip(grid, tokenizer.strides, strict=True)), "grid")
        if len(body) != 8 * math.prod(grid):
            raise BadTensor(f"ids: a grid of {grid} has {8 * math.prod(grid):,} bytes (found {len(body):,})")
        ids = torch.from_numpy(np.frombuffer(body, "<i8").astype(np.int64)).view(1, *grid)
        with torch.inference_mode():
            video = tokenizer.decode(ids.to(tokenizer.device), size=size)
            return Answer(to_uint8(video.cpu()).numpy().tobytes(), {"size": size})

    def generate(self, query: Mapping[str, str], body: bytes) -> Answer:
        """Sample ids from a token model, of a class if it has classes."""
        if body:
            raise BadTensor("generate: takes no pixels; `continue` does")
        return self._sample(query, GenerationTask(), None)

    def extend(self, query: Mapping[str, str], body: bytes) -> Answer:
        """Sample the ids of a clip that begins with the last frames of the clip in `body`."""
        generator = self._model(query).generator
        video = self._video(query, body)
        total, height, width = generator.size
        stride = generator.origin.strides[0]
        if total == 1:
            raise ConfigError("continue: this model generates images; take one of video")
        groups = (min(video.shape[2], (total + 1) // 2) - 1) // stride
        known = 1 + groups * stride
        first = _fitted(video[:, :, -known:], height, width)
        whole = torch.cat([first, first[:, :, -1:].expand(-1, -1, total - known, -1, -1)], 2)
        return self._sample(query, PredictionTask(frames=known), whole)

    def _sample(self, query: Mapping[str, str], task: TaskConfig, video: Tensor | None) -> Answer:
        generator, name = self._model(query)
        model, tokenizer = generator.model.config, self.tokenizers[name]
        (seed,) = _numbers(query, "seed", 1, least=0, most=_LARGEST_SEED)
        label = None
        if model.classes:
            (label,) = _numbers(query, "label", 1, least=0, most=model.classes - 1)
        steps = min(_STEPS, model.entries) if isinstance(model, MaskedConfig) else _STEPS
        labels = None if label is None else torch.tensor([label], device=tokenizer.device)
        tasks = task_tokens(task.kind, model.tasks, 1)
        condition = Condition(labels, None if tasks is None else tasks.to(tokenizer.device))
        with torch.inference_mode():
            start = None if video is None else start_ids(tokenizer, task, video.to(tokenizer.device))
            config = SamplingConfig(steps=steps)
            ids = sample_ids(generator, tokenizer, task, start, condition, config, seed=seed, samples=[0])
        return _ids_answer(ids, size=generator.size)

    def _tokenizer(self, query: Mapping[str, str]) -> Tokenizer:
        name = query.get("tokenizer", "")
        if name not in self.tokenizers:
            raise ConfigError(f"tokenizer: give one of {', '.join(self.tokenizers)}")
        return self.tokenizers[name]

    def _model(self, query: Mapping[str, str]) -> _Model:
        name = query.get("model", "")
        if name not in self._models:
            raise ConfigError(f"model: give one of {', '.join(self._models) or 'none: no token model is served'}")
        return self._models[name]

    def _size(self, query: Mapping[str, str]) -> Size:
        size = Size(*(_numbers(query, name, 1)[0] for name in ("frames", "height", "width")))
        self._check_pixels(size, "size")
        return size

    def _video(self, query: Mapping[str, str], body: bytes) -> Tensor:
        size = self._size(query)
        if len(body) != 3 * math.prod(size):
            raise BadTensor(f"pixels: {tuple(size)} x 3 are {3 * math.prod(size):,} bytes (found {len(body):,})")
        return to_video(np.frombuffer(body, np.uint8).reshape(*size, 3))

    def _check_pixels(self, size: Sequence[int], name: str) -> None:
        if math.prod(size) > self.most_pixels:
            raise BadTensor(
                f"{name}: {' x '.join(map(str, size))} (frames, height, width) are more than {self.most_pixels:,} "
                "pixels; take a smaller image or a shorter clip"
            )


def _numbers(
    query: Mapping[str, str], name: str, count: int, *, least: int = 1, most: int = _LONGEST_SIDE
) -> tuple[int, ...]:
    """Return the whole numbers of a field. Raises ConfigError that names it."""
    parts = query.get(name, "").split(",")
    if len(parts) != count or not all(part.isascii() and part.isdigit() and len(part) <= 10 for part in parts):
        raise ConfigError(f"{name}: give {count} whole number{'s with commas' if count > 1 else ''}")
    numbers = tuple(int(part) for part in parts)
    if not all(least <= number <= most for number in numbers):
        raise ConfigError(f"{name}: must be {least} to {most} (found {query[name]})")
    return numbers


def _ids_answer(ids: Tensor, size: tuple[int, int, int] | None = None) -> Answer:
    numbers = {"grid": tuple(ids.shape[1:])} | ({} if size is None else {"size": tuple(size)})
    return Answer(ids.cpu().numpy().astype("<i8").tobytes(), numbers)


def _fitted(video: Tensor, height: int, width: int) -> Tensor:
    """Return the middle of a video at another size, antialiased."""
    h, w = video.shape[3:]
    scale = min(h / height, w / width)
    tall, wide = min(h, max(1, round(height * scale))), min(w, max(1, round(width * scale)))
    top, left = (h - tall) // 2, (w - wide) // 2
    frames = video[0, :, :, top : top + tall, left : left + wide].transpose(0, 1)
    fitted = F.interpolate(frames, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return fitted.transpose(0, 1)[None]

"""The speed of this version beside that of the first one (commit 9901278), by the same calls in turns.

    git worktree add ../first 9901278
    python -m benchmarks.before ../first        # a table, and results/before.json

Three processes of one thread each, one at a time: the first version in float32, this one in float32, this one in
bfloat16. All have built the same case, and each makes the call once in a round; the least process CPU time counts. Ids
and samples of the two in float32 are compared. `python -m benchmarks.speed` has this version beside the processor's
limit and other programs.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

FORMS = ("first", "float32", "bfloat16")
ROUNDS = 5
STEPS = {"tiny": (8, 1, 64), "tiny-video": (4, 9, 64), "image": (2, 1, 128)}
"""Clips, frames and pixels a side of a training step."""
CASES = (
    *(f"image {size}: {way}" for size in ("128", "256", "512", "1080x1920") for way in ("encode", "decode")),
    *(f"video 17x128x128: {way}" for way in ("encode", "decode")),
    *(f"stream 33x144x256 by 4: {way}" for way in ("encode", "decode")),
    "masked sample, width 768",
    *(f"training step {name}" for name in STEPS),
)
Call = Callable[[], Any]


def case(name: str, form: str) -> Call:
    """Build what a case calls, in the version whose modules are found."""
    kind, _, rest = name.partition(" ")
    if kind == "training":
        return training(rest.removeprefix("step "), form)
    return sampling(form) if kind == "masked" else network(kind, *rest.split(": "), form)


def named(now: str, first: str) -> Any:
    """Return what has this name in its module now, or had in the first version."""
    module, name = now.split()
    try:
        import_module(module)
    except ModuleNotFoundError:
        module, name = first.split()
    return getattr(import_module(module), name)


def pixels(*shape: int) -> Any:
    """Smooth pixels `b 3 t h w`, equal in every process."""
    import torch

    coarse = torch.rand(1, 3, 1, shape[2] // 16, shape[3] // 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    video = torch.nn.functional.interpolate(coarse, size=(1, *shape[2:]), mode="trilinear")
    return video.expand(shape[0], 3, shape[1], *shape[2:]).contiguous()


def network(kind: str, size: str, way: str, form: str) -> Call:
    """Encoding or decoding by a shipped tokenizer of the first edition."""
    import torch

    import smalti

    chunk = int(size.split(" by ")[1]) if kind == "stream" else None
    numbers = [int(number) for number in size.split(" ")[0].split("x")]
    frames, height, width = numbers if len(numbers) == 3 else (1, numbers[0], numbers[-1])
    tokenizer = smalti.load("smalti/tiny-image" if kind == "image" else "smalti/tiny-video")
    if form == "bfloat16":
        tokenizer = tokenizer.compute_in(torch.bfloat16)
    video = pixels(1, frames, height, width)
    parts = [video] if chunk is None else [video[:, :, :1], *video[:, :, 1:].split(chunk, 2)]

    def through(call: Call, pieces: list[Any]) -> list[Any]:
        stream = smalti.Stream()
        return [call(piece) if chunk is None else call(piece, stream) for piece in pieces]

    if way == "encode":
        return lambda: through(tokenizer.encode, parts)
    ids = through(tokenizer.encode, parts)
    return lambda: through(tokenizer.decode, ids)


def sampling(form: str) -> Call:
    """A sample of 256 tokens in 4 steps by a masked transformer."""
    import torch

    torch.manual_seed(0)
    grid = (1, 16, 16)
    shape = {"levels": (8, 8, 8, 5, 5, 5), "grid": grid, "width": 768, "depth": 6, "heads": 12, "dropout": 0.0}
    model = named("smalti.generation MaskedConfig", "smalti.generate.transformer MaskedConfig")(**shape).build().eval()
    model = model.bfloat16() if form == "bfloat16" else model
    sample = named("smalti.generation sample", "smalti.generate.sample sample")
    config = named("smalti.generation SamplingConfig", "smalti.generate.sample SamplingConfig")(steps=4)
    prompt = named("smalti.generation empty_prompt", "smalti.generate.prompt nothing")(1, grid)
    return lambda: sample(model, prompt, config)


def training(name: str, form: str) -> Call:
    """A step of a recipe, without LPIPS and discriminator."""
    import torch

    from smalti.recipes import find

    world = named("smalti.training.distributed World", "smalti.train.common World")
    start = named("smalti.training.tokenizer_state start_tokenizer", "smalti.train.state start")
    step = named("smalti.training.tokenizer_step step", "smalti.train.step step")
    config: Any = find(name)
    changes: dict[str, Any] = {"adversary": None} if form == "first" else {"gan": None, "held_out": 0}
    weights = {loss: weight for loss, weight in config.weights.items() if loss != "lpips"}
    changes |= {"lpips": None, "weights": weights, "precision": "bfloat16" if form == "bfloat16" else "float32"}
    state = start(config.replace(changes), world(0, 1, torch.device("cpu")))
    rows, frames, size = STEPS[name]
    video = pixels(rows, frames, size, size)
    return lambda: step(state, video)


def digest(made: Any) -> str | None:
    """A digest of ids; None for pixels and figures, which differ by rounding."""
    import torch

    tensors = made if isinstance(made, list) else [made]
    if not all(isinstance(one, torch.Tensor) and not one.is_floating_point() for one in tensors):
        return None
    return hashlib.sha256(b"".join(one.numpy().tobytes() for one in tensors)).hexdigest()


def work(form: str) -> None:
    """Answer the names of cases with the seconds of a call and the digest of what it made."""
    import torch

    torch.set_num_threads(1)
    if form != "first":
        from smalti.allocator import keep_freed_memory

        keep_freed_memory()  # as the commands do
    built, call = "", None
    for line in sys.stdin:
        name = line.strip()
        with torch.set_grad_enabled(name.startswith("training")):
            if name != built:
                built, call = name, case(name, form)
                call()
            assert call is not None
            began = time.process_time()
            made = call()
            seconds = time.process_time() - began
        print(json.dumps({"s": seconds, "digest": digest(made)}), flush=True)


class Worker:
    """A process of one version in one number format."""

    def __init__(self, form: str, source: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).resolve()), "--work", form]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, name: str) -> Mapping[str, Any]:
        """Make a call; a new case is built and called once before."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())  # type: ignore[no-any-return]


def main() -> None:
    """Compare all cases, or those that are named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.before")
    parser.add_argument("first", type=Path, nargs="?", help="a checkout of commit 9901278")
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=CASES, metavar="CASE", help=f"some of: {'; '.join(CASES)}"
    )
    parser.add_argument("--work", choices=FORMS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        work(asked.work)
        return
    if asked.first is None:
        parser.error("name a checkout of commit 9901278")
    from benchmarks.measure import write

    own = Path(__file__).resolve().parents[1] / "src"
    workers = {form: Worker(form, asked.first / "src" if form == "first" else own) for form in FORMS}
    rows = []
    for name in asked.cases:
        best, digests = dict.fromkeys(FORMS, float("inf")), {}
        for _ in range(ROUNDS):
            for form, worker in workers.items():
                answer = worker.ask(name)
                best[form], digests[form] = min(best[form], answer["s"]), answer["digest"]
        if digests["first"] != digests["float32"]:
            raise SystemExit(f"{name}: ids are not those of the first version")
        ratios = {form: best["first"] / best[form] for form in FORMS[1:]}
        rows.append({"what": name, "first_ms": 1e3 * best["first"], **ratios})
        print(json.dumps(rows[-1]), flush=True)
    if list(asked.cases) == list(CASES):
        write("before", rows, "least process CPU time of the first version, and how many times as fast this one is")


if __name__ == "__main__":
    main()

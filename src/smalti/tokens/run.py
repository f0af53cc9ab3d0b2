"""From a tokenizer and a folder to a token set: plan, work, finish."""

import platform
from pathlib import Path
from typing import NamedTuple

import torch

from smalti.files import remove_leftovers
from smalti.text import printable
from smalti.tokenizer import load
from smalti.tokens.finalize import read_made, write_made
from smalti.tokens.inputs import AnyInputs
from smalti.tokens.options import Options
from smalti.tokens.parquet import need_pyarrow
from smalti.tokens.plan import Plan, load_plan, make_plan
from smalti.tokens.worker import Job
from smalti.version import __version__


class Begun(NamedTuple):
    """A set that is planned, and what its workers have to know."""

    plan: Plan
    job: Job
    notes: tuple[str, ...]
    """How this machine differs from the one that began it, where that could move an id."""


def begin(
    tokenizer: str, inputs: AnyInputs, out: Path, options: Options, *, device: str = "cpu", resume: bool = False
) -> Begun:
    """Plan the set at `out`, or check that what is there was begun with the same.

    With `resume` the plan that is there is taken as it is, and the inputs are not listed again, which saves time where
    there are millions of them. `tokenizer` is a folder, or the name of a repository of the hub. Raises as `make_plan`
    does, and InputError where there are no inputs.
    """
    need_pyarrow()
    model = load(tokenizer)
    if out.is_dir():
        for folder in (out, out / "data", out / "reports"):
            remove_leftovers(folder)
    if resume:
        plan = load_plan(out)
        plan.about.check(model.info, out)
        root = inputs.place()
    else:
        found = inputs.find()
        plan, root = make_plan(out, model.info, inputs, found, options), found.root
    facts = {
        "smalti": __version__,
        "torch": torch.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "device": _device_name(device),
    }
    made = read_made(out)
    differ = [name for name in facts if name in made and made[name] != facts[name]]
    notes = [
        f"{name}: begun with {made[name]}, here is {facts[name]}; an id on a threshold may differ" for name in differ
    ]
    write_made(out, {"tokenizer": tokenizer, "data": printable(inputs.path), **facts})
    return Begun(plan, Job(str(out.absolute()), str(root.absolute()), tokenizer, device), tuple(notes))


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(torch.device(device)) if device.startswith("cuda") else device

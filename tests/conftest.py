"""One thread, so that results do not depend on the machine's load; no network; the same examples at every run."""

import gc
import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from hypothesis import settings

from tests.typecheck import begin_anew

torch.set_num_threads(1)

settings.register_profile("repeat", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)  # new examples: pytest --hypothesis-profile=search
settings.load_profile("repeat")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each process has a part of the list in one piece, so that what a module makes once is not made in both; who is
    done first takes half of what another has left."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


def pytest_collection_finish() -> None:
    """The collector of garbage need not look at thousands of tests and all modules again and again."""
    gc.freeze()


@pytest.fixture
def unchecked_types() -> Iterator[None]:
    """Annotations that nothing checks, as in use: a wrong type then meets the package's own words."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as in a program of its own: a shell's background job and the processes of a parallel test run ignore it,
    and so do the programs that they start; a handler here ends that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _checks_begin_anew() -> None:
    begin_anew()

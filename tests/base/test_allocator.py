"""Commands use freed memory again; the library leaves the process as it is."""

import os
import platform
import subprocess
import sys

import pytest

from smalti import allocator

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")

FAULTS = """
import resource

def faults(megabytes):
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = bytearray(megabytes << 20)
        block[::4096] = bytes(megabytes << 8)
        del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

print("faults", faults(100))
before = held()
faults(600)
print("held", held() - before)
"""
"""Page faults of a block of 100 MB that was used and freed before; what is held after one of 600 MB."""


def run(before: str, **more: str) -> dict[str, int]:
    environment = {name: value for name, value in os.environ.items() if name not in allocator.CHOSEN} | more
    command = [sys.executable, "-c", before + FAULTS]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return {name: int(value) for name, value in (line.split() for line in ended.stdout.splitlines()[-2:])}


COMMAND = """
import sys
from smalti.cli.main import main
try:
    main(["--version"])
except SystemExit:
    pass
"""


@pytest.mark.parametrize("before", [COMMAND, "from smalti.allocator import keep_freed_memory as f\nf()"])
def test_a_command_uses_freed_memory_again_and_keeps_a_bounded_amount(before):
    kept = run(before)
    assert kept["faults"] < 1_000
    assert kept["held"] < 300_000_000


def test_the_library_leaves_the_allocator_alone():
    assert run("import smalti.tokenizer")["faults"] > 20_000


def test_what_the_environment_says_holds():
    assert run(COMMAND, MALLOC_MMAP_THRESHOLD_="1000000")["faults"] > 20_000

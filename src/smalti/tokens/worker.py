"""A worker process: makes the shards it is told to, and says before every item what it is about to touch.

It reads one JSON object a line on its standard input, the job first and then orders, and answers in lines on its
standard output; what libraries print there goes to standard error. Its parent sees from the last line which item
killed or hung it.
"""

import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from smalti.errors import BadFile, SmaltiError

Say = Callable[[Mapping[str, Any]], None]


class Job(NamedTuple):
    """What a worker has to know; plain text, so that it travels as JSON to other machines too."""

    folder: str
    """Of the token set, whose plan says the rest."""
    root: str
    """Where the inputs are on this machine."""
    tokenizer: str
    """Its folder, or its name on the hub."""
    device: str = "cpu"


def main() -> None:
    """Serve until the standard input ends."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a hung decoder ends with its parent
        if os.getppid() != parent:
            return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes of a terminal; the parent decides
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: Mapping[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        serve(Job(**json.loads(sys.stdin.readline())), say)
    except SmaltiError as error:
        say({"fault": str(error), "code": error.exit_code})
    except BrokenPipeError:
        pass
    except Exception as error:
        traceback.print_exc()
        say({"fault": f"internal error: {type(error).__name__}: {error}", "code": SmaltiError.exit_code})


def serve(job: Job, say: Say) -> None:
    """Follow the orders `{"shard", "avoid"}` and `{"shard", "probe"}` on the standard input."""
    from smalti.tokenizer import load
    from smalti.tokens.plan import load_plan
    from smalti.tokens.tokenize import make_shard, probe_item, warm_up

    plan, root = load_plan(Path(job.folder)), Path(job.root)
    tokenizer = load(job.tokenizer, job.device)
    plan.about.check(tokenizer.info, plan.folder)

    warm_up(tokenizer)

    def watch(item: int, tokens: int) -> None:
        say({"item": item, "tokens": tokens})

    say({"ready": True})
    for line in sys.stdin:
        order = json.loads(line)
        if "probe" in order:
            probe_item(plan, order["shard"], root, tokenizer, order["probe"], watch=watch)
            say({"probed": order["probe"]})
            continue
        avoid = {int(item): BadFile(*fault) for item, fault in order["avoid"].items()}
        report = make_shard(plan, order["shard"], root, tokenizer, avoid=avoid, watch=watch)
        say({"done": order["shard"], "listed": report.listed, "tokens": report.tokens, "bad": len(report.bad)})


if __name__ == "__main__":
    main()

"""The program of a worker process: makes the shards it is asked for, and says before every item what it will touch.

It reads one JSON object a line on its standard input, its `WorkerConfig` first and then orders, and answers in lines on
its standard output; what libraries print there goes to standard error. Its parent sees from the last line which item
killed or hung it. The libraries are imported late, when signals and pipes are set up.
"""

import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from smalti.allocator import keep_freed_memory
from smalti.errors import BadFile, SmaltiError


def serve_parent() -> None:
    """Serve until the standard input ends."""
    parent = os.getppid()
    keep_freed_memory()
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
        serve_orders(json.loads(sys.stdin.readline()), say)
    except SmaltiError as error:
        say({"fault": str(error), "code": error.exit_code})
    except BrokenPipeError:
        pass
    except Exception as error:
        traceback.print_exc()
        say({"fault": f"internal error: {type(error).__name__}: {error}", "code": SmaltiError.exit_code})


def serve_orders(config: Mapping[str, str], say: Callable[[Mapping[str, Any]], None]) -> None:
    """Follow the orders `{"shard", "skip"}` and `{"shard", "probe"}` on the standard input; `config` is a
    `WorkerConfig` as plain data."""
    from smalti.tokens.plan import WorkerConfig, load_plan
    from smalti.tokens.tokenize import make_shard, open_tokenizer_of, probe_item, warm_up

    worker = WorkerConfig(**config)
    plan, root = load_plan(Path(worker.folder)), Path(worker.root)
    tokenizer = open_tokenizer_of(plan, worker)
    warm_up(tokenizer)

    def on_item(item: int, tokens: int) -> None:
        say({"item": item, "tokens": tokens})

    say({"ready": True})
    for line in sys.stdin:
        order = json.loads(line)
        if "probe" in order:
            probe_item(plan, order["shard"], root, tokenizer, order["probe"], on_item=on_item)
            say({"probed": order["probe"]})
            continue
        skip = {int(item): BadFile(*fault) for item, fault in order["skip"].items()}
        report = make_shard(plan, order["shard"], root, tokenizer, skip=skip, on_item=on_item)
        say({"done": order["shard"], "listed": report.listed, "tokens": report.tokens, "bad": len(report.bad)})


if __name__ == "__main__":
    serve_parent()

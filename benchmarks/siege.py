"""A siege of `smalti serve` on loopback: 600 requests in 60 seconds, honest, huge, slow, broken and hostile ones mixed.

`python -m benchmarks.siege` starts the server as a process of its own, sends each request at its time from a fixed
schedule, and prints how the honest ones were answered, how fast `/health` was, and what memory the server holds before,
at its peak and after. It ends with an error where an honest answer is wrong or belongs to another request.
"""

import http.client
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import smalti
from smalti.video import to_uint8, to_video

NAME = "smalti/tiny-image"
SECONDS = 60.0
MIX = {"honest": 200, "health": 150, "huge": 60, "slow": 60, "gone": 60, "hostile": 70}
SIZES = ((1, 128, 128), (1, 96, 160), (1, 57, 83), (3, 64, 64), (1, 256, 256))
TRIES = 5
"""How often an honest client comes back after `503`."""
HOSTILE = (
    b"\x00" * 4096,
    b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
    b"POST /encode HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n",
    b"POST /encode?frames=1&height=8000&width=8000 HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/octet-stream\r\nContent-Length: 0\r\n\r\n",
    b"DELETE / HTTP/1.1\r\nHost: localhost\r\n\r\n",
)


class Case(NamedTuple):
    """An image or clip, and what the tokenizer makes of it."""

    frames: np.ndarray
    ids: bytes
    pixels: bytes
    grid: str


def cases() -> list[Case]:
    """Return inputs that differ from each other, and their answers by this process."""
    tokenizer, found = smalti.load(NAME), []
    for number, (t, h, w) in enumerate(SIZES * 4):
        frames = np.random.default_rng(number).integers(0, 256, (t, h // 8 + 1, w // 8 + 1, 3), dtype=np.uint8)
        frames = frames.repeat(8, 1).repeat(8, 2)[:, :h, :w]
        with torch.inference_mode():
            ids = tokenizer.encode(to_video(frames))
            pixels = to_uint8(tokenizer.decode(ids, size=(t, h, w)))
        grid = ",".join(map(str, ids.shape[1:]))
        found.append(Case(frames, ids.numpy().astype("<i8").tobytes(), pixels.numpy().tobytes(), grid))
    return found


class Siege:
    """The clients, and what they saw."""

    def __init__(self, port: int, known: list[Case]) -> None:
        self.port, self.known = port, known
        self.seen: Counter[str] = Counter()
        self.health: list[float] = []
        self.wrong: list[str] = []
        self._lock = threading.Lock()

    def note(self, what: str) -> None:
        """Count an outcome."""
        with self._lock:
            self.seen[what] += 1

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Send a request and return status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body or None, {"Content-Type": "application/octet-stream"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def honest(self, number: int) -> None:
        """Encode and decode an image, and compare both answers with its own."""
        case = self.known[number % len(self.known)]
        t, h, w = case.frames.shape[:3]
        query = f"tokenizer={NAME}&frames={t}&height={h}&width={w}"
        for verb, sent, wanted in (
            (f"encode?{query}", case.frames.tobytes(), case.ids),
            (f"decode?{query}&grid={case.grid}", case.ids, case.pixels),
        ):
            for attempt in range(TRIES):
                status, body = self.ask("POST", f"/{verb}", sent)
                if status != 503:
                    break
                self.note("honest: asked to come back")
                time.sleep(1 + attempt)
            if status == 200 and body == wanted:
                self.note("honest: right")
            elif status == 503:
                self.note("honest: given up")
            else:
                self.wrong.append(f"{verb}: {status}, {body[:120]!r}")

    def ask_health(self, number: int) -> None:
        """Measure how long `/health` takes."""
        begun = time.monotonic()
        status, body = self.ask("GET", "/health")
        self.health.append(time.monotonic() - begun)
        if status != 200 or json.loads(body)["status"] != "ok":
            self.wrong.append(f"health: {status}")

    def huge(self, number: int) -> None:
        """Send 64 MB where 32 are allowed."""
        self.raw(self.head(64 * 2**20), bytes(2**20), 64)

    def slow(self, number: int) -> None:
        """Drip a body for as long as the server waits."""
        self.raw(self.head(49152), b"x", 40, pause=0.5)

    def gone(self, number: int) -> None:
        """Begin an upload of 3 MB and leave."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(self.head(3 * 2**20) + bytes(random.Random(number).randrange(2**21)))
        self.note("gone: left")

    def hostile(self, number: int) -> None:
        """Send what is no request, or one that is to be refused."""
        self.raw(HOSTILE[number % len(HOSTILE)], b"", 0)

    def head(self, length: int) -> bytes:
        """Return the head of an upload."""
        return (
            f"POST /encode?tokenizer={NAME}&frames=1&height=128&width=128 HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Content-Type: application/octet-stream\r\nContent-Length: {length}\r\n\r\n"
        ).encode()

    def raw(self, head: bytes, part: bytes, count: int, pause: float = 0.0) -> None:
        """Send bytes and look at what comes back: one line of JSON, or nothing."""
        kind, answer = sys._getframe(1).f_code.co_name, b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            try:
                connection.sendall(head)
                for _ in range(count):
                    connection.sendall(part)
                    time.sleep(pause)
            except OSError:
                pass  # the server has ended it
            try:
                while more := connection.recv(65536):
                    answer += more
            except OSError:
                pass
        self.note(f"{kind}: {answer[9:12].decode() or 'no answer'}")
        if b"Traceback" in answer or (answer and b'{"error": ' not in answer and b" 503 " not in answer[:20]):
            self.wrong.append(f"{kind}: {answer[:200]!r}")

    def run(self) -> float:
        """Send all, each at its time; return the seconds that took."""
        kinds: dict[str, Callable[[int], None]] = {
            **{"honest": self.honest, "health": self.ask_health, "huge": self.huge},
            **{"slow": self.slow, "gone": self.gone, "hostile": self.hostile},
        }
        plan = [(kind, number) for kind, count in MIX.items() for number in range(count)]
        random.Random(0).shuffle(plan)
        begun = time.monotonic()

        def at(place: int, kind: str, number: int) -> None:
            time.sleep(max(0.0, begun + place * SECONDS / len(plan) - time.monotonic()))
            try:
                kinds[kind](number)
            except OSError as error:
                self.note(f"{kind}: {type(error).__name__}")
                if kind in ("honest", "health"):
                    self.wrong.append(f"{kind}: {error}")

        with ThreadPoolExecutor(len(plan)) as pool:
            list(pool.map(lambda entry: at(entry[0], *entry[1]), enumerate(plan)))
        return time.monotonic() - begun


def memory(process: int, field: str = "VmRSS") -> float:
    """Return the memory of a process in MB."""
    text = Path(f"/proc/{process}/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(field)) / 1024


def main() -> int:
    """Run the siege and print its figures."""
    known = cases()
    command = [sys.executable, "-m", "smalti", "serve", NAME, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline().split("/")[2].split(":")[1])
            siege = Siege(port, known)
            for number in range(len(known)):  # the memory of a server that has worked
                siege.honest(number)
            siege.seen.clear()
            before = memory(server.pid)
            took = siege.run()
            time.sleep(20)  # the last slow ones are cut off, the sockets close
            after, peak = memory(server.pid), memory(server.pid, "VmHWM")
            siege.ask_health(0)
        finally:
            server.terminate()
    for what, count in sorted(siege.seen.items()):
        print(f"{count:>5}  {what}")
    health = np.sort(siege.health)
    p50, p95 = (health[int(share * (len(health) - 1))] * 1000 for share in (0.5, 0.95))
    print(f"{sum(MIX.values())} requests in {took:.0f} s; wrong or crossed: {len(siege.wrong)} {siege.wrong[:3] or ''}")
    print(f"health: median {p50:.0f} ms, p95 {p95:.0f} ms, longest {health[-1] * 1000:.0f} ms")
    print(f"memory: {before:.0f} MB before, {peak:.0f} MB at the peak, {after:.0f} MB after ({after - before:+.0f})")
    return int(bool(siege.wrong) or after - before > 100 or p95 > 500)


if __name__ == "__main__":
    sys.exit(main())

"""The HTTP server of the page: loopback alone, and bounded in connections, bytes, time and waiting work."""

import io
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import BoundedSemaphore, Lock
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from smalti.app.page_files import PageFile
from smalti.app.service import Answer, Busy, Line
from smalti.errors import SmaltiError, is_out_of_memory
from smalti.text import say
from smalti.version import __version__

_LONGEST_LINE = 2**16
_PART = 2**18
_LINGER = 2.0
"""Seconds in which a refused body is read on."""
_LOOPBACK = {"127.0.0.1", "localhost", "[::1]"}
_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


class Limits(NamedTuple):
    """How much is taken at a time."""

    body: int
    """Bytes of one body."""
    connections: int = 64
    """Connections at a time; one more is refused at once."""
    arrival: float = 15.0
    """Seconds that a request may take to arrive, and its answer to be taken."""
    waiting: int = 32
    """Pieces of work that wait for their turn."""
    work: float = 120.0
    """Seconds until a piece of work must be done, its waiting included."""
    arriving: int = 128 * 2**20
    """Bytes of all bodies that are in memory at a time."""


Verb = Callable[[Mapping[str, str], bytes], Answer]


class Refused(Exception):
    """A request that is not answered with what it wants: its status, and one line that says why."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


class UploadBudget:
    """Bytes that all requests together may hold."""

    def __init__(self, total: int) -> None:
        self._left, self._lock = total, Lock()

    def take(self, count: int) -> bool:
        """Take so many bytes if they are there."""
        with self._lock:
            if count > self._left:
                return False
            self._left -= count
            return True

    def give(self, count: int) -> None:
        """Give them back."""
        with self._lock:
            self._left += count


class PageServer(ThreadingHTTPServer):
    """The files of the page from memory, by their exact paths, its verbs, and `/health`: no request reaches a disk."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, port: int, files: Mapping[str, PageFile], verbs: Mapping[str, Verb], limits: Limits) -> None:
        self.files, self.verbs, self.limits = files, verbs, limits
        self.line = Line(limits.waiting, limits.work)
        self.budget = UploadBudget(limits.arriving)
        self._slots = BoundedSemaphore(limits.connections)
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def address(self) -> str:
        """Address of the page."""
        return f"http://127.0.0.1:{self.server_port}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own if there is one left, else refuse."""
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        try:
            request.settimeout(0.2)
            request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        except OSError:
            pass
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and free the slot however that ends."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that are gone."""

    def server_close(self) -> None:
        """Stop listening, and begin no more work."""
        self.line.stop()
        super().server_close()


class _Arriving(io.RawIOBase):
    """A socket to read from until a moment in time, however slowly its bytes come."""

    def __init__(self, connection: socket.socket, until: float) -> None:
        self._connection, self._until = connection, until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request takes too long to arrive")
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    """One request, then the connection ends."""

    server: PageServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = f"smalti/{__version__}", ""

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Arriving(self.connection, time.monotonic() + self.server.limits.arrival), 65536)

    def handle(self) -> None:
        self.close_connection = True
        try:
            self.raw_requestline = self.rfile.readline(_LONGEST_LINE + 1)
            if len(self.raw_requestline) > _LONGEST_LINE:
                self.send_error(414)
            elif self.raw_requestline and self.parse_request():  # which answers what is no request
                verbs = {"GET": self._get, "HEAD": self._get, "POST": self._post}
                if self.command in verbs:
                    self._answer(verbs[self.command])
                else:
                    self.send_error(501)
        except OSError:  # nothing arrives, too slowly, or the client is gone
            pass

    def _answer(self, work: Callable[[], tuple[bytes, str, dict[str, str]]]) -> None:
        """Send what `work` returns, or one line that says why not: never a traceback."""
        try:
            self._check_sender()
            content, kind, headers = work()
            self._send(200, content, kind, headers)
        except Refused as refused:
            self._refuse(refused.status, str(refused))
        except Busy as busy:
            self._refuse(503, str(busy), {"Retry-After": "2"})
        except SmaltiError as error:
            self._refuse(400, str(error))
        except TimeoutError:
            self._refuse(408, f"the request took more than {self.server.limits.arrival:g} s to arrive")
        except OSError:
            pass  # the client is gone
        except Exception as error:
            if is_out_of_memory(error):
                self._refuse(503, "out of memory: take a smaller image or a shorter clip")
                return
            line = (
                f"internal error in {self.command} {urlsplit(self.path).path[:60]!r}: {type(error).__name__}: {error}"
            )
            say(" ".join(line.split())[:400])
            self._refuse(500, "internal error; the terminal of smalti serve says more")

    def _check_sender(self) -> None:
        """Refuse other names of this machine, behind which another site may hide, and scripts of other sites."""
        hosts = self.headers.get_all("Host") or []
        name = hosts[0].lower() if len(hosts) == 1 else ""
        bare = name[: name.rfind("]") + 1] if name.startswith("[") else name.partition(":")[0]
        if bare not in _LOOPBACK:
            raise Refused(403, "this page answers at 127.0.0.1 and localhost alone")
        origin = self.headers.get("Origin")
        if origin is not None and origin.lower() != f"http://{name}":
            raise Refused(403, "requests of other sites are not answered")

    def _get(self) -> tuple[bytes, str, dict[str, str]]:
        path = urlsplit(self.path).path
        if path == "/health":
            state = {"status": "ok", "smalti": __version__, "waiting": self.server.line.waiting}
            return json.dumps(state).encode(), "application/json", {}
        file = self.server.files.get("index.html" if path == "/" else path.removeprefix("/"))
        if file is None:
            raise Refused(404, "there is no such page")
        return file.content, file.kind, {}

    def _post(self) -> tuple[bytes, str, dict[str, str]]:
        split = urlsplit(self.path)
        verb = self.server.verbs.get(split.path.removeprefix("/"))
        if verb is None:
            raise Refused(404, "there is no such verb")
        if self.headers.get_content_type() != "application/octet-stream":
            raise Refused(415, "the body must be application/octet-stream")
        try:
            query = dict(parse_qsl(split.query, keep_blank_values=True, max_num_fields=16))
        except ValueError:
            raise Refused(400, "the query has too many fields") from None
        with self._body() as body:
            answer = self.server.line.do(lambda: verb(query, body))
        numbers = {f"Smalti-{name.title()}": ",".join(map(str, value)) for name, value in answer.numbers.items()}
        return answer.body, "application/octet-stream", numbers

    @contextmanager
    def _body(self) -> Iterator[bytes]:
        """Read the body, no more bytes of it than are allowed, and hold its share of the budget for the block."""
        text = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not (text.isascii() and text.isdigit() and len(text) < 12):
            raise Refused(411, "the body must have a Content-Length")
        if (length := int(text)) > self.server.limits.body:
            raise Refused(413, f"the body has {length:,} bytes; at most {self.server.limits.body:,} are taken")
        body, held = bytearray(), 0
        try:
            while len(body) < length:
                wanted = min(_PART, length - len(body))
                if not self.server.budget.take(wanted):
                    raise Busy("too many uploads at a time; try again in a moment")
                held += wanted
                part = self.rfile.read(wanted)
                if len(part) < wanted:
                    raise Refused(400, f"the body ends after {len(body) + len(part):,} of {length:,} bytes")
                body += part
            yield bytes(body)
        finally:
            self.server.budget.give(held)

    def _refuse(self, status: int, line: str, headers: Mapping[str, str] | None = None) -> None:
        try:
            body = json.dumps({"error": " ".join(line.split())[:400]}).encode()
            self._send(status, body, "application/json", dict(headers or {}))
            if self.command == "POST":
                self._read_rest()
        except OSError:
            pass

    def _read_rest(self) -> None:
        """Read on for a moment: to a client whose bytes are not read, the system says reset instead of the answer."""
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_WR)
        until, left = time.monotonic() + _LINGER, self.server.limits.body
        while left > 0 and (wait := until - time.monotonic()) > 0:
            self.connection.settimeout(wait)
            part = self.connection.recv(_PART)
            left -= len(part)
            if not part:
                return

    def _send(self, status: int, content: bytes, kind: str, headers: Mapping[str, str]) -> None:
        self.connection.settimeout(self.server.limits.arrival)
        self.send_response(status)
        fixed = {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Connection": "close",
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Content-Security-Policy": _POLICY,
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        for name, value in {**fixed, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the standard library refuses (a request line that is none, headers without end) as all else."""
        self.command = getattr(self, "command", None) or "GET"
        self.request_version = self.protocol_version  # of HTTP/0.9 an answer would have no status
        self._refuse(int(code), "this is not a request that is answered here")

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing: what a client sends does not reach the terminal."""

"""Laws of `smalti serve`: the answers are the tokenizer's own, and all that a client can break is a line."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from smalti.app.serve import open_server
from smalti.app.server import Limits, UploadBudget
from smalti.app.service import Answer, Busy, Line
from smalti.errors import ConfigError, IntegrityError, MachineError
from smalti.generation import Generator, MaskedConfig, Origin
from smalti.tokenizer import Tokenizer
from smalti.video import to_uint8, to_video
from tests.token_sets import save_tokenizer

PIXELS = 2**16
PATIENT = Limits(body=8 * PIXELS)


@contextmanager
def running(*names, limits=PATIENT, max_pixels=PIXELS):
    server = open_server([str(name) for name in names], 0, max_pixels, "cpu", limits)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tokenizer(tmp_path_factory.mktemp("served") / "tokenizer")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def server(folder):
    with running(folder) as server:
        yield server


def ask(server, method, path, body=None, **headers):
    """Status, headers and body of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    try:
        kind = {"Content-Type": "application/octet-stream"} if method == "POST" else {}
        connection.request(method, path, body, {**kind, **{k.replace("_", "-"): v for k, v in headers.items()}})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def raw(server, data, patience=10.0):
    """All that the server answers to bytes as they are."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=patience) as connection:
        connection.sendall(data)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def random_frames(*size):
    return np.random.default_rng(sum(size)).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(1, 32, 32), (1, 1, 1), (1, 37, 50), (2, 9, 8), (5, 16, 24), (8, 13, 31)])
def test_ids_and_pixels_over_http_are_those_of_the_tokenizer(server, folder, tokenizer, size):
    frames = random_frames(*size)
    query = f"tokenizer={folder}&frames={size[0]}&height={size[1]}&width={size[2]}"
    status, headers, body = ask(server, "POST", f"/encode?{query}", frames.tobytes())
    assert status == 200, body
    with torch.inference_mode():
        ids = tokenizer.encode(to_video(frames))
        pixels = to_uint8(tokenizer.decode(ids, size=size))
    grid = tuple(map(int, headers["Smalti-Grid"].split(",")))
    assert np.array_equal(np.frombuffer(body, "<i8").reshape(1, *grid), ids.numpy())
    grid_text = ",".join(map(str, grid))
    status, _, body = ask(server, "POST", f"/decode?{query}&grid={grid_text}", body)
    assert status == 200, body
    assert np.array_equal(np.frombuffer(body, np.uint8).reshape(*size, 3), pixels[0].numpy())


def test_the_page_and_its_files_are_served_and_nothing_else(server):
    for path in ("/", "/index.html", "/main.js", "/style.css", "/examples/owl.jpg", "/health", "/tokenizers.json"):
        status, headers, body = ask(server, "GET", path)
        assert status == 200, path
        assert body
        assert "default-src 'none'" in headers["Content-Security-Policy"]
    for path in (
        "/server.py",
        "/../server.py",
        "/%2e%2e/server.py",
        "//etc/passwd",
        "/examples/",
        "/main.js/",
        "/etc/passwd",
    ):
        status, _, body = ask(server, "GET", path)
        assert (status, json.loads(body)) == (404, {"error": "there is no such page"}), path
    assert ask(server, "HEAD", "/main.js")[2] == b""


GOOD = "frames=1&height=8&width=8"
BODY = bytes(8 * 8 * 3)
HOSTILE = {
    "another host": ({"Host": "evil.example"}, GOOD, BODY, 403, "127.0.0.1 and localhost"),
    "a host that begins well": ({"Host": "localhost.evil.example"}, GOOD, BODY, 403, "127.0.0.1 and localhost"),
    "another origin": ({"Origin": "https://evil.example"}, GOOD, BODY, 403, "other sites"),
    "an origin that is null": ({"Origin": "null"}, GOOD, BODY, 403, "other sites"),
    "a form": ({"Content-Type": "text/plain"}, GOOD, BODY, 415, "octet-stream"),
    "a short body": ({}, GOOD, BODY[:-1], 400, "192 bytes (found 191)"),
    "a long body": ({}, GOOD, BODY + b"x", 400, "192 bytes (found 193)"),
    "no body": ({}, GOOD, b"", 400, "192 bytes (found 0)"),
    "too large a body": ({}, GOOD, bytes(8 * PIXELS + 1), 413, "at most"),
    "too many pixels": ({}, "frames=1&height=8000&width=8000", BODY, 400, "more than 65,536 pixels"),
    "a side that is too long": ({}, "frames=1&height=9000&width=1", BODY, 400, "height: must be 1 to 8192"),
    "no pixels": ({}, "frames=1&height=0&width=8", b"", 400, "height: must be 1"),
    "less than none": ({}, "frames=1&height=-8&width=8", BODY, 400, "height: give 1 whole number"),
    "a fraction": ({}, "frames=1&height=8.5&width=8", BODY, 400, "height: give 1 whole number"),
    "digits of another script": ({}, "frames=1&height=%D9%A8&width=8", BODY, 400, "height: give 1 whole number"),
    "a number without end": ({}, f"frames=1&height={'9' * 5000}&width=8", BODY, 400, "height: give 1 whole number"),
    "no size": ({}, "", BODY, 400, "frames: give 1 whole number"),
    "many fields": ({}, "&".join(f"a{i}=1" for i in range(100)), BODY, 400, "too many fields"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_request_gets_one_line(server, folder, name):
    headers, query, body, status, line = HOSTILE[name]
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    head = {"Content-Type": "application/octet-stream", **headers}
    connection.request("POST", f"/encode?tokenizer={folder}&{query}", body, head)
    answer = connection.getresponse()
    said = json.loads(answer.read())
    connection.close()
    assert (answer.status, list(said)) == (status, ["error"])
    assert line in said["error"]
    assert "\n" not in said["error"]
    assert ask(server, "GET", "/health")[0] == 200


@pytest.mark.parametrize(
    ("grid", "ids", "line"),
    [
        ("1,2,2", np.array([0, 1, 2, -1]), "ids"),
        ("1,2,2", np.array([0, 1, 2, 2**62]), "ids"),
        ("1,2,2", np.arange(3), "32 bytes (found 24)"),
        ("1,2", np.arange(4), "grid: give 3 whole numbers"),
        ("8000,8000,8000", np.arange(4), "more than 65,536 pixels"),
        ("1,1,1", np.arange(1), "size"),
    ],
)
def test_hostile_ids_get_one_line(server, folder, grid, ids, line):
    query = f"tokenizer={folder}&grid={grid}&frames=1&height=8&width=8"
    status, _, body = ask(server, "POST", f"/decode?{query}", ids.astype("<i8").tobytes())
    assert status == 400
    assert line in json.loads(body)["error"]


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PUT / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"a%d: b\r\n" % i for i in range(200)) + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"POST /encode HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n\r\n",
        b"POST /encode HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
        b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        b"POST /encode HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
        b"Content-Length: -1\r\n\r\n",
    ],
    ids=lambda data: repr(data[:30]),
)
def test_bytes_that_are_no_request_get_one_line_or_nothing(folder, data):
    """A server of its own, which waits a moment only for what never comes."""
    with running(folder, limits=PATIENT._replace(arrival=0.5)) as server:
        answer = raw(server, data)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4") or answer.startswith(b"HTTP/1.1 5"), answer[:200]
        assert b"Traceback" not in answer
        assert b"<" not in answer
        assert ask(server, "GET", "/health")[0] == 200


def test_a_body_that_drips_is_cut_off_and_others_are_answered_meanwhile(folder):
    with running(folder, limits=PATIENT._replace(arrival=1.0)) as server:
        head = f"POST /encode?tokenizer={folder}&{GOOD} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 192\r\n"
        begun = time.monotonic()
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as slow:
            slow.sendall(head.encode() + b"Content-Type: application/octet-stream\r\n\r\n")
            try:
                while time.monotonic() - begun < 5:
                    slow.sendall(b"x")
                    time.sleep(0.1)
                    assert ask(server, "GET", "/health")[0] == 200
                    slow.setblocking(False)
                    try:
                        answer = slow.recv(65536)
                        break
                    except BlockingIOError:
                        slow.settimeout(10)
            except OSError:
                answer = b""
        assert 0.9 < time.monotonic() - begun < 4
        assert answer == b"" or b" 408 " in answer


def test_one_connection_more_than_there_are_is_refused_and_they_come_back(folder):
    with running(folder, limits=PATIENT._replace(connections=3, arrival=1.0)) as server:
        idle = [socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(3)]
        time.sleep(0.2)
        assert raw(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 503")
        time.sleep(1.2)
        assert ask(server, "GET", "/health")[0] == 200
        for one in idle:
            one.close()


def test_work_waits_in_a_line_of_bounded_length_and_time():
    line, begun, goes_on = Line(waiting=1, seconds=0.6), threading.Event(), threading.Event()
    done = []

    def slow():
        begun.set()
        goes_on.wait()
        return Answer(b"", {})

    def gives_up(work):
        with pytest.raises(Busy) as busy:
            line.do(work)
        done.append(str(busy.value))

    first = threading.Thread(target=gives_up, args=(slow,))
    second = threading.Thread(target=gives_up, args=(lambda: done.append("too late"),))
    first.start()
    begun.wait()
    second.start()
    time.sleep(0.1)
    with pytest.raises(Busy, match="too much is waiting"):
        line.do(slow)
    first.join()
    second.join()
    goes_on.set()
    assert done == ["this took longer than 0.6 s; take a smaller image or a shorter clip"] * 2
    assert line.do(lambda: Answer(b"now", {})).body == b"now"
    assert len(done) == 2  # what gave up waiting is not done later
    with pytest.raises(ZeroDivisionError):
        line.do(lambda: 1 // 0)
    line.stop()


def test_all_bodies_together_are_bounded():
    budget = UploadBudget(10)
    assert budget.take(6)
    assert not budget.take(5)
    assert budget.take(4)
    budget.give(6)
    assert budget.take(5)


def test_what_breaks_inside_is_a_line_in_the_terminal_and_no_traceback_in_a_body(folder, capfd):
    with running(folder) as server:
        server.verbs = {"encode": lambda query, body: 1 // 0}
        status, _, body = ask(server, "POST", f"/encode?{GOOD}", BODY)
    assert (status, json.loads(body)) == (500, {"error": "internal error; the terminal of smalti serve says more"})
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "internal error in POST '/encode': ZeroDivisionError" in said


@pytest.fixture(scope="module")
def model(folder, tokenizer, tmp_path_factory):
    """A token model of clips of 5 x 16 x 24, random but for its seed."""
    run = tmp_path_factory.mktemp("run") / "model"
    torch.manual_seed(0)
    config = MaskedConfig(levels=tokenizer.levels, grid=(3, 4, 6), classes=2, width=16, depth=1, heads=2)
    origin = Origin(tokenizer=tokenizer.fingerprint, strides=tokenizer.strides, classes=("cat", "dog"), fps=8.0)
    Generator(config.build(), origin).save(run / "generator")
    text = f"kind: generator\ndata: nowhere\ntokenizer: {folder}\nsteps: 1\ngenerator: {json.dumps(config.plain())}\n"
    (run / "config.yaml").write_text(text)
    return run


def test_a_token_model_generates_a_class_and_continues_a_clip(model, folder, tokenizer):
    with running(model) as server:
        facts = json.loads(ask(server, "GET", "/tokenizers.json")[2])
        assert [one["name"] for one in facts["tokenizers"]] == [str(folder)]
        assert facts["models"] == [
            {"name": str(model), "tokenizer": str(folder), "classes": ["cat", "dog"], "continues": True}
        ]
        made = {}
        for label, seed in ((0, 0), (0, 0), (1, 0), (0, 1)):
            status, headers, body = ask(server, "POST", f"/generate?model={model}&label={label}&seed={seed}", b"")
            assert status == 200, body
            assert (headers["Smalti-Grid"], headers["Smalti-Size"]) == ("3,4,6", "5,16,24")
            made.setdefault((label, seed), []).append(body)
        assert made[0, 0][0] == made[0, 0][1]
        assert len({bodies[0] for bodies in made.values()}) == 3
        frames = random_frames(3, 16, 24)
        query = f"model={model}&label=1&seed=3&frames=3&height=16&width=24"
        status, _, body = ask(server, "POST", f"/continue?{query}", frames.tobytes())
        assert status == 200, body
        with torch.inference_mode():
            known = tokenizer.encode(to_video(frames))
        ids = np.frombuffer(body, "<i8").reshape(1, 3, 4, 6)
        assert np.array_equal(ids[:, :2], known.numpy())  # 1 + 2 frames are two latent frames
        for query, line in (("label=2&seed=0", "label: must be 0 to 1"), ("label=0", "seed: give")):
            status, _, body = ask(server, "POST", f"/generate?model={model}&{query}", b"")
            assert status == 400
            assert line in json.loads(body)["error"]


def test_a_model_of_another_tokenizer_and_a_name_that_comes_twice_are_refused(model, folder, tmp_path):
    with pytest.raises(ConfigError, match="comes twice"):
        open_server([folder, folder], 0, PIXELS)
    other = save_tokenizer(tmp_path / "other", seed=1)
    (run := tmp_path / "run").mkdir()
    (run / "generator").symlink_to(model / "generator")
    (run / "config.yaml").write_text((model / "config.yaml").read_text().replace(str(folder), str(other)))
    with pytest.raises(IntegrityError, match="tokenizer"):
        open_server([run], 0, PIXELS)


def test_a_port_in_use_is_one_line(server, folder):
    with pytest.raises(MachineError, match=rf"port: {server.server_port} cannot be used .*; give another `port`"):
        open_server([folder], server.server_port, PIXELS)


def test_control_c_stops_the_command_in_one_line(folder):
    # Under a background job of a shell, programs ignore the signal.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{listen}; from smalti.cli.main import main; main(['serve', {str(folder)!r}, '--port', '0'])"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", program], **pipes)
    try:
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:")
        assert line.endswith("open this page; Ctrl-C stops\n")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, "", "stopped\n")

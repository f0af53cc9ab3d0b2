"""As much of the Hugging Face hub's interface as a download needs, on the loopback interface of this machine."""

import hashlib
import http.server
import json
import threading
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "89abcdef0123456789abcdef0123456789abcdef"


class LoopbackHub(http.server.BaseHTTPRequestHandler):
    """Serves `repositories`: name -> (commit -> (path -> content or the file that has it)); counts what is fetched."""

    protocol_version = "HTTP/1.1"
    repositories: ClassVar[dict[str, dict[str, dict[str, bytes | Path]]]] = {}
    gated: ClassVar[dict[str, int]] = {}
    """Repository -> status of its refusal: 401 without a login, 403 with one and the licence not accepted."""
    broken: ClassVar[set[str]] = set()
    """Paths whose transfer ends in the middle."""
    fetched: ClassVar[list[tuple[str, str]]] = []

    @classmethod
    def clear(cls):
        cls.repositories, cls.gated, cls.broken, cls.fetched = {}, {}, set(), []

    def do_HEAD(self):
        self.serve(with_body=False)

    def do_GET(self):
        self.serve(with_body=True)

    def serve(self, with_body):
        path = unquote(urlsplit(self.path).path)
        for models in ("/api/models/", "/api/datasets/"):  # both are repositories here
            if path.startswith(models):
                return self.serve_api(path.removeprefix(models))
        repository, _, rest = path.removeprefix("/").removeprefix("datasets/").partition("/resolve/")
        commit, _, inside = rest.partition("/")
        if repository in self.gated:
            return self.refuse(self.gated[repository], "GatedRepo")
        files = self.repositories.get(repository, {}).get(self.commit_of(commit), {})
        if inside not in files:
            return self.refuse(404, "EntryNotFound" if repository in self.repositories else "RepoNotFound")
        if with_body:
            self.fetched.append((repository, inside))
        return self.send_file(inside, files[inside], self.commit_of(commit), with_body)

    def serve_api(self, path):
        repository, _, rest = path.partition("/revision/")
        repository, _, tree = repository.partition("/tree/")
        if repository not in self.repositories:
            return self.refuse(401, "RepoNotFound")
        commit = self.commit_of((tree or rest or "main").split("/")[0])
        if commit not in self.repositories[repository]:
            return self.refuse(404, "RevisionNotFound")
        files = self.repositories[repository][commit]
        if tree:
            rows = [{"type": "file", "path": name, "oid": "0" * 40, "size": size_of(f)} for name, f in files.items()]
            return self.answer(200, json.dumps(rows).encode())
        gated = "manual" if repository in self.gated else False
        facts = {"id": repository, "modelId": repository, "sha": commit, "private": False, "gated": gated,
                 "siblings": [{"rfilename": name} for name in files]}  # fmt: skip
        return self.answer(200, json.dumps(facts).encode())

    def commit_of(self, revision):
        return {"main": COMMIT, "old": OLDER}.get(revision, revision)

    def send_file(self, inside, file, commit, with_body):
        data = file if isinstance(file, bytes) else file.read_bytes()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        if with_body and inside in self.broken:
            self.answer(200, data[: len(data) // 2], {**headers, "Content-Length": str(len(data))})
            self.close_connection = True
            return
        self.answer(200, data if with_body else b"", {**headers, "Content-Length": str(len(data))})

    def refuse(self, status, code):
        self.answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": f"{code} here"})

    def answer(self, status, data, headers=None):
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(data)),
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


def size_of(file):
    return len(file) if isinstance(file, bytes) else file.stat().st_size


def started():
    """A server of it, that listens."""
    LoopbackHub.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), LoopbackHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server

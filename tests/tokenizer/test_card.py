"""The model card: the hub's front matter, the facts of `info`, and only figures that were measured."""

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import smalti
from smalti.errors import ConfigError, MachineError, SmaltiError
from smalti.tokenizer.card import model_card, read_evaluation

REPORT = {"kind": "report", "psnr": 24.123, "ssim": 0.7, "lpips": None, "clips": 8, "frames": 9,
          "protocol": {"name": "smalti"}, "frechet": None}  # fmt: skip


def front_matter(card: str) -> dict[str, object]:
    opening, front, _ = card.split("---\n", 2)
    assert opening == ""
    return yaml.safe_load(front)


def test_a_card_has_the_facts_of_info_and_the_hubs_front_matter():
    facts = smalti.load("smalti/tiny-video").facts()
    card = model_card(facts, "me/mine", licence="apache-2.0")
    front = front_matter(card)
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "smalti"
    assert {"visual-tokenizer", "video-tokenizer", "fsq"} <= set(front["tags"])
    assert "4 x 8 x 8" in card
    assert facts["fingerprint"] in card
    assert 'smalti.load("me/mine")' in card
    assert "license" not in front_matter(model_card(facts, "me/mine"))
    assert "Figures" not in card


def test_a_card_has_the_figures_of_the_report_and_no_others(tmp_path: Path):
    facts = smalti.load("smalti/tiny-image").facts()
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    for path in (tmp_path, tmp_path / "report.json"):
        card = model_card(facts, "me/mine", report=read_evaluation(path))
        assert "PSNR 24.12 dB, SSIM 0.7000: 8 samples, 9 frames, protocol `smalti`" in card
        assert "LPIPS" not in card


def test_the_card_of_an_imported_tokenizer_says_whose_it_is():
    tokenizer = smalti.load(Path(__file__).parents[1] / "goldens" / "maskgit_tiny.bin")
    card = model_card(tokenizer.facts(), "me/copy")
    assert tokenizer.source is not None
    assert front_matter(card)["license"] == "other"
    assert f"licence of the weights: {tokenizer.source.licence}" in card


@pytest.mark.parametrize("content", ["[]", '{"kind": "generation"}', "{"])
def test_another_file_is_no_report(tmp_path: Path, content: str):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(SmaltiError, match=r"report\.json"):
        read_evaluation(tmp_path)


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's interface as an upload of small files needs; keeps what arrives."""

    files: dict[str, bytes]
    status = 200

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/repos/create"):
            return self.answer({"url": self.address, "name": "me/mine"})
        if self.path.endswith("/validate-yaml"):
            return self.answer({"warnings": [], "errors": []})
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return self.answer({"files": modes})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self.answer({"commitUrl": f"{self.address}/commit/1", "commitOid": "0" * 40})

    def do_GET(self) -> None:
        self.answer({"id": "me/mine", "sha": "0" * 40, "siblings": []})

    @property
    def address(self) -> str:
        return f"http://{self.headers['Host']}/me/mine"

    def answer(self, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    Hub.files, Hub.status = {}, 200
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    import huggingface_hub.constants
    import huggingface_hub.utils

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    begin_anew = getattr(huggingface_hub.utils, "reset_sessions", lambda: None)  # before 1.0 clients are kept
    begin_anew()
    yield Hub
    begin_anew()
    server.shutdown()
    server.server_close()


def test_a_hub_that_refuses_or_is_away_is_one_line(hub: type[Hub], monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub.constants

    tokenizer = smalti.load("smalti/tiny-image")
    with pytest.raises(ConfigError, match=r"^repository: "):
        tokenizer.push_to_hub("not a name")
    hub.status = 403
    with pytest.raises(MachineError, match=r"^me/mine: the hub answered with error 403"):
        tokenizer.push_to_hub("me/mine")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MachineError, match=r"^me/mine: the hub could not be reached"):
        tokenizer.push_to_hub("me/mine")


def test_what_is_pushed_loads_again_beside_its_card(hub: type[Hub], tmp_path: Path):
    tokenizer = smalti.load("smalti/tiny-image")
    tokenizer.push_to_hub("me/mine", licence="apache-2.0")
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    assert hub.files["README.md"].decode().startswith("---\n")
    assert smalti.load(tmp_path).fingerprint == tokenizer.fingerprint

"""The model card of a tokenizer on the Hugging Face hub: what it is, how good it was measured to be, how to load it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from smalti.errors import InputError
from smalti.files import read_json

_SCORES = {"psnr": "PSNR {:.2f} dB", "ssim": "SSIM {:.4f}", "ms_ssim": "MS-SSIM {:.4f}", "lpips": "LPIPS {:.4f}"}
_USE = """## Use

```sh
pip install smalti
smalti reconstruct {repository} {samples}/ --out reconstructed
```

```python
import smalti

tokenizer = smalti.load("{repository}")
```"""


def model_card(
    facts: Mapping[str, Any],
    repository: str,
    *,
    licence: str | None = None,
    report: Mapping[str, Any] | None = None,
) -> str:
    """Return a model card as Markdown, with the front matter that the hub reads.

    `facts` are those of `Tokenizer.facts`, `report` what `read_evaluation` returns. `licence` is an identifier of the
    hub, as `apache-2.0`; without it, an imported tokenizer has that of its project, and the card of another has none.
    """
    medium, source = facts["kind"], facts.get("source")
    tags = ["visual-tokenizer", f"{medium}-tokenizer", facts["quantizer"]]
    front: dict[str, Any] = {"library_name": "smalti", "tags": tags}
    if source is not None:
        tags.append(source["family"])
        front |= {"license": "other", "license_name": source["licence"]}  # in its words, which are no identifier
    if licence is not None:
        front = {name: value for name, value in front.items() if name != "license_name"} | {"license": licence}
    parts = [f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---", f"# {repository}", _table(facts)]
    if source is not None:
        revision = f" at {source['revision']}" if "revision" in source else ""
        origin = f"Imported from {source['name']}{revision}, the network {source['network']} of {source['family']}"
        stated = f" (stated by: {source['licence_source']})" if "licence_source" in source else ""
        parts.append(f"{origin}; licence of the weights: {source['licence']}{stated}.")
    parts.append(_USE.format(repository=repository, samples="images" if medium == "image" else "clips"))
    if report is not None:
        scores = [text.format(report[name]) for name, text in _SCORES.items() if report.get(name) is not None]
        if (frechet := report.get("frechet")) is not None:
            scores.append(f"{frechet['name']} {frechet['distance']:.3f}")
        amount = f"{report['clips']:,} samples, {report['frames']:,} frames, protocol `{report['protocol']['name']}`"
        parts.append(f"## Figures\n\n{', '.join(scores)}: {amount}.")
    return "\n\n".join(parts) + "\n"


def read_evaluation(path: Path) -> dict[str, Any]:
    """Read the report of a tokenizer, a folder or the report.json in it. Raises InputError for another file."""
    path = path / "report.json" if path.is_dir() else path
    report = read_json(path)
    if not isinstance(report, dict) or report.get("kind") != "report":
        raise InputError(
            f"{path}: not the report of one tokenizer; `smalti eval TOKENIZER --data D --out R` writes one"
        )
    return report


def _table(facts: Mapping[str, Any]) -> str:
    strides, bits = facts["strides"], facts["bits_per_token"]
    sides = [strides["time"], strides["rows"], strides["columns"]]
    rows = {
        "pixels a token": " x ".join(map(str, sides if facts["kind"] == "video" else sides[1:])),
        "codes": f"{facts['codebook_size']:,}, {bits:.4g} bits a token",
        "bits per pixel": f"{facts['bits_per_pixel']:.4g}",
        "parameters": f"{facts['parameters']['all']:,}",
        "causal, can be streamed": "yes" if facts["is_causal"] else "no",
        "tiles equal the whole": "yes" if facts["is_tile_exact"] else "no",
        "fingerprint": f"`{facts['fingerprint']}`",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"A tokenizer of {facts['kind']}s: pixels in [-1, 1] to integers and back.\n\n| | |\n|---|---|\n{table}"

"""The page of the demo: images, curves and tables, in one HTML file beside them."""

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smalti.app.html import document, figures, html_table, image_figure, number, svg_figure
from smalti.files import write_bytes
from smalti.metrics import Report
from smalti.version import __version__


def write_page(out: Path, results: Mapping[str, Any], reports: Mapping[str, Report]) -> None:
    """Write `out/index.html`; the images and videos that it shows are beside it."""
    image, video, codec = results["image"], results["video"], results["codec"]
    curves = _curves({name: _read_log(out / name / "log.jsonl") for name in ("image", "video")})
    body = [
        "<h1>smalti</h1>",
        f'<p class="lead">A visual tokenizer, trained on this machine just now: photographs and video become integers '
        f"and come back from them. {results['seconds'] / 60:.1f} minutes, {results['threads']} threads.</p>",
        figures(
            ("photographs, PSNR", f"{image['psnr']:.2f} dB"),
            ("video, PSNR", f"{video['psnr']:.2f} dB"),
            ("codes", f"{image['codebook_size']:,}"),
            ("bits per pixel of video", f"{codec['bits_per_pixel']:.3f}"),
        ),
        "<h2>Photographs it has never seen</h2>",
        image_figure("photos.png", "Centre crops at 256 pixels; the tokenizer was trained on crops of 64."),
        _scores("Held-out photographs at 128 pixels", reports["image"]),
        "<h2>A video from integers alone</h2>",
        f"<p>{codec['frames']} frames of {codec['size'][1]}x{codec['size'][0]} became {codec['tokens']:,} integers "
        f"({' x '.join(map(str, codec['token_grid']))}) in <code>ids.npy</code>; a tokenizer read from disk decoded "
        f"them, two latent frames at a time. Encoding in chunks of 7 frames or in one piece gave "
        f"{_count(codec['streamed_ids_that_differ'], 'different integer')}. Left the original, right what came "
        f"back: {codec['psnr']:.2f} dB.</p>",
        '<figure><video src="video.mp4" controls loop muted autoplay playsinline></video></figure>',
        image_figure("frames.png", "Four frames of it."),
        _scores("Held-out clips, 17 frames at 128 pixels", reports["video"]),
        "<h2>Inflation: an image tokenizer becomes a video tokenizer</h2>",
        _inflation(results),
        "<h2>How it learnt</h2>",
        curves,
        "<h2>Where the time went</h2>",
        html_table(["stage", "seconds"], [[s["name"], f"{s['seconds']:.1f}"] for s in results["stages"]]),
        f"<small>smalti {__version__}. All figures are in <code>report.json</code>; every score is under the protocol "
        f"<code>smalti</code>, described in full in it. Fingerprint of the video tokenizer: "
        f"<code>{codec['fingerprint'][:16]}</code>. Photographs and videos: see ATTRIBUTION.md of the samples.</small>",
    ]
    write_bytes(out / "index.html", document("smalti demo", body))


def _count(number: int, noun: str) -> str:
    return f"no {noun}" if number == 0 else f"{number} {noun}{'s' if number > 1 else ''}"


def _scores(title: str, report: Report) -> str:
    def cells(name: str, r: Any) -> list[str]:
        return [name, number(r.psnr, 2), number(r.ssim, 4), number(r.ms_ssim, 4), number(r.lpips, 4)]

    rows = [cells("mean", report), *(cells(row.key, row) for row in report.rows)]
    shown = html_table([title, "PSNR dB", "SSIM", "MS-SSIM", "LPIPS"], rows)
    use = report.codebook
    if use is not None:
        shown += (
            f"<small>{use.tokens:,} tokens used {use.distinct:,} different codes of {use.codebook_size:,} "
            f"({use.expected_distinct:,.0f} in a uniform sample of the same size); perplexity {use.perplexity:,.0f}."
            "</small> "
        )
    reasons = "; ".join(f"{name}: {reason}" for name, reason in report.absent.items())
    return shown + (f"<small>{html.escape(reasons)}</small>" if reasons else "")


def _inflation(results: Mapping[str, Any]) -> str:
    rows = [
        [name, number(results[key]["psnr"], 2), number(results[key]["ssim"], 4)]
        for name, key in (("inflated, not trained on video", "inflated"), ("after fine-tuning on video", "video"))
    ]
    return (
        "<p>The image tokenizer's kernels become the taps of the current frame and the taps of past frames start at "
        "zero: before any training on video, every latent frame is exactly the image tokenizer's.</p>"
        + html_table(["on unseen clips", "PSNR dB", "SSIM"], rows)
    )


def _read_log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _curves(logs: Mapping[str, list[dict[str, Any]]]) -> str:
    """PSNR and perplexity against steps, as one SVG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots(1, 2)
    for (name, lines), colour in zip(logs.items(), ("#0e7c86", "#c8553d"), strict=True):
        trained = [line for line in lines if "psnr" in line]
        measured = [line for line in lines if "validation/psnr" in line]
        axes[0].plot([r["step"] for r in trained], [r["psnr"] for r in trained], color=colour, alpha=0.35, lw=1)
        points = [r["validation/psnr"] for r in measured]
        axes[0].plot([r["step"] for r in measured], points, "o-", color=colour, label=f"{name}, held out", ms=4)
        axes[1].plot([r["step"] for r in trained], [r["perplexity"] for r in trained], color=colour, label=name, lw=1)
    axes[0].set(xlabel="step", ylabel="PSNR, dB")
    axes[1].set(xlabel="step", ylabel="perplexity of a log interval's ids", yscale="log")
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    return svg_figure(figure)

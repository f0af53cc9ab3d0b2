"""The parts that pages are made of: one style, tables, tiles, images, plots; all in one HTML file."""

import html
import io
from collections.abc import Sequence
from typing import Any

_STYLE = """
:root { --ink: #1d2530; --soft: #5d6b7a; --line: #e3e7ec; --paper: #fbfaf7; --tile: #0e7c86; }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 Georgia, 'Times New Roman', serif }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem }
h1 { font-size: 2.2rem; margin: 0 0 .25rem } h2 { font-size: 1.35rem; margin: 2.5rem 0 .75rem }
p.lead { color: var(--soft); font-size: 1.1rem; margin: 0 0 1.5rem; max-width: 46rem }
html_table { border-collapse: collapse; width: 100%; font: 14px/1.4 system-ui, sans-serif; margin: .5rem 0 1rem }
th, td { text-align: right; padding: .4rem .6rem; border-bottom: 1px solid var(--line) }
td { font-variant-numeric: tabular-nums }
th:first-child, td:first-child { text-align: left } th { color: var(--soft); font-weight: 600 }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin: 1rem 0 }
.figure { background: #fff; border: 1px solid var(--line); border-top: 4px solid var(--tile); padding: .7rem .9rem }
.figure b { display: block; font-size: 1.6rem } .figure span { color: var(--soft); font: 13px system-ui, sans-serif }
img, video { max-width: 100%; display: block; border: 1px solid var(--line); background: #fff } video { width: 100% }
figure { margin: 1rem 0 } figcaption, small { color: var(--soft); font: 13px/1.5 system-ui, sans-serif }
code { font-size: .88em; background: #f0eee8; padding: .1em .3em; overflow-wrap: anywhere }
"""


def document(title: str, body: Sequence[str]) -> bytes:
    """Return a whole page of these parts."""
    text = "\n".join(body)
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><main>{text}</main></body></html>\n"
    )
    return page.encode()


def figures(*pairs: tuple[str, str]) -> str:
    """Return tiles of (name, value)."""
    tiles = "".join(f'<div class="figure"><b>{value}</b><span>{name}</span></div>' for name, value in pairs)
    return f'<div class="figures">{tiles}</div>'


def image_figure(name: str, caption: str) -> str:
    """Return an image file beside the page as a figure."""
    return f'<figure><img src="{name}" alt="{html.escape(caption)}"><figcaption>{caption}</figcaption></figure>'


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of rows of text; the first column is a name."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{lines}</table>"


def number(value: float | None, digits: int) -> str:
    """Return the number with so many digits after the point, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def svg_figure(figure: Any) -> str:
    """Return a figure of matplotlib as SVG within the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return f"<figure>{text[text.index('<svg') :]}</figure>"

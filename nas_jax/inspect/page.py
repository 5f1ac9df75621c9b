"""An HTML page that loads nothing: all is inside, and its policy forbids the rest."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"

STYLE = (
    """
:root { --paper: #fff; --ink: #1d2430; --soft: #5d6675; --line: #e3e6eb; --card: #fbfbfc; --ground: #eceff3;
  --good: #2f8f5b; --bad: #b3261e; --look: #b26a00; --mark: #b3261e;
  --c0: #2563a8; --c1: #d9730d; --c2: #2f8f5b; --c3: #b3407f; --c4: #7a5cc9;
  --c5: #8a7419; --c6: #2a98b0; --c7: #6b7280; --c8: #c0504d; --c9: #4f6228; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --ink: #e6e8ec; --soft: #9aa3b2; --line: #2b313b;
  --card: #1a1e25; --ground: #262c36; --good: #5cc98c; --bad: #ff8a80; --look: #ffb74d; --mark: #ff8a80;
  --c0: #6fa8e8; --c1: #f2a154; --c2: #5cc98c; --c3: #e27fb5; --c4: #ab94ee;
  --c5: #cdb44f; --c6: #62c5da; --c7: #a3abb8; --c8: #e58a87; --c9: #9db46c; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: var(--ink);
  background: var(--paper); max-width: 82rem; margin: 0 auto; padding: 1.5rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2.6rem 0 .8rem; } h3 { font-size: 1rem; }
header p, .note { color: var(--soft); margin: .2rem 0 .8rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .8rem 0 1.2rem; padding-bottom: .7rem;
  border-bottom: 1px solid var(--line); }
nav a { color: var(--c0); text-decoration: none; } nav a:hover { text-decoration: underline; }
.badge { display: inline-block; font-size: .8rem; font-weight: 600; padding: .1rem .6rem; border-radius: 1rem;
  vertical-align: .25rem; margin-left: .6rem; color: #fff; background: var(--soft); }
.badge.done { background: #2f8f5b; } .badge.part { background: #b26a00; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .8rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .6rem .9rem; }
.tile span { color: var(--soft); font-size: .8rem; overflow-wrap: anywhere; }
.tile b { display: block; font-size: 1.35rem; line-height: 1.3; }
.tile small { color: var(--soft); }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1rem; }
table.narrow { width: auto; min-width: 18rem; margin: .4rem 0 1rem; }
figure { margin: 0; }
.chart { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .7rem .8rem;
  position: relative; }
.chart svg { width: 100%; height: auto; display: block; overflow: visible; }
.chart p { margin: 0 0 .2rem; color: var(--soft); font-size: .78rem; line-height: 1.35; }
figcaption { font-weight: 600; font-size: .92rem; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .3rem 0 0; padding: 0;
  font-size: .78rem; color: var(--soft); } .legend b { color: var(--ink); font-weight: 600; }
.legend i { display: inline-block; width: .7rem; height: .7rem; border-radius: .15rem; margin-right: .35rem; }
svg text { font-size: 11px; fill: var(--soft); } text.y { text-anchor: end; } text.x { text-anchor: middle; }
text.mark { text-anchor: end; fill: var(--mark); font-size: 10px;
  stroke: var(--card); stroke-width: 3px; paint-order: stroke; }
.grid line.grid, line.grid { stroke: var(--line); } line.mark { stroke: var(--mark); stroke-dasharray: 4 3; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; } .line.thin { stroke-width: 1; opacity: .3; }
.cursor { stroke: var(--soft); stroke-dasharray: 2 2; visibility: hidden; } .cursor.on { visibility: visible; }
.tip { position: absolute; pointer-events: none; background: var(--ink); color: var(--paper); font-size: .75rem;
  padding: .3rem .55rem; border-radius: .35rem; white-space: nowrap; z-index: 2; display: none; }
.split svg { border-radius: .4rem; }
rect.ground { fill: var(--ground); } rect.over { fill: var(--c0); } rect.under { fill: var(--c7); }
circle.blind { fill: var(--c1); }
.bar { display: block; overflow: visible; } .bar .mark { stroke-width: 2; stroke-dasharray: 3 2; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th { text-align: left; color: var(--soft); font-weight: 600; }
th, td { padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: middle; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
.facts td:first-child { color: var(--soft); width: 13rem; } td { overflow-wrap: anywhere; }
td.n { white-space: nowrap; }
details { border: 1px solid var(--line); border-radius: .6rem; padding: .5rem .9rem; margin: .6rem 0; }
summary { cursor: pointer; font-weight: 600; }
.warnings { list-style: none; padding: 0; margin: 0; display: grid; gap: .5rem; }
.warnings li { border: 1px solid var(--line); border-left: .3rem solid var(--look); border-radius: .4rem;
  padding: .45rem .8rem; background: var(--card); }
.warnings li.bad { border-left-color: var(--bad); } .warnings small { display: block; color: var(--soft); }
.picture img { max-width: 100%; border: 1px solid var(--line); border-radius: .6rem; background: #fff; }
pre { overflow: auto; font-size: .78rem; max-height: 24rem; }
"""
    + "".join(
        f".c{i} {{ stroke: var(--c{i}); fill: var(--c{i}); background: var(--c{i}); }} "
        for i in range(10)
    )
    + """
path.line { fill: none; } .split rect { stroke: none; }
@media print { nav { display: none; } }
@media (max-width: 40rem) { body { padding: 1rem; } .facts td:first-child { width: 7rem; }
  details { overflow-x: auto; padding: .5rem; } td { overflow-wrap: normal; } .facts td { overflow-wrap: anywhere; } }
"""
)

# A line under the pointer, and the values where it stands.
SCRIPT = """
for (const figure of document.querySelectorAll('[data-chart]')) {
  const chart = JSON.parse(figure.dataset.chart), svg = figure.querySelector('svg');
  const tip = document.createElement('div');
  const cursor = svg.querySelector('.cursor'), [left, right, first, last] = chart.x;
  tip.className = 'tip'; figure.append(tip);
  svg.addEventListener('pointermove', event => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    const share = ((event.clientX - box.left) * scale - left) / (right - left);
    if (share < -0.02 || share > 1.02) { tip.style.display = 'none'; return; }
    const wanted = first + share * (last - first), lines = [];
    let at = null;
    for (const [name, steps, values] of chart.series) {
      let best = 0;
      steps.forEach((step, i) => { if (Math.abs(step - wanted) < Math.abs(steps[best] - wanted)) best = i; });
      if (at === null || Math.abs(steps[best] - wanted) < Math.abs(at - wanted)) at = steps[best];
      lines.push([name, steps[best], values[best]]);
    }
    const x = left + (right - left) * (at - first) / (last - first);
    cursor.setAttribute('x1', x); cursor.setAttribute('x2', x); cursor.classList.add('on');
    tip.replaceChildren(...['step ' + at, ...lines.filter(l => l[1] === at)
      .map(l => l[0] + ' ' + l[2] + chart.unit)].map(text => {
        const line = document.createElement('div'); line.textContent = text; return line; }));
    tip.style.display = 'block';
    const flip = share > 0.6 ? tip.offsetWidth + 14 : -14;
    tip.style.left = (box.left - figure.getBoundingClientRect().left + x / scale - flip) + 'px';
    tip.style.top = (box.top - figure.getBoundingClientRect().top + 8) + 'px';
  });
  svg.addEventListener('pointerleave', () => { tip.style.display = 'none'; cursor.classList.remove('on'); });
}
"""


def page(title: str, header: str, sections: Sequence[tuple[str, str]]) -> str:
    """A whole document. sections: (heading, HTML); those without HTML are left out."""
    kept = [(heading, body) for heading, body in sections if body]
    links = "".join(
        f'<a href="#{anchor(heading)}">{html.escape(heading)}</a>' for heading, _ in kept
    )
    body = "\n".join(
        f'<section id="{anchor(heading)}"><h2>{html.escape(heading)}</h2>\n{inner}</section>'
        for heading, inner in kept
    )
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n<header>{header}</header>\n'
        f"<nav>{links}</nav>\n{body}\n<script>{SCRIPT}</script></body></html>\n"
    )


def anchor(heading: str) -> str:
    """`Step time` -> `step-time`."""
    return heading.lower().replace(" ", "-")


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], numbers: int = 0, kind: str = ""
) -> str:
    """Rows of HTML cells; the last `numbers` columns are set as numbers.

    "" if there are no rows.
    """
    if not rows:
        return ""
    first = len(rows[0]) - numbers

    def line(cells: Sequence[str], tag: str) -> str:
        inner = "".join(
            f"<{tag}{' class=n' if at >= first else ''}>{cell}</{tag}>"
            for at, cell in enumerate(cells)
        )
        return f"<tr>{inner}</tr>"

    head = line([html.escape(name) for name in header], "th") if header else ""
    return f'<table class="{kind}">{head}{"".join(line(row, "td") for row in rows)}</table>'


def facts(pairs: Sequence[tuple[str, object]]) -> str:
    """A table of names and values."""
    return table(
        (), [(html.escape(name), html.escape(str(value))) for name, value in pairs], kind="facts"
    )


def tile(name: str, value: str, more: str = "") -> str:
    """A number to be seen first."""
    small = f"<small>{html.escape(more)}</small>" if more else ""
    label = re.sub(r"([/_])", r"\1<wbr>", html.escape(name))  # a long name breaks between its words
    return f'<div class="tile"><span>{label}</span><b>{html.escape(value)}</b>{small}</div>'


def picture(path: Path) -> str:
    """A PNG as part of the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<figure class="picture"><img alt="{html.escape(path.name)}" src="data:image/png;base64,{data}"></figure>'


def folded(summary: str, inner: str, unfolded: bool = False) -> str:
    """What can be opened and closed. "" if there is nothing in it."""
    state = " open" if unfolded else ""
    return (
        f"<details{state}><summary>{html.escape(summary)}</summary>{inner}</details>"
        if inner
        else ""
    )

"""What every page shares: one file without a network, light and dark, and what it is made of."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any


def page(title: str, body: str) -> str:
    """A whole page. The title is escaped; the body is HTML, in which everything from outside is escaped already."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def figures(charts: Sequence[tuple[str, str]], kind: str = "charts") -> str:
    """Charts with their titles, beside each other where there is room. One that is empty is left out."""
    cards = "".join(f"<figure><figcaption>{title}</figcaption>{svg}</figure>" for title, svg in charts if svg)
    return f'<div class="{kind}">{cards}</div>'


def key(kind: str, text: str) -> str:
    """What a colour of a chart means, for its title."""
    return f'<span class="key {kind}">{escape(text)}</span>'


def table(values: Mapping[str, Any]) -> str:
    """Names and values, escaped."""
    rows = "".join(
        f"<tr><th>{escape(str(name))}</th><td>{escape(str(value))}</td></tr>" for name, value in values.items()
    )
    return f"<table>{rows}</table>"


def columns(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table with a head, escaped."""
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


STYLE = """\
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1d2430; --soft: #5c6675; --line: #dfe3e9;
  --accent: #2563eb; --good: #178048; --bad: #b45309; --bar: #aab6c8; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --card: #1b2129; --ink: #e6eaf0; --soft: #9aa5b4;
  --line: #303947; --accent: #7aa2ff; --good: #4cc38a; --bad: #f0a04b; --bar: #56637a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 32px 24px 64px; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1rem; font-weight: 600; margin: 0 0 4px; color: var(--soft); overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 40px 0 12px; }
.card, figure { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.score { display: grid; grid-template-columns: minmax(0, 1.6fr) minmax(0, 1fr); gap: 32px; padding: 28px 32px; }
.rate { font-size: clamp(3.2rem, 9vw, 5.5rem); font-weight: 700; line-height: 1.05; letter-spacing: -0.03em; }
.rate small { font-size: 1.15rem; font-weight: 500; letter-spacing: 0; color: var(--soft); }
.interval { font-size: 1.35rem; font-weight: 600; }
.track { position: relative; height: 10px; margin: 16px 0 10px; border-radius: 5px; background: var(--line); }
.track i { position: absolute; top: 0; bottom: 0; border-radius: 5px; background: var(--accent); opacity: 0.45; }
.track b { position: absolute; top: -4px; bottom: -4px; width: 4px; margin-left: -2px; border-radius: 2px;
  background: var(--accent); }
dl { display: grid; gap: 14px; margin: 0; align-content: center; }
dl div { border-left: 3px solid var(--line); padding-left: 14px; }
dt { color: var(--soft); font-size: 0.9rem; }
dd { margin: 0; font-size: 1.4rem; font-weight: 600; }
.soft { color: var(--soft); }
figure { margin: 0; padding: 14px; }
.videos { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 16px; }
.videos figure { padding: 0; overflow: hidden; }
.videos figcaption { padding: 10px 14px; font-size: 0.9rem; }
video { display: block; width: 100%; background: #fff; }
.charts { display: flex; flex-wrap: wrap; gap: 16px; margin-top: 16px; }
.charts figure { flex: 1 1 320px; min-width: 0; }
.charts figcaption { font-weight: 600; margin-bottom: 6px; }
svg { display: block; width: 100%; height: auto; max-height: 300px; }
svg text { fill: var(--soft); font-size: 12px; }
.grid { stroke: var(--line); } .marker { stroke: var(--ink); stroke-dasharray: 4 3; }
path { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.line { stroke: var(--accent); } .second { stroke: var(--bad); } .truth { stroke: var(--ink); }
.bound { stroke: var(--accent); stroke-width: 1; stroke-dasharray: 3 3; }
.many { stroke: var(--accent); stroke-width: 1; opacity: 0.7; }
.key { font-weight: 400; margin-left: 12px; color: var(--soft); }
.key::before { content: ""; display: inline-block; width: 18px; margin-right: 6px; vertical-align: 4px;
  border-top: 2px solid currentColor; }
.key.line::before { color: var(--accent); } .key.second::before { color: var(--bad); }
.key.truth::before { color: var(--ink); } .key.many::before { color: var(--accent); }
.curves, .traces { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 16px; }
.curves { margin-top: 16px; }
.traces { grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)); }
.curves figcaption, .traces figcaption { font-weight: 600; margin-bottom: 6px; }
.bar { fill: var(--bar); } .good { fill: var(--good); }
.success, .failure { font-weight: 600; } .success { color: var(--good); } .failure { color: var(--bad); }
pre { margin: 0; padding: 16px 18px; white-space: pre-wrap; overflow-wrap: anywhere; }
code, pre { font: 0.9rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 16px; }
.tables .card, .pad { padding: 8px 18px; }
.pad { overflow-x: auto; } .pad td { overflow-wrap: normal; }
.facts { grid-template-columns: 1fr 1fr; }
table { width: 100%; border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
tr:last-child > * { border-bottom: 0; }
th { font-weight: 500; color: var(--soft); white-space: nowrap; vertical-align: top; }
details { padding: 14px 18px; margin-top: 40px; }
summary { cursor: pointer; font-weight: 600; }
.scroll { max-height: 480px; overflow: auto; margin-top: 12px; }
thead th { position: sticky; top: 0; background: var(--card); }
@media (max-width: 700px) { .score { grid-template-columns: 1fr; padding: 22px; } body { padding: 20px 14px 48px; } }
"""

"""The report as one HTML page: no script, no network, every word that comes from a config escaped."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #1b1b1b; font: 16px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 1.2rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .4rem 0; }
h2 { font-size: 1.35rem; margin: 2.6rem 0 .4rem; padding-top: .6rem; border-top: 3px solid #0072b2; }
h3 { font-size: 1.08rem; margin: 1.8rem 0 .3rem; }
p, ul { max-width: 46rem; margin: .4rem 0; }
.lead { font-size: 1.12rem; }
.small, figcaption { color: #555; font-size: .875rem; }
.note { background: #fff4e0; border-left: 4px solid #e69f00; padding: .5rem .8rem; margin: .6rem 0; max-width: 46rem; }
.wide { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93rem; }
th, td { padding: .32rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e3e3e3; }
th { border-bottom: 2px solid #999; vertical-align: bottom; white-space: normal; min-width: 5.2rem; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
td:first-child { white-space: normal; max-width: 15rem; }
td.text, th.text { text-align: left; }
td b { font-weight: 700; }
td i { font-style: normal; color: #555; font-size: .8125rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem 1.6rem; }
figure { margin: .4rem 0; max-width: 34rem; }
figure svg { display: block; width: 100%; height: auto; }
pre { overflow-x: auto; background: #f5f5f5; padding: .6rem .8rem; font-size: .84rem; margin: .4rem 0; }
details { margin: .5rem 0; }
summary { cursor: pointer; font-weight: 600; }
nav a { margin-right: 1rem; }
a { color: #00558a; }
@media (max-width: 30rem) {
  main { padding: .6rem .7rem 3rem; }
  h1 { font-size: 1.4rem; }
  th, td { padding: .3rem .5rem; }
}
"""


def page(title: str, body: Iterable[str]) -> str:
    """The whole document; ``body`` is HTML already."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            # Nothing is fetched, whatever a config may have smuggled in; the icon would be asked for otherwise.
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
            'img-src data:">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main>",
            *body,
            "</main></body></html>",
            "",
        ]
    )


def heading(level: int, text: str, anchor: str = "") -> str:
    named = f' id="{escape(anchor)}"' if anchor else ""
    return f"<h{level}{named}>{escape(text)}</h{level}>"


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def note(text: str) -> str:
    return f'<div class="note">{escape(text)}</div>'


def preformatted(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def details(summary: str, body: Iterable[str]) -> str:
    return "\n".join([f"<details><summary>{escape(summary)}</summary>", *body, "</details>"])


def contents(places: Mapping[str, str]) -> str:
    """Links to anchors: {anchor: what it is called}."""
    links = (f'<a href="#{escape(anchor)}">{escape(name)}</a>' for anchor, name in places.items())
    return f"<nav>{''.join(links)}</nav>"


def charts(drawn: Sequence[tuple[str, str]]) -> str:
    """SVGs with captions, side by side where there is room."""
    figures = (
        f'<figure aria-label="{escape(caption)}">{svg}<figcaption>{escape(caption)}</figcaption></figure>'
        for svg, caption in drawn
    )
    return f'<div class="charts">{"".join(figures)}</div>'


class Cell(str):
    """A cell of a table that is HTML already."""


def cell(main: str, beside: str = "", below: str = "", bold: bool = False) -> Cell:
    """A number, and in smaller type what goes with it: beside it, and on a line of its own."""
    shown = f"<b>{escape(main)}</b>" if bold else escape(main)
    shown += f" <i>{escape(beside)}</i>" if beside else ""
    return Cell(f"{shown}<br><i>{escape(below)}</i>" if below else shown)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", text: Sequence[int] = ()) -> str:
    """A table that scrolls by itself; ``text`` are the columns that are words; all but ``Cell``s is escaped."""

    def line(tag: str, cells: Sequence[str]) -> str:
        drawn = []
        for index, one in enumerate(cells):
            kind = ' class="text"' if index in text else ""
            drawn.append(f"<{tag}{kind}>{one if isinstance(one, Cell) else escape(str(one))}</{tag}>")
        return f"<tr>{''.join(drawn)}</tr>"

    lines = "".join(line("td", row) for row in rows)
    drawn = f'<div class="wide"><table><thead>{line("th", header)}</thead><tbody>{lines}</tbody></table></div>'
    return drawn + (paragraph(caption, "small") if caption else "")  # outside of what scrolls

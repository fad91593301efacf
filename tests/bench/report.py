"""What was measured, as a table in Markdown and as pictures: read from `results.json`, which holds every run.

A ratio is that of two runs of one round; of a contestant's ratios, the median, least and most are told.
"""

import statistics
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, Final, NamedTuple

from filestreamer.wire.limits import GIB, MIB

Saved = dict[str, Any]
"""One case, as run.py saves it."""

UNDRAWN: Final = ("quick", "settings")
"""Cases that say nothing that others don't."""
WIDTH: Final = 860
BAR, ROW = 12, 20
LABEL, VALUE = 124, 40
"""Pixels beside the bars."""


class Ratio(NamedTuple):
    """Of the rounds."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f})"


def speed(case: Saved, who: str, beside: str) -> Ratio:
    """Say how many times as fast as the other one a contestant was."""
    pairs = zip(case["runs"][beside], case["runs"][who], strict=True)
    ratios = sorted(other["seconds"] / own["seconds"] for other, own in pairs)
    return Ratio(statistics.median(ratios), ratios[0], ratios[-1])


def reference(case: Saved) -> str:
    """Return whom all are compared with: cp, else the first one, which is the pair."""
    return "cp" if "cp" in case["runs"] else next(iter(case["runs"]))


def median(case: Saved, who: str, what: str) -> float:
    """Return the median of one of the figures of all rounds."""
    return float(statistics.median(run[what] for run in case["runs"][who]))


# --- the table


def markdown(results: dict[str, Saved]) -> str:
    """Return a table for each case."""
    return "\n".join(line for case in results.values() for line in table(case))


def table(case: Saved) -> Iterator[str]:
    """Yield one case's heading, table and notes."""
    runs = case["runs"]
    yield f"### {case['title']}"
    yield ""
    yield f"`{case['case']}`: {case['rounds']} interleaved rounds. {machine(case)}"
    yield ""
    if runs:
        beside = reference(case)
        first = next((who for who in runs if who in case["ours"]), beside)
        has_rate, has_cost = case["bytes"] >= MIB, case["files"] == 1 and case["bytes"] >= MIB
        rate = "files/s" if case["files"] > 1 else "MB/s"
        cost = "CPU s/GiB" if has_cost else "CPU s"
        yield (
            f"| | ms | {rate} | its speed / that of {beside} | that of {first} / its speed | {cost}"
            " | peak MiB, sender + receiver | verified |"
        )
        yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
        for who in runs:
            seconds, cpu_seconds = median(case, who, "seconds"), median(case, who, "cpu_seconds")
            amount = case["files"] if case["files"] > 1 else case["bytes"] / 1e6
            peaks = [max(run[f"{end}_peak_bytes"] for run in runs[who]) / MIB for end in ("client", "server")]
            yield (
                f"| {who} | {1000 * seconds:.0f} | {f'{amount / seconds:.0f}' if has_rate else ''}"
                f" | {speed(case, who, beside)} | {speed(case, first, who)}"
                f" | {cpu_seconds * GIB / case['bytes'] if has_cost else cpu_seconds:.2f}"
                f" | {peaks[0]:.0f} + {peaks[1]:.0f} | {'yes' if who in case['verifies'] else 'no'} |"
            )
    yield ""
    for who, why in case["failed"].items():
        yield f"Left out: {who} ({why})"
        yield ""
    for who, took in case["runs"].items():
        if scrapes := sorted(1000 * each for run in took for each in run["scrape_seconds"]):
            spread = f"{scrapes[0]:.0f} to {scrapes[-1]:.0f}, {len(scrapes)} scrapes"
            yield f"{who}: a scrape takes {statistics.median(scrapes):.0f} ms ({spread})"
            yield ""


def machine(case: Saved) -> str:
    """Say where that was."""
    about = case["machine"]
    return f"{about['cpus']} CPUs, Linux {about['kernel']}, Python {about['python']}."


# --- the pictures


class Bar(NamedTuple):
    """One contestant in a panel."""

    name: str
    value: Ratio
    is_ours: bool


class Panel(NamedTuple):
    """One case: bars from 0, with a whisker from least to most."""

    title: str
    unit: str
    bars: Sequence[Bar]
    mark: float | None = None
    """Where a line is drawn across all bars."""


STYLE: Final = """
  text { font: 11px ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #59636e }
  .title { font-size: 13px; font-weight: 600; fill: #1f2328 }
  .name { text-anchor: end } .ours { font-weight: 600; fill: #1f2328 } .unit { text-anchor: end }
  .peer { fill: #a9b4c0 } .pair { fill: #3f7fd6 } .auto { fill: #2f9a61 }
  .whisker { stroke: #1f2328; stroke-opacity: .65; stroke-width: 1.5 } .mark { stroke: #8b949e; stroke-dasharray: 3 3 }
  @media (prefers-color-scheme: dark) {
    text { fill: #a3adb8 } .title, .ours { fill: #f0f6fc } .peer { fill: #59636e } .pair { fill: #4f8fe6 }
    .whisker { stroke: #f0f6fc }
  }
"""


def speeds(results: dict[str, Saved]) -> str:
    """Draw how fast everybody is beside cp, in each case that has it."""
    panels = []
    for case in results.values():
        if "cp" in case["runs"] and case["case"] not in UNDRAWN:
            others = [who for who in case["runs"] if who != "cp"]
            bars = [Bar(who, speed(case, who, "cp"), who in case["ours"]) for who in others]
            panels.append(Panel(case["title"], "times as fast as cp (the line is 1)", bars, 1.0))
    return svg("Speed beside cp", panels, columns=2)


def links(results: dict[str, Saved]) -> str:
    """Draw rates over long links, by number of connections."""
    panels = []
    for case in results.values():
        if case["case"].startswith("link-"):
            bars = []
            for who, took in case["runs"].items():
                rates = sorted(case["bytes"] / run["seconds"] / 1e6 for run in took)
                value = Ratio(statistics.median(rates), rates[0], rates[-1])
                bars.append(Bar(who, value, who in case["ours"]))
            panels.append(Panel(case["title"].partition(" over ")[2], "MB/s", bars))
    return svg("Rates over long links", panels, columns=2)


def svg(title: str, panels: Sequence[Panel], *, columns: int) -> str:
    """Draw panels beside and below each other; empty where there is none."""
    if not panels:
        return ""
    width = WIDTH // columns
    parts, top = [], 0
    for at in range(0, len(panels), columns):
        row = panels[at : at + columns]
        for column, panel in enumerate(row):
            parts.append(f'<g transform="translate({column * width} {top})">{"".join(draw(panel, width))}</g>')
        top += 60 + ROW * max(len(panel.bars) for panel in row)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}"'
        f' role="img">\n<title>{escape(title)}</title><style>{STYLE}</style>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def draw(panel: Panel, width: int) -> Iterator[str]:
    """Yield the elements of one panel."""
    most = max([bar.value.most for bar in panel.bars] + [panel.mark or 0])
    left, space = LABEL + 8, width - LABEL - VALUE - 24

    def x(value: float) -> str:
        return f"{left + space * value / most:.1f}"

    bottom = 36 + ROW * len(panel.bars)
    yield f'<text class="title" x="8" y="20">{escape(panel.title)}</text>'
    if panel.mark is not None:
        yield f'<path class="mark" d="M{x(panel.mark)} 32V{bottom}"/>'
    for number, bar in enumerate(panel.bars):
        middle = 36 + ROW * number + ROW // 2 - 2
        value = bar.value
        name = escape(bar.name.removeprefix("--"))
        shown = f"{value.median:.2f}" if most < 10 else f"{value.median:.0f}"
        yield f'<text class="name{" ours" * bar.is_ours}" x="{LABEL}" y="{middle + 4}">{name}</text>'
        kind = "peer" if not bar.is_ours else "auto" if bar.name.endswith("auto") else "pair"
        yield (
            f'<rect class="{kind}" x="{left}" y="{middle - BAR // 2}" height="{BAR}"'
            f' width="{space * value.median / most:.1f}" rx="2"/>'
        )
        yield f'<path class="whisker" d="M{x(value.least)} {middle}H{x(value.most)}"/>'
        yield f'<text x="{left + space + 6}" y="{middle + 4}" class="value{" ours" * bar.is_ours}">{shown}</text>'
    yield f'<text class="unit" x="{left + space}" y="{bottom + 12}">{escape(panel.unit)}</text>'

"""Progress on a terminal: a live display at the bottom, drawn with rich. Imported only where it is shown.

Each transfer has two lines, and each of its connections one as far as there is room:

    sending ubuntu.iso                                   2.31 GiB of 5.00 GiB
    ━━━━━━━━━━━━━━━━━━━━━━━━━╸━━━━━━━━━━━━━━━  46%  1.23 GiB/s  ETA 0:02  moving
      0  up        154 MiB/s   16.0 MiB in flight
      1  up        154 MiB/s   12.0 MiB in flight
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Final, Self

from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.control import Control
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import ControlType, Segment
from rich.table import Table
from rich.text import Text

from filestreamer.process.background import is_writable
from filestreamer.process.log import printable
from filestreamer.settings.sizes import format_rate, format_size
from filestreamer.terminal.views import ConnectionView, Direction, TransferView

CONNECTION_LINES_MAX: Final = 16
"""Connections of a transfer that get a line of their own; all others share one line."""


class Screen:
    """A live display on standard error, between `with` and its end.

    While it is open, rich replaces sys.stderr, and sys.stdout where both are the same terminal: lines that are written
    there appear above the display.
    """

    def __init__(self, direction: Direction) -> None:
        self._direction: Direction = direction
        self._console = Console(stderr=True)
        self._fd = sys.stderr.fileno()
        # A result on standard output must go above the display where both are one terminal, and straight to its pipe or
        # file elsewhere.
        self._live = Live(
            console=self._console, auto_refresh=False, redirect_stdout=_is_same_terminal(), vertical_overflow="crop"
        )
        self._widths: list[int] = []  # columns of each line that was drawn last

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._live.stop()

    def show(self, views: Sequence[TransferView]) -> None:
        """Draw the transfers and their connections, as many as the terminal has room for."""
        self._measure()
        self._draw(frame(views, self._direction, self._console.height - 1))

    def finish(self, views: Sequence[TransferView]) -> None:
        """Draw the transfers without their connections; this drawing stays on the terminal."""
        self._measure()
        self._draw(frame(views, self._direction, 2 * len(views)))

    def show_cursor(self, *, is_shown: bool) -> None:
        """Show the cursor, or hide it again, at once and without waiting: in the handler of a signal.

        It is not hidden where the process goes on in the background: then it is the shell's.
        """
        with contextlib.suppress(OSError):
            if is_writable(self._fd) and (is_shown or os.tcgetpgrp(self._fd) == os.getpgrp()):
                os.write(self._fd, b"\x1b[?25h" if is_shown else b"\x1b[?25l")

    def _measure(self) -> None:
        # rich takes COLUMNS and LINES from the environment, which a window that is resized does not change.
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(self._fd)
            if all(size):
                self._console.size = ConsoleDimensions(*size)

    def _draw(self, drawing: Group) -> None:
        self._climb(wrapped_rows(self._widths, self._console.width))
        self._widths = [Segment.get_line_length(line) for line in self._console.render_lines(drawing, pad=False)]
        self._live.update(drawing, refresh=True)

    def _climb(self, rows: int) -> None:
        # A terminal that has become narrower has wrapped the lines: the display has more rows than rich knows of. The
        # additional rows are erased here, from the last one upwards, before rich erases its own.
        if rows:
            up = ((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1))
            self._console.control(Control(ControlType.CARRIAGE_RETURN, *rows * up))


def _is_same_terminal() -> bool:
    try:
        return os.path.samestat(os.fstat(sys.stdout.fileno()), os.fstat(sys.stderr.fileno()))
    except (OSError, ValueError, AttributeError):  # a stream that is closed, None, or without a descriptor
        return False


def wrapped_rows(widths: Sequence[int], columns: int) -> int:
    """Count the rows that lines of these widths have in excess of one each, on a terminal of `columns`."""
    return sum(max(0, width - 1) // max(1, columns) for width in widths)


def frame(views: Sequence[TransferView], direction: Direction, lines: int) -> Group:
    """Draw transfers in at most `lines` lines, but at least three.

    Each transfer takes two lines; lines that are left go to connections.
    """
    shown = len(views)
    if 2 * shown > lines:
        lines -= 1  # for the line that sums up the transfers without lines of their own
        shown = max(1, lines // 2)
    room = (lines - 2 * shown) // shown if shown else 0
    parts: list[RenderableType] = []
    for view in views[:shown]:
        parts += [_title(view, direction), _bar(view)]
        if not view.ended:
            parts += _connections(view.connections, room)
    if others := views[shown:]:
        parts.append(_line(f"… and {len(others)} more transfers:", others, "dim"))
    return Group(*parts)


def _title(view: TransferView, direction: Direction) -> Table:
    size = "?" if view.size_bytes is None else format_size(view.size_bytes)
    sizes = f"{format_size(view.done_bytes)} of {size}"
    if view.phase == "offering" and view.rehashed_bytes:
        sizes = f"checked again: {format_size(view.rehashed_bytes)}"
    title = Table.grid(expand=True, padding=(0, 2, 0, 0))
    title.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    title.add_column(justify="right", no_wrap=True)
    title.add_row(Text(f"{direction} {printable(os.path.basename(view.name))}", "bold"), sizes)
    return title


def _bar(view: TransferView) -> Table:
    phase = "stopped" if view.ended and view.phase != "complete" else view.phase
    bar = Table.grid(expand=True, padding=(0, 2, 0, 0))
    bar.add_column(ratio=1)
    for width in (4, 10, 8, 8):
        bar.add_column(justify="right", no_wrap=True, min_width=width)
    bar.add_row(
        ProgressBar(total=1.0, completed=view.fraction or 0.0),
        "" if view.fraction is None else f"{int(100 * view.fraction)}%",
        Text(format_rate(view.bytes_per_second), "cyan"),
        "" if view.ended else f"ETA {_duration(view.eta_seconds)}",
        Text(phase, "green" if phase == "complete" else "yellow"),
    )
    return bar


def _connections(connections: Sequence[ConnectionView], room: int) -> Iterator[Text]:
    """Yield at most `room` lines: one for each connection or, where there are too many, a last one for all others."""
    shown = len(connections)
    if shown > min(CONNECTION_LINES_MAX, room):
        shown = max(0, min(CONNECTION_LINES_MAX, room - 1))
    for item in connections[:shown]:
        style = "" if item.up else "red"
        yield _line(f"{item.connection_id:5d}  {'up' if item.up else 'down'}", [item], style)
    if (others := connections[shown:]) and room > 0:
        yield _line(f"  … and {len(others)} more:", others, "dim")


def _line(label: str, views: Sequence[ConnectionView | TransferView], style: str) -> Text:
    rate = format_rate(sum(view.bytes_per_second for view in views))
    in_flight = format_size(sum(view.bytes_in_flight for view in views))
    return Text(f"{label:<17}{rate:>11}{in_flight:>11} in flight", style, no_wrap=True, overflow="crop")


def _duration(seconds: float | None) -> str:
    if seconds is None or seconds >= 100 * 3600:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"

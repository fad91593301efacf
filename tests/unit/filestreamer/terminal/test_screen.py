"""Progress on a terminal: how it looks, and that it leaves the terminal as it was."""

import io
import os
import pty
import sys
from collections.abc import Sequence

import pytest
from rich.console import Console

from filestreamer.terminal.screen import Screen, frame, wrapped_rows
from filestreamer.terminal.views import TransferView
from tests.unit.filestreamer.terminal.samples import MIB, counters, move, view


def draw(views: Sequence[TransferView], lines: int = 23, width: int = 80) -> list[str]:
    """Return the lines of a frame as a terminal of that size shows them."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(frame(views, "sending", lines))
    shown = capture.get().splitlines()
    assert all(len(line) <= width for line in shown)
    return [line.rstrip() for line in shown]


def test_one_connection() -> None:
    transfer = counters(connections=1)
    move(transfer, 45 * MIB, in_flight_bytes=4 * MIB)
    title, bar, connection = draw([view(transfer)])

    assert title.split() == ["sending", "in.txt", "45.0", "MiB", "of", "100", "MiB"]
    assert bar.split()[1:] == ["45%", "4.50", "MiB/s", "ETA", "0:12", "moving"]
    assert connection.split() == ["0", "up", "4.50", "MiB/s", "4.00", "MiB", "in", "flight"]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_bar_uses_the_width_and_the_numbers_stay_whole(width: int) -> None:
    transfer = counters(name="a name that is longer than any terminal is wide " * 5)
    move(transfer, 25 * MIB)
    title, bar, *_ = draw([view(transfer)], width=width)

    assert title.endswith("50.0 MiB of 100 MiB")
    assert "…" in title
    assert bar.split()[1:] == ["50%", "5.00", "MiB/s", "ETA", "0:10", "moving"]


def test_sixteen_connections_have_a_line_each() -> None:
    shown = draw([view(counters(connections=16))])

    assert len(shown) == 18
    assert shown[-1].split()[:2] == ["15", "up"]


def test_sixty_four_connections_are_sixteen_lines_and_a_sum() -> None:
    transfer = counters(connections=64)
    move(transfer, MIB, in_flight_bytes=MIB)
    shown = draw([view(transfer, now=1.0)])

    assert len(shown) == 19
    assert shown[-2].split()[0] == "15"
    assert shown[-1].split() == "… and 48 more: 48.0 MiB/s 48.0 MiB in flight".split()


def test_a_low_terminal_has_fewer_lines() -> None:
    shown = draw([view(counters(connections=16))], lines=9)

    assert len(shown) == 9
    assert shown[-1].split()[:4] == ["…", "and", "10", "more:"]


@pytest.mark.parametrize("transfers", [0, 1, 2, 5, 11, 12, 40])
@pytest.mark.parametrize("lines", [3, 4, 9, 23])
def test_never_more_lines_than_there_is_room_for(transfers: int, lines: int) -> None:
    views = [view(counters(connections=8))] * transfers
    shown = draw(views, lines)

    assert len(shown) <= lines
    titles = sum(line.startswith("sending") for line in shown)
    assert titles == transfers or f"… and {transfers - titles} more transfers:" in shown[-1]


def test_a_connection_that_is_down_says_so() -> None:
    transfer = counters()
    transfer.connections[1].up = False

    assert [line.split()[1] for line in draw([view(transfer)])[2:]] == ["up", "down"]


def test_checking_what_is_there_is_shown() -> None:
    title, bar, *_ = draw([view(counters(phase="offering", rehashed_bytes=30 * MIB))])

    assert title.endswith("checked again: 30.0 MiB")
    assert bar.split()[-3:] == ["ETA", "-:--", "offering"]


def test_the_end_has_no_connections() -> None:
    transfer = counters(ended_at=10.0, phase="complete")
    move(transfer, 50 * MIB)

    assert [line.split()[1:] for line in draw([view(transfer)])][1:] == [["100%", "10.0", "MiB/s", "complete"]]


def test_an_end_that_is_not_complete_says_so() -> None:
    transfer = counters(ended_at=10.0)
    move(transfer, 25 * MIB)

    assert draw([view(transfer)])[1].endswith("stopped")


def test_a_hundred_percent_is_only_shown_for_all() -> None:
    transfer = counters(connections=1)
    move(transfer, 100 * MIB - 1)

    assert "99%" in draw([view(transfer)])[1]


@pytest.mark.parametrize(
    ("left_bytes", "expected"), [(0, "0:00"), (59, "0:59"), (61, "1:01"), (3661, "1:01:01"), (10**6, "-:--")]
)
def test_eta(left_bytes: int, expected: str) -> None:
    transfer = counters(connections=1, size_bytes=10 + left_bytes)
    move(transfer, 10)

    assert draw([view(transfer, now=10.0)])[1].split()[-2] == expected


def test_a_name_is_only_text() -> None:
    title = draw([view(counters(name="[bold]a[bold]\x1b[2J\nb\udcff"))])[0]

    assert title.startswith(r"sending [bold]a[bold]\x1b[2J\nb\udcff")


# On a terminal.


def read_all(main: int) -> str:
    """Return what was written to a terminal that is closed now."""
    parts = []
    try:
        while part := os.read(main, 4096):
            parts.append(part)
    except OSError:
        pass  # Linux says end of file so
    os.close(main)
    return b"".join(parts).decode()


def test_lines_of_others_go_above_the_display_and_the_terminal_is_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    main, secondary = pty.openpty()
    stdout = sys.stdout
    monkeypatch.setenv("TERM", "xterm")
    with open(secondary, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        transfer = counters(connections=1)
        with Screen("sending") as screen:
            screen.show([view(transfer)])
            sys.stderr.write("a line of the log\n")
            assert sys.stdout is stdout
            move(transfer, 100 * MIB)
            transfer.ended_at, transfer.phase = 10.0, "complete"
            screen.finish([view(transfer)])
        assert sys.stderr is terminal
    written = read_all(main)

    before, after = written.split("a line of the log")
    assert "0%" in before
    assert before.rindex("\x1b[2K") > before.rindex("in flight"), "the display is wiped before the line is written"
    assert "100%" in after
    assert "in flight" not in after[after.rindex("100%") :]
    assert before.count("\x1b[?25l") == after.count("\x1b[?25h") == 1, "the cursor is there again"
    assert written.endswith("\n\x1b[?25h")


def test_a_result_on_the_same_terminal_goes_above_the_display(monkeypatch: pytest.MonkeyPatch) -> None:
    main, secondary = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with open(secondary, "w") as terminal, os.fdopen(os.dup(secondary), "w") as stdout:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(sys, "stdout", stdout)
        with Screen("receiving") as screen:
            screen.show([view(counters(connections=1))])
            assert sys.stdout.isatty()
            sys.stdout.write("complete\n")
            screen.finish([])
        assert sys.stdout is stdout
    written = read_all(main)

    before = written[: written.index("complete")]
    assert before.rindex("\x1b[2K") > before.rindex("in flight"), "the display is wiped before the line is written"


@pytest.mark.parametrize(
    ("widths", "columns", "expected"),
    [([], 80, 0), ([80, 80, 48], 80, 0), ([80, 80, 48], 60, 2), ([80, 80, 48], 40, 3), ([80, 0], 27, 2), ([5], 0, 4)],
)
def test_lines_that_a_narrower_terminal_wraps(widths: list[int], columns: int, expected: int) -> None:
    assert expected == wrapped_rows(widths, columns)


def test_connections_are_in_order_however_they_came() -> None:
    transfer = counters(connections=3)
    transfer.connections.reverse()

    assert [line.split()[0] for line in draw([view(transfer)])[2:]] == ["0", "1", "2"]

"""Progress: what is computed from the counters, how it looks, and that it leaves terminal and log as they should be."""

import io
import os
import pty
import sys
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from filestreamer.telemetry.counters import ConnectionCounters, TransferCounters
from filestreamer.terminal import progress
from filestreamer.terminal.progress import LogLines, Meter, Progress, TransferView
from filestreamer.terminal.screen import Screen, frame, wrapped_rows

MIB = 1 << 20


def counters(connections: int = 2, **fields: Any) -> TransferCounters:
    """Return the counters of a transfer of 100 MiB that began at 0."""
    known: dict[str, Any] = {
        "transfer_id": b"\xde\xad\xbe\xef" + bytes(12),
        "name": "in.txt",
        "size_bytes": 100 * MIB,
        "phase": "moving",
        "started_at": 0.0,
        "connections": [ConnectionCounters(number, up=True) for number in range(connections)],
    }
    return TransferCounters(**known | fields)


def move(transfer: TransferCounters, acknowledged_bytes: int, in_flight_bytes: int = 0) -> None:
    """Let every connection have moved and acknowledged so much more."""
    for connection in transfer.connections:
        connection.acknowledged_bytes += acknowledged_bytes
        connection.moved_bytes = connection.acknowledged_bytes + in_flight_bytes


def look(transfer: TransferCounters, now: float = 10.0) -> TransferView:
    """Return what a meter that never saw the transfer says of it."""
    return Meter().look([transfer], now)[0]


def test_a_first_look_counts_from_the_start() -> None:
    transfer = counters()
    move(transfer, 10 * MIB, in_flight_bytes=MIB)
    view = look(transfer, now=4.0)

    assert view.bytes_per_second == 5 * MIB
    assert view.eta_seconds == 16.0
    assert view.bytes_in_flight == 2 * MIB
    assert [item.bytes_per_second for item in view.connections] == [2.5 * MIB, 2.5 * MIB]


def test_the_rate_is_that_of_the_last_few_seconds() -> None:
    transfer, meter = counters(connections=1, size_bytes=10_000 * MIB), Meter()
    for second in range(1, 11):
        move(transfer, MIB)
        meter.look([transfer], float(second))
    for second in range(11, 21):
        move(transfer, 9 * MIB)
        meter.look([transfer], float(second))
    move(transfer, 9 * MIB)
    view = meter.look([transfer], 21.0)[0]

    assert view.bytes_per_second == 9 * MIB
    assert view.eta_seconds == pytest.approx((10_000 - 109) / 9)


def test_what_stands_still_has_no_rate_and_no_eta() -> None:
    transfer, meter = counters(), Meter()
    move(transfer, MIB)
    for second in range(1, 10):
        meter.look([transfer], float(second))
    view = meter.look([transfer], 10.0)[0]

    assert view.bytes_per_second == 0
    assert view.eta_seconds is None


def test_held_bytes_are_done_and_not_in_the_rate() -> None:
    transfer = counters(held_bytes=50 * MIB)
    move(transfer, 5 * MIB)
    view = look(transfer)

    assert view.fraction == 0.6
    assert view.bytes_per_second == MIB
    assert view.eta_seconds == 40.0


def test_sent_is_not_done() -> None:
    transfer = counters()
    move(transfer, 0, in_flight_bytes=50 * MIB)
    view = look(transfer)

    assert view.fraction == 0.0
    assert view.bytes_in_flight == 100 * MIB


def test_a_transfer_that_has_ended_shows_its_average() -> None:
    transfer = counters(ended_at=20.0, phase="complete")
    move(transfer, 50 * MIB)

    assert look(transfer, now=1000.0).bytes_per_second == 5 * MIB


@pytest.mark.parametrize(("phase", "expected"), [("offering", 0.0), ("moving", 0.0), ("complete", 1.0)])
def test_an_empty_file_is_done_when_it_is_complete(phase: Any, expected: float) -> None:
    assert expected == look(counters(size_bytes=0, phase=phase)).fraction


def test_a_transfer_that_comes_back_is_not_mixed_up_with_what_it_was() -> None:
    transfer, meter = counters(), Meter()
    move(transfer, MIB)
    meter.look([transfer], 1.0)
    assert meter.look([], 2.0) == []
    assert meter.look([transfer], 4.0)[0].bytes_per_second == 0.5 * MIB


# Drawn.


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
    title, bar, connection = draw([look(transfer)])

    assert title.split() == ["sending", "in.txt", "45.0", "MiB", "of", "100", "MiB"]
    assert bar.split()[1:] == ["45%", "4.50", "MiB/s", "ETA", "0:12", "moving"]
    assert connection.split() == ["0", "up", "4.50", "MiB/s", "4.00", "MiB", "in", "flight"]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_bar_uses_the_width_and_the_numbers_stay_whole(width: int) -> None:
    transfer = counters(name="a name that is longer than any terminal is wide " * 5)
    move(transfer, 25 * MIB)
    title, bar, *_ = draw([look(transfer)], width=width)

    assert title.endswith("50.0 MiB of 100 MiB")
    assert "…" in title
    assert bar.split()[1:] == ["50%", "5.00", "MiB/s", "ETA", "0:10", "moving"]


def test_sixteen_connections_have_a_line_each() -> None:
    shown = draw([look(counters(connections=16))])

    assert len(shown) == 18
    assert shown[-1].split()[:2] == ["15", "up"]


def test_sixty_four_connections_are_sixteen_lines_and_a_sum() -> None:
    transfer = counters(connections=64)
    move(transfer, MIB, in_flight_bytes=MIB)
    shown = draw([look(transfer, now=1.0)])

    assert len(shown) == 19
    assert shown[-2].split()[0] == "15"
    assert shown[-1].split() == "… and 48 more: 48.0 MiB/s 48.0 MiB in flight".split()


def test_a_low_terminal_has_fewer_lines() -> None:
    shown = draw([look(counters(connections=16))], lines=9)

    assert len(shown) == 9
    assert shown[-1].split()[:4] == ["…", "and", "10", "more:"]


@pytest.mark.parametrize("transfers", [0, 1, 2, 5, 11, 12, 40])
@pytest.mark.parametrize("lines", [3, 4, 9, 23])
def test_never_more_lines_than_there_is_room_for(transfers: int, lines: int) -> None:
    views = [look(counters(connections=8))] * transfers
    shown = draw(views, lines)

    assert len(shown) <= lines
    titles = sum(line.startswith("sending") for line in shown)
    assert titles == transfers or f"… and {transfers - titles} more transfers:" in shown[-1]


def test_a_connection_that_is_down_says_so() -> None:
    transfer = counters()
    transfer.connections[1].up = False

    assert [line.split()[1] for line in draw([look(transfer)])[2:]] == ["up", "down"]


def test_checking_what_is_there_is_shown() -> None:
    title, bar, *_ = draw([look(counters(phase="offering", rehashed_bytes=30 * MIB))])

    assert title.endswith("checked again: 30.0 MiB")
    assert bar.split()[-3:] == ["ETA", "-:--", "offering"]


def test_the_end_has_no_connections() -> None:
    transfer = counters(ended_at=10.0, phase="complete")
    move(transfer, 50 * MIB)

    assert [line.split()[1:] for line in draw([look(transfer)])][1:] == [["100%", "10.0", "MiB/s", "complete"]]


def test_an_end_that_is_not_complete_says_so() -> None:
    transfer = counters(ended_at=10.0)
    move(transfer, 25 * MIB)

    assert draw([look(transfer)])[1].endswith("stopped")


def test_a_hundred_percent_is_only_shown_for_all() -> None:
    transfer = counters(connections=1)
    move(transfer, 100 * MIB - 1)

    assert "99%" in draw([look(transfer)])[1]


@pytest.mark.parametrize(
    ("left_bytes", "expected"), [(0, "0:00"), (59, "0:59"), (61, "1:01"), (3661, "1:01:01"), (10**6, "-:--")]
)
def test_eta(left_bytes: int, expected: str) -> None:
    transfer = counters(connections=1, size_bytes=10 + left_bytes)
    move(transfer, 10)

    assert draw([look(transfer, now=10.0)])[1].split()[-2] == expected


def test_a_name_is_only_text() -> None:
    title = draw([look(counters(name="[bold]a[bold]\x1b[2J\nb\udcff"))])[0]

    assert title.startswith(r"sending [bold]a[bold]\x1b[2J\nb\udcff")


# Logged.


class Log:
    """Remembers lines, and lets a test wait for one."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []
        self.written = threading.Event()

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))
        self.written.set()

    warning = info


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return such a log, where standard error is no terminal, whatever the tests run on."""
    monkeypatch.setattr(progress, "on_terminal", lambda: False)
    return Log()


def test_a_log_line_for_each_active_transfer(log: Any) -> None:
    active, ended = counters(), counters(ended_at=3.0)
    move(active, 10 * MIB, in_flight_bytes=MIB)
    LogLines(log).show(Meter().look([active, ended], 10.0))

    assert log.lines == [
        (
            "progress",
            {
                "transfer": "deadbeef",
                "percent": 20.0,
                "acknowledged_bytes": 20 * MIB,
                "size_bytes": 100 * MIB,
                "bytes_per_second": 2 * MIB,
                "bytes_in_flight": 2 * MIB,
                "eta_seconds": 40.0,
                "phase": "moving",
            },
        )
    ]


def test_many_transfers_share_a_line(log: Any) -> None:
    """Strangers may begin as many as they like."""
    many = [counters() for _ in range(64)]
    for each in many:
        move(each, 10 * MIB, in_flight_bytes=MIB)
    LogLines(log).show(Meter().look(many, 10.0))

    assert len(log.lines) == progress.LOG_LINES_MAX + 1
    left = 64 - progress.LOG_LINES_MAX
    assert log.lines[-1][1]["transfers"] == left
    assert log.lines[-1][1]["bytes_in_flight"] == left * 2 * MIB


def test_without_a_thread_it_says_so_and_disturbs_nobody(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        shown = Progress(list, log, direction="sending")
        shown.start()
        shown.stop()
    [(event, fields)] = log.lines
    assert event == "progress_display_failed"
    assert "no thread can be started" in fields["reason"]


def test_lines_come_from_a_thread_until_it_is_stopped(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOG_LINE_SECONDS", 0.001)
    shown = Progress(lambda: [counters()], log, direction="receiving", clock=lambda: 10.0)
    shown.start()
    shown.start()
    assert log.written.wait(10)
    assert [thread.name for thread in threading.enumerate()].count("progress") == 1
    shown.stop()
    shown.stop()

    assert "progress" not in [thread.name for thread in threading.enumerate()]
    assert {event for event, _ in log.lines} == {"progress"}


def test_a_quick_transfer_shows_nothing(log: Any) -> None:
    shown = Progress(lambda: [counters()], log, direction="sending")
    shown.start()
    shown.stop()

    assert log.lines == []


def test_stop_without_start_does_nothing(log: Any) -> None:
    Progress(list, log, direction="sending").stop()


def test_a_display_that_fails_is_one_warning(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Sequence[TransferCounters]:
        raise LookupError("no such transfer")

    monkeypatch.setattr(progress, "LOG_LINE_SECONDS", 0.001)
    shown = Progress(broken, log, direction="sending")
    shown.start()
    assert log.written.wait(10)
    shown.stop()

    assert log.lines == [("progress_display_failed", {"reason": "LookupError: no such transfer"})]


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
            screen.show([look(transfer)])
            sys.stderr.write("a line of the log\n")
            assert sys.stdout is stdout
            move(transfer, 100 * MIB)
            transfer.ended_at, transfer.phase = 10.0, "complete"
            screen.finish([look(transfer)])
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
            screen.show([look(counters(connections=1))])
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

    assert [line.split()[0] for line in draw([look(transfer)])[2:]] == ["0", "1", "2"]

"""The thread of the display: it starts once, stops when it is told to, and its troubles disturb no transfer."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from filestreamer.telemetry.counters import TransferCounters
from filestreamer.terminal import display
from filestreamer.terminal.display import ProgressDisplay
from tests.unit.filestreamer.terminal.samples import Log, counters


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return such a log, where standard error is no terminal, whatever the tests run on."""
    monkeypatch.setattr(display, "on_terminal", lambda: False)
    return Log()


def test_without_a_thread_it_says_so_and_disturbs_nobody(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        shown = ProgressDisplay(list, log, direction="sending")
        shown.start()
        shown.stop()
    [(event, fields)] = log.lines
    assert event == "progress_display_failed"
    assert "no thread can be started" in fields["reason"]


def test_lines_come_from_a_thread_until_it_is_stopped(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "LOG_LINE_SECONDS", 0.001)
    shown = ProgressDisplay(lambda: [counters()], log, direction="receiving", clock=lambda: 10.0)
    shown.start()
    shown.start()
    assert log.written.wait(10)
    assert [thread.name for thread in threading.enumerate()].count("progress") == 1
    shown.stop()
    shown.stop()

    assert "progress" not in [thread.name for thread in threading.enumerate()]
    assert {event for event, _ in log.lines} == {"progress"}


def test_a_quick_transfer_shows_nothing(log: Any) -> None:
    shown = ProgressDisplay(lambda: [counters()], log, direction="sending")
    shown.start()
    shown.stop()

    assert log.lines == []


def test_stop_without_start_does_nothing(log: Any) -> None:
    ProgressDisplay(list, log, direction="sending").stop()


def test_a_display_that_fails_is_one_warning(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Sequence[TransferCounters]:
        raise LookupError("no such transfer")

    monkeypatch.setattr(display, "LOG_LINE_SECONDS", 0.001)
    shown = ProgressDisplay(broken, log, direction="sending")
    shown.start()
    assert log.written.wait(10)
    shown.stop()

    assert log.lines == [("progress_display_failed", {"reason": "LookupError: no such transfer"})]

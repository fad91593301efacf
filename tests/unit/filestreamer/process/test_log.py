"""Log lines: JSON for programs, short ones for people, never torn, and never a reason for anything to fail."""

import ast
import io
import json
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from filestreamer.process import log
from tests.support.services import HANG


class Terminal(io.StringIO):
    """Standard error, as a terminal."""

    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make standard error a terminal without colours, and return it."""
    terminal = Terminal()
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def test_json_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("sender").info("connection_lost", connection=3, name="ü\n\x1b[2J\udcff")

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    line = json.loads(captured.err)
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "info",
        "event": "connection_lost",
        "service": "sender",
        "connection": 3,
        "name": "ü\n\x1b[2J\udcff",
    }


def test_whoever_needs_what_the_log_does_not_gets_it() -> None:
    """The log imports structlog without asyncio and rich; others import both, also structlog's own coroutines."""
    program = """
import sys
from filestreamer.process import log
logger = log.configure("sender")
assert not {"asyncio", "rich"} & set(sys.modules)
async def later():
    await logger.ainfo("later")
import asyncio, rich.console
asyncio.run(later())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert json.loads(done.stderr)["event"] == "later"


def test_short_lines_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    log.configure("receiver").warning("connection_lost", connection=3)

    assert terminal.getvalue()[len("12:34:56 ") :] == "[warning] connection_lost service=receiver connection=3\n"


def test_what_a_terminal_would_obey_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    log.configure("receiver").info("transfer", name="a\x1b[2Jb\nc\udcff")

    assert terminal.getvalue().count("\n") == 1
    assert "\x1b" not in terminal.getvalue()
    assert r"a\x1b[2Jb\nc\udcff" in terminal.getvalue()


def test_a_bug_has_its_traceback_in_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    logger = log.configure("sender")
    try:
        raise RuntimeError("the bug")
    except RuntimeError:
        logger.exception("thread_failed")

    line = json.loads(capsys.readouterr().err)
    assert line["level"] == "error"
    assert "RuntimeError: the bug" in line["exception"]


@pytest.mark.parametrize(
    ("environ", "level", "expected"),
    [
        ({}, None, ["info", "warning", "error"]),
        ({"FILESTREAMER_LOG_LEVEL": "debug"}, None, ["debug", "info", "warning", "error"]),
        ({"FILESTREAMER_LOG_LEVEL": "error"}, None, ["error"]),
        ({"FILESTREAMER_LOG_LEVEL": "error", "FILESTREAMER_SENDER_LOG_LEVEL": "warning"}, None, ["warning", "error"]),
        ({"FILESTREAMER_LOG_LEVEL": "nonsense"}, None, ["info", "warning", "error"]),
        ({"FILESTREAMER_LOG_LEVEL": "debug"}, "warning", ["warning", "error"]),
    ],
)
def test_level(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environ: dict[str, str],
    level: str | None,
    expected: list[str],
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    logger = log.configure("sender", level)
    for method in (logger.debug, logger.info, logger.warning, logger.error):
        method("event")

    assert expected == [json.loads(line)["level"] for line in capsys.readouterr().err.splitlines()]


def test_standard_error_is_looked_up_for_each_line(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = log.configure("sender")
    replaced = io.StringIO()
    monkeypatch.setattr(sys, "stderr", replaced)
    logger.info("event")

    assert json.loads(replaced.getvalue())["event"] == "event"


def test_lines_of_many_threads_stay_whole(capfd: pytest.CaptureFixture[str]) -> None:
    logger = log.configure("sender")

    def write(number: int) -> None:
        bound = logger.bind(number=number)
        for _ in range(50):
            bound.info("event", filler="x" * 5000)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert sorted(line["number"] for line in lines) == sorted(list(range(8)) * 50)


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.fixture
def exit_hooks(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[float], None]]:
    """Return what is to be called at the end of the process, for this test alone."""
    called: list[Callable[[float], None]] = []
    monkeypatch.setattr("filestreamer.process.signals._exit_hooks", called)
    return called


@pytest.mark.parametrize("level", ["warning", "error"])
def test_trouble_that_is_repeated_is_counted(
    capsys: pytest.CaptureFixture[str], exit_hooks: list[Callable[[float], None]], level: str
) -> None:
    """Whatever its fields say, which a peer may choose; the last one is told with the count."""
    logger = log.configure("receiver")
    for number in range(100):
        getattr(logger.bind(transfer=f"{number:08x}"), level)("connection_refused", code="token", reason=f"{number}")
    written = lines_of(capsys)
    assert [line["reason"] for line in written] == ["0", "1", "2", "3", "4"]
    assert not [line for line in written if "count" in line]
    for hook in exit_hooks:
        hook(1.0)
    (last,) = lines_of(capsys)
    assert (last["event"], last["level"], last["service"]) == ("connection_refused", level, "receiver")
    assert (last["reason"], last["count"], last["transfer"]) == ("99", 95, "00000063")
    assert last["within_seconds"] >= 0


def test_other_codes_events_and_levels_are_kinds_of_their_own(
    capsys: pytest.CaptureFixture[str], exit_hooks: list[Callable[[float], None]]
) -> None:
    logger = log.configure("receiver")
    for _ in range(100):
        logger.warning("connection_refused", code="token")
    logger.warning("connection_refused", code="version")
    logger.error("connection_refused", code="token")
    logger.warning("control_lost")
    assert [line.get("code") for line in lines_of(capsys)[5:]] == ["version", "token", None]


def test_of_plain_information_only_what_peers_can_repeat_is_counted(
    capsys: pytest.CaptureFixture[str], exit_hooks: list[Callable[[float], None]]
) -> None:
    logger = log.configure("receiver")
    for _ in range(100):
        logger.info("progress")
        logger.info("connected")
        logger.info("transfer_complete")
    events = [line["event"] for line in lines_of(capsys)]
    assert {event: events.count(event) for event in events} == {
        "progress": 100,
        "connected": 5,
        "transfer_complete": 60,
    }


ONCE = set(
    "certificate listening metrics metrics_linger progress receipt_found receiver_told renewed small_packets_work"
    " space_given_back staging_discarded staging_found token user_added user_removed user_renewed users".split()
)
"""What is logged once in a process, or at a pace of its own."""


def test_no_peer_can_repeat_a_line_that_is_not_counted() -> None:
    """Each call of a logger below a warning: its event is counted, or known to be none that a peer can repeat."""
    root = Path(log.__file__).parents[3]
    calls = [
        (path.name, node.args[0].value)
        for folder in ("sender", "receiver", "proto/filestreamer")
        for path in (root / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("info", "debug")
        and node.args
        and isinstance(node.args[0], ast.Constant)
    ]
    assert len(calls) > 10
    assert not [call for call in calls if call[1] not in log.FIRST_OF and call[1] not in ONCE]


def test_a_count_is_written_when_its_time_is_over_without_a_further_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, exit_hooks: list[Callable[[float], None]]
) -> None:
    monkeypatch.setattr("filestreamer.process.repeats.WINDOW_SECONDS", 0.2)
    logger = log.configure("receiver")
    for _ in range(20):
        logger.warning("control_lost")
    written = lines_of(capsys)
    end = time.monotonic() + HANG
    while not written or "count" not in written[-1]:
        assert time.monotonic() < end
        time.sleep(0.01)
        written += lines_of(capsys)
    assert sum(line.get("count", 1) for line in written) == 20


def test_without_a_thread_the_next_line_brings_the_count(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, exit_hooks: list[Callable[[float], None]]
) -> None:
    def no_thread(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    logger = log.configure("receiver")
    for _ in range(20):
        logger.warning("control_lost")
    monkeypatch.setattr("filestreamer.process.repeats.WINDOW_SECONDS", 0.0)
    logger.warning("another")
    assert sum(line.get("count", 1) for line in lines_of(capsys) if line["event"] == "control_lost") == 20


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_a_log_that_can_not_be_written_fails_nothing(redirection: str) -> None:
    program = "from filestreamer.process import log; log.configure('sender').info('event'); print('still here')"
    command = ["/bin/sh", "-c", f'exec "$0" -c "$1" {redirection}', sys.executable, program]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=30, check=False)

    assert done.stdout == "still here\n"


def test_colours_on_a_real_terminal() -> None:
    main, secondary = pty.openpty()
    program = "from filestreamer.process import log; log.configure('sender').info('event')"
    environ = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    subprocess.run([sys.executable, "-c", program], stderr=secondary, env=environ, timeout=30, check=True)
    os.close(secondary)
    shown = os.read(main, 1000)
    os.close(main)

    assert b"\x1b[" in shown
    assert b"event" in shown


def test_structlog_is_imported_late() -> None:
    program = (
        "import sys; from filestreamer.process import log; before = 'structlog' in sys.modules;"
        "log.configure('sender').info('event');"
        "print(before, 'structlog' in sys.modules);"
        "import rich.text; import asyncio; asyncio.run(asyncio.sleep(0))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)

    assert done.stdout == "False True\n"

"""What is said at the other machine, in the log of this one."""

import inspect
import io
import json
from typing import Any

import pytest

from filestreamer.process import log as logs
from filestreamer.ssh.said import Said


class Log:
    """What was logged, by level."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda event, **fields: self.lines.append((level, event, fields))


def heard(line: bytes) -> tuple[str, str, dict[str, Any]]:
    """Return how one line is logged."""
    log = Log()
    Said("nas", "~/bin/receiver", log).take(line)
    (found,) = log.lines
    return found


@pytest.mark.parametrize(
    ("event", "level", "expected"),
    [
        ("disk_full", "error", "error"),
        ("disk_slow", "warning", "debug"),
        ("connected", "info", "debug"),
        ("transfer_failed", "error", "debug"),  # this side knows, and says why
    ],
)
def test_errors_are_shown(event: str, level: str, expected: str) -> None:
    line = {"event": event, "level": level, "service": "receiver", "timestamp": "x", "reason": "a\x1b[2J", "bytes": 7}
    assert heard(json.dumps(line).encode()) == (
        expected,
        "far_side",
        {"host": "nas", "said": event, "reason": "a\\x1b[2J", "bytes": 7},
    )


class Terminal(io.StringIO):
    """What a log takes for a terminal, or not."""

    def __init__(self, *, is_one: bool) -> None:
        super().__init__()
        self._is_one = is_one

    def isatty(self) -> bool:
        """Return whether it is one."""
        return self._is_one


@pytest.mark.parametrize("on_terminal", [False, True])
@pytest.mark.parametrize("value", ["x", 1, 1.5, None, True])
def test_no_name_of_a_field_disturbs_the_log(monkeypatch: pytest.MonkeyPatch, on_terminal: bool, value: object) -> None:
    """Some names mean something to structlog: an exception in the thread that hears ssh would end it."""
    shown = Terminal(is_one=on_terminal)
    monkeypatch.setattr("sys.stderr", shown)
    logger = logs.configure("sender", "debug")
    names = {
        *inspect.signature(logger.error).parameters,
        "self",
        "method_name",
        "args",
        "exception",
        "stack",
        "logger",
        "logger_name",
        "event_kw",
        "msg",
    }
    said = Said("nas", "receiver", logger)
    for name in sorted(names):
        said.take(json.dumps({"event": f"named_{name}", "level": "info", name: value}).encode())
    for name in names - {"event"}:
        assert f"named_{name}" in shown.getvalue()


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "1" * 400])
def test_a_number_that_readers_of_the_log_do_not_know(number: str) -> None:
    level, event, fields = heard(b'{"event": "x", "level": "error", "bytes": %s, "files": 7}' % number.encode())
    assert (level, event, fields) == ("error", "far_side", {"host": "nas", "said": "x", "files": 7})


def test_a_line_can_do_no_harm() -> None:
    line = {"event": "x", "level": "error", "host": "other", "exc_info": True, "event2": "y", "a b": 1, "code": "c"}
    more: dict[str, Any] = {f"f{number}": "x" * 1000 for number in range(100)} | {"nested": {"a": [1]}}
    level, event, fields = heard(json.dumps(line | more).encode())
    assert (level, event, fields["host"], fields["event2"]) == ("error", "far_side", "nas", "y")
    assert not {"exc_info", "a b", "code", "nested"} & fields.keys()
    assert len(json.dumps(fields)) < 20_000


@pytest.mark.parametrize(
    "line", [b"Welcome to nas", b'{"event": 1}', b'{"event": "A b"}', b"{" * 5000, b"\xff\xfe \x1b]0;x\x07", b"[1]"]
)
def test_text_is_a_warning(line: bytes) -> None:
    level, event, fields = heard(line)
    assert (level, event, fields["host"]) == ("warning", "ssh_says", "nas")
    assert fields["text"].isprintable()
    assert len(fields["text"]) < 400


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ssh: connect to host nas port 22: Connection refused", "debug"),
        ("ssh: Could not resolve hostname nas: Name or service not known", "debug"),
        ("Host key verification failed.", "debug"),
        ("alice@nas: Permission denied (publickey,password).", "debug"),
        ("sh: 1: receiver: not found", "debug"),
        ("Permission denied, please try again.", "warning"),  # before the next question
        ("sh: 1: fortune: not found", "warning"),
        ("@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @", "warning"),
    ],
)
def test_what_an_error_quotes_is_told_once(line: str, expected: str) -> None:
    assert heard(line.encode())[:2] == (expected, "ssh_says")


def test_what_a_tunnel_meets_is_told_elsewhere() -> None:
    assert heard(b"channel 3: open failed: administratively prohibited: open failed")[0] == "debug"

"""What is said at the other machine, in the log of this one."""

import json
from typing import Any

import pytest

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
    Said("nas", log).take(line)
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


def test_what_a_tunnel_meets_is_told_elsewhere() -> None:
    assert heard(b"channel 3: open failed: administratively prohibited: open failed")[0] == "debug"

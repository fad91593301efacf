"""What is said at the other machine, shown in the log of this one: bounded, escaped, each line named by its host.

A line of the far side's log is an object of JSON. Its errors are shown always, the rest at --log-level debug; how the
transfer ends is left to debug, too, as this side knows and tells it. What ssh and the remote shell say is a warning,
unless the error at the end quotes it.
"""

import json
import re
from typing import Any, Final

from filestreamer.ssh import explain

FIELDS_MAX: Final = 30
_EVENT: Final = re.compile(r"[a-z_]{1,60}")
_TUNNEL: Final = re.compile(r"channel \d+: open failed")
_FIELD: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")
_OWN: Final = frozenset(
    (
        *("timestamp", "level", "event", "service", "host", "said", "code"),
        # What structlog takes for something of its own: an argument of its methods, or an exception to be shown.
        *("self", "method_name", "exc_info", "stack_info", "exception", "stack", "logger", "logger_name"),
    )
)
_NUMBER_MAX: Final = 1 << 63


class Said:
    """Logs what comes from one host. One thread."""

    def __init__(self, host: str, command: str, log: Any) -> None:
        """`command` is what ssh starts there."""
        self._host = host
        self._command = command
        self._log = log

    def take(self, line: bytes) -> None:
        """Log a line of standard error."""
        text = line.decode(errors="replace")
        fields = _parse(text)
        if fields is None:
            # What a tunnel meets on the connection of the login, `Tunnels` tells as far as the user has to know it.
            # What an error quotes would be told twice.
            is_told = _TUNNEL.match(text) or explain.is_quoted(text, self._command)
            tell = self._log.debug if is_told else self._log.warning
            tell("ssh_says", host=self._host, text=explain.shown(text))
            return
        event, level = fields["event"], fields.get("level")
        more = {
            key: explain.shown(value) if isinstance(value, str) else value
            for key, value in list(fields.items())[:FIELDS_MAX]
            if key not in _OWN and _FIELD.fullmatch(key) and _can_be_shown(value)
        }
        is_error = level == "error" and not event.startswith("transfer_")
        tell = self._log.error if is_error else self._log.debug
        tell("far_side", host=self._host, said=event, **more)


def _can_be_shown(value: object) -> bool:
    """Whether a value is a text, or a number that every reader of JSON understands; or nothing."""
    if isinstance(value, int | float):
        return abs(value) < _NUMBER_MAX  # no infinity either, nor what is no number
    return isinstance(value, str | None)


def _parse(text: str) -> dict[str, Any] | None:
    """Return the fields of a line of the far side's log; None where it is none."""
    if not text.startswith("{"):
        return None
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    event = fields.get("event") if isinstance(fields, dict) else None
    return fields if isinstance(event, str) and _EVENT.fullmatch(event) else None

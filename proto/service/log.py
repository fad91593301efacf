"""Log lines on standard error: JSON, or short coloured lines on a terminal.

`configure` is called once, early; the logger that it returns is bound and passed on, never looked up. Events are
snake_case words, what varies goes into fields: `log.info("connection_lost", connection=3, reason="reset")`.
"""

import os
import sys
import threading
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor

    Logger: TypeAlias = FilteringBoundLogger

LEVELS: Final = ("debug", "info", "warning", "error")


def configure(service: Literal["sender", "receiver"], level: str | None = None) -> "Logger":
    """Return the logger of a service; `level` is one of LEVELS.

    Without a level, as before the settings are known, the environment gives it, and else it is info.
    """
    structlog = _import_structlog()
    if level is None:
        variables = (f"FILESTREAMER_{service.upper()}_LOG_LEVEL", "FILESTREAMER_LOG_LEVEL")
        level = next(filter(None, map(os.environ.get, variables)), "info")
    logger: Logger = structlog.wrap_logger(
        _Lines(),
        processors=_for_terminal() if on_terminal() else _for_programs(),
        wrapper_class=structlog.make_filtering_bound_logger(level if level in LEVELS else "info"),
        cache_logger_on_first_use=True,
    )
    return logger.bind(service=service)


def on_terminal() -> bool:
    """Return whether standard error is a terminal."""
    # None: the process was started with standard error closed.
    return sys.stderr is not None and sys.stderr.isatty()


def printable(text: str) -> str:
    r"""Escape what a terminal would obey or could not show: "a\x1b[2J" becomes "a\\x1b[2J" in letters.

    Names of files come from the other side.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _import_structlog() -> Any:
    # structlog imports rich where it can, for tracebacks in colours that we never show, and asyncio, for methods that
    # nobody awaits here: most of its time. While it is imported, rich is as if it were not installed (None does that),
    # and asyncio is empty.
    hidden: dict[str, Any] = {}
    if "structlog" not in sys.modules:
        stand_ins = {"rich": None, "asyncio": ModuleType("asyncio")}
        hidden = {name: stand_in for name, stand_in in stand_ins.items() if name not in sys.modules}
    sys.modules.update(hidden)
    try:
        import structlog
    finally:
        for name in hidden:
            del sys.modules[name]
    return structlog


def _for_programs() -> "list[Processor]":
    from structlog import processors

    return [
        processors.add_log_level,
        processors.TimeStamper(fmt="iso", utc=True),
        processors.format_exc_info,
        _head_first,
        processors.JSONRenderer(),
    ]


def _for_terminal() -> "list[Processor]":
    from structlog import dev, processors

    return [
        processors.add_log_level,
        processors.TimeStamper(fmt="%H:%M:%S", utc=False),
        _escape,
        dev.ConsoleRenderer(
            colors=not os.environ.get("NO_COLOR"),
            pad_event_to=0,
            pad_level=False,
            sort_keys=False,
            exception_formatter=dev.plain_traceback,
        ),
    ]


def _head_first(_logger: object, _method: str, event: "EventDict") -> "EventDict":
    return {**{key: event.pop(key) for key in ("timestamp", "level", "event")}, **event}


def _escape(_logger: object, _method: str, event: "EventDict") -> "EventDict":
    return {key: printable(value) if isinstance(value, str) else value for key, value in event.items()}


class _Lines:
    """What structlog writes to: whole lines, one at a time, whichever thread they come from.

    sys.stderr is looked up for each line: while the progress display is live it is the display's, which prints the
    line above itself. A line that can't be written is dropped: no transfer fails for a full disk under a log file.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        """Protects standard error from two lines at once."""

    def msg(self, line: str) -> None:
        """Write one line."""
        with self._lock:
            try:
                sys.stderr.write(line + "\n")
                sys.stderr.flush()
            except (OSError, ValueError, AttributeError):
                # ValueError: the stream is closed, as at the very end of a process. AttributeError: there is none.
                pass

    debug = info = warning = error = critical = msg

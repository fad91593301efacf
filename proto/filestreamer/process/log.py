"""Log lines on standard error: JSON, or short coloured lines on a terminal.

`configure` is called once, early; the logger that it returns is bound and passed on. An event is a word in snake_case,
and what varies goes into fields: `log.info("connection_lost", connection=3, reason="reset")`.

No thread waits for the reader of the log (`stderr`). Lines that are repeated again and again are counted (`repeats`): a
line with a `count` stands for so many lines of its kind, and shows the last of them.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Final, TypeAlias

from filestreamer import imports
from filestreamer.process import signals, stderr
from filestreamer.process.repeats import RepeatFilter, Summary
from filestreamer.process.variables import value_of

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor

    from filestreamer.wire.session import Side

    Logger: TypeAlias = FilteringBoundLogger

LEVELS: Final = ("debug", "info", "warning", "error")

FIRST: Final = 5
"""Lines of one kind that are written in a minute before they are counted: of warnings and errors ..."""
FIRST_OF: Final = {
    "connected": FIRST,
    "connection_left": 100,
    "connection_up": 100,
    "entry_removed": 100,
    "entry_skipped": 100,
    "output_goes_on": FIRST,
    "output_waits": FIRST,
    "parallelism": 20,
    "share_complete": 60,
    "ssh_says": 60,
    "ssh_back": FIRST,
    "straggler_given_up": 20,
    "transfer_complete": 60,
    "transfer_failed": 60,
    "transfer_interrupted": 60,
    "transfer_refused": 60,
    "transfer_started": 60,
    "tunnel": 100,
    "unknown_variable": 100,
    "waiting_for_far_side": FIRST,
    "way": 20,
}
"""... and of these events. An event that a peer, the network or a tree can repeat must be a warning, an error, or here.
"""


def configure(service: "Side", level: str | None = None) -> "Logger":
    """Return the logger of a service; `level` is one of LEVELS.

    None is for the time before the settings are known: then the level comes from the environment, or is info.
    """
    structlog = _import_structlog()
    if level is None:
        level = value_of(os.environ, f"FILESTREAMER_{service.upper()}_LOG_LEVEL", "FILESTREAMER_LOG_LEVEL")
    processors = _for_terminal() if on_terminal() else _for_programs()

    def wrap(sink: object, *first: "Processor", level: str = "debug") -> "Logger":
        logger: Logger = structlog.wrap_logger(
            sink,
            processors=[*first, *processors],
            wrapper_class=structlog.make_filtering_bound_logger(level),
            cache_logger_on_first_use=True,
        )
        return logger

    lines = _Lines()
    stderr.set_announcement(lambda count: _render(wrap, "log_lines_dropped", service=service, count=count))
    counting = _Counting(wrap(lines), structlog.DropEvent)
    return wrap(lines, counting, level=level if level in LEVELS else "info").bind(service=service)


def _import_structlog() -> ModuleType:
    """Import structlog: not above, as `sender --help` and the like need no log.

    No line needs what takes longer to import than all the rest of structlog, and longer than a small file takes to be
    sent: rich, with which it can show exceptions on terminals, and asyncio, for its methods for coroutines.
    """
    with imports.without("asyncio", absent=("rich",)):
        import structlog
    return structlog


def on_terminal() -> bool:
    """Return whether standard error is a terminal."""
    # sys.stderr is None where the process was started with standard error closed.
    return sys.stderr is not None and sys.stderr.isatty()


def printable(text: str) -> str:
    r"""Escape control characters and what can't be shown: a real ESC in "a\x1b[2J" becomes the four characters \x1b.

    A terminal obeys control characters, and names of files come from the peer.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


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


def _render(wrap: "Callable[[object], Logger]", event: str, **fields: object) -> str:
    """Return a warning as a line of text, with its line end."""
    lines: list[str] = []
    wrap(_Sink(lines.append)).warning(event, **fields)
    return "\n".join([*lines, ""])


class _Counting:
    """A processor of structlog that lets the first lines of a kind pass, and counts the others.

    A kind is an event of one level and one protocol code, if it has one: a peer can't make up new kinds.
    """

    def __init__(self, plain: "Logger", drop: type[BaseException]) -> None:
        """`plain` writes without counting; `drop` is the exception that makes structlog write nothing."""
        self._plain = plain
        self._drop = drop
        self._lock = threading.RLock()  # protects _filter and _timer
        self._filter: RepeatFilter[tuple[str, EventDict]] = RepeatFilter()
        self._timer: threading.Timer | None = None

    def __call__(self, _logger: object, method: str, event: "EventDict") -> "EventDict":
        name = event["event"]
        first = FIRST_OF.get(name, FIRST if method in ("warning", "error") else None)
        if first is None:
            return event
        self._write(self._filter.due)
        with self._lock:
            if self._filter.admit((name, method, event.get("code")), (method, dict(event)), first, time.monotonic()):
                return event
            self._start_timer()
        raise self._drop

    def drain(self, _seconds: float) -> None:
        """Write the counts of all lines that were not written."""
        self._write(self._filter.drain)

    def _write(self, which: "Callable[[float], list[Summary[tuple[str, EventDict]]]]") -> None:
        with self._lock:
            summaries = which(time.monotonic())
        for (method, fields), count, seconds in summaries:
            getattr(self._plain, method)(**{**fields, "count": count, "within_seconds": seconds})

    def _start_timer(self) -> None:
        """Start a timer that writes the next count, as there may be no further line that would do it."""
        seconds = self._filter.next_due_seconds(time.monotonic())
        if seconds is None or self._timer is not None:
            return
        signals.before_exit(self.drain)
        self._timer = threading.Timer(seconds, self._write_due)
        self._timer.daemon = True
        try:
            self._timer.start()
        except RuntimeError:  # no more threads: the next line, or the end of the process, writes the count
            self._timer = None

    def _write_due(self) -> None:
        with self._lock:
            self._timer = None
        self._write(self._filter.due)
        with self._lock:
            self._start_timer()


class _Sink:
    """What structlog writes to: a function that takes a whole line."""

    def __init__(self, msg: Callable[[str], object]) -> None:
        self.msg = self.debug = self.info = self.warning = self.error = self.critical = msg


class _Lines:
    """What structlog writes to: standard error, one whole line at a time.

    A line that can't be written is dropped: no transfer fails because the disk under a log file is full.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # keeps the lines of two threads apart

    def msg(self, line: str) -> None:
        """Write one line."""
        with self._lock:
            try:
                # Looked up for each line: while the progress display is live, sys.stderr is the display's.
                sys.stderr.write(line + "\n")
                sys.stderr.flush()
            except (OSError, ValueError, AttributeError):
                # ValueError: the stream is closed, as at the very end of a process. AttributeError: sys.stderr is None.
                pass

    debug = info = warning = error = critical = msg

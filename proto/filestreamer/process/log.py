"""Log lines on standard error: JSON, or short coloured lines on a terminal.

`configure` is called once, early; the logger that it returns is bound and passed on, never looked up. Events are
snake_case words, what varies goes into fields: `log.info("connection_lost", connection=3, reason="reset")`.

Whoever logs never waits (service.outlet), and what happens again and again is counted instead (service.quiet): a line
with a `count` stands for so many of its kind, and shows the last of them.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from filestreamer.process import outlet, signals
from filestreamer.process.quiet import Quiet, Summary

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor

    Logger: TypeAlias = FilteringBoundLogger

LEVELS: Final = ("debug", "info", "warning", "error")

FIRST: Final = 5
"""Lines of a kind that are written in a minute, before they are counted: of all that tell of trouble ..."""
FIRST_OF: Final = {
    "connected": FIRST,
    "connection_left": 100,
    "connection_up": 100,
    "entry_skipped": 100,
    "output_goes_on": FIRST,
    "output_waits": FIRST,
    "parallelism": 20,
    "share_complete": 60,
    "transfer_complete": 60,
    "transfer_failed": 60,
    "transfer_interrupted": 60,
    "transfer_refused": 60,
    "transfer_started": 60,
    "unknown_variable": 100,
}
"""... and of these. What a peer, the network or a tree can repeat has to be a warning, an error, or here."""


def configure(service: Literal["sender", "receiver"], level: str | None = None) -> "Logger":
    """Return the logger of a service; `level` is one of LEVELS.

    Without a level, as before the settings are known, the environment gives it, and else it is info.
    """
    structlog = _import_structlog()
    if level is None:
        variables = (f"FILESTREAMER_{service.upper()}_LOG_LEVEL", "FILESTREAMER_LOG_LEVEL")
        level = next(filter(None, map(os.environ.get, variables)), "info")
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
    outlet.announce_by(lambda count: _render(wrap, "log_lines_dropped", service=service, count=count))
    counting = _Counting(wrap(lines), structlog.DropEvent)
    return wrap(lines, counting, level=level if level in LEVELS else "info").bind(service=service)


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


def _render(wrap: "Callable[[object], Logger]", event: str, **fields: object) -> str:
    """Return the line of a warning, with its end."""
    lines: list[str] = []
    wrap(_Sink(lines.append)).warning(event, **fields)
    return "\n".join([*lines, ""])


class _Counting:
    """Lets the first lines of a kind through, counts those behind them, and writes the counts in time.

    A kind is an event of one level and, where it has one, one code of the protocol: peers can't make up new ones.
    """

    def __init__(self, plain: "Logger", drop: type[Exception]) -> None:
        """`plain` writes without counting; `drop` is what makes structlog write nothing."""
        self._plain = plain
        self._drop = drop
        self._quiet: Quiet[tuple[str, EventDict]] = Quiet()  # protected
        self._timer: threading.Timer | None = None  # protected
        self._lock = threading.RLock()

    def __call__(self, _logger: object, method: str, event: "EventDict") -> "EventDict":
        name = event["event"]
        first = FIRST_OF.get(name, FIRST if method in ("warning", "error") else None)
        if first is None:
            return event
        self._write(self._quiet.due)
        with self._lock:
            if self._quiet.admit((name, method, event.get("code")), (method, dict(event)), first, time.monotonic()):
                return event
            self._wake_in_time()
        raise self._drop

    def settle(self, _seconds: float) -> None:
        """Write what is still to be told."""
        self._write(self._quiet.rest)

    def _write(self, which: "Callable[[float], list[Summary[tuple[str, EventDict]]]]") -> None:
        with self._lock:
            summaries = which(time.monotonic())
        for (method, fields), count, seconds in summaries:
            getattr(self._plain, method)(**{**fields, "count": count, "within_seconds": seconds})

    def _wake_in_time(self) -> None:
        """Have a thread write the next count, for the case that no such line comes any more."""
        seconds = self._quiet.next_due(time.monotonic())
        if seconds is None or self._timer is not None:
            return
        signals.before_leaving(self.settle)
        self._timer = threading.Timer(seconds, self._wake)
        self._timer.daemon = True
        try:
            self._timer.start()
        except RuntimeError:  # no more threads: the next line does it, or the end of the process
            self._timer = None

    def _wake(self) -> None:
        with self._lock:
            self._timer = None
        self._write(self._quiet.due)
        with self._lock:
            self._wake_in_time()


class _Sink:
    """What structlog writes to: whole lines."""

    def __init__(self, msg: Callable[[str], object]) -> None:
        self.msg = self.debug = self.info = self.warning = self.error = self.critical = msg


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

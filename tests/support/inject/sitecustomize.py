"""Put on a service's PYTHONPATH: one call of `os` fails there or takes long, or the process is killed around it.

INJECT says which, as JSON: {"call": "fsync", "nth": 1, "how": "before"}. `nth` counts from 1 in this process, and 0 is
every call; `how` is `before` or `after` (killed then, as by a crash), `short` (it does a third of what it was asked),
the name of an errno that it fails with, the seconds that it takes longer, `until:PATH` (it hangs until there is such a
file), or `then-until:PATH` (it hangs so when it is done). The call `digest` is none of `os`: it is
each block that is hashed. With "path": "ledger" only calls count whose first argument is, or is a
descriptor of, a file with this in its name.
"""

import errno
import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any


def _inject(call: str, nth: int, how: str | float, path: str = "") -> None:
    if call == "digest":
        _slow_digests(float(how))
        return
    real: Callable[..., Any] = getattr(os, call)
    seen = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        if not path or path in _name(args[0]):
            seen += 1
            if nth in (0, seen):
                return _happen(real, how, *args, **kwargs)
        return real(*args, **kwargs)

    setattr(os, call, wrapped)


def _happen(real: Callable[..., Any], how: str | float, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(how, str):
        time.sleep(how)
        return real(*args, **kwargs)
    if how.startswith("until:"):
        _hang(how.removeprefix("until:"))
        return real(*args, **kwargs)
    if how.startswith("then-until:"):
        done = real(*args, **kwargs)
        _hang(how.removeprefix("then-until:"))
        return done
    if how in ("before", "after"):
        if how == "after":
            real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "short":
        return real(*_third(real.__name__, args), **kwargs)
    number = getattr(errno, how)
    raise OSError(number, os.strerror(number))


def _hang(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.02)


def _slow_digests(seconds: float) -> None:
    import xxhash

    real, real_digest = xxhash.xxh3_128, xxhash.xxh3_128_digest

    class Slow:
        """Hashes as xxh3_128 does, later."""

        def __init__(self) -> None:
            self._real = real()
            self.reset, self.digest = self._real.reset, self._real.digest

        def update(self, view: Any) -> None:
            time.sleep(seconds)
            self._real.update(view)

    def digest(view: Any) -> bytes:
        time.sleep(seconds)
        return real_digest(view)

    xxhash.xxh3_128, xxhash.xxh3_128_digest = Slow, digest  # type: ignore[assignment, misc]


def _third(call: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments that ask for a third: (fd, [view], ...) or (fd, view, ...)."""
    if call == "preadv":
        (view,) = args[1]
        return (args[0], [view[: max(1, len(view) // 3)]], *args[2:])
    return (args[0], args[1][: max(1, len(args[1]) // 3)], *args[2:])


def _name(argument: object) -> str:
    if isinstance(argument, int):
        return os.readlink(f"/proc/self/fd/{argument}")
    return os.fsdecode(argument) if isinstance(argument, str | bytes) else ""


if "INJECT" in os.environ:
    _inject(**json.loads(os.environ["INJECT"]))

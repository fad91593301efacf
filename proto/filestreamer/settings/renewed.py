"""What files say, read again when they have changed: certificates, keys, CAs and tokens are renewed at run time.

Who renews them (Kubernetes, cert-manager, an ACME client, an administrator) replaces files, or the symbolic link that
leads to them, and sends no signal. So `Renewed.get` looks at them itself: a receiver every few seconds, a sender
whenever it connects. New content counts from the next connection on.

Files may be written one by one: until all of them fit together, what was read before goes on being used, and so it does
where a file is gone. A pipe can be read once, so it is not looked at again.
"""

import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Generic, NamedTuple, TypeVar

from filestreamer.wire.errors import FilestreamerError

T = TypeVar("T")

LOOK_SECONDS: Final = 2.0
"""How often the files are looked at."""


class Signature(NamedTuple):
    """What changes with the content of a file, or with the file that a path leads to."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Signature | None":
        """Return the signature of a regular file; None for anything else."""
        if not stat.S_ISREG(status.st_mode):
            return None
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


Signatures = Mapping[str, Signature | None]
"""The signature of each path; None where no regular file is there."""


def look(paths: Iterable[str]) -> Signatures:
    """Look at files."""
    return {path: _signature(path) for path in paths}


def watchable(signatures: Signatures) -> Signatures:
    """Return those that can be read again: the regular files."""
    return {path: signature for path, signature in signatures.items() if signature is not None}


def _signature(path: str) -> Signature | None:
    try:
        return Signature.of(os.stat(path))
    except OSError:
        return None


class Renewed(Generic[T]):
    """A value that was made of files, and is made again when they have changed. Any thread may call `get`."""

    def __init__(
        self, value: T, seen: Signatures, read: Callable[[], T], log: Any, *, look_seconds: float | None = None
    ) -> None:
        """`seen` are the files of which `value` was made, looked at before they were read; `read` makes it again.

        `read` raises FilestreamerError, OSError or ValueError where it can't. `look_seconds` is how often the files are
        looked at; None is LOOK_SECONDS.
        """
        self._value = value
        self._seen = watchable(seen)
        self._read = read
        self._log = log
        self._look_seconds = LOOK_SECONDS if look_seconds is None else look_seconds
        self._mutex = threading.Lock()  # protects what follows, and the two above; held while files are read
        self._look_at = 0.0  # monotonic time
        self._is_behind = False  # whether the files have changed, and can't be used

    def get(self) -> T:
        """Return the value that the files make now, or made when they were looked at last."""
        with self._mutex:
            now = time.monotonic()
            if self._seen and now >= self._look_at:
                self._look_at = now + self._look_seconds
                found = look(self._seen)
                if found != self._seen or self._is_behind:
                    self._renew(found)
            return self._value

    def _renew(self, found: Signatures) -> None:
        try:
            if gone := [path for path, signature in found.items() if signature is None]:
                raise ValueError(f"there is no file {' and '.join(gone)} any more")
            self._value = self._read()
        except (FilestreamerError, OSError, ValueError) as error:
            if not self._is_behind:
                self._log.warning(
                    "not_renewed", reason=f"{error}: what was read before is used until this is put right"
                )
            self._is_behind = True
            return
        self._seen, self._is_behind = found, False
        self._log.info("renewed", files=list(found))


def constant(value: T) -> Callable[[], T]:
    """Return a function that returns this value: for what comes from no file."""
    return lambda: value

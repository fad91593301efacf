"""The paths of --files-from: read once, kept in the order of a walk, and taken one by one as the walk comes to them.

    one path a line or, where the first bytes of the list have a NUL, NUL between them: then a line break belongs to a
    path. Each is relative to INPUT_FILE, or an absolute one below it; a path with `..` is an error.

A list may have millions of lines: parts of RUN_BYTES are sorted and written to a temporary file without a name, and
merged when they are read. Where there is no room for one, they stay in memory.
"""

import heapq
import os
import sys
from collections.abc import Iterator
from typing import BinaryIO, Final

from filestreamer.process.descriptors import wait_readable
from filestreamer.wire import limits
from filestreamer.wire.errors import UsageError

STDIN: Final = "-"
BLOCK_BYTES: Final = 64 * limits.KIB
RUN_BYTES: Final = 8 * limits.MIB
"""How much of a list is sorted in memory."""
LINE_BYTES_MAX: Final = 2 * limits.PATH_BYTES
"""A longer line is no path: perhaps it is another kind of file."""
_SEPARATOR: Final = b"\0"
"""Instead of the / in paths: it sorts before every other byte, so that a directory comes right before its entries."""
_END: Final = b"/"
"""After each path in the temporary file: no other byte is free."""


class PathList:
    """Paths in the order of a walk, each once. It may be iterated over again and again, by one thread at a time."""

    def __init__(self) -> None:
        self._run: list[bytes] = []
        self._run_bytes = 0
        self._sorted: list[list[bytes]] = []
        """Runs in memory, where none can be written to disk."""
        self._file: BinaryIO | None = None
        self._ends: list[int] = []
        """Where each run ends in the file."""

    def add(self, path: bytes) -> None:
        """Add a path, relative and without empty components."""
        key = path.replace(b"/", _SEPARATOR)
        self._run.append(key)
        self._run_bytes += len(key) + 1
        if self._run_bytes >= RUN_BYTES:
            self._close_run()

    def _close_run(self) -> None:
        import tempfile  # only a long list needs it, and each sender would wait for it

        self._run.sort()
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with this object
            self._file.seek(self._ends[-1] if self._ends else 0)
            self._file.writelines(key + _END for key in self._run)
            self._file.flush()
            self._ends.append(self._file.tell())
        except OSError:  # no directory for temporary files, or it is full
            self._sorted.append(self._run)
        self._run, self._run_bytes = [], 0

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    def __iter__(self) -> Iterator[bytes]:
        """Yield the keys of `Selection`."""
        self._run.sort()
        begins = [0, *self._ends]
        on_disk = [self._read(begin, end) for begin, end in zip(begins, self._ends, strict=False)]
        last = None
        for key in heapq.merge(*on_disk, *self._sorted, self._run):
            if key != last:
                yield key
            last = key

    def _read(self, begin: int, end: int) -> Iterator[bytes]:
        """Yield the paths of a run on disk."""
        assert self._file is not None
        rest = b""
        while begin < end:
            block = os.pread(self._file.fileno(), min(BLOCK_BYTES, end - begin), begin)
            if not block:
                raise OSError("the temporary file of --files-from was truncated")
            begin += len(block)
            *keys, rest = (rest + block).split(_END)
            yield from keys


class Selection:
    """The paths that a walk has not come to yet. The walk asks in the order of the paths."""

    def __init__(self, paths: PathList) -> None:
        self._paths = iter(paths)
        self._next = next(self._paths, None)

    def take(self, path: bytes) -> bool:
        """Return whether a path is in the list."""
        if self._next != path.replace(b"/", _SEPARATOR):
            return False
        self._next = next(self._paths, None)
        return True

    def names(self, directory: bytes) -> Iterator[bytes]:
        """Yield the name of each entry of a directory that is in the list, or that has something below it there."""
        prefix = directory.replace(b"/", _SEPARATOR) + _SEPARATOR if directory else b""
        while self._next is not None and self._next.startswith(prefix):
            name = self._next[len(prefix) :].partition(_SEPARATOR)[0]
            yield name
            for _ in self.rest(prefix + name):
                pass  # the walk left the entry out, and what is below it with it

    def rest(self, path: bytes) -> Iterator[bytes]:
        """Take and yield what is left in the list of a path, and of what is below it."""
        key = path.replace(b"/", _SEPARATOR)
        while self._next is not None and (self._next == key or self._next.startswith(key + _SEPARATOR)):
            yield self._next.replace(_SEPARATOR, b"/")
            self._next = next(self._paths, None)


def read_list(path: str, directory: str) -> PathList:
    """Read the list of the paths below a directory from a file, or from standard input. Raises UsageError."""
    found = PathList()
    absolute = {os.path.abspath(os.fsencode(directory)).rstrip(b"/"), os.fsencode(directory).rstrip(b"/")}
    number = 0
    try:
        for line in _lines(path):
            number += 1
            if line:
                found.add(_relative(line, absolute))
    except OSError as error:
        raise UsageError(f"--files-from {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"--files-from {path}, line {number}: {error}") from None
    return found


def _lines(path: str) -> Iterator[bytes]:
    """Yield each line, or what is between NULs; of one that is too long the beginning, as the last. Raises OSError."""
    with _open(path) as file:
        block = _read_block(file.fileno())
        end = b"\0" if b"\0" in block else b"\n"
        rest = b""
        while block and len(rest) <= LINE_BYTES_MAX:
            *lines, rest = (rest + block).split(end)
            yield from lines
            block = _read_block(file.fileno())
        yield rest


def _read_block(fd: int) -> bytes:
    """Read BLOCK_BYTES, or less at the end. Raises OSError."""
    block = b""
    while len(block) < BLOCK_BYTES:
        try:
            some = os.read(fd, BLOCK_BYTES - len(block))
        except BlockingIOError:  # `read` of a file object would take that for the end
            wait_readable(fd)
            continue
        if not some:
            break
        block += some
    return block


def _open(path: str) -> BinaryIO:
    if path != STDIN:
        return open(path, "rb")
    if sys.stdin is None:
        raise OSError("standard input is closed")
    return open(sys.stdin.fileno(), "rb", closefd=False)


def _relative(line: bytes, absolute: set[bytes]) -> bytes:
    """Return a path relative to the directory, whose absolute paths are given. Raises ValueError."""
    if len(line) > LINE_BYTES_MAX:
        raise ValueError(f"it has more than {LINE_BYTES_MAX} bytes: it is not a path")
    if b"\0" in line:
        raise ValueError("it has a NUL, and the lines before end with line breaks: it must be one or the other")
    if line.startswith(b"/"):
        base = next((base for base in absolute if line == base or line.startswith(base + b"/")), None)
        if base is None:
            raise ValueError(f"{os.fsdecode(line)} is not below INPUT_FILE: write it relative to that directory")
        line = line[len(base) :]
    parts = [part for part in line.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise ValueError(f"{os.fsdecode(line)} has a component ..: write it without")
    return b"/".join(parts)

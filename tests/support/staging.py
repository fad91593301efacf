"""What a receiver keeps of an incomplete file: looked at while it grows, made by hand, and damaged.

Ledgers are written and read by the receiver's own encoders: what is tested here is what it makes of them.
"""

import contextlib
import fnmatch
import os
import random
import time
from collections.abc import Iterable
from pathlib import Path

from filestreamer.wire.digests import segment_digest
from filestreamer.wire.grid import Grid
from receiver.disk.staging import ledger
from tests.support.services import HANG


def statuses(directory: Path, pattern: str = "*") -> list[os.stat_result]:
    """Return the status of each file below a directory in which a service works; what goes meanwhile is none."""
    found = []
    for top, _, names in os.walk(directory):
        for name in fnmatch.filter(names, pattern):
            with contextlib.suppress(FileNotFoundError):
                found.append(os.lstat(os.path.join(top, name)))
    return found


class Staging:
    """The staging of one file in a destination directory."""

    def __init__(self, destination: Path, name: str) -> None:
        self.directory = destination / ".filestreamer"
        key = segment_digest(os.fsencode(name)).hex()
        self.data = self.directory / f"{key}.data"
        self.ledger = self.directory / f"{key}.ledger"

    # --- looking

    @property
    def records(self) -> int:
        """Chunks that were noted so far, by the length of the ledger; 0 where there is none."""
        try:
            size = self.ledger.stat().st_size
        except FileNotFoundError:
            return 0
        return max(0, size - ledger.HEADER_BYTES) // ledger.RECORD_BYTES

    def wait_for_records(self, count: int, seconds: float = HANG) -> None:
        """Wait until so many chunks were noted."""
        end = time.monotonic() + seconds
        while (there := self.records) < count:
            assert time.monotonic() < end, f"{there} of {count} chunks noted within {seconds} s"
            time.sleep(0.005)

    def claims(self) -> ledger.Claims:
        """Read the ledger."""
        claims = ledger.decode(self.ledger.read_bytes())
        assert claims is not None
        return claims

    def claimed_bytes(self, grid: Grid) -> int:
        """Count the bytes that the ledger claims on this grid: what a resumed transfer need not send."""
        claims = ledger.claims_on(self.claims(), grid)
        return sum(grid.length(index) for index in claims.indices())

    # --- making

    def make(self, source: Path, chunk_size: int, held: Iterable[int]) -> Grid:
        """Stage the chunks `held` of a file as a transfer that was killed would have left them; return its grid.

        Where the source has a hole, so has what is staged.
        """
        grid = Grid(source.stat().st_size, chunk_size)
        self.directory.mkdir(mode=0o700, exist_ok=True)
        with source.open("rb") as file, self.data.open("wb") as data:
            data.truncate(grid.size)
            digests = _Digests(file.fileno())
            records = [(index, digests.copy(grid.offset(index), grid.length(index), data.fileno())) for index in held]
        self.write_ledger(grid, records)
        return grid

    def write_ledger(self, grid: Grid, records: Iterable[tuple[int, bytes]]) -> None:
        """Write a ledger of these records."""
        self.ledger.write_bytes(ledger.encode_header(grid) + ledger.encode_records(records))

    # --- damaging

    def truncate_ledger(self, length: int) -> None:
        """Leave the first bytes of the ledger, as a crash may."""
        os.truncate(self.ledger, length)

    def change_byte(self, path: Path, at: int, generator: random.Random) -> None:
        """Make one byte of the ledger or of the data another one."""
        with path.open("r+b") as file:
            (before,) = os.pread(file.fileno(), 1, at)
            os.pwrite(file.fileno(), bytes([before ^ generator.randrange(1, 256)]), at)

    def is_gone(self) -> bool:
        """Whether nothing is left of it, the staging directory included."""
        return not self.directory.exists()


class _Digests:
    """Digests of slices of a file; those that are holes cost nothing after the first of their length."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._data_at = -1
        self._of_hole: dict[int, bytes] = {}

    def copy(self, offset: int, length: int, to: int) -> bytes:
        """Return the digest of a slice; copy it to the same place of another file, unless it is a hole."""
        if self._is_hole(offset, length):
            if length not in self._of_hole:
                self._of_hole[length] = segment_digest(bytes(length))
            return self._of_hole[length]
        content = os.pread(self._fd, length, offset)
        os.pwrite(to, content, offset)
        return segment_digest(content)

    def _is_hole(self, offset: int, length: int) -> bool:
        if self._data_at < offset:
            try:
                self._data_at = os.lseek(self._fd, offset, os.SEEK_DATA)
            except OSError:  # there is no data any more
                self._data_at = os.fstat(self._fd).st_size
        return self._data_at >= offset + length

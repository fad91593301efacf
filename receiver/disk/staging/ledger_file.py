"""The ledger of one staged file, as a file: loaded by the run that resumes it, appended to by the threads that write.

`ledger` defines the format.
"""

import contextlib
import itertools
import os
import threading
from typing import Final

from filestreamer.wire.grid import Grid, Share
from receiver.disk.paths import LEDGER_SUFFIX, OPEN_FLAGS, SHARED_SUFFIX
from receiver.disk.staging import ledger

_RECORDS_AT_ONCE: Final = 8192
_TRANSLATING: Final = threading.Lock()
"""Held while claims of another grid are loaded: these take up to CHUNKS_PER_FILE bytes, however small today's grid is.
One file at a time keeps that within the memory of the process."""


def read_ledger(fd: int, today: Grid | None = None) -> ledger.Claims | None:
    """Read an open ledger; None where it is empty, its header is damaged, or it is longer than any ledger can be.

    `today` is as for `ledger.decode`. Raises OSError.
    """
    length = os.fstat(fd).st_size
    if not 0 < length <= ledger.BYTES_MAX:
        return None
    step = _RECORDS_AT_ONCE * ledger.RECORD_BYTES
    pieces = (os.pread(fd, step, at) for at in range(ledger.HEADER_BYTES, length, step))
    return ledger.decode(os.pread(fd, ledger.HEADER_BYTES, 0), pieces, today)


def has_seal(staging_fd: int, data: str, share: Share) -> bool:
    """Whether a share of a shared file (`shared_names`) has a seal, right or wrong; `data` is the name of the bytes.

    Raises OSError.
    """
    try:
        os.stat(data, dir_fd=staging_fd, follow_symlinks=False)
        name = f"{data.removesuffix(SHARED_SUFFIX)}-{share.index}{LEDGER_SUFFIX}"
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | OPEN_FLAGS, dir_fd=staging_fd)
    except FileNotFoundError:
        return False
    try:
        claims = read_ledger(fd)
    finally:
        os.close(fd)
    return claims is not None and share in claims.seals


class LedgerFile:
    """The ledger of a file that is staged by this process. All methods raise OSError."""

    def __init__(self) -> None:
        self.fd = -1
        """Opened, locked and closed by `Staging`."""
        self._mutex = threading.Lock()  # protects the end of the file

    @property
    def has_records(self) -> bool:
        """Whether the ledger has any record: without one, nothing of the staged bytes can be resumed."""
        return os.fstat(self.fd).st_size > ledger.HEADER_BYTES

    def load(self, grid: Grid) -> ledger.Claims:
        """Return the claims that an earlier run left, translated to `grid`.

        Afterwards the file is exactly these claims on that grid, so that it may be appended to.
        """
        length = os.fstat(self.fd).st_size
        header = ledger.decode_header(os.pread(self.fd, ledger.HEADER_BYTES, 0))
        with contextlib.nullcontext() if header in (None, grid) else _TRANSLATING:
            found = read_ledger(self.fd, grid)
            is_exact = found is not None and ledger.is_exact(length, found, grid)
            claims = ledger.Claims.none(grid) if found is None else ledger.claims_on(found, grid)
        if not is_exact:
            self.rewrite(grid, claims)
        return claims

    def rewrite(self, grid: Grid, claims: ledger.Claims) -> None:
        """Replace the content by these claims."""
        os.ftruncate(self.fd, 0)
        self.append(ledger.encode_header(grid))
        # A piece at a time: encoded as a whole, the records would take twice the memory of the claims.
        records = claims.records()
        while some := list(itertools.islice(records, _RECORDS_AT_ONCE)):
            self.append(ledger.encode_records(some))

    def append(self, content: bytes) -> None:
        """Append whole records, or nothing. Any thread may."""
        with self._mutex:
            length = os.fstat(self.fd).st_size
            view = memoryview(content)
            try:
                while view:
                    view = view[os.write(self.fd, view) :]
            except OSError:
                # An incomplete record would shift all records behind it: the next run could not read them.
                with contextlib.suppress(OSError):
                    os.ftruncate(self.fd, length)
                raise

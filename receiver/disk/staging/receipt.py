"""What a receiver keeps of a transfer that it has committed, for one run of it (--run).

    KEY.receipt     the run, its job, and the result

KEY is that of the run. The same run, started again, finds its receipt and knows that it is done; any other run receives
again, also one of the same job. Receipts are removed by age, as staged files are, and the oldest where there are many.
"""

import os
from typing import Any, Final

from filestreamer.wire.errors import Code, from_os_error
from receiver.disk.destination import Destination
from receiver.disk.filesystem.sync import sync_directory
from receiver.disk.paths import RECEIPT_SUFFIX, STAGING, staging_key
from receiver.disk.staging.record_file import read_record, write_record

_RECEIPTS_MAX: Final = 64
_BYTES_MAX: Final = 1 << 20


class Receipt:
    """The receipt of one run. All methods raise TransferFailed(DESTINATION, NO_SPACE)."""

    def __init__(self, destination: Destination, run: str, job: str) -> None:
        self._destination = destination
        self._names = {"run": run, "job": job}
        self._file_name = staging_key(b"run\0" + run.encode()) + RECEIPT_SUFFIX

    def read(self) -> dict[str, Any] | None:
        """Return the result that was kept; None where this run has committed nothing yet."""
        try:
            staging_fd = self._destination.open_staging(create=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failure(error, "read") from None
        try:
            record = read_record(staging_fd, self._file_name, _BYTES_MAX)
        except OSError as error:
            raise self._failure(error, "read") from None
        finally:
            os.close(staging_fd)
        result = record.get("result")
        is_own = all(record.get(name) == value for name, value in self._names.items())
        return result if is_own and isinstance(result, dict) else None

    def keep(self, result: dict[str, Any]) -> None:
        """Keep the result of what was committed, durably."""
        try:
            staging_fd = self._destination.open_staging(create=True)
            try:
                self._drop_oldest(staging_fd)
                write_record(staging_fd, self._file_name, {**self._names, "result": result})
                sync_directory(self._destination.fd)  # the staging directory may be new
            finally:
                os.close(staging_fd)
        except OSError as error:
            raise self._failure(error, "keep") from None

    def _failure(self, error: OSError, verb: str) -> Exception:
        return from_os_error(error, Code.DESTINATION, f"can't {verb} a receipt in {self._destination.path}/{STAGING}")

    def _drop_oldest(self, staging_fd: int) -> None:
        names = [name for name in os.listdir(staging_fd) if name.endswith(RECEIPT_SUFFIX)]
        if len(names) < _RECEIPTS_MAX or self._file_name in names:
            return
        oldest = min(names, key=lambda name: os.stat(name, dir_fd=staging_fd, follow_symlinks=False).st_mtime_ns)
        os.unlink(oldest, dir_fd=staging_fd)

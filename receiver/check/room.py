"""Counts the space that a transfer would need, and says whether it can fit: as a transfer counts it, file by file."""

import contextlib
import os
from typing import Final

from filestreamer.wire.errors import Code, TransferFailed
from filestreamer.wire.messages import Entry
from receiver.disk.destination import Destination
from receiver.disk.filesystem.kind import stores_every_byte
from receiver.disk.paths import DATA_SUFFIX, STAGING, staging_key
from receiver.disk.space import data_bytes, free_bytes

_BLOCK_BYTES: Final = 512
"""The unit of st_blocks."""


class _Disk:
    """What would be written to one file system."""

    def __init__(self, free_bytes: int, *, stores_every_byte: bool) -> None:
        self.free_bytes = free_bytes
        self.stores_every_byte = stores_every_byte
        self._data_bytes = 0
        self._freed_bytes = 0
        self._freed_last: int | None = None
        """The least that one file frees by what it replaces."""

    def take(self, data_bytes: int, freed_bytes: int) -> None:
        self._data_bytes += data_bytes
        self._freed_bytes += freed_bytes
        self._freed_last = freed_bytes if self._freed_last is None else min(self._freed_last, freed_bytes)

    @property
    def needed_bytes(self) -> int:
        """The most that is taken at once: each file that is replaced is freed when its successor is there."""
        return self._data_bytes - self._freed_bytes + (self._freed_last or 0)


class Room:
    """The space on each file system of a destination. For one thread at a time."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._device = os.fstat(destination.fd).st_dev
        self._disks: dict[int, _Disk] = {}

    def take(self, directory_fd: int, path: bytes, entry: Entry, there: os.stat_result | None) -> None:
        """Count a file that would be sent to this directory, or into one that would be made below it.

        `there` is what it would replace. Raises OSError.
        """
        device = os.fstat(directory_fd).st_dev
        disk = self._disks.get(device)
        if disk is None:
            disk = self._disks[device] = _Disk(
                self._free_bytes(directory_fd, device), stores_every_byte=stores_every_byte(directory_fd)
            )
        is_freed = there is not None and there.st_nlink == 1
        freed_bytes = there.st_blocks * _BLOCK_BYTES if is_freed and there is not None else 0
        disk.take(max(0, data_bytes(entry) - self._staged_bytes(path)), freed_bytes)

    def check(self, name: str) -> None:
        """Check that all of it can fit. Raises TransferFailed(NO_SPACE)."""
        for disk in self._disks.values():
            if disk.needed_bytes > disk.free_bytes and disk.stores_every_byte:
                reason = f"{disk.needed_bytes} bytes are needed and {disk.free_bytes} are free"
                raise TransferFailed(Code.NO_SPACE, f"no space for {name}: {reason}")

    def _free_bytes(self, directory_fd: int, device: int) -> int:
        if device == self._device:
            return self._destination.free_bytes()
        return free_bytes(directory_fd)

    def _staged_bytes(self, path: bytes) -> int:
        """Return what an earlier run left of a file: the next one goes on with it, or removes it."""
        staged = os.path.join(STAGING, staging_key(path) + DATA_SUFFIX)
        with contextlib.suppress(OSError):
            return os.stat(staged, dir_fd=self._destination.fd, follow_symlinks=False).st_blocks * _BLOCK_BYTES
        return 0

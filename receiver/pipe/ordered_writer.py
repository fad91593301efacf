"""Where a pipe's bytes are written in order: an open file (`standard_output`), or the staging of a stream."""

from typing import Protocol

from receiver.disk.staging.readable import InPlace
from receiver.disk.staging.staging import Staging


class OrderedWriter(Protocol):
    """Takes bytes in order. Its calls may take as long as they like, and raise TransferFailed."""

    path: str

    def write(self, view: memoryview) -> None:
        """Write the next bytes, all of them."""

    def finish(self, size: int) -> None:
        """Make the `size` bytes that were written durable where that is possible, and say that nothing follows."""


class StagedWriter:
    """Appends a stream to its staging. The file is put in place when the sender has sent the size of the stream."""

    def __init__(self, staging: Staging | InPlace) -> None:
        assert isinstance(staging, Staging)  # only a shard can find its file already in place
        self.path = staging.path
        self._staging = staging
        self._size = 0

    def write(self, view: memoryview) -> None:
        """Append the bytes. Raises TransferFailed: NO_SPACE, DESTINATION."""
        self._staging.append(view, self._size)
        self._size += len(view)

    def finish(self, size: int) -> None:
        """Set the size of the file, which the entry of a stream does not have before its end."""
        self._staging.entry = self._staging.entry._replace(size=size)

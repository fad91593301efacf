"""The target of a transfer whose bytes are written in order: to standard output, or a stream to a new file.

A pipe can't be resumed: the staging that an earlier run left of a stream is dropped, and so is that of this run.
Chunks go from the data connections to the `ReorderBuffer` directly.
"""

from collections.abc import Sequence
from typing import Any

from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, RemoteProtocolError, TransferFailed
from filestreamer.wire.grid import Grid
from receiver.disk.attributes.attributes import Attributes
from receiver.file.file_share import FileShare
from receiver.file.rehash import FinalsRehashed, Rehashed
from receiver.file.target import NextStep, OneFile
from receiver.pipe.reorder_buffer import ReorderBuffer


class PipeTarget(OneFile):
    """Receives one file or stream, and writes it in order."""

    def __init__(
        self,
        entry: m.Entry,
        buffer: ReorderBuffer,
        file_share: FileShare | None,
        counters: TransferCounters,
        log: Any,
        *,
        attributes: Attributes,
    ) -> None:
        """Begin with a buffer that was started. `file_share` is that of a stream that goes into a file."""
        super().__init__(entry)
        self.name = file_share.file.name if file_share is not None else b""
        self.chunks = buffer
        self._file_share = file_share
        self._attributes = attributes
        self._counters = counters
        self._log = log
        self._is_finished = False
        self._is_committed = False
        counters.name = buffer.writer.path
        counters.is_growing = buffer.size is None
        counters.chunk_map = buffer.chunk_map
        if buffer.size is not None:
            counters.size_bytes = buffer.size
            counters.chunks = Grid(buffer.size, buffer.chunk_size).segments
        log.info("transfer_started", file=buffer.writer.path, bytes=buffer.size, window_bytes=buffer.window_bytes)

    # --- answers

    has_more = True
    """True: `more` reports the progress of the output."""

    def take_part(self, part: m.ManifestPart, body: bytes) -> Sequence[m.Message]:
        """Answer that everything is needed, and how large the window is."""
        del body
        self._check_part(part)
        if self.chunks.size == 0:
            return []
        # A sender that reconnects knows which of its chunks were acknowledged: the answer has only the window.
        files = () if self.chunks.was_sent_chunks else (m.FileRange(0, 1),)
        return [m.Needed(files, (), self.chunks.window_bytes)]

    def take_rehashed(self, batch: Rehashed | FinalsRehashed) -> Sequence[m.Message]:
        """Return nothing: nothing is claimed."""
        del batch
        return []

    def more(self) -> Sequence[m.Message]:
        """Update the counters: the progress of the output, and whether it waits for its reader. Return nothing."""
        buffer, counters = self.chunks, self._counters
        if counters.is_growing:
            counters.size_bytes, counters.chunks = buffer.passed_bytes, buffer.passed
        is_waiting = buffer.is_waiting and self._file_share is None  # else it waits for a disk, not for a reader
        if is_waiting != counters.is_waiting:
            counters.is_waiting = is_waiting
            self._log.info("output_waits" if is_waiting else "output_goes_on", file=buffer.writer.path)
        counters.passing_seconds = buffer.writing_seconds
        return []

    def take_zeros(self, message: m.Zeros) -> Sequence[m.Message]:
        """Refuse: in order, zeros come as chunks without payload."""
        del message
        raise RemoteProtocolError("zeros were told, where chunks are written in order")

    # --- the end

    def missing(self) -> Sequence[m.Needed]:
        """Return Needed for the chunk that is written next; nothing for a stream, whose end only the sender knows."""
        missing = self.chunks.missing()
        return [missing] if missing is not None else []

    def finish(self, finish: m.Finish) -> bytes:
        """Compare the root digest of what was written with the sender's; return it."""
        self.more()
        if not self.chunks.is_whole(finish):
            raise TransferFailed(Code.DIGEST, "the output differs from what the sender read: run the pipe again")
        self._counters.is_growing = False
        return self.chunks.root_digest()

    def next_step(self) -> NextStep:
        """Return the next step: end the output; put the file of a stream in place; Complete."""
        if not self._is_finished:
            return self._finish
        if self._file_share is not None and not self._is_committed:
            return self._commit
        return m.Complete(True)

    def _finish(self) -> None:
        self.chunks.finish()
        self._is_finished = True

    def _commit(self) -> None:
        assert self._file_share is not None  # `next_step` has checked that
        self._file_share.file.commit(self._attributes)
        self._is_committed = True

    def stop_writes(self) -> None:
        """Refuse further writes: the transfer is over."""
        # Don't wait for a thread that hangs in a write to standard output: it may hang until the process ends.
        self.chunks.stop(None if self._file_share is not None else 0.0)

    def close(self, *, cleanly: bool) -> None:
        """Drop the staging of an incomplete stream: its sender can't send it again."""
        del cleanly
        if self._file_share is not None and not self._is_committed:
            self._file_share.discard()

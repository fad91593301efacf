"""A transfer that is passed on in order (`output`): a file or a stream to standard output, a stream to a new file.

Nothing of it is found again: what an earlier run left of a stream in staging is dropped, as what this one leaves is.
"""

from collections.abc import Sequence
from typing import Any, Self

from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, ConnectionLost, RemoteProtocolError, TransferFailed
from filestreamer.wire.grid import Grid
from receiver.file.chunk_states import Delivery
from receiver.file.file_share import FileShare
from receiver.file.rehash import FinalsRehashed, Rehashed
from receiver.file.target import LEAVE_SECONDS, Connection, IncomingSegment, Step
from receiver.pipe.reorder_buffer import ReorderBuffer


class PipeTarget:
    """One file or stream; `file_share` is that of a stream that goes into a file."""

    def __init__(
        self, entry: m.Entry, output: ReorderBuffer, file_share: FileShare | None, counters: TransferCounters, log: Any
    ) -> None:
        """Answer for an output that was started."""
        self.name = file_share.file.name if file_share is not None else b""
        self._manifest = (entry,)
        self._output = output
        self._file_share = file_share
        self._counters = counters
        self._log = log
        self._was_sent = False
        """Whether any chunk came: its sender has been answered."""
        self._is_finished = False
        self._is_committed = False
        counters.name = output.target.path
        counters.is_growing = output.size is None
        counters.chunk_map = output.chunk_map
        if output.size is not None:
            counters.size_bytes = output.payload_bytes
            counters.chunks = Grid(output.size, output.chunk_size).segments
        log.info("transfer_started", file=output.target.path, bytes=output.size, window_bytes=output.window_bytes)

    @property
    def has_begun(self) -> bool:
        """Whether anything was passed on."""
        return self._output.has_begun

    @property
    def is_stream(self) -> bool:
        """Whether nobody knows its size: its sender may wait for whoever writes it."""
        return self._output.size is None

    # --- answers

    @property
    def has_more(self) -> bool:
        """How far it is changes all the time."""
        return True

    def take_part(self, part: m.ManifestPart, body: bytes) -> Sequence[m.Message]:
        """Answer that everything is needed: nothing is found again. A sender that was answered hears of no chunk."""
        del body
        if part.entries != self._manifest or part.first_file_id or not part.last:
            raise RemoteProtocolError("the manifest is repeated, otherwise than before")
        if not self._output.has_chunks:
            return []
        files = () if self._was_sent else (m.FileRange(0, 1),)
        return [m.Needed(files, (), self._output.window_bytes)]

    def rejoin(self) -> None:
        """Nothing to do: the manifest is answered again."""

    def take_rehashed(self, batch: Rehashed | FinalsRehashed) -> Sequence[m.Message]:
        """Nothing to do: nothing is claimed."""
        del batch
        return []

    def more(self) -> Sequence[m.Message]:
        """Let it be seen how far it is, and whether it waits."""
        output, counters = self._output, self._counters
        if counters.is_growing:
            counters.size_bytes, counters.chunks = output.passed_bytes, output.passed
        waits = output.is_waiting and self._file_share is None  # for a reader: a disk that is slow is not waited for so
        if waits != counters.is_waiting:
            counters.is_waiting = not counters.is_waiting
            self._log.info("output_waits" if counters.is_waiting else "output_goes_on", file=output.target.path)
        counters.passing_seconds = output.writing_seconds
        return []

    def withdraw(self, file_ids: Sequence[int]) -> None:
        """Refuse: who can't send its one file has nothing to send."""
        raise RemoteProtocolError(f"file {file_ids[0]} is withdrawn, which is for trees")

    # --- the end

    def missing(self) -> Sequence[m.Needed]:
        """Return what is not passed on; of a stream, nobody but the sender knows."""
        missing = self._output.missing()
        return [missing] if missing is not None else []

    def finish(self, finish: m.Finish) -> bytes:
        """Compare what was passed on with what the sender read."""
        self.more()
        if not self._output.is_whole(finish):
            raise TransferFailed(Code.DIGEST, "what was passed on is not what the sender read: run it again")
        self._counters.is_growing = False
        return self._output.root_digest()

    def next_step(self) -> Step:
        """End the output; then a stream is put in place as any file."""
        if not self._is_finished:
            return self._finish
        if self._file_share is not None and not self._is_committed:
            return self._commit
        return m.Complete(True)

    def _finish(self) -> None:
        self._output.finish()
        self._is_finished = True

    def _commit(self) -> None:
        assert self._file_share is not None  # its steps end with `_finish` else
        self._file_share.file.commit()
        self._is_committed = True

    def close(self, *, cleanly: bool) -> None:
        """Drop what is in staging of a stream that is not whole: it can't be sent once more."""
        del cleanly
        if self._file_share is not None and not self._is_committed:
            self._file_share.discard()

    # --- chunks

    @property
    def chunks(self) -> Self:
        """What data connections talk to."""
        return self

    def begin_chunk(self, connection: Connection, header: m.ChunkHeader) -> list[IncomingSegment]:
        """Check a chunk, and begin it."""
        segment = header.segments[0]
        position = self._output.position(segment)
        if segment.file_id != 0 or position is None or len(header.segments) > 1:
            raise RemoteProtocolError(f"chunk {header.chunk_id} is no chunk of what was offered")
        self._was_sent = True
        while True:
            turn, other = self._output.begin(position, segment.length, connection)
            if turn is not Delivery.WAIT:
                return [IncomingSegment(self._output, position, segment, turn is Delivery.WRITE)]
            if other is not None and not other.stop(LEAVE_SECONDS):
                raise ConnectionLost(f"another connection does not leave chunk {position}")

    def end_chunk(
        self, connection: Connection, segments: list[IncomingSegment], digests: list[bytes], computed: list[bytes]
    ) -> bool:
        """Settle a chunk."""
        return self._output.deliver(segments[0].position, digests[0], computed[0], connection.connection_id)

    def detach(self, connection: Connection) -> None:
        """Take back what a connection was bringing."""
        self._output.abandon(connection)

    def stop_writes(self) -> None:
        """Pass on nothing more. A thread that hangs in a write to standard output ends with the process."""
        self._output.end(None if self._file_share is not None else 0.0)

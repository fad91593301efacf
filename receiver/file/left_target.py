"""The target of one file that is not received, as what has its name is left as it is (`Offer.existing`)."""

from collections.abc import Sequence

from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import messages as m
from filestreamer.wire.digests import root_digest
from filestreamer.wire.errors import Code, RemoteProtocolError, TransferFailed
from receiver.file.rehash import FinalsRehashed, Rehashed
from receiver.file.target import Connection, Incoming, NextStep, OneFile


class LeftTarget(OneFile):
    """Answers one file with Held.left, and completes without a byte of it."""

    has_more = False
    """The one answer comes with the manifest."""

    def __init__(self, entry: m.Entry, name: bytes, shown: str, counters: TransferCounters) -> None:
        """`name` is that at the destination, `shown` the whole path."""
        super().__init__(entry)
        self.name = name
        self.chunks = NoChunks("of a file that is left as it is")
        self._counters = counters
        counters.name = shown

    def take_part(self, part: m.ManifestPart, body: bytes) -> Sequence[m.Message]:
        """Answer that the file is left, each time that the manifest comes."""
        del body
        self._check_part(part)
        return (m.Held(0, 0, b"", (), False, (m.FileRange(0, 1),)),)

    def take_rehashed(self, batch: Rehashed | FinalsRehashed) -> Sequence[m.Message]:
        """Do nothing: nothing is re-hashed."""
        del batch
        return ()

    def more(self) -> Sequence[m.Message]:
        """Do nothing: the one answer comes with the manifest."""
        return ()

    def take_zeros(self, message: m.Zeros) -> Sequence[m.Message]:
        """Refuse: nothing was asked for."""
        raise RemoteProtocolError(f"file {message.segments[0].file_id} was left as it is, and was told to have zeros")

    def missing(self) -> Sequence[m.Message]:
        """Return nothing: nothing is needed."""
        return ()

    def finish(self, finish: m.Finish) -> bytes:
        """Compare the root digest with that of nothing. Raises TransferFailed(DIGEST)."""
        root = root_digest([])
        if finish.root_digest != root:
            raise TransferFailed(Code.DIGEST, "the sender counts bytes of a file that was left as it is")
        return root

    def next_step(self) -> NextStep:
        """Return Complete: nothing has to be made durable."""
        self._counters.left_files = 1
        return m.Complete(True, left=1)

    def stop_writes(self) -> None:
        """Do nothing: nothing is written."""

    def close(self, *, cleanly: bool) -> None:
        """Do nothing: nothing is open."""


class NoChunks:
    """Where chunks would go of which there are none."""

    def __init__(self, why: str) -> None:
        """`why` completes "a chunk was sent"."""
        self._why = why

    def begin_chunk(self, connection: Connection, header: m.ChunkHeader) -> Incoming:
        """Refuse a chunk."""
        del connection
        raise RemoteProtocolError(f"chunk {header.chunk_id} was sent {self._why}")

    def end_chunk(
        self, connection: Connection, incoming: Incoming, digests: list[bytes], computed: list[bytes]
    ) -> list[bool]:
        """Never called: no chunk begins."""
        raise AssertionError(connection, incoming, digests, computed)

    def detach(self, connection: Connection) -> None:
        """Do nothing: no connection has a segment."""

"""Transfers that claim files, or shares of one, and bring chunks: as far as the registry and the files know them."""

from typing import Any

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import Code, FilestreamerError, TransferFailed
from filestreamer.wire.grid import WHOLE, Grid, Share
from filestreamer.wire.runs import runs
from receiver.disk.staging.staging import Staging
from receiver.file.chunk_states import Delivery
from receiver.file.file_share import Answer, FileShare
from receiver.file.shared_file import ShareStep
from receiver.file.states import CLAIMED, FREE, HELD, VERIFIED, WRITING
from receiver.memory.budget import Budget
from receiver.server.registry import Registry

CONTENT = b"abcdefghij"
GRID = Grid(len(CONTENT), 3)
ENTRY = m.Entry(b"f", m.EntryType.FILE, len(CONTENT), 0o644, 7)


class Sender:
    """A transfer, as far as files know it, and the connection that it writes over."""

    def __init__(self, files: Registry) -> None:
        self.files = files
        self.account = Budget(1 << 30).admit("a peer", 1 << 20)
        self.is_complete = False
        self.is_orphaned = False
        self.has_passed_on = False
        self.gave_way = False
        self.hangs: str | None = None
        self.errors: list[FilestreamerError] = []

    @property
    def yields(self) -> bool:
        return self.is_complete or self.is_orphaned

    def yield_to_newer(self) -> None:
        self.gave_way = True

    def join(self, timeout: float) -> None:
        assert timeout >= 0
        if self.gave_way:
            self.files.release(self, cleanly=True)

    def cut(self) -> None:
        pass

    def end_soon(self, error: FilestreamerError) -> None:
        self.errors.append(error)

    def stop(self, seconds: float) -> bool:
        return seconds > 0


def claim(
    files: Registry, share: Share = WHOLE, sender: Sender | None = None, *, grid: Grid = GRID, **entry: Any
) -> tuple[Sender, FileShare]:
    sender = sender or Sender(files)
    file_share = files.claim(sender, ENTRY._replace(size=grid.size, **entry), grid, share)
    return sender, file_share


def leave(files: Registry, *senders: Sender, cleanly: bool = True) -> None:
    for sender in senders:
        files.release(sender, cleanly=cleanly)


def staging(file_share: FileShare) -> Staging:
    content = file_share.file.content
    assert isinstance(content, Staging)
    return content


def answer(file_share: FileShare) -> Answer:
    """Read what is needed and what is held now."""
    states = file_share.states()
    return Answer(list(runs(states, FREE, WRITING)), list(runs(states, HELD, VERIFIED)))


def claimed(file_share: FileShare) -> list[tuple[int, int]]:
    """Read which chunks have to be re-hashed."""
    return list(runs(file_share.states(), CLAIMED))


def write(sender: Sender, file_share: FileShare, position: int, content: bytes = CONTENT) -> None:
    """Bring one segment, as a connection does."""
    turn, _ = file_share.begin(position, sender)
    assert turn is Delivery.WRITE
    offset = GRID.offset(position)
    block = content[offset : offset + GRID.length(position)]
    staging(file_share).write(memoryview(block), offset)
    assert file_share.deliver(position, sender, segment_digest(block), segment_digest(block), 0)
    staging(file_share).record([(position, segment_digest(block))])


def finish(file_share: FileShare) -> ShareStep:
    """End a share whose chunks are all here, as a transfer does after Finish."""
    assert file_share.missing() == []
    file_share.stop_writes()
    file_share.seal()
    return file_share.file.next_step(file_share.share)


def rehash(file_share: FileShare, share: Share, start: int, stop: int) -> None:
    """Read claimed chunks back from the disk."""
    digests = []
    for ordinal in range(start, stop):
        block = bytearray(GRID.length(share.chunk(ordinal)))
        file_share.file.content.read_into(memoryview(block), GRID.offset(share.chunk(ordinal)))
        digests.append(segment_digest(bytes(block)))
    file_share.rehashed(share, start, digests)


def move(sender: Sender, file_share: FileShare) -> None:
    """Re-hash what is claimed, and bring what is missing."""
    for start, stop in claimed(file_share):
        rehash(file_share, file_share.share, start, stop)
    for start, stop in file_share.missing():
        for ordinal in range(start, stop):
            write(sender, file_share, file_share.share.chunk(ordinal))


def refused(files: Registry, share: Share, **changes: Any) -> Code:
    with pytest.raises(TransferFailed) as caught:
        claim(files, share, **changes)
    return caught.value.code

"""Shards that come, write, finish and are lost in any order, over any number of restarts, never make a mixture.

What is modelled is who has finished since his share was last written. The file is committed exactly when all have, and
is then what the source was, byte for byte.
"""

import contextlib
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from filestreamer.wire import messages as m
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import TransferFailed
from filestreamer.wire.grid import Grid, Share
from receiver.disk.destination import Destination
from receiver.file.chunk_states import Delivery
from receiver.file.file_share import FileShare
from receiver.file.shared_file import ShareStep
from receiver.server.registry import Registry
from tests.support import disks
from tests.support.shares import Sender, answer, claimed, staging

ENDS = ("stays", "is lost", "finishes")


class Shards(RuleBasedStateMachine):
    """Senders with the right content, and some whose source differs though size and mtime are the same."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.root = self.stack.enter_context(disks.scratch(disks.MIB, Path(tempfile.gettempdir())))
        self.destination = Destination(str(self.root))
        self.files = Registry(self.destination, None)
        self.live: dict[int, tuple[Sender, FileShare, bool]] = {}  # by index; whether its source is the right one
        self.finished: set[int] = set()
        self.sealed: set[int] = set()
        """Finished at any time: what a seal says counts where the share is again what was finished."""
        self.there: dict[int, bool] = {}  # by chunk: whether what was written last is right
        self.is_committed = False

    @initialize(count=st.integers(2, 4), size=st.integers(0, 14), chunk_size=st.integers(1, 5))
    def begin(self, count: int, size: int, chunk_size: int) -> None:
        self.count = count
        self.grid = Grid(size, chunk_size)
        self.content = bytes(range(size))
        self.entry = m.Entry(b"f", m.EntryType.FILE, size, 0o644, 5)

    def block(self, position: int, *, right: bool) -> bytes:
        offset = self.grid.offset(position)
        block = self.content[offset : offset + self.grid.length(position)]
        return block if right else bytes(255 - byte for byte in block)

    def rehash(self, file_share: FileShare, share: Share, start: int, stop: int) -> None:
        digests = []
        for ordinal in range(start, stop):
            block = bytearray(self.grid.length(share.chunk(ordinal)))
            file_share.file.content.read_into(memoryview(block), self.grid.offset(share.chunk(ordinal)))
            digests.append(segment_digest(bytes(block)))
        file_share.rehashed(share, start, digests)

    # --- what happens

    @rule(index=st.integers(0, 3), right=st.booleans(), chunks=st.integers(0, 4), end=st.sampled_from(ENDS))
    def run(self, index: int, right: bool, chunks: int, end: str) -> None:
        """Run a shard: it comes, or is there, sends some of what it has to, and stays, is lost, or says Finish."""
        index %= self.count
        if index not in self.live:
            self.come(index, right=right)
        elif not self.is_committed:
            with contextlib.suppress(TransferFailed):
                self.claim(index)
                raise AssertionError("two senders have one share")
        if end == "finishes":
            chunks = self.grid.segments
        self.send(index, chunks)
        if end == "finishes":
            self.finish(index)
        elif end == "is lost":
            self.lose(index)

    def claim(self, index: int) -> tuple[Sender, FileShare]:
        sender = Sender(self.files)
        return sender, self.files.claim(sender, self.entry, self.grid, Share(index, self.count))

    def come(self, index: int, *, right: bool) -> None:
        """Join; what the ledger claims is re-hashed."""
        sender, file_share = self.claim(index)
        for start, stop in claimed(file_share):
            self.rehash(file_share, file_share.share, start, stop)
        self.live[index] = sender, file_share, right

    def send(self, index: int, chunks: int) -> None:
        """Send some of what is missing, and of what is held and differs."""
        sender, file_share, right = self.live[index]
        for position in self.to_send(index)[:chunks]:
            if self.is_committed:
                with contextlib.suppress(TransferFailed):
                    file_share.begin(position, sender)
                    raise AssertionError("a committed file is written")
                return
            assert file_share.begin(position, sender)[0] is Delivery.WRITE
            self.finished.discard(index)
            self.there[position] = right
            block = self.block(position, right=right)
            digest = segment_digest(block)
            staging(file_share).write(memoryview(block), self.grid.offset(position))
            assert file_share.deliver(position, sender, digest, digest, 0)
            staging(file_share).record([(position, digest)])

    def to_send(self, index: int) -> list[int]:
        _, file_share, right = self.live[index]
        now = answer(file_share)
        needed = [ordinal for start, stop in now.needed for ordinal in range(start, stop)]
        held = [ordinal for start, stop in now.held for ordinal in range(start, stop)]
        positions = [file_share.share.chunk(ordinal) for ordinal in held]
        differ = [
            k for k in positions if file_share.file.chunk_states.digest(k) != segment_digest(self.block(k, right=right))
        ]
        return sorted([*(file_share.share.chunk(ordinal) for ordinal in needed), *differ])

    def finish(self, index: int) -> None:
        """Say Finish, where nothing is left to send; one whose source is wrong finds that out before."""
        sender, file_share, right = self.live[index]
        if not right or self.to_send(index):
            return
        file_share.stop_writes()
        file_share.seal()
        self.finished.add(index)
        self.sealed.add(index)
        step = file_share.file.next_step(file_share.share)
        if step is ShareStep.REHASH:
            for share, start, stop in file_share.file.sealed_claims():
                self.rehash(file_share, share, start, stop)
            step = file_share.file.next_step(file_share.share)
        assert (step is ShareStep.COMMIT) == (self.is_committed or len(self.finished) == self.count)
        if step is ShareStep.COMMIT:
            file_share.file.commit()
            self.is_committed = True
            self.files.release_committed(sender)
        self.lose(index)

    def lose(self, index: int) -> None:
        """End a shard; behind the last one the file is closed, and what the ledger says is all that is left."""
        sender, _, _ = self.live.pop(index)
        self.files.release(sender, cleanly=True)
        if not self.live:
            self.finished = {index for index in self.sealed if self.is_right(index)}

    def is_right(self, index: int) -> bool:
        return all(self.there.get(position) for position in range(index, self.grid.segments, self.count))

    @precondition(lambda self: self.live)
    @rule()
    def restart(self) -> None:
        """Kill the receiver, and start it again."""
        for index in list(self.live):
            self.lose(index)
        self.files = Registry(self.destination, None)

    @invariant()
    def the_final_name_has_the_whole_or_nothing(self) -> None:
        there = (self.root / "f").read_bytes() if (self.root / "f").exists() else None
        assert there == (self.content if self.is_committed else None)

    def teardown(self) -> None:
        for sender, _, _ in self.live.values():
            self.files.release(sender, cleanly=True)
        self.destination.close()
        self.stack.close()


TestShards = Shards.TestCase
TestShards.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)

"""One file that is being received, by one transfer or by all shards of a job: one staging, one ledger, one lock.

Each transfer has a `FileShare` in it, and sees the chunks of its share alone. A share of it is

    finished   where its sender has said so, with the right root digest, and it is durable and sealed in the ledger
    sealed     where the ledger says that, from a run before this one: it is to be re-hashed before it counts

The shard that finishes last re-hashes what is only sealed, and commits. A write into a share voids both.
"""

import contextlib
import enum
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from filestreamer.process.threads import run_to_end, start_thread
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, FilestreamerError, TransferFailed
from filestreamer.wire.grid import Grid, Share, hole_segments
from receiver.disk.readable import InPlace
from receiver.disk.staging import Staging
from receiver.file.chunk_states import ChunkStates
from receiver.file.states import CLAIMED, FREE, WRITING
from receiver.memory.budget import Account

WRITE_BACK_BYTES: Final = 64 * limits.MIB
WRITE_BACK_SECONDS: Final = 1.0
RESERVE_SECONDS: Final = 0.1
"""How often more space is taken ahead while bytes come."""


class SourceVersion(NamedTuple):
    """What shards must have in common to be shards of one job; two transfers of whole files never are."""

    shards: int
    size: int
    mtime_ns: int
    chunk_size: int


class Step(enum.Enum):
    """What comes after a share is finished."""

    WAIT = enum.auto()
    """Other shares are missing: this one is done."""
    REHASH = enum.auto()
    """The others were sealed in an earlier run: what is CLAIMED of them is to be re-hashed, then asked again."""
    COMMIT = enum.auto()


class File:
    """One file. The lock protects the chunk states and every field with an underscore."""

    def __init__(self, name: bytes, source: SourceVersion) -> None:
        self.name = name
        self.source = source
        self.grid = Grid(source.size, source.chunk_size)
        self.chunk_states: ChunkStates
        """Made by `open`: an offer that does not fit costs nothing."""
        self.lock = threading.Lock()
        self.account: Account | None = None
        """What its table has of the memory for peers: shards share it, and leave it at different times."""
        self.is_committed = False
        self.set_aside = 0
        """Shares that an earlier job had finished, of another source: they have to be sent again."""
        self._opening = threading.Lock()
        self._content: Staging | InPlace | None = None
        self._finished: set[int] = set()
        self._sealed: set[int] = set()
        self._is_full = False
        self._is_closed = False
        self._is_committing = False
        self.is_closing = False
        """The last transfer is leaving it; protected by the lock of `Registry`, as `is_stuck`."""
        self.is_stuck = False
        """A thread hangs on its descriptors, and may write into whatever has them next."""
        self._write_back_ended = threading.Event()
        self._write_back: threading.Thread | None = None

    # --- opening and closing

    @property
    def content(self) -> Staging | InPlace:
        """The bytes, staged or final: whoever has a stake has opened it."""
        assert self._content is not None
        return self._content

    @property
    def is_lost(self) -> bool:
        """Whether what was written can't be trusted: a sync failed, or somebody changed the staging."""
        return isinstance(self._content, Staging) and self._content.is_lost

    def left_bytes(self) -> int:
        """Count, about, the bytes that it is still going to take on the disk."""
        return self.chunk_states.missing_bytes() if self._content else self.grid.size

    def open(self, make: Callable[[], Staging | InPlace], failed: Callable[[FilestreamerError], None]) -> None:
        """Open the content, unless another transfer has. Raises what `make` does.

        `failed` hears of a failed write-back.
        """
        with self._opening:
            if self._content is not None:
                return
            content = make()
            if self._is_closed:  # its disk hung until nobody wanted it any more
                content.close()
                raise TransferFailed(Code.TIMEOUT, f"{content.path} could not be opened in time")
            claims = content.take_claims()
            self.chunk_states = ChunkStates(self.grid, claims)
            for first, end in hole_segments(self.grid, content.holes):
                self.chunk_states.leave_out(first, end)
            for share in claims.seals:
                if share.count == self.source.shards and claims.is_sealed(share, self.source.mtime_ns):
                    self._sealed.add(share.index)
                else:
                    self.set_aside += 1
            if isinstance(content, Staging):
                content.expected_digest = self.chunk_states.digest
            self._content = content
            is_large = isinstance(content, Staging) and (
                self.grid.size >= WRITE_BACK_BYTES or content.entry.type is m.EntryType.STREAM
            )
            if is_large:
                thread = threading.Thread(
                    target=self._keep_writing_back, args=(content, failed), name="write-back", daemon=True
                )
                with contextlib.suppress(TransferFailed):  # without it the sync at the end is longer
                    start_thread(thread, "write-back")
                    self._write_back = thread

    def _keep_writing_back(self, staged: Staging, failed: Callable[[FilestreamerError], None]) -> None:
        """Take space ahead; have the kernel write while the rest still comes in: the sync at the end is short."""

        def write_back() -> None:
            ended = self._write_back_ended
            written, written_back_at = -1, time.monotonic()
            is_taken = staged.reserve(ended.is_set)
            while not ended.wait(RESERVE_SECONDS if not is_taken and staged.space.taken_bytes > written else 1.0):
                written = staged.space.taken_bytes
                is_taken = is_taken or staged.reserve(ended.is_set)
                if time.monotonic() - written_back_at >= WRITE_BACK_SECONDS:
                    staged.write_back()
                    written_back_at = time.monotonic()

        if error := run_to_end("write-back", write_back):
            failed(error)

    @property
    def is_writing_back(self) -> bool:
        """Whether a thread writes it back."""
        return self._write_back is not None

    def end_write_back(self, seconds: float | None = None) -> bool:
        """Take no more space, and write nothing back any more; whether the thread that did has ended in time."""
        self._write_back_ended.set()
        if self._write_back is not None:
            self._write_back.join(seconds)
            return not self._write_back.is_alive()
        return True

    def close(self) -> None:
        """Release the descriptors, and the space of what is not here, unless a thread hangs on them.

        Waits for the write-back, however long that takes.
        """
        self._is_closed = True
        self.end_write_back()
        if self._content is not None and not self.is_stuck:
            if isinstance(self._content, Staging) and not self.is_committed:
                self._give_back(self._content)
            self._content.close()

    def _give_back(self, staged: Staging) -> None:
        """Free the space of the chunks that did not come, or not whole, if space was taken ahead."""
        if self._write_back is None:
            return
        grid = self.grid
        runs = self.chunk_states.runs(FREE, WRITING)
        missing = ((grid.offset(first), min(grid.offset(end), grid.size)) for first, end in runs)
        staged.give_back(missing, self.chunk_states.here_end)

    # --- shares

    @property
    def missing_shares(self) -> int:
        """How many shares no sender has finished yet, as far as this process knows."""
        return self.source.shards - len(self._finished | self._sealed)

    def void(self, share: Share) -> None:
        """Take back that a share was finished: it is written again. Call it with the lock."""
        self._finished.discard(share.index)
        self._sealed.discard(share.index)

    @property
    def is_full(self) -> bool:
        """Whether nothing may be written any more."""
        return self._is_full or isinstance(self._content, InPlace)

    def next_step(self, share: Share) -> Step:
        """Count a share that its sender has finished; say what follows."""
        with self.lock:
            self._finished.add(share.index)
            others = [Share(i, share.count) for i in range(share.count) if i not in self._finished]
            if self.is_committed or isinstance(self._content, InPlace):
                return Step.COMMIT
            if self._is_committing:
                return Step.WAIT
            if any(other.index not in self._sealed for other in others):
                return Step.WAIT
            if any(any(self.chunk_states.runs(CLAIMED, share=other)) for other in others):
                return Step.REHASH
            for other in others:
                self._settle_sealed(other)
            self._is_full = self._is_committing = len(self._finished) == share.count
            return Step.COMMIT if self._is_full else Step.WAIT

    def _settle_sealed(self, share: Share) -> None:
        """Count a sealed share as finished, now that it is re-hashed, if all of it is still there."""
        self._sealed.discard(share.index)
        if not any(self.chunk_states.runs(FREE, WRITING, share=share)):
            self._finished.add(share.index)

    def sealed_claims(self) -> list[tuple[Share, int, int]]:
        """Read what is to be re-hashed of sealed shares: share, and a run [start, stop) of its ordinals."""
        with self.lock:
            sealed = [Share(index, self.source.shards) for index in sorted(self._sealed - self._finished)]
            return [(share, *run) for share in sealed for run in self.chunk_states.runs(CLAIMED, share=share)]

    def commit(self) -> None:
        """Put the file in place, unless another shard has; nobody writes it any more. Raises TransferFailed."""
        if self.is_committed:
            return
        self.end_write_back()  # what it still did would change the mtime
        try:
            self.content.commit()
            self.is_committed = True
        finally:
            self._is_committing = False

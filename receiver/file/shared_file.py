"""One file that is being received, by one transfer or by all shards of a job: one staging, one ledger, one lock.

Each transfer has a `FileShare` of it, and sees the chunks of that share alone. A share is

    finished   its sender said Finish with the right root digest, and it is durable and sealed in the ledger
    sealed     the ledger of an earlier run says so: it has to be re-hashed before it counts as finished

The shard that finishes last re-hashes the shares that are only sealed, and commits the file. A write into a share
voids both.
"""

import contextlib
import enum
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from filestreamer.process.threads import run_to_end, start_thread
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, FilestreamerError, TransferFailed
from filestreamer.wire.grid import WHOLE, Grid, Share
from receiver.disk.attributes.attributes import Attributes
from receiver.disk.existing import Fate, Policy
from receiver.disk.space import data_bytes
from receiver.disk.staging.readable import InPlace
from receiver.disk.staging.staging import Staging
from receiver.file.chunk_states import ChunkStates
from receiver.file.states import CLAIMED, FREE, OTHERS, WRITING, ZERO
from receiver.memory.budget import Account

WRITE_BACK_BYTES: Final = 64 * limits.MIB
"""Files from this size on are written back while they are received."""
WRITE_BACK_SECONDS: Final = 1.0
RESERVE_SECONDS: Final = 0.1
"""How often space is taken ahead while bytes are received."""


class SourceVersion(NamedTuple):
    """The source of a file. Shards belong to one job where all of it is equal."""

    shards: int
    size: int
    mtime_ns: int
    chunk_size: int


class ShareStep(enum.Enum):
    """The next step of the transfer of a finished share."""

    WAIT = enum.auto()
    """Nothing: other shares are missing."""
    REHASH = enum.auto()
    """Re-hash the CLAIMED chunks of the sealed shares, then ask again."""
    COMMIT = enum.auto()
    """Put the file in place."""


class File:
    """One file, from its first claim until the last transfer has released it."""

    def __init__(self, name: bytes, source: SourceVersion) -> None:
        self.name = name
        self.source = source
        self.grid = Grid(source.size, source.chunk_size)
        self.chunk_states: ChunkStates
        """Set by `open`, so that an offer that does not fit costs nothing."""
        self.lock = threading.Lock()
        """Protects `chunk_states`, and which shares are finished and sealed."""
        self.account: Account | None = None
        """The memory of `chunk_states`. It has an account of its own, as shards share the file and end in any order."""
        self.is_committed = False
        self.set_aside = 0
        """Shares in the ledger that are of another source: they have to be sent again."""
        self.is_elsewhere = False
        """Whether the destination has become another directory: no further transfer can join this file."""
        self.is_closing = False
        """Whether the last transfer is releasing it. Protected, like `is_stuck`, by the lock of `Registry`."""
        self.is_stuck = False
        """Whether a thread hangs in a write. Then the descriptors stay open: it would write into their next file."""
        self._opening = threading.Lock()  # protects _content while it is opened
        self._content: Staging | InPlace | None = None
        self._left: InPlace | None = None  # what was compared, and differs
        self._policy: Policy | None = None
        self._make_staging: Callable[[], Staging] | None = None
        self._failed: Callable[[FilestreamerError], None]  # set by `open`
        self._finished: set[int] = set()  # by index of the share
        self._sealed: set[int] = set()
        self._is_full = False
        self._is_closed = False
        self._is_committing = False
        self._write_back_stopped = threading.Event()
        self._write_back: threading.Thread | None = None

    # --- opening and closing

    @property
    def content(self) -> Staging | InPlace:
        """The bytes: in staging, or under the final name where a shard comes again after the commit."""
        assert self._content is not None  # every FileShare has opened it
        return self._content

    def follow(self, policy: Policy) -> None:
        """Put the file in place by this policy."""
        self._policy = policy
        if isinstance(self._content, Staging):
            self._content.policy = policy

    @property
    def was_left(self) -> bool:
        """Whether what had taken the name meanwhile was left as it is, when the file was to be put in place."""
        return isinstance(self._content, Staging) and self._content.was_left

    @property
    def is_lost(self) -> bool:
        """Whether the staged bytes are lost: a sync failed, the staging was changed, or the destination is another."""
        return self.is_elsewhere or (isinstance(self._content, Staging) and self._content.is_lost)

    def left_bytes(self) -> int:
        """Estimate how many more bytes the file is going to take on the disk."""
        if not isinstance(self._content, Staging):
            return self.grid.size if self._content is None else 0
        return min(self.chunk_states.missing_bytes(), data_bytes(self._content.entry))

    @property
    def in_place(self) -> InPlace | None:
        """The content, where it lies under the final name."""
        return self._content if isinstance(self._content, InPlace) else None

    def open(
        self,
        make: Callable[[], Staging | InPlace],
        failed: Callable[[FilestreamerError], None],
        make_staging: Callable[[], Staging] | None = None,
    ) -> None:
        """Open the content with `make`, unless another transfer has opened it. Raises what `make` raises.

        `make_staging` makes the staging if the content lies under the final name, and differs. A write-back that fails
        later is reported to `failed`.
        """
        with self._opening:
            if self._content is not None:
                return
            content = make()
            if self._is_closed:  # the transfer has ended while a slow disk opened the file
                content.close()
                raise TransferFailed(Code.TIMEOUT, f"{content.path} could not be opened in time")
            claims = content.take_claims()
            self.chunk_states = ChunkStates(self.grid, claims)
            if isinstance(content, InPlace) and content.is_unchecked:
                self.chunk_states.accept_unread()
            for share in claims.seals:
                if share.count == self.source.shards and claims.is_sealed(share, self.source.mtime_ns):
                    self._sealed.add(share.index)
                    self._restore_zeros(content, share)
                else:
                    self.set_aside += 1
            self._content = content
            self._failed, self._make_staging = failed, make_staging
            if isinstance(content, Staging):
                self._begin_staging(content)

    def _begin_staging(self, staging: Staging) -> None:
        states = self.chunk_states  # not this file: the table of a closed one would stay in a circle
        staging.expected_digest = states.expected_digest
        staging.known_holes.zero_segments = lambda: states.runs(ZERO, OTHERS)
        # A stream has no size yet, and may well become large.
        if self.grid.size >= WRITE_BACK_BYTES or staging.entry.type is m.EntryType.STREAM:
            self._start_write_back(staging, self._failed)

    def receive_anew(self) -> bool:
        """Receive a file into staging that lies under its final name: the sender has other bytes.

        Return whether it does so from now on. Raises TransferFailed: EXISTS, NO_SPACE, BUSY, DESTINATION.
        """
        with self._opening:
            in_place = self.in_place
            if in_place is None or self._make_staging is None:
                return False
            self._check_policy(in_place)
            staging = self._make_staging()
            staging.policy = self._policy
            staging.take_claims()  # the sender sends all of it
            with self.lock:
                self.chunk_states.forget(WHOLE)
                self._content = staging
                self._left = in_place  # not closed yet: a thread may still hash it
            self._begin_staging(staging)
            return True

    def _check_policy(self, in_place: InPlace) -> None:
        """Check that a file that differs is not to be refused. Raises TransferFailed(EXISTS)."""
        policy = self._policy
        if policy is not None and policy.fate(os.fstat(in_place.fd), self.source.mtime_ns) is Fate.REFUSED:
            raise TransferFailed(Code.EXISTS, f"{in_place.path} exists, and {policy.because}")

    def _restore_zeros(self, content: Staging | InPlace, share: Share) -> None:
        """Make what a sealed share does not claim zeros again: its sender had told that, and the ledger does not."""
        if not isinstance(content, Staging):
            return
        for start, stop in self.chunk_states.runs(FREE, share=share):
            self.chunk_states.make_zero(share, start, stop)
            content.make_zeros(self.ranges(share, start, stop))

    def ranges(self, share: Share, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the bytes [first, end) of the chunks of a share with ordinals [start, stop)."""
        grid = self.grid
        if share.count == 1:
            yield grid.offset(start), min(grid.offset(stop), grid.size)
            return
        for index in range(share.chunk(start), share.chunk(stop - 1) + 1, share.count):
            yield grid.offset(index), grid.offset(index) + grid.length(index)

    def _start_write_back(self, staging: Staging, failed: Callable[[FilestreamerError], None]) -> None:
        """Take space ahead, and have the kernel write while bytes still come in: then the sync at the end is short."""

        def write_back() -> None:
            stopped = self._write_back_stopped
            written, written_back_at = -1, time.monotonic()
            is_taken = staging.reserve(stopped.is_set)
            while not stopped.wait(RESERVE_SECONDS if not is_taken and staging.space.taken_bytes > written else 1.0):
                written = staging.space.taken_bytes
                is_taken = is_taken or staging.reserve(stopped.is_set)
                if time.monotonic() - written_back_at >= WRITE_BACK_SECONDS:
                    staging.write_back()
                    written_back_at = time.monotonic()

        def run() -> None:
            if error := run_to_end("write-back", write_back):
                failed(error)

        thread = threading.Thread(target=run, name="write-back", daemon=True)
        with contextlib.suppress(TransferFailed):  # without the thread, the sync at the end takes longer
            start_thread(thread, "write-back")
            self._write_back = thread

    @property
    def is_writing_back(self) -> bool:
        """Whether a thread writes it back."""
        return self._write_back is not None

    def stop_write_back(self) -> None:
        """Stop writing back and taking space ahead, however long that takes."""
        self._write_back_stopped.set()
        if self._write_back is not None:
            self._write_back.join()

    def close(self) -> None:
        """Close the descriptors, and free the space that was taken for missing chunks, unless a thread hangs.

        Waits for the write-back, however long that takes.
        """
        self._is_closed = True
        self.stop_write_back()
        if self._content is not None and not self.is_stuck:
            if isinstance(self._content, Staging) and not self.is_committed:
                self._give_back_space(self._content)
            if self._left is not None:
                self._left.close()
            self._content.close()

    def _give_back_space(self, staging: Staging) -> None:
        """Free the space of chunks that are missing or incomplete, if space was taken ahead."""
        if self._write_back is None:
            return
        grid = self.grid
        runs = self.chunk_states.runs(FREE, WRITING)
        missing = ((grid.offset(first), min(grid.offset(end), grid.size)) for first, end in runs)
        staging.give_back(missing, self.chunk_states.here_end)

    # --- shares

    @property
    def missing_shares(self) -> int:
        """How many shares are neither finished nor sealed."""
        return self.source.shards - len(self._finished | self._sealed)

    def void(self, share: Share) -> None:
        """Count a share as neither finished nor sealed: it is written again. Call it with the lock."""
        self._finished.discard(share.index)
        self._sealed.discard(share.index)

    @property
    def is_full(self) -> bool:
        """Whether the file is complete: nothing may be written any more."""
        return self._is_full or isinstance(self._content, InPlace)

    def next_step(self, share: Share) -> ShareStep:
        """Count a share as finished; return what its transfer has to do next."""
        with self.lock:
            self._finished.add(share.index)
            others = [Share(i, share.count) for i in range(share.count) if i not in self._finished]
            if self.is_committed or isinstance(self._content, InPlace):
                return ShareStep.COMMIT
            if self._is_committing:
                return ShareStep.WAIT
            if any(other.index not in self._sealed for other in others):
                return ShareStep.WAIT
            if any(any(self.chunk_states.runs(CLAIMED, share=other)) for other in others):
                return ShareStep.REHASH
            # Every sealed share is re-hashed now; it counts as finished if the disk still has all of it.
            for other in others:
                self._sealed.discard(other.index)
                if not any(self.chunk_states.runs(FREE, WRITING, share=other)):
                    self._finished.add(other.index)
            self._is_full = self._is_committing = len(self._finished) == share.count
            return ShareStep.COMMIT if self._is_full else ShareStep.WAIT

    def sealed_claims(self) -> list[tuple[Share, int, int]]:
        """Return the chunks of sealed shares to re-hash: each share with a run [start, stop) of its ordinals."""
        with self.lock:
            sealed = [Share(index, self.source.shards) for index in sorted(self._sealed - self._finished)]
            return [(share, *run) for share in sealed for run in self.chunk_states.runs(CLAIMED, share=share)]

    def commit(self, attributes: Attributes | None = None) -> None:
        """Put the file in place, unless another shard has done so. No thread writes any more. Raises TransferFailed.

        `attributes` sets those of the file for the transfer that commits.
        """
        if self.is_committed:
            return
        self.stop_write_back()  # taking space ahead would change the mtime
        try:
            self.content.commit(attributes)
            self.is_committed = True
        finally:
            self._is_committing = False

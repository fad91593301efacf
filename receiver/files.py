"""The files that are being received, and who writes what of them: one transfer the whole, or each shard its share.

Shards of one job meet in one `File`: one staging, one ledger, one lock. Each has a `Stake` in it, and sees the chunks
of its share alone. A file is here while a transfer has a stake in it, and found again in its staging after that. A
share of it is

    finished   where its sender has said so, with the right root digest, and it is durable and sealed in the ledger
    sealed     where the ledger says that, from a run before this one: it is to be re-hashed before it counts

The shard that finishes last re-hashes what is only sealed, and commits. A write into a share voids both.
"""

import contextlib
import enum
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from receiver.assembly import CLAIMED, FREE, HELD, HOLE, VERIFIED, WRITING, Assembly, Turn, Writer, runs
from receiver.budget import Account
from receiver.roots import Roots
from receiver.store import Destination, InPlace, Staged, check_name
from service.chunk_map import ChunkMap
from service.threads import run_to_end, start_thread
from wire import limits
from wire import messages as m
from wire.digests import root_digest
from wire.errors import Code, FilestreamerError, RemoteProtocolError, TransferFailed
from wire.grid import Grid, Share, hole_segments

if TYPE_CHECKING:
    from receiver.transfer import Transfer

SEGMENT_BYTES: Final = 20
"""What a segment takes: 17 bytes in the table, and up to 3 of copies of its states while they are told."""
SEGMENTS_RESERVED: Final = 1 << 14
"""Segments of a single file that are in what is reserved for its transfer."""
MISSING_MOST: Final = 1 << 15
"""Runs of missing chunks that are told at once: a sender that has sent these hears of the others."""
WRITE_BACK_BYTES: Final = 64 * limits.MIB
WRITE_BACK_SECONDS: Final = 1.0
RESERVE_SECONDS: Final = 0.1
"""How often more space is taken ahead while bytes come."""
LEAVE_SECONDS: Final = 10.0
"""How long a thread may take to leave a file after it was told to: one write to a slow disk."""
GOODBYE_SECONDS: Final = 2.0
"""How long a transfer may take to say goodbye before its connections are cut."""
FENCE_SECONDS: Final = 10.0


class Source(NamedTuple):
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


class Answer(NamedTuple):
    """What the sender is to hear of some chunks of its share, as runs [start, stop) of their ordinals."""

    needed: list[tuple[int, int]]
    held: list[tuple[int, int]]


class File:
    """One file. The lock protects the chunk states and every field with an underscore."""

    def __init__(self, name: bytes, source: Source) -> None:
        self.name = name
        self.source = source
        self.grid = Grid(source.size, source.chunk_size)
        self.assembly: Assembly
        """Made by `open`: an offer that does not fit costs nothing."""
        self.lock = threading.Lock()
        self.account: Account | None = None
        """What its table has of the memory for peers: shards share it, and leave it at different times."""
        self.is_committed = False
        self.set_aside = 0
        """Shares that an earlier job had finished, of another source: they have to be sent again."""
        self._opening = threading.Lock()
        self._content: Staged | InPlace | None = None
        self._finished: set[int] = set()
        self._sealed: set[int] = set()
        self._is_full = False
        self._is_closed = False
        self._is_committing = False
        self.is_closing = False
        """The last transfer is leaving it; protected by the lock of `Files`, as `is_stuck`."""
        self.is_stuck = False
        """A thread hangs on its descriptors, and may write into whatever has them next."""
        self._write_back_ended = threading.Event()
        self._write_back: threading.Thread | None = None

    # --- opening and closing

    @property
    def content(self) -> Staged | InPlace:
        """The bytes, staged or final: whoever has a stake has opened it."""
        assert self._content is not None
        return self._content

    @property
    def is_lost(self) -> bool:
        """Whether what was written can't be trusted: a sync failed, or somebody changed the staging."""
        return isinstance(self._content, Staged) and self._content.is_lost

    def left_bytes(self) -> int:
        """Count, about, the bytes that it is still going to take on the disk."""
        return self.assembly.missing_bytes() if self._content else self.grid.size

    def open(self, make: Callable[[], Staged | InPlace], failed: Callable[[FilestreamerError], None]) -> None:
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
            self.assembly = Assembly(self.grid, claims)
            for first, end in hole_segments(self.grid, content.holes):
                self.assembly.leave_out(first, end)
            for share in claims.seals:
                if share.count == self.source.shards and claims.is_sealed(share, self.source.mtime_ns):
                    self._sealed.add(share.index)
                else:
                    self.set_aside += 1
            if isinstance(content, Staged):
                content.expected_digest = self.assembly.digest
            self._content = content
            is_large = isinstance(content, Staged) and (
                self.grid.size >= WRITE_BACK_BYTES or content.entry.type is m.EntryType.STREAM
            )
            if is_large:
                thread = threading.Thread(
                    target=self._keep_writing_back, args=(content, failed), name="write-back", daemon=True
                )
                with contextlib.suppress(TransferFailed):  # without it the sync at the end is longer
                    start_thread(thread, "write-back")
                    self._write_back = thread

    def _keep_writing_back(self, staged: Staged, failed: Callable[[FilestreamerError], None]) -> None:
        """Take space ahead; have the kernel write while the rest still comes in: the sync at the end is short."""

        def write_back() -> None:
            ended = self._write_back_ended
            written, written_back_at = -1, time.monotonic()
            is_taken = staged.reserve(ended.is_set)
            while not ended.wait(RESERVE_SECONDS if not is_taken and staged.taken_bytes > written else 1.0):
                written = staged.taken_bytes
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
            if isinstance(self._content, Staged) and not self.is_committed:
                self._give_back(self._content)
            self._content.close()

    def _give_back(self, staged: Staged) -> None:
        """Free the space of the chunks that did not come, or not whole, if space was taken ahead."""
        if self._write_back is None:
            return
        grid = self.grid
        runs = self.assembly.runs(FREE, WRITING)
        missing = ((grid.offset(first), min(grid.offset(end), grid.size)) for first, end in runs)
        staged.give_back(missing, self.assembly.here_end)

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
            if any(any(self.assembly.runs(CLAIMED, share=other)) for other in others):
                return Step.REHASH
            for other in others:
                self._settle_sealed(other)
            self._is_full = self._is_committing = len(self._finished) == share.count
            return Step.COMMIT if self._is_full else Step.WAIT

    def _settle_sealed(self, share: Share) -> None:
        """Count a sealed share as finished, now that it is re-hashed, if all of it is still there."""
        self._sealed.discard(share.index)
        if not any(self.assembly.runs(FREE, WRITING, share=share)):
            self._finished.add(share.index)

    def sealed_claims(self) -> list[tuple[Share, int, int]]:
        """Read what is to be re-hashed of sealed shares: share, and a run [start, stop) of its ordinals."""
        with self.lock:
            sealed = [Share(index, self.source.shards) for index in sorted(self._sealed - self._finished)]
            return [(share, *run) for share in sealed for run in self.assembly.runs(CLAIMED, share=share)]

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


class Stake:
    """What one transfer has in a file: the chunks of its share, and no others."""

    def __init__(self, file: File, share: Share) -> None:
        self.file = file
        self.share = share
        self.grid = file.grid
        self.chunks = share.chunks(file.grid.segments)
        self.chunk_map = ChunkMap(self.chunks)
        """Of the chunks of the share, by ordinal; written under the file's lock."""
        self._is_closed = False  # protected by the file's lock

    @property
    def content(self) -> Staged | InPlace:
        return self.file.content

    @property
    def recorder(self) -> Self:
        """What notes chunks before they are acknowledged: it does, in the ledger."""
        return self

    @property
    def payload_bytes(self) -> int:
        """Bytes of the share that a sender sends, or that are here: all but those of chunks in holes."""
        runs = self.file.assembly.runs(HOLE, share=self.share)
        holes = sum(self.share.bytes_between(self.grid, start, stop) for start, stop in runs)
        return self.share.bytes_of(self.grid) - holes

    def begin_again(self) -> None:
        """Let what an earlier transfer of this share brought be compared, as everything that lies there."""
        with self.file.lock:
            self.file.assembly.begin_again(self.share)
            for start, stop in self.file.assembly.runs(HELD, share=self.share):
                for ordinal in range(start, stop):
                    self.chunk_map.add(ordinal, None)

    # --- chunks

    def position(self, segment: m.Segment) -> int | None:
        """Which segment of its file this is; None where it is none, or one of another share."""
        position = self.grid.index_of(segment.offset, segment.length)
        return position if position is not None and self.share.holds(position) else None

    def begin(self, position: int, writer: Writer) -> tuple[Turn, Writer | None]:
        """Begin one segment; where the turn is WAIT, who has to leave first.

        Raises RemoteProtocolError after Finish, TransferFailed(SOURCE_CHANGED) where the file is complete already.
        """
        with self.file.lock:
            if self.file.assembly.state(position) != VERIFIED:
                if self._is_closed:
                    raise RemoteProtocolError(f"segment {position} was sent after Finish")
                if self.file.is_full:
                    reason = (
                        f"{self.content.path} is complete, and differs from the source, though not in size and mtime"
                    )
                    raise TransferFailed(Code.SOURCE_CHANGED, f"{reason}: remove it, or touch the source")
            was_held = self.file.assembly.state(position) == HELD
            turn = self.file.assembly.begin(position, writer)
            if turn is Turn.WRITE:
                self.file.void(self.share)
            if was_held:  # the source has another chunk there by now
                self.chunk_map.remove(self.share.ordinal(position), was_held=True)
            return turn, self.file.assembly.writer(position)

    def deliver(self, position: int, writer: Writer, digest: bytes, computed: bytes, by: int) -> bool:
        """Settle a segment whose bytes connection `by` has brought; whether its digest was right."""
        with self.file.lock:
            was_written = self.file.assembly.writer(position) is writer
            is_good = self.file.assembly.deliver(position, writer, digest, computed)
            if was_written and is_good:
                self.chunk_map.add(self.share.ordinal(position), by)
            return is_good

    def write(self, view: memoryview, offset: int) -> None:
        """Write bytes of a segment that was begun. Raises TransferFailed: NO_SPACE, DESTINATION."""
        assert isinstance(self.content, Staged)  # nobody begins to write what is complete
        self.content.write(view, offset)

    def record(self, records: list[tuple[int, bytes]]) -> None:
        """Note (position, digest) of what was written, before it is acknowledged. Raises TransferFailed."""
        assert isinstance(self.content, Staged)
        self.content.record(records)

    def digest(self, position: int) -> bytes:
        """Return the digest of a chunk that is VERIFIED."""
        return self.file.assembly.digest(position)

    def abandon(self, writer: Writer) -> None:
        """Take back what a connection was writing."""
        with self.file.lock:
            self.file.assembly.abandon(writer)

    def rehashed(self, share: Share, start: int, digests: list[bytes]) -> Answer:
        """Settle claimed chunks of any share: held, or needed where the disk differs from what the ledger says."""
        answer = Answer([], [])
        with self.file.lock:
            for ordinal, digest in enumerate(digests, start):
                position = share.chunk(ordinal)
                was_claimed = self.file.assembly.state(position) == CLAIMED
                self.file.assembly.rehashed(position, digest)
                is_held = self.file.assembly.state(position) in (HELD, VERIFIED)
                if was_claimed and is_held and share == self.share:
                    self.chunk_map.add(ordinal, None)
                _extend(answer.held if is_held else answer.needed, ordinal)
        return answer

    # --- answers

    def answer(self) -> Answer:
        """Read what is needed and what is held now; what is claimed is told when it is re-hashed."""
        states = self.states()
        return Answer(list(runs(states, FREE, WRITING)), list(runs(states, HELD, VERIFIED)))

    def answers(self, file_id: int) -> Iterator[m.Needed | m.Held]:
        """Say so, message by message: of a file of many chunks there can be as many runs."""
        states = self.states()
        yield from self._needed(file_id, runs(states, FREE, WRITING))
        yield from self._held(file_id, runs(states, HELD, VERIFIED))

    def states(self) -> bytes:
        """Return the states of the chunks of the share as they are now, one byte each."""
        with self.file.lock:
            return self.file.assembly.states(self.share)

    def claimed(self) -> list[tuple[int, int]]:
        """Read which chunks are to be re-hashed, as runs of ordinals."""
        with self.file.lock:
            return list(self.file.assembly.runs(CLAIMED, share=self.share))

    def claimed_chunks(self) -> int:
        """Count the chunks that are to be re-hashed."""
        return self.states().count(CLAIMED)

    def claimed_runs(self) -> Iterator[tuple[int, int]]:
        """Yield them, as they are now, as runs of ordinals: of a file of many chunks there can be as many."""
        return runs(self.states(), CLAIMED)

    def missing(self, most: int | None = None) -> list[tuple[int, int]]:
        """Read which chunks are not here, as runs of ordinals: all of these, or the first `most`."""
        return list(itertools.islice(runs(self.states(), FREE, CLAIMED, WRITING), most))

    def needed_messages(self, file_id: int, runs: list[tuple[int, int]]) -> list[m.Needed]:
        """Say what is needed in messages that are small enough."""
        return list(self._needed(file_id, iter(runs)))

    def held_messages(self, file_id: int, runs: list[tuple[int, int]]) -> list[m.Held]:
        """Say what is held, with digests, in messages that are small enough."""
        return list(self._held(file_id, iter(runs)))

    def _needed(self, file_id: int, runs: Iterator[tuple[int, int]]) -> Iterator[m.Needed]:
        spans = (self.share.span(start, stop) for start, stop in runs)
        ranges = (m.SegmentRange(file_id, first, end - first) for first, end in spans)
        while some := tuple(itertools.islice(ranges, limits.RANGES_PER_NEEDED)):
            yield m.Needed((), some)

    def _held(self, file_id: int, runs: Iterator[tuple[int, int]]) -> Iterator[m.Held]:
        for start, stop in runs:
            for at in range(start, stop, limits.DIGESTS_PER_HELD):
                digests = b"".join(self._digests(at, min(at + limits.DIGESTS_PER_HELD, stop)))
                yield m.Held(file_id, self.share.chunk(at), digests)

    def _digests(self, start: int, stop: int) -> Iterator[memoryview]:
        return self.file.assembly.digests(self.share, start, stop)

    # --- the end

    def close(self) -> None:
        """Let no further write in, now that nothing is missing or the transfer is over."""
        with self.file.lock:
            self._is_closed = True

    def held_bytes(self) -> int:
        """Count the bytes that were there before."""
        with self.file.lock:
            return self.file.assembly.held_bytes(self.share)

    def digests(self) -> Iterator[memoryview]:
        """Yield the digests of all chunks that have one, in order."""
        return self.file.assembly.digests(self.share)

    def seal(self) -> None:
        """Make the share durable in staging. Raises TransferFailed."""
        if isinstance(self.content, Staged):
            self.content.seal(self.share, root_digest(self.digests()))

    def discard(self) -> None:
        """Trust nothing that was received: it differs from what the sender read, though every chunk was equal."""
        if self.share.count == 1 and isinstance(self.content, Staged):
            self.content.discard()
        with self.file.lock:
            self.file.void(self.share)
            self.file.assembly.forget(self.share)


def _extend(runs: list[tuple[int, int]], ordinal: int) -> None:
    """Add the next ordinal to runs [start, stop)."""
    if runs and runs[-1][1] == ordinal:
        runs[-1] = (runs[-1][0], ordinal + 1)
    else:
        runs.append((ordinal, ordinal + 1))


class Files:
    """Who has a stake in which file. Transfers call it from their own threads."""

    def __init__(self, destination: Destination, output_name: bytes | None) -> None:
        """`output_name` replaces the name that senders give."""
        self._destination = destination
        self._output_name = output_name
        self._lock = threading.Lock()  # protects both tables
        self._files: dict[bytes, File] = {}  # by name: those that can be joined, or stand in the way
        self._stakes: dict[Transfer, Stake] = {}
        self._trees: dict[Transfer, Roots] = {}

    def claim_root(self, transfer: "Transfer", name: bytes) -> Roots:
        """Give a tree its first name in the destination, and what it claims the others with.

        Raises TransferFailed: POLICY, BUSY.
        """
        if self._output_name is not None:
            raise TransferFailed(Code.POLICY, "this receiver takes one file, under a name of its own (--output-file)")
        roots = Roots(self._destination, lambda other: self._hold(transfer, roots, other))
        roots.claim(name)
        return roots

    def _hold(self, transfer: "Transfer", roots: Roots, name: bytes) -> None:
        """Let a tree have a name, if no other transfer has it; one without sender gives way. Raises TransferFailed."""
        with self._lock:
            rivals = self._holders(name, transfer)
        self._displace(rivals)
        with self._lock:
            if self._holders(name, transfer):
                raise TransferFailed(Code.BUSY, f"{self._shown(name)} is being received from another sender")
            self._trees[transfer] = roots
            roots.take(name)

    def _holders(self, name: bytes, transfer: "Transfer") -> "list[Transfer]":
        """List who else has a name in the destination, as a file or as the root of a tree."""
        file = self._files.get(name)
        holders = [holder for holder, stake in self._stakes.items() if file is not None and stake.file is file]
        holders += self._planters(name)
        return [holder for holder in holders if holder is not transfer]

    def _planters(self, name: bytes) -> "list[Transfer]":
        """List which trees hold a name."""
        return [transfer for transfer, roots in self._trees.items() if name in roots]

    def _displace(self, rivals: "list[Transfer]") -> None:
        """Have others give way, if all of them do. Raises TransferFailed(BUSY) where one has ended, and hangs."""
        _check_hanging(rivals)
        if rivals and all(rival.gives_way for rival in rivals):
            for rival in rivals:
                rival.give_way()
            join_all(rivals)
            _check_hanging(rivals)

    def claim(self, transfer: "Transfer", entry: m.Entry, grid: Grid, share: Share) -> Stake:
        """Give a transfer its share of a file, if no other one has it; those that are deserted give way.

        Raises TransferFailed: PATH, POLICY, BUSY, SOURCE_CHANGED, LIMIT, EXISTS, DESTINATION, NO_SPACE.
        """
        name = check_name(entry.path)
        name = self._output_name or name
        source = Source(share.count, entry.size, entry.mtime_ns, grid.chunk_size)
        with self._lock:
            rivals = self._rivals(name, source, share)
        self._displace(rivals)
        with self._lock:
            if self._planters(name):
                raise TransferFailed(Code.BUSY, f"{self._shown(name)} is being received from another sender")
            if self._rivals(name, source, share):
                raise _refusal(self._files[name], source, share, self._shown(name))
            stake = Stake(self._file(name, source, transfer.account), share)
            self._stakes[transfer] = stake
            reserved_bytes = sum(file.left_bytes() for file in self._open_files() if file is not stake.file)
        try:
            stake.file.open(lambda: self._content(entry, stake, reserved_bytes), self._failing(stake.file))
        except BaseException:
            self.leave(transfer, cleanly=True)
            raise
        stake.begin_again()
        return stake

    def _rivals(self, name: bytes, source: Source, share: Share) -> "list[Transfer]":
        """List who is in the way of a newcomer: who moves its share or, where it is of another job, everybody."""
        if planters := self._planters(name):
            return planters
        file = self._files.get(name)
        if file is None:
            return []
        others = [(transfer, stake.share) for transfer, stake in self._stakes.items() if stake.file is file]
        if file.source != source or file.is_lost or file.is_closing:
            return [transfer for transfer, _ in others]
        return [transfer for transfer, other in others if other == share and not transfer.is_complete]

    def _file(self, name: bytes, source: Source, account: Account) -> File:
        """Return the file of that name, new where there is none. Raises TransferFailed: TOO_LARGE, LIMIT."""
        file = self._files.get(name)
        if file is None:
            file = File(name, source)
            file.account = account.another()
            count = SEGMENT_BYTES * max(0, file.grid.segments - SEGMENTS_RESERVED)
            account.check(count)
            if count and not file.account.try_borrow(count):
                raise TransferFailed(Code.LIMIT, "no memory is left for the chunks of another file: try again later")
            self._files[name] = file
        return file

    def _open_files(self) -> set[File]:
        return {stake.file for stake in self._stakes.values()}

    def _content(self, entry: m.Entry, stake: Stake, reserved_bytes: int) -> Staged | InPlace:
        """Stage a file; where a shard comes again after the commit, open what was committed. Raises TransferFailed."""
        name = stake.file.name
        in_place = self._destination.in_place(name, entry, stake.grid) if stake.share.count > 1 else None
        return in_place or self._destination.stage(name, entry, stake.grid, reserved_bytes)

    def _failing(self, file: File) -> Callable[[FilestreamerError], None]:
        """Return what ends every transfer of a file for an error."""

        def fail(error: FilestreamerError) -> None:
            with self._lock:
                transfers = [transfer for transfer, stake in self._stakes.items() if stake.file is file]
            for transfer in transfers:
                transfer.end_soon(error)

        return fail

    def _shown(self, name: bytes) -> str:
        return os.path.join(self._destination.path, os.fsdecode(name))

    def release(self, transfer: "Transfer") -> None:
        """Let others write what a transfer has committed."""
        with self._lock:
            if transfer in self._stakes:
                self._forget(self._stakes[transfer].file)

    def _forget(self, file: File) -> None:
        if self._files.get(file.name) is file:
            del self._files[file.name]

    def leave(self, transfer: "Transfer", *, cleanly: bool) -> None:
        """Take a transfer out of its file, and close that behind the last one.

        `cleanly` is whether all its threads have left the file: where one hangs in a write, nothing is closed.
        """
        with self._lock:
            self._trees.pop(transfer, None)
            stake = self._stakes.get(transfer)
            if stake is None:
                return
            file = stake.file
            file.is_stuck = file.is_stuck or not cleanly
            is_last = all(other is stake or other.file is not file for other in self._stakes.values())
            file.is_closing = is_last
            if not is_last:
                del self._stakes[transfer]
        if not is_last:
            if file.is_lost:
                self._failing(file)(
                    TransferFailed(Code.DESTINATION, f"the staging of {file.content.path} was lost: run it again")
                )
            return
        try:
            file.close()
        finally:  # whatever the disk says, others may have the name
            if file.account is not None:
                file.account.close()
            with self._lock:
                del self._stakes[transfer]
                self._forget(file)

    def is_in_use(self, name: bytes) -> bool:
        """Whether any transfer has this name, as that of a file or of the root of a tree, and does not hang in it."""
        with self._lock:
            holders = [holder for holder, stake in self._stakes.items() if stake.file.name == name]
            holders += self._planters(name)
        return any(holder.hangs is None for holder in holders)


def _refusal(file: File, source: Source, share: Share, shown: str) -> TransferFailed:
    """Say why a newcomer can't have its share of a file that others write."""
    if file.source == source:
        what = f"shard {share} of {shown}" if share.count > 1 else shown
        return TransferFailed(Code.BUSY, f"{what} is being received from another sender")
    if not file.source.shards == source.shards > 1:
        in_shards = f", in {file.source.shards} shards" if file.source.shards > 1 else ""
        return TransferFailed(Code.BUSY, f"{shown} is being received from another sender{in_shards}")
    if (file.source.size, file.source.mtime_ns) != (source.size, source.mtime_ns):
        reason = f"the other shards of {shown} have a source of another size or mtime"
        return TransferFailed(Code.SOURCE_CHANGED, f"{reason}: run all of them again, from one source")
    reason = f"the other shards of {shown} have chunks of {file.source.chunk_size} bytes, this one {source.chunk_size}"
    return TransferFailed(Code.POLICY, f"{reason}: give all the same --chunk-size")


def _check_hanging(rivals: "list[Transfer]") -> None:
    """Raise TransferFailed(BUSY), with the reason, where a transfer has ended and a thread of it hangs on a disk."""
    for rival in rivals:
        if (reason := rival.hangs) is not None:
            raise TransferFailed(Code.BUSY, reason)


def join_all(transfers: "list[Transfer]", seconds: float = GOODBYE_SECONDS + FENCE_SECONDS) -> None:
    """Wait for the end of transfers, so long for all of them; those that hang on a peer are cut off before."""
    now = time.monotonic()
    for until in (now + GOODBYE_SECONDS, now + seconds):
        for transfer in transfers:
            transfer.join(max(0.0, until - time.monotonic()))
        for transfer in transfers:
            transfer.cut()

"""A transfer of a tree: parts of the manifest come in while files go out to their places (proto/README.md, "Trees").

    take     each part: it is kept on the disk (`archive`), and taken when there is room
             make directories and symlinks, look at what is there, answer what is needed (`listing`)
    begin    a chunk (`tree_writer`): of `small` files, written whole, or of a `large` one, staged and resumed
    end      a file that is complete goes to the placer (`place`), which puts thousands in place after one sync
    close    links, then directories' modes and times, deepest first; one more sync; Complete

A part is looked at whole while something of it is under way (`part_state`). PORTIONS of them are open at once, each but
one with borrowed memory; those that come meanwhile wait unanswered, which holds the sender back.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.digests import root_digest
from filestreamer.wire.errors import Code, FilestreamerError, RemoteProtocolError, TransferFailed, from_os_error
from filestreamer.wire.grid import Grid, count_chunks
from receiver.disk.store import Staging, check_path
from receiver.file.chunk_states import CLAIMED, runs
from receiver.file.rehash import FinalFile, FinalsRehashed, Rehashed, Rehasher, Work, count_batches
from receiver.file.target import Connection, IncomingSegment, NextStep
from receiver.memory.budget import Account
from receiver.tree import part_state as state
from receiver.tree.answers import answers, held_messages, missing, needed_messages
from receiver.tree.archive import Archive, cost_bytes
from receiver.tree.committer import Committer, TreeStaging, sync_file_system
from receiver.tree.entry_preparer import EntryPreparer
from receiver.tree.open_large_file import WHOLE_DIGESTS, Large
from receiver.tree.part_state import PartState
from receiver.tree.spool import Spool
from receiver.tree.top_level_names import TopLevelNames
from receiver.tree.tree_writer import TreeWriter

PARTS_OPEN: Final = 64
"""Parts of the manifest of which something is under way at once."""
LARGE_CLAIMED: Final = 64
"""Large files of an earlier run that are re-hashed at once; others are sent anew."""
STEP_BYTES: Final = 256 * limits.KIB
"""What grows with the length of the manifest, a few bytes a part or a name, is borrowed in such steps."""


WAIT_SECONDS: Final = 0.1


class TreeTarget:
    """Everything of one tree; each portion has a lock of its own."""

    _taken = 0
    """Parts that were taken; those behind them wait."""
    _withdrawn_early = 0
    """Files of parts that wait."""
    _needed_bytes = 0
    """What was needed of all parts so far."""
    _is_committed = False
    _is_over = False

    def __init__(
        self,
        offer: m.Offer,
        roots: TopLevelNames,
        *,
        root: bytes,
        account: Account,
        counters: TransferCounters,
        rehasher: Rehasher,
        failed: Callable[[FilestreamerError], None],
        nudge: Callable[[], object],
        log: Any,
    ) -> None:
        """`roots` claims names in the destination, and raises where others have them; `root` was claimed.

        `failed` ends the transfer, `nudge` has the coordinator ask for `more`. Raises TransferFailed.
        """
        self.name = root
        self.chunks = self
        self._offer = offer
        self._account = account
        self._destination = destination = roots.destination
        self._roots = roots
        self._counters = counters
        self._rehasher = rehasher
        self._nudge = nudge
        self._staging = TreeStaging(destination, root)
        with contextlib.ExitStack() as opened:
            opened.callback(self._staging.close)
            self._spool = Spool(self._staging.files_fd, destination.path)
            opened.callback(self._spool.close)
            self._index = Spool(self._staging.files_fd, destination.path)
            opened.pop_all()
        self._archive = Archive(self._spool, self._index, offer.chunk_size)
        self._committer = Committer(destination, self._staging, failed, self._hear_placed)
        try:
            self._committer.begin()
        except TransferFailed:
            self._close_spools()
            self._staging.close()
            raise
        self._preparer = EntryPreparer(
            destination, self._staging, self._committer, roots, self._spool, checksum=offer.checksum
        )
        self._tree_writer = TreeWriter(
            offer.chunk_size,
            destination,
            self._staging,
            self._committer,
            archive=self._archive,
            account=account,
            counters=counters,
            failed=failed,
            settled=self._hear_settled,
        )
        self._expected: int | None = 0
        """The next part's first file_id; None after rejoining: any that is known."""
        self._came: tuple[int, m.ManifestPart] | None = None
        """The part that came last, and its number: it need not be read back."""
        self._owned_bytes = STEP_BYTES
        """The memory for what grows with the manifest."""
        self._claimable: set[str] | None = None
        counters.name = self._preparer.shown(root)
        counters.files = 0
        log.info("transfer_started", tree=counters.name)

    # --- parts of the manifest

    def take_part(self, part: m.ManifestPart, body: bytes) -> Iterator[m.Message]:
        """Take a part and answer it, now or when others are done; answer one that is known from what is known."""
        archive = self._archive
        if self._expected is not None and part.first_file_id != self._expected:
            raise RemoteProtocolError(f"a part begins with file {part.first_file_id}, and {self._expected} is next")
        self._expected = part.first_file_id + len(part.entries)
        if part.first_file_id > archive.entries:
            reason = "the parts of the manifest that were left out are not known here: begin again"
            raise TransferFailed(Code.UNKNOWN_TRANSFER, reason)
        number = archive.beginning_with(part.first_file_id)
        if number is None and (part.first_file_id != archive.entries or archive.is_listed):
            raise RemoteProtocolError("the manifest is repeated, otherwise than before")
        if number is None:
            archive.append(part, body)
            self._came = (archive.parts - 1, part)
        elif not archive.is_same(number, part, body):
            raise RemoteProtocolError("the manifest is repeated, otherwise than before")
        elif number < self._taken:
            yield from answers(self._tree_writer.part_state(number), self._spool)
        yield from self.more()

    def rejoin(self) -> None:
        """Expect any part that is known, or the next."""
        self._expected = None

    @property
    def _waits(self) -> bool:
        """Whether parts wait to be taken."""
        return self._taken < self._archive.parts

    @property
    def has_more(self) -> bool:
        """Whether parts wait, or what is done with can be let go."""
        return self._waits or self._tree_writer.has_settled or self._tree_writer.files.is_to_be_trimmed

    def more(self) -> Iterator[m.Message]:
        """Take parts that wait, as long as there is room for them."""
        self._tree_writer.retire()
        while self._waits and (part := self._next_part()) is not None:
            yield from self._take(*part)
            self._tree_writer.retire()
        self._came = None
        self._tree_writer.files.trim()

    def _next_part(self) -> tuple[m.ManifestPart, int] | None:
        """Return the next part and what was borrowed for it; None where there is no room for it."""
        under_way = self._tree_writer.under_way
        if len(under_way) >= PARTS_OPEN or self._committer.is_far_behind:
            return None
        came = self._came
        part = came[1] if came is not None and came[0] == self._taken else self._archive.part(self._taken)
        if not self._grow(len(part.entries)):
            return None
        if all(part_state.borrowed_bytes for part_state in under_way):
            return part, 0
        cost = cost_bytes(part, self._offer.chunk_size)
        return (part, cost) if self._account.try_borrow(cost) else None

    def _grow(self, entries: int) -> bool:
        """Get memory for what is kept to the end of so many entries; whether there is some."""
        table_bytes = 8 * (self._archive.parts + self._preparer.groups + entries)
        most = table_bytes + table_bytes // 8 + self._roots.growth_bytes(entries)
        while self._owned_bytes < most:
            if not self._account.try_borrow(STEP_BYTES):
                return False
            self._owned_bytes += STEP_BYTES
        return True

    def _hear_settled(self) -> None:
        """Have the coordinator look at parts that wait, as there may be room, and let go of what is done with."""
        self._nudge()

    def _hear_placed(self, path: bytes) -> None:
        """Let others have a name in the destination itself, now that the file is in place."""
        if b"/" not in path:
            self._roots.release(path)

    def _take(self, part: m.ManifestPart, borrowed_bytes: int) -> Iterator[m.Message]:
        part_state = PartState(self._taken, part.first_file_id, part.entries)
        part_state.borrowed_bytes = borrowed_bytes
        for entry in part.entries:
            check_path(entry.path)
        with part_state.lock:
            finals = self._list(part_state, part.entries)
            self._check_space(part_state, part.entries)
        early = self._archive.states(part_state.number) if self._withdrawn_early else b""
        self._tree_writer.keep(part_state)
        self._tree_writer.listed += part_state.count
        self._taken += 1
        for index, kind in enumerate(early):
            if kind == state.WITHDRAWN:
                self._withdrawn_early -= 1
                self._withdraw(part_state, index)
        yield from answers(part_state, self._spool)
        self._rehash(part_state, finals)

    def _list(self, part_state: PartState, entries: Sequence[m.Entry]) -> list[int]:
        """Look at each entry; return which files are to be compared where they lie."""
        finals = []
        sizes = []
        late = []
        for index, entry in enumerate(entries):
            if self._is_over:  # the disk was slow, and others may have the names by now
                raise TransferFailed(Code.TIMEOUT, "the transfer ended while it was listed")
            kind = self._preparer.take(part_state, index, entry)
            if self._preparer.is_late(entry, part_state.first + index):
                late.append((index, entry))
            if entry.type is not m.EntryType.FILE:
                continue
            self._counters.files += 1
            if self._preparer.has_segments(entry, part_state.first + index):
                sizes.append(entry.size)
            if kind != state.NOTHING:
                self._take_file(part_state, index, entry, kind)
            if kind == state.CLAIMED:
                finals.append(index)
        self._counters.chunks += count_chunks(sizes, self._offer.chunk_size)
        if late:
            self._archive.keep_late(part_state.number, late)
        return finals

    def _take_file(self, part_state: PartState, index: int, entry: m.Entry, kind: int) -> None:
        """Take in a file with segments that are sent, or are here."""
        part_state.set(index, kind)
        payload_bytes = entry.size
        if entry.size > self._offer.chunk_size:
            large = part_state.large[index] = Large(entry, self._offer.chunk_size)
            if large.grid.segments > limits.CHUNKS_PER_FILE:
                reason = f"{large.grid.segments} chunks are too many: the limit is {limits.CHUNKS_PER_FILE}"
                raise RemoteProtocolError(reason)
            payload_bytes = large.payload_bytes
            if kind == state.FREE:
                self._tree_writer.files.check(large)
            if self._is_staged(entry.path):
                if kind == state.FREE:
                    self._resume(part_state, index)
                else:
                    self._drop_ledger(entry.path)
        self._counters.size_bytes += payload_bytes
        if kind == state.UNCHECKED:
            self._counters.unchecked_bytes += payload_bytes

    def _check_space(self, part_state: PartState, entries: Sequence[m.Entry]) -> None:
        needed = sum(
            entry.size - sum(hole.length for hole in entry.holes)
            for index, entry in enumerate(entries)
            if part_state.state(index) == state.FREE
        )
        self._needed_bytes += needed
        free = self._destination.free_bytes() - max(0, self._needed_bytes - needed - self._counters.moved_bytes)
        if needed > free:
            reason = f"no space for {self._counters.name}: {needed} bytes are needed next and {max(0, free)} are free"
            raise TransferFailed(Code.NO_SPACE, reason)

    def _is_staged(self, path: bytes) -> bool:
        """Whether an earlier run left something of a large file."""
        if self._claimable is None:
            self._claimable = self._destination.staged_keys()
        return Staging.key(path) in self._claimable

    def _drop_ledger(self, path: bytes) -> None:
        """Remove what a crash right after the rename left of a file that is in place."""
        try:
            self._destination.drop_ledger(path)
        except OSError as error:
            what = f"can't remove the ledger of {self._preparer.shown(path)}"
            raise from_os_error(error, Code.DESTINATION, what) from None

    def _resume(self, part_state: PartState, index: int) -> None:
        """Open a large file of which an earlier run left something, if there is room for it."""
        files, large = self._tree_writer.files, part_state.large[index]
        room = files.try_room(large) if len(files) < LARGE_CLAIMED else None
        if room is None:
            return
        try:
            open_file = self._tree_writer.open_large(part_state, index, room)
        except BaseException:
            files.give_back(*room)
            raise
        file, states = open_file.file, open_file.states()  # as they are now: what is counted is what is re-hashed

        def works() -> Iterator[Work]:
            for start, stop in runs(states, CLAIMED):
                yield Work(part_state.first + index, file.content, file.grid, open_file.share, start, stop)

        count = sum(count_batches(work.grid, work.start, work.stop) for work in works())
        if count:
            open_file.rehashing += count
            self._rehasher.add_all(works())

    def _rehash(self, part_state: PartState, finals: list[int]) -> None:
        if finals:
            entries = part_state.entries
            files = [
                FinalFile(
                    part_state.first + index, entries[index].path, Grid(entries[index].size, self._offer.chunk_size)
                )
                for index in finals
            ]
            self._rehasher.add_finals(self._destination, files, self._keep_final)

    def _keep_final(self, file_id: int, first: int, digests: bytes) -> None:
        """Keep digests of a large file under its final name, from segment `first` on, as they are found."""
        part_state, index = self._tree_writer.find(file_id)
        with part_state.lock:
            large = part_state.large[index]
            for start, end in large.runs():
                low, high = max(start, first), min(end, first + len(digests) // limits.DIGEST_BYTES)
                if low < high:
                    piece = digests[(low - first) * limits.DIGEST_BYTES : (high - first) * limits.DIGEST_BYTES]
                    large.keep_digests(low, piece, self._spool)

    # --- answers

    def take_rehashed(self, batch: Rehashed | FinalsRehashed) -> Iterator[m.Message]:
        """Answer what was claimed, now that it is known what is on the disk."""
        self._counters.rehashed_bytes += batch.bytes
        if isinstance(batch, FinalsRehashed):
            for file_id, found in batch.digests:
                yield from self._take_final(file_id, found)
            return
        part_state, index = self._tree_writer.find(batch.file_id)
        with part_state.lock:
            open_file = part_state.large[index].open_file
            if open_file is None:
                return
            open_file.rehashing -= 1
            answer = open_file.rehashed(batch.share, batch.start, batch.digests)
        self._tree_writer.settle_large(part_state, index, waits=False)
        yield from needed_messages(batch.file_id, answer.needed)
        yield from held_messages(part_state, index, answer.held, self._spool, final=False)

    def _take_final(self, file_id: int, found: bytes | None) -> Iterator[m.Message]:
        """Answer a file that was compared where it lies; None where it is gone."""
        part_state, index = self._tree_writer.find(file_id)
        with part_state.lock:
            if part_state.state(index) != state.CLAIMED:
                return
            large = part_state.large.get(index)
            if found is None:
                part_state.set(index, state.FREE)
            elif large is not None:
                large.kind = WHOLE_DIGESTS
                part_state.set(index, state.HELD)
            else:
                part_state.settle(index, state.HELD, found)
        if found is None:
            yield m.Needed((m.FileRange(file_id, 1),), ())
        elif large is not None:
            yield from held_messages(part_state, index, large.runs(), self._spool, final=True)
        else:
            yield m.Held(file_id, 0, found, (), True)

    def withdraw(self, file_ids: Sequence[int]) -> None:
        """Drop files that are not going to be sent: what is there of them goes, what lies in place stays."""
        for file_id in file_ids:
            if self._tree_writer.listed <= file_id < self._archive.entries:
                self._withdrawn_early += self._archive.withdraw(file_id)
            else:
                self._withdraw(*self._tree_writer.find(file_id))

    def _withdraw(self, part_state: PartState, index: int) -> None:
        with part_state.lock:
            kind = part_state.state(index)
            entry = part_state.entries[index]
            is_link = self._preparer.is_follower(entry, part_state.first + index)
            if entry.type is not m.EntryType.FILE or (kind == state.NOTHING and not is_link):
                raise RemoteProtocolError(f"file {part_state.first + index} is withdrawn, and has nothing to be sent")
            if kind == state.WITHDRAWN:
                return
            part_state.set(index, state.WITHDRAWN)
            self._counters.files -= 1
            if not is_link:
                self._counters.size_bytes -= _payload_bytes(part_state, index, entry)
            if index in part_state.large:
                self._tree_writer.drop_staged(part_state, index)
            if not part_state.is_kept:
                self._archive.save(part_state)
        self._hear_placed(entry.path)
        if index in part_state.large:
            self._tree_writer.settle_large(part_state, index, waits=False)

    # --- chunks

    def begin_chunk(self, connection: Connection, header: m.ChunkHeader) -> list[IncomingSegment]:
        """Check every segment of a chunk, and begin them."""
        return self._tree_writer.begin(connection, header)

    def end_chunk(
        self, connection: Connection, parts: list[IncomingSegment], digests: list[bytes], computed: list[bytes]
    ) -> bool:
        """Settle the segments of a chunk; what is complete by it goes to its place."""
        return self._tree_writer.end(connection, parts, digests, computed)

    def detach(self, connection: Connection) -> None:
        """Take back what a connection was writing."""
        self._tree_writer.abandon(connection)

    def stop_writes(self) -> None:
        """Let no further write in, and nobody wait: the transfer is over."""
        self._is_over = True
        self._tree_writer.shut()
        self._tree_writer.end_waiting()

    # --- the end

    def missing(self) -> Iterator[m.Message]:
        """Say what is not here, of everything that was listed; parts that wait are answered first."""
        answered = self._taken
        yield from self.more()
        while self._waits and not (self._tree_writer.under_way or self._is_over):
            time.sleep(WAIT_SECONDS)  # for memory, or for the placer
            yield from self.more()
        for part_state in self._tree_writer.under_way:
            yield from missing(part_state, self._spool, is_answered=part_state.number >= answered)

    def finish(self, finish: m.Finish) -> bytes:
        """Let no further write in, and compare what is here with what the sender read."""
        self._tree_writer.shut()
        self._tree_writer.finish()
        self._counters.held_bytes += sum(map(self._held_bytes, range(self._archive.parts)))
        root = root_digest(self._archive.digests())
        if root != finish.root_digest or finish.chunks != self._counters.chunks:
            raise TransferFailed(
                Code.DIGEST, "what came differs from what the sender read, though every chunk was equal"
            )
        return root

    def _held_bytes(self, number: int) -> int:
        if state.HELD not in self._archive.states(number):
            return 0
        part_state = self._archive.restore(number)
        held = [index for index, kind in enumerate(part_state.states()) if kind == state.HELD]
        return sum(_payload_bytes(part_state, index, part_state.entries[index]) for index in held)

    def next_step(self) -> NextStep:
        """Commit, once."""
        return m.Complete(True) if self._is_committed else self._commit

    def _commit(self) -> None:
        """Put everything in place that is not yet, then links, then directories; make it durable."""
        begun = time.monotonic()
        self._committer.flush()
        parts = range(self._archive.parts)
        for number in parts:
            self._preparer.link(self._archive.late(number), self._is_withdrawn)
        for number in reversed(parts):
            self._preparer.finish_directories(self._archive.late(number))
        try:
            sync_file_system(self._staging.fd)
            self._staging.close()
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't sync {self._destination.path}") from None
        self._counters.sync_seconds = time.monotonic() - begun
        self._is_committed = True

    def _is_withdrawn(self, file_id: int) -> bool:
        return self._archive.state(file_id) == state.WITHDRAWN

    def close(self, *, cleanly: bool) -> None:
        """Put in place what is complete, and keep what there is of large files for the next run."""
        with contextlib.ExitStack() as steps:  # the last one first; each is taken, whatever the disk says to another
            if cleanly:
                steps.callback(self._staging.close)
                steps.callback(self._close_spools)
                steps.callback(self._tree_writer.leave)
            else:
                steps.callback(self._tree_writer.files.close)
            steps.callback(self._committer.end)
            steps.callback(self._preparer.close)

    def _close_spools(self) -> None:
        self._spool.close()
        self._index.close()


def _payload_bytes(part_state: PartState, index: int, entry: m.Entry) -> int:
    """Return the bytes of the segments of a file that do not lie in holes."""
    large = part_state.large.get(index)
    return large.payload_bytes if large is not None else entry.size

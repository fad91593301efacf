"""A transfer of a tree: parts of the manifest come in while files go out to their places (proto/README.md, "Trees").

    take     each part: make directories and symlinks, look at what is there, answer what is needed (`listing`)
    begin    a chunk (`arrivals`): of `small` files, written whole, or of a `large` one, staged and resumed
    end      a file that is complete goes to the placer (`place`), which puts thousands in place after one sync
    close    links, then directories' modes and times, deepest first; one more sync; Complete

A part is looked at whole while something of it is under way, and packed after that (`portion`). PORTIONS of them are
open at once; those that come meanwhile wait unanswered, which holds the sender back.
"""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from receiver import portion as state
from receiver.answers import answers, held
from receiver.arrivals import Arrivals
from receiver.budget import Account
from receiver.cargo import Connection, Part, Step
from receiver.large import Large
from receiver.listing import Lister
from receiver.place import Placer, TreeStaging, sync_file_system
from receiver.portion import Portion
from receiver.rehash import FinalFile, FinalsRehashed, Rehashed, Rehasher, Work
from receiver.store import Destination, Staged, check_path
from service.counters import TransferCounters
from wire import limits
from wire import messages as m
from wire.digests import root_digest
from wire.errors import Code, FilestreamerError, RemoteProtocolError, TransferFailed, from_os_error
from wire.grid import Grid, count_chunks

PORTIONS: Final = 64
"""Parts of the manifest of which something is under way at once."""
PARTS_WAITING: Final = 256
LARGE_CLAIMED: Final = 64
"""Large files of an earlier run that are re-hashed at once; others are sent anew."""


class Tree:
    """Everything of one tree; each portion has a lock of its own."""

    def __init__(
        self,
        offer: m.Offer,
        destination: Destination,
        claim: Callable[[bytes], object],
        *,
        root: bytes,
        account: Account,
        counters: TransferCounters,
        rehasher: Rehasher,
        failed: Callable[[FilestreamerError], None],
        nudge: Callable[[], object],
        log: Any,
    ) -> None:
        """`claim` takes the name of a root, and raises where others have it; `root` was claimed.

        `failed` ends the transfer, `nudge` has the coordinator ask for `more`. Raises TransferFailed.
        """
        self.name = root
        self._offer = offer
        self._account = account
        self._destination = destination
        self._counters = counters
        self._rehasher = rehasher
        self._nudge = nudge
        self._staging = TreeStaging(destination, root)
        self._placer = Placer(destination, self._staging, failed)
        try:
            self._placer.begin()
        except TransferFailed:
            self._staging.close()
            raise
        self._lister = Lister(destination, self._staging, self._placer, claim, checksum=offer.checksum)
        self._arrivals = Arrivals(
            offer.chunk_size,
            destination,
            self._staging,
            self._placer,
            counters,
            failed=failed,
            settled=self._hear_settled,
        )
        self._expected: int | None = 0
        """The next part's first file_id; None after rejoining: any that is known."""
        self._is_listed = False
        self._waiting: deque[tuple[m.ManifestPart, bytes]] = deque()
        self._withdrawn_early: set[int] = set()
        self._needed_bytes = 0
        """What was needed of all parts so far."""
        self._claimable: set[str] | None = None
        self._is_committed = False
        counters.name = self._lister.shown(root)
        counters.files = 0
        log.info("transfer_started", tree=counters.name)

    # --- parts of the manifest

    def take(self, part: m.ManifestPart, body: bytes) -> Sequence[m.Message]:
        """Take a part and answer it, now or when others are done; answer one that is known from what is known."""
        if self._expected is not None and part.first_file_id != self._expected:
            raise RemoteProtocolError(f"a part begins with file {part.first_file_id}, and {self._expected} is next")
        listed = self._arrivals.listed + sum(len(waiting.entries) for waiting, _ in self._waiting)
        self._expected = part.first_file_id + len(part.entries)
        if part.first_file_id > listed:
            reason = "the parts of the manifest that were left out are not known here: begin again"
            raise TransferFailed(Code.UNKNOWN_TRANSFER, reason)
        known = self._arrivals.beginning_with(part.first_file_id)
        if known is not None:
            if not known.is_same(part, body):
                raise RemoteProtocolError("the manifest is repeated, otherwise than before")
            return list(answers(known))
        if part.first_file_id != listed or self._is_listed:
            raise RemoteProtocolError("the manifest is repeated, otherwise than before")
        self._waiting.append((part, body))
        if len(self._waiting) > PARTS_WAITING:
            raise TransferFailed(Code.LIMIT, "too many parts of the manifest wait")
        return self.more()

    def rejoin(self) -> None:
        """Expect any part that is known, or the next; those that wait come again."""
        self._expected = None
        self._waiting.clear()

    def more(self) -> Sequence[m.Message]:
        """Take parts that wait, as long as there is room for them."""
        self._arrivals.forget_settled()
        told: list[m.Message] = []
        while self._waiting and len(self._arrivals.open) < PORTIONS:
            told += self._take(*self._waiting.popleft())
        return told

    def _hear_settled(self) -> None:
        """Have the coordinator look at parts that wait, as there may be room."""
        if self._waiting:
            self._nudge()

    def _take(self, part: m.ManifestPart, body: bytes) -> Sequence[m.Message]:
        portion = Portion(part.first_file_id, part.entries, body)
        for entry in part.entries:
            check_path(entry.path)
        with portion.lock:
            finals = self._list(portion, part.entries)
            self._check_space(portion, part.entries)
        self._arrivals.add(portion)
        self._is_listed = part.last
        for file_id in [i for i in self._withdrawn_early if i < self._arrivals.listed]:
            self._withdrawn_early.discard(file_id)
            self._withdraw(*self._arrivals.find(file_id))
        if portion.is_open:
            self._arrivals.open[portion.first] = portion
        told = list(answers(portion))
        self._rehash(portion, finals)
        with portion.lock:
            portion.rest()
        return told

    def _list(self, portion: Portion, entries: Sequence[m.Entry]) -> list[int]:
        """Look at each entry; return which files are to be compared where they lie."""
        finals = []
        sizes = []
        for index, entry in enumerate(entries):
            kind = self._lister.take(portion, index, entry)
            if entry.type is not m.EntryType.FILE:
                continue
            self._counters.files += 1
            if self._lister.has_segments(entry, portion.first + index):
                sizes.append(entry.size)
            if kind != state.NOTHING:
                self._take_file(portion, index, entry, kind)
            if kind == state.CLAIMED:
                finals.append(index)
        self._counters.chunks += count_chunks(sizes, self._offer.chunk_size)
        is_late = self._lister.is_late
        portion.keep_late([at for at, entry in enumerate(entries) if is_late(entry, portion.first + at)])
        return finals

    def _take_file(self, portion: Portion, index: int, entry: m.Entry, kind: int) -> None:
        """Take in a file with segments that are sent, or are here."""
        portion.set(index, kind)
        payload_bytes = entry.size
        if entry.size > self._offer.chunk_size:
            large = portion.large[index] = Large(entry, self._offer.chunk_size)
            if large.grid.segments > limits.CHUNKS_PER_FILE:
                reason = f"{large.grid.segments} chunks are too many: the limit is {limits.CHUNKS_PER_FILE}"
                raise RemoteProtocolError(reason)
            payload_bytes = large.payload_bytes
            if self._is_staged(entry.path):
                if kind == state.FREE:
                    self._resume(portion, index, entry)
                else:
                    self._drop_ledger(entry.path)
        self._counters.size_bytes += payload_bytes
        if kind == state.UNCHECKED:
            self._counters.unchecked_bytes += payload_bytes

    def _check_space(self, portion: Portion, entries: Sequence[m.Entry]) -> None:
        needed = sum(
            entry.size - sum(hole.length for hole in entry.holes)
            for index, entry in enumerate(entries)
            if portion.state(index) == state.FREE
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
        return Staged.key(path) in self._claimable

    def _drop_ledger(self, path: bytes) -> None:
        """Remove what a crash right after the rename left of a file that is in place."""
        try:
            self._destination.drop_ledger(path)
        except OSError as error:
            what = f"can't remove the ledger of {self._lister.shown(path)}"
            raise from_os_error(error, Code.DESTINATION, what) from None

    def _resume(self, portion: Portion, index: int, entry: m.Entry) -> None:
        """Open a large file of which an earlier run left something."""
        if len(self._arrivals.stakes) >= LARGE_CLAIMED:
            return
        stake = self._arrivals.open_large(portion, index, entry)
        for start, stop in stake.claimed():
            work = Work(portion.first + index, stake.content, stake.grid, stake.share, start, stop)
            stake.rehashing += self._rehasher.add(work)

    def _rehash(self, portion: Portion, finals: list[int]) -> None:
        if finals:
            entries = portion.entries
            files = [
                FinalFile(portion.first + index, entries[index].path, Grid(entries[index].size, self._offer.chunk_size))
                for index in finals
            ]
            self._rehasher.add_finals(self._destination, files)

    # --- answers

    def rehashed(self, batch: Rehashed | FinalsRehashed) -> Sequence[m.Message]:
        """Answer what was claimed, now that it is known what is on the disk."""
        self._counters.rehashed_bytes += batch.bytes
        if isinstance(batch, FinalsRehashed):
            return [answer for file_id, found in batch.digests for answer in self._take_final(file_id, found)]
        portion, index = self._arrivals.find(batch.file_id)
        with portion.lock:
            stake = portion.large[index].stake
            if stake is None:
                return []
            stake.rehashing -= 1
            answer = stake.rehashed(batch.share, batch.start, batch.digests)
        messages: list[m.Message] = [*stake.needed_messages(batch.file_id, answer.needed)]
        messages += stake.held_messages(batch.file_id, answer.held)
        self._arrivals.settle_large(portion, index)
        return messages

    def _take_final(self, file_id: int, found: bytes) -> Iterator[m.Message]:
        portion, index = self._arrivals.find(file_id)
        with portion.lock:
            if portion.state(index) != state.CLAIMED:
                return
            large = portion.large.get(index)
            if not found:
                portion.set(index, state.FREE)
                yield m.Needed((m.FileRange(file_id, 1),), ())
                return
            if large is not None:
                large.digests = found
                portion.set(index, state.HELD)
            else:
                portion.settle(index, state.HELD, found)
            portion.rest()
            yield from held(portion, index, final=True)

    def withdraw(self, file_ids: Sequence[int]) -> None:
        """Drop files that are not going to be sent: what is there of them goes, what lies in place stays."""
        listed = self._arrivals.listed + sum(len(part.entries) for part, _ in self._waiting)
        for file_id in file_ids:
            if self._arrivals.listed <= file_id < listed:
                self._withdrawn_early.add(file_id)
            else:
                self._withdraw(*self._arrivals.find(file_id))

    def _withdraw(self, portion: Portion, index: int) -> None:
        with portion.lock:
            kind = portion.state(index)
            entry = portion.entries[index]
            is_link = self._lister.is_follower(entry, portion.first + index)
            if entry.type is not m.EntryType.FILE or (kind == state.NOTHING and not is_link):
                raise RemoteProtocolError(f"file {portion.first + index} is withdrawn, and has nothing to be sent")
            if kind != state.WITHDRAWN:
                portion.set(index, state.WITHDRAWN)
                self._counters.files -= 1
                if not is_link:
                    self._counters.size_bytes -= _payload_bytes(portion, index, entry)
            portion.rest()
        if index in portion.large:
            self._arrivals.settle_large(portion, index)

    # --- chunks

    def begin(self, connection: Connection, header: m.ChunkHeader) -> list[Part]:
        """Check every segment of a chunk, and begin them."""
        return self._arrivals.begin(connection, header)

    def end(self, connection: Connection, parts: list[Part], digests: list[bytes], computed: list[bytes]) -> bool:
        """Settle the segments of a chunk; what is complete by it goes to its place."""
        return self._arrivals.end(connection, parts, digests, computed)

    def abandon(self, connection: Connection) -> None:
        """Take back what a connection was writing."""
        self._arrivals.abandon(connection)

    def shut(self) -> None:
        """Let no further write in."""
        self._arrivals.shut()

    # --- the end

    def missing(self) -> Sequence[m.Needed]:
        """Return what is not here, of everything that was listed."""
        while self._waiting:
            self._take(*self._waiting.popleft())
        needed: list[m.Needed] = []
        for portion in list(self._arrivals.open.values()):
            claimed = [index for index, kind in enumerate(portion.states()) if kind == state.CLAIMED]
            needed += [m.Needed((m.FileRange(portion.first + index, 1),), ()) for index in claimed]
            for index, large in portion.large.items():
                if large.stake is not None:
                    needed += large.stake.needed_messages(portion.first + index, large.stake.missing())
            needed += [answer for answer in answers(portion) if isinstance(answer, m.Needed) and answer.files]
        return needed

    def close(self, finish: m.Finish) -> bytes:
        """Let no further write in, and compare what is here with what the sender read."""
        self.shut()
        self._arrivals.finish()
        self._counters.held_bytes += sum(self._held_bytes(portion) for portion in self._arrivals.portions)
        root = root_digest(itertools.chain.from_iterable(portion.digests() for portion in self._arrivals.portions))
        if root != finish.root_digest or finish.chunks != self._counters.chunks:
            raise TransferFailed(
                Code.DIGEST, "what came differs from what the sender read, though every chunk was equal"
            )
        return root

    def _held_bytes(self, portion: Portion) -> int:
        held = [index for index, kind in enumerate(portion.states()) if kind == state.HELD]
        entries = portion.entries if held else ()
        return sum(_payload_bytes(portion, index, entries[index]) for index in held)

    def next_step(self) -> Step:
        """Commit, once."""
        return m.Complete(True) if self._is_committed else self._commit

    def _commit(self) -> None:
        """Put everything in place that is not yet, then links, then directories; make it durable."""
        begun = time.monotonic()
        self._placer.flush()
        for portion in self._arrivals.portions:
            self._lister.link(portion, self._is_withdrawn)
        for portion in reversed(self._arrivals.portions):
            self._lister.finish_directories(portion)
        try:
            sync_file_system(self._staging.fd)
            self._staging.close()
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't sync {self._destination.path}") from None
        self._counters.sync_seconds = time.monotonic() - begun
        self._is_committed = True

    def _is_withdrawn(self, file_id: int) -> bool:
        portion, index = self._arrivals.find(file_id)
        return portion.state(index) == state.WITHDRAWN

    def leave(self, *, cleanly: bool) -> None:
        """Put in place what is complete, and keep what there is of large files for the next run."""
        self._placer.end()
        self._lister.close()
        if cleanly:
            for stake in list(self._arrivals.stakes):
                stake.finish()
                stake.file.close()
            self._staging.close()


def _payload_bytes(portion: Portion, index: int, entry: m.Entry) -> int:
    """Return the bytes of the segments of a file that do not lie in holes."""
    large = portion.large.get(index)
    return large.payload_bytes if large is not None else entry.size

"""The entries of a tree and their states, on the disk: a manifest may have any length.

    append     a part of the manifest, as it came; it may wait long before it is taken
    save       a portion of which nothing is open: states, digests, what large files left in the spool
    restore    it again: control was opened anew, a chunk came twice, a file is withdrawn late
    digests    of everything, in order, at the end

Eight bytes a part are in memory. One thread appends and saves, any thread may ask.
"""

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final, NamedTuple

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode, encode
from filestreamer.wire.errors import RemoteProtocolError
from receiver.disk.store import StagingMark
from receiver.tree.manifest import part_state as state
from receiver.tree.manifest.large_file import TABLE, UNSEEN, WHOLE_DIGESTS, Large
from receiver.tree.manifest.part_state import PartState
from receiver.tree.manifest.spool import Spool

_RECORD: Final = struct.Struct("=QQQQQIIIII")
_LARGE: Final = struct.Struct("=IIQQQQQ")
_NO_MARK: Final = StagingMark(0, 0, 0)
_SIZE: Final = limits.DIGEST_BYTES
_PIECE: Final = 256 * limits.KIB
ENTRY_BYTES: Final = 512
LARGE_BYTES: Final = 512
HOLE_BYTES: Final = 128
"""About what an entry, a large file and a hole take in memory while they are under way."""


class Record(NamedTuple):
    """Where the spool has what belongs to a part."""

    first: int
    body_at: int
    states_at: int
    settled_at: int
    """Digests of small files, then of each large one what the spool has of it; 0 before it was settled."""
    late_at: int
    body_bytes: int
    files: int
    late: int
    late_bytes: int
    large: int
    """Large files with something in the spool."""


class Archive:
    """The parts of one manifest, by number. Raises TransferFailed where the disk fails."""

    def __init__(self, spool: Spool, index: Spool, chunk_size: int) -> None:
        """`index` holds nothing but the records of parts."""
        self.spool = spool
        self._index = index
        self._index_at = index.reserve(0)
        self._chunk_size = chunk_size
        self._firsts = array("Q")
        self.entries = 0
        """Of all parts that came."""
        self.is_listed = False
        """Whether the last part came."""

    @property
    def parts(self) -> int:
        """How many parts came."""
        return len(self._firsts)

    # --- what was listed

    def append(self, part: m.ManifestPart, body: bytes) -> None:
        """Take in the next part, as it came in a frame."""
        spool = self.spool
        body_at, states_at = spool.append(body), spool.reserve(len(part.entries))
        self._index.append(_RECORD.pack(self.entries, body_at, states_at, 0, 0, len(body), len(part.entries), 0, 0, 0))
        self._firsts.append(self.entries)
        self.entries += len(part.entries)
        self.is_listed = part.last

    def beginning_with(self, first: int) -> int | None:
        """Return the number of the part that begins with this file_id, if one does."""
        number = bisect_right(self._firsts, first) - 1
        return number if number >= 0 and self._firsts[number] == first else None

    def number_with(self, file_id: int) -> int:
        """Return the number of the part that lists a file. Raises RemoteProtocolError where none does."""
        if not 0 <= file_id < self.entries:
            raise RemoteProtocolError(f"file {file_id} was not offered")
        return bisect_right(self._firsts, file_id) - 1

    def first(self, number: int) -> int:
        """Return the file_id of a part's first entry."""
        return self._firsts[number]

    def _record(self, number: int) -> Record:
        return Record(*_RECORD.unpack(self._index.read(self._index_at + number * _RECORD.size, _RECORD.size)))

    def _rewrite(self, number: int, record: Record) -> None:
        self._index.write(self._index_at + number * _RECORD.size, _RECORD.pack(*record))

    def part(self, number: int) -> m.ManifestPart:
        """Return a part as it came."""
        record = self._record(number)
        part = decode(self.spool.read(record.body_at, record.body_bytes))
        assert isinstance(part, m.ManifestPart)  # as such it came
        return part

    def is_same(self, number: int, part: m.ManifestPart, body: bytes) -> bool:
        """Whether this is the part that came before."""
        record = self._record(number)
        is_same_body = record.body_bytes == len(body) and self.spool.read(record.body_at, len(body)) == body
        return is_same_body or self.part(number) == part

    def keep_late(self, number: int, entries: list[tuple[int, m.Entry]]) -> None:
        """Remember which entries are seen to when all files are in place: (index, entry)."""
        indices = array("I", [index for index, _ in entries])
        body = encode(m.ManifestPart(0, tuple([entry for _, entry in entries]), False))
        at = self.spool.append(indices.tobytes() + body)
        self._rewrite(number, self._record(number)._replace(late_at=at, late=len(indices), late_bytes=len(body)))

    def late(self, number: int) -> list[tuple[int, m.Entry]]:
        """Return them, by file_id."""
        record = self._record(number)
        if not record.late_at:
            return []
        indices = array("I")
        indices.frombytes(self.spool.read(record.late_at, record.late * indices.itemsize))
        kept = decode(self.spool.read(record.late_at + record.late * indices.itemsize, record.late_bytes))
        assert isinstance(kept, m.ManifestPart)  # as such it was kept
        return [(record.first + index, entry) for index, entry in zip(indices, kept.entries, strict=True)]

    # --- what became of it

    def states(self, number: int) -> bytes:
        """Return the states of a part that is not under way; WITHDRAWN may be in them before it is taken."""
        record = self._record(number)
        return self.spool.read(record.states_at, record.files)

    def state(self, file_id: int) -> int:
        """Return the state of a file whose part is not under way."""
        record = self._record(self.number_with(file_id))
        return self.spool.read(record.states_at + file_id - record.first, 1)[0]

    def withdraw(self, file_id: int) -> bool:
        """Mark a file of a part that is not taken yet; whether that is new."""
        record = self._record(self.number_with(file_id))
        at = record.states_at + file_id - record.first
        if self.spool.read(at, 1)[0] == state.WITHDRAWN:
            return False
        self.spool.write(at, bytes([state.WITHDRAWN]))
        return True

    def save(self, part_state: PartState) -> None:
        """Keep a portion of which nothing is open. Call it with its lock."""
        record = self._record(part_state.number)
        states = part_state.states()
        self.spool.write(record.states_at, states)
        if not part_state.large and not any(states.translate(state.HAS_DIGEST)):
            return
        settled = bytearray(part_state.digests())
        for index, large in sorted(part_state.large.items()):
            mark = large.mark or _NO_MARK
            settled += _LARGE.pack(index, large.kind, large.at, _SIZE * large.sent_segments, *mark)
        if record.settled_at:
            self.spool.write(record.settled_at, settled)
            return
        settled_at = self.spool.append(settled)
        self._rewrite(part_state.number, record._replace(settled_at=settled_at, large=len(part_state.large)))

    def restore(self, number: int) -> PartState:
        """Return a copy of a portion that was saved."""
        part, record = self.part(number), self._record(number)
        part_state = PartState(number, record.first, part.entries)
        digests = bytes(_SIZE * record.files)
        if record.settled_at:
            digests = self.spool.read(record.settled_at, _SIZE * record.files)
            for index, kind, at, _, *mark in self._large(record):
                large = part_state.large[index] = Large(part.entries[index], self._chunk_size)
                large.kind, large.at = kind, at
                large.mark = StagingMark(*mark) if any(mark) else None
        part_state.restore(self.spool.read(record.states_at, record.files), digests)
        return part_state

    def _large(self, record: Record) -> Iterator[tuple[int, ...]]:
        """Yield of each large file: index, kind, place, bytes of digests, and the numbers of its mark."""
        if record.settled_at and record.large:
            at = record.settled_at + _SIZE * record.files
            yield from _LARGE.iter_unpack(self.spool.read(at, record.large * _LARGE.size))

    def has_partial(self, number: int) -> bool:
        """Whether a large file that is HELD was set aside in its staging."""
        record = self._record(number)
        held = [index for index, kind, *_ in self._large(record) if kind == TABLE]
        return bool(held) and any(self.states(number)[index] == state.HELD for index in held)

    def digests(self) -> Iterator[bytes]:
        """Yield the digests of everything that has one, in order, after everything was saved."""
        for number in range(self.parts):
            yield from self._digests_of(number)

    def _digests_of(self, number: int) -> Iterator[bytes]:
        record = self._record(number)
        if not record.settled_at:
            return
        marks = self.spool.read(record.states_at, record.files).translate(state.HAS_DIGEST)
        small = self.spool.read(record.settled_at, _SIZE * record.files)
        start = 0
        for index, kind, at, size, *_ in [*self._large(record), (record.files, UNSEEN, 0, 0)]:
            yield from _marked(marks, small, start, index)
            if kind == WHOLE_DIGESTS and marks[index]:
                for offset in range(0, size, _PIECE):
                    yield self.spool.read(at + offset, min(_PIECE, size - offset))
            start = index + 1


def _marked(marks: bytes, digests: bytes, start: int, end: int) -> Iterator[bytes]:
    """Yield the digests of those of the files [start, end) that are marked."""
    first = marks.find(1, start, end)
    while first >= 0:
        stop = marks.find(0, first, end)
        stop = end if stop < 0 else stop
        yield digests[first * _SIZE : stop * _SIZE]
        first = marks.find(1, stop, end)


def cost_bytes(part: m.ManifestPart, chunk_size: int) -> int:
    """Estimate what the entries of a part take in memory while they are under way."""
    holes = sum([len(entry.holes) for entry in part.entries])
    large = sum([entry.size > chunk_size for entry in part.entries])
    texts = sum([len(entry.path) + len(entry.link_target) for entry in part.entries])
    return ENTRY_BYTES * len(part.entries) + LARGE_BYTES * large + HOLE_BYTES * holes + texts

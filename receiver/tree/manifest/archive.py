"""The entries of a manifest and their states on the disk, by part: a manifest may have any length.

    append   keep a part as it was received; it may wait long before it is taken up
    save     keep the states and digests of a part that is done
    restore  read it back: it is listed again, a chunk comes twice, a file is withdrawn after it was archived
    digests  yield the digests of all files in order, at the end

In memory are eight bytes for each part. One thread appends and saves; any thread may read.
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
from filestreamer.wire.grid import WHOLE
from filestreamer.wire.runs import runs_without
from filestreamer.wire.tree_shares import TreeShares
from receiver.disk.staging.closed_staging import StagingMark
from receiver.file.states import HELD, OTHERS, WITHDRAWN, ZERO
from receiver.tree.manifest.large_file import LargeFile, Spooled
from receiver.tree.manifest.part_state import HAS_DIGEST, PartState
from receiver.tree.manifest.spool import Spool

ENTRY_BYTES: Final = 512
LARGE_BYTES: Final = 512
"""About what an entry and a large file take in memory while their part is active."""
_RECORD: Final = struct.Struct("=QQQQQQIIIII")
_XATTR: Final = struct.Struct("=II")
"""Lengths of the name and the value of an attribute, which follow."""
_LARGE: Final = struct.Struct("=IIQQQQQ")
_LENGTH: Final = struct.Struct("=I")
_OFFSET: Final = struct.Struct("=Q")
_NO_MARK: Final = StagingMark(0, 0, 0)
_SIZE: Final = limits.DIGEST_BYTES
_PIECE_BYTES: Final = 256 * limits.KIB


class _Record(NamedTuple):
    """Where the spool has what belongs to a part: offsets (`_at`), 0 where it was not written."""

    first: int
    body_at: int
    states_at: int
    digests_at: int
    """Digests of small files, then a `_SavedLarge` for each large file."""
    deferred_at: int
    xattrs_at: int
    """The offset of the extended attributes of each entry, 8 bytes each, 0 for none."""
    body_bytes: int
    entries: int
    deferred: int
    deferred_bytes: int
    large: int
    """Number of large files behind the digests."""


class _SavedLarge(NamedTuple):
    """A large file in the spool, as its `LargeFile` has it."""

    file_index: int
    spooled: int
    spool_at: int
    digests_bytes: int
    inode: int
    ledger_inode: int
    ledger_bytes: int
    """With the two before it: the mark of its staging, zeros for none."""


class Archive:
    """The parts of one manifest, by number. Raises TransferFailed where the disk fails."""

    def __init__(self, spool: Spool, index: Spool, chunk_size: int, shares: TreeShares | None = None) -> None:
        """Use `index` only for the records of parts, one after the other. `shares`: those of a shard of a tree."""
        self._shares = shares
        self.spool = spool
        self._index = index
        self._index_at = index.reserve(0)
        self._chunk_size = chunk_size
        self._firsts = array("Q")
        """The first file_id of each part."""
        self.entries = 0
        """Entries of all parts that came."""
        self.is_listed = False
        """Whether the last part came."""

    @property
    def parts(self) -> int:
        """How many parts came."""
        return len(self._firsts)

    def large_file(self, entry: m.Entry) -> LargeFile:
        """Return a file of more than one segment, of which nothing is known yet."""
        return LargeFile(entry, self._chunk_size, self._shares.share_of(entry) if self._shares is not None else WHOLE)

    # --- the entries of parts

    def append(self, part: m.ManifestPart, body: bytes) -> m.ManifestPart:
        """Keep the next part; `body` is the part as it came in its frame. Return it without extended attributes."""
        spool = self.spool
        xattrs_at = self._save_xattrs(part)
        if xattrs_at:
            part = without_xattrs(part)
            body = encode(part)
        body_at, states_at = spool.append(body), spool.reserve(len(part.entries))
        sizes = len(body), len(part.entries), 0, 0, 0
        self._index.append(_RECORD.pack(self.entries, body_at, states_at, 0, 0, xattrs_at, *sizes))
        self._firsts.append(self.entries)
        self.entries += len(part.entries)
        self.is_listed = part.last
        return part

    def _save_xattrs(self, part: m.ManifestPart) -> int:
        """Write the extended attributes of a part; return where the table of them is, 0 if there are none."""
        if not any(entry.xattrs for entry in part.entries):
            return 0
        table = array("Q", bytes(8 * len(part.entries)))
        for index, entry in enumerate(part.entries):
            if entry.xattrs:
                saved = b"".join([_XATTR.pack(len(n), len(value)) + n + value for n, value in entry.xattrs])
                table[index] = self.spool.append(_LENGTH.pack(len(saved)) + saved)
        return self.spool.append(table.tobytes())

    def xattrs(self, file_id: int) -> tuple[m.Xattr, ...]:
        """Return the extended attributes of an entry."""
        record = self._record(self.number_with(file_id))
        if not record.xattrs_at:
            return ()
        (at,) = _OFFSET.unpack(
            self.spool.read(record.xattrs_at + _OFFSET.size * (file_id - record.first), _OFFSET.size)
        )
        if not at:
            return ()
        (length,) = _LENGTH.unpack(self.spool.read(at, _LENGTH.size))
        saved = self.spool.read(at + _LENGTH.size, length)
        found, at = [], 0
        while at < length:
            name_length, value_length = _XATTR.unpack_from(saved, at)
            name_at = at + _XATTR.size
            at = name_at + name_length + value_length
            found.append(m.Xattr(saved[name_at : name_at + name_length], saved[name_at + name_length : at]))
        return tuple(found)

    def beginning_with(self, first: int) -> int | None:
        """Return the number of the part that begins with this file_id; None if no part does."""
        number = bisect_right(self._firsts, first) - 1
        return number if number >= 0 and self._firsts[number] == first else None

    def number_with(self, file_id: int) -> int:
        """Return the number of the part that lists a file. Raises RemoteProtocolError if no part does."""
        if not 0 <= file_id < self.entries:
            raise RemoteProtocolError(f"file {file_id} was not offered")
        return bisect_right(self._firsts, file_id) - 1

    def part(self, number: int) -> m.ManifestPart:
        """Return a part as it came."""
        record = self._record(number)
        part = decode(self.spool.read(record.body_at, record.body_bytes))
        assert isinstance(part, m.ManifestPart)  # `append` wrote one
        return part

    def is_same(self, number: int, part: m.ManifestPart, body: bytes) -> bool:
        """Whether this part equals the earlier one, even if it is encoded differently; but for extended attributes."""
        record = self._record(number)
        is_same_body = record.body_bytes == len(body) and self.spool.read(record.body_at, len(body)) == body
        return is_same_body or self.part(number) == without_xattrs(part)

    def save_deferred(self, number: int, entries: list[tuple[int, m.Entry]]) -> None:
        """Keep the entries (index, entry) that have work to do when all files are in place: directories, hard links."""
        indices = array("I", [index for index, _ in entries])
        body = encode(m.ManifestPart(0, tuple([entry for _, entry in entries]), False))
        at = self.spool.append(indices.tobytes() + body)
        record = self._record(number)._replace(deferred_at=at, deferred=len(indices), deferred_bytes=len(body))
        self._rewrite(number, record)

    def deferred(self, number: int) -> list[tuple[int, m.Entry]]:
        """Return the entries from `save_deferred` with their file_ids."""
        record = self._record(number)
        if not record.deferred_at:
            return []
        indices = array("I")
        indices_bytes = record.deferred * indices.itemsize
        indices.frombytes(self.spool.read(record.deferred_at, indices_bytes))
        saved = decode(self.spool.read(record.deferred_at + indices_bytes, record.deferred_bytes))
        assert isinstance(saved, m.ManifestPart)  # `save_deferred` wrote one
        return [(record.first + index, entry) for index, entry in zip(indices, saved.entries, strict=True)]

    # --- the states of parts

    def states(self, number: int) -> bytes:
        """Return the states of a part that is not active. In a part that still waits, only WITHDRAWN has a meaning."""
        record = self._record(number)
        return self.spool.read(record.states_at, record.entries)

    def is_withdrawn(self, file_id: int) -> bool:
        """Whether a file was withdrawn; its part is not active."""
        return self.state(file_id) == WITHDRAWN

    def state(self, file_id: int) -> int:
        """Return the state of a file whose part is not active."""
        record = self._record(self.number_with(file_id))
        return self.spool.read(record.states_at + file_id - record.first, 1)[0]

    def withdraw(self, file_id: int) -> bool:
        """Mark a file of a part that still waits as WITHDRAWN; return whether that is new."""
        if self.is_withdrawn(file_id):
            return False
        record = self._record(self.number_with(file_id))
        self.spool.write(record.states_at + file_id - record.first, bytes([WITHDRAWN]))
        return True

    def save(self, part_state: PartState) -> None:
        """Write the states and digests of a part of which no file is open. Call it with the lock of the part."""
        record = self._record(part_state.number)
        states = part_state.states()
        self.spool.write(record.states_at, states)
        if not part_state.large and not any(states.translate(HAS_DIGEST)):
            return
        saved = bytearray(part_state.digests())
        for index, large in sorted(part_state.large.items()):
            mark = large.mark or _NO_MARK
            saved += _LARGE.pack(index, large.spooled, large.spool_at, _SIZE * large.grid.segments, *mark)
        if record.digests_at:
            self.spool.write(record.digests_at, saved)
            return
        digests_at = self.spool.append(saved)
        self._rewrite(part_state.number, record._replace(digests_at=digests_at, large=len(part_state.large)))

    def restore(self, number: int) -> PartState:
        """Return a copy of a part that was saved."""
        part, record = self.part(number), self._record(number)
        part_state = PartState(number, record.first, part.entries)
        digests = b""
        if record.digests_at:
            digests = self.spool.read(record.digests_at, _SIZE * record.entries)
            for saved in self._saved_large(record):
                large = part_state.large[saved.file_index] = self.large_file(part.entries[saved.file_index])
                large.spooled, large.spool_at = Spooled(saved.spooled), saved.spool_at
                mark = StagingMark(saved.inode, saved.ledger_inode, saved.ledger_bytes)
                large.mark = mark if any(mark) else None
        part_state.restore(0, self.spool.read(record.states_at, record.entries), digests)
        return part_state

    def has_partial(self, number: int) -> bool:
        """Whether a large file of a part that is not active is HELD in its staging, and not complete."""
        held = [saved.file_index for saved in self._saved_large(self._record(number)) if saved.spooled == Spooled.TABLE]
        return bool(held) and any(self.states(number)[index] == HELD for index in held)

    def has_declined(self, number: int) -> bool:
        """Whether states and digests of a large file are kept that was declined; its part is not active."""
        return any(saved.spooled == Spooled.DECLINED for saved in self._saved_large(self._record(number)))

    def digests(self) -> Iterator[bytes]:
        """Yield the digests of all files that have some, in order; every part was saved."""
        for number in range(self.parts):
            yield from self._digests_of(number)

    def _digests_of(self, number: int) -> Iterator[bytes]:
        record = self._record(number)
        if not record.digests_at:
            return
        marks = self.spool.read(record.states_at, record.entries).translate(HAS_DIGEST)
        small = self.spool.read(record.digests_at, _SIZE * record.entries)
        start = 0
        for saved in self._saved_large(record):
            yield from _marked(marks, small, start, saved.file_index)
            if saved.spooled == Spooled.DIGESTS and marks[saved.file_index]:
                yield from self._digests_of_large(saved)
            start = saved.file_index + 1
        yield from _marked(marks, small, start, record.entries)

    def _digests_of_large(self, saved: _SavedLarge) -> Iterator[bytes]:
        """Yield the digests of all segments of a complete large file, but for those of zeros, and of other shards."""
        states_at = saved.spool_at + saved.digests_bytes
        for offset in range(0, saved.digests_bytes, _PIECE_BYTES):
            digests = self.spool.read(saved.spool_at + offset, min(_PIECE_BYTES, saved.digests_bytes - offset))
            states = self.spool.read(states_at + offset // _SIZE, len(digests) // _SIZE)
            if ZERO not in states and OTHERS not in states:
                yield digests
                continue
            for first, end in runs_without(states, ZERO, OTHERS):
                yield digests[first * _SIZE : end * _SIZE]

    # --- records

    def _record(self, number: int) -> _Record:
        return _Record(*_RECORD.unpack(self._index.read(self._index_at + number * _RECORD.size, _RECORD.size)))

    def _rewrite(self, number: int, record: _Record) -> None:
        self._index.write(self._index_at + number * _RECORD.size, _RECORD.pack(*record))

    def _saved_large(self, record: _Record) -> Iterator[_SavedLarge]:
        """Yield the large files of a part, by index."""
        if record.digests_at and record.large:
            at = record.digests_at + _SIZE * record.entries
            saved = self.spool.read(at, record.large * _LARGE.size)
            yield from map(_SavedLarge._make, _LARGE.iter_unpack(saved))


def _marked(marks: bytes, digests: bytes, start: int, end: int) -> Iterator[bytes]:
    """Yield the digests of those of the files [start, end) that are marked."""
    first = marks.find(1, start, end)
    while first >= 0:
        stop = marks.find(0, first, end)
        stop = end if stop < 0 else stop
        yield digests[first * _SIZE : stop * _SIZE]
        first = marks.find(1, stop, end)


def without_xattrs(part: m.ManifestPart) -> m.ManifestPart:
    """Return a part without extended attributes."""
    return part._replace(entries=tuple([each._replace(xattrs=()) if each.xattrs else each for each in part.entries]))


def memory_bytes(entries: tuple[m.Entry, ...], chunk_size: int) -> int:
    """Estimate what the entries of a part take in memory while the part is active."""
    large = sum([entry.size > chunk_size for entry in entries])
    texts = sum([len(entry.path) + len(entry.link_target) for entry in entries])
    return ENTRY_BYTES * len(entries) + LARGE_BYTES * large + texts

"""The files of one ManifestPart of a tree at the receiver: 17 bytes for each, and what was listed, packed.

    NOTHING    no segment: a directory, a symlink, a link, an empty file, holes alone
    FREE       to be sent                                      answered: Needed
    CLAIMED    being compared where it lies                    not answered yet
    WRITING    on its way: a connection writes it, or it is a large file of which a part is here
    VERIFIED   all of it is here                               answered: Held
    HELD       was here before, and compared                   answered: Held
    UNCHECKED  was here before, accepted unread                answered: Held.unchecked
    WITHDRAWN  not going to be sent after all

A portion is open while a file of it is FREE, CLAIMED or WRITING; only then are its entries kept as they were listed.
"""

import threading
import zlib
from collections.abc import Iterator
from typing import Final

from receiver.cargo import Connection
from receiver.large import Large
from receiver.small import SmallFile
from wire import limits
from wire import messages as m
from wire.codec import decode, encode

NOTHING: Final = 0
FREE: Final = 1
CLAIMED: Final = 2
WRITING: Final = 3
VERIFIED: Final = 4
HELD: Final = 5
UNCHECKED: Final = 6
WITHDRAWN: Final = 7

_OPEN: Final = (FREE, CLAIMED, WRITING)
_HAS_DIGEST: Final = bytes(state in (VERIFIED, HELD) for state in range(256))
_SIZE: Final = limits.DIGEST_BYTES


class Portion:
    """The lock protects every field but the first few, which do not change."""

    def __init__(self, first: int, entries: tuple[m.Entry, ...], body: bytes) -> None:
        """Begin with no segment for any file; `body` is the frame that listed them."""
        self.first = first
        self.count = len(entries)
        self.packed = zlib.compress(body, 1)
        self._late: tuple[list[int], bytes] = (
            [],
            b"",
        )  # indices of the entries that are seen to last, and these, packed
        self.lock = threading.Lock()
        self.large: dict[int, Large] = {}
        """Files of more than one segment, by index."""
        self.writing: dict[int, SmallFile] = {}
        self._entries: tuple[m.Entry, ...] | None = entries
        self._states = bytearray(self.count)
        self._digests = bytearray(_SIZE * self.count)
        self._open = 0

    # --- what was listed

    @property
    def entries(self) -> tuple[m.Entry, ...]:
        """What was listed; unpacked where it is not open any more."""
        entries = self._entries
        return self.unpack().entries if entries is None else entries

    def unpack(self) -> m.ManifestPart:
        """Return the part as it came."""
        part = decode(zlib.decompress(self.packed))
        assert isinstance(part, m.ManifestPart)  # as such it came
        return part

    def keep_late(self, indices: list[int]) -> None:
        """Remember which entries are seen to when all files are in place: directories, and further names of files."""
        if indices:
            late = m.ManifestPart(0, tuple([self.entries[index] for index in indices]), False)
            self._late = (indices, zlib.compress(encode(late), 1))

    def late_entries(self) -> list[tuple[int, m.Entry]]:
        """Return them, by file_id."""
        indices, packed = self._late
        if not indices:
            return []
        late = decode(zlib.decompress(packed))
        assert isinstance(late, m.ManifestPart)  # as such it was kept
        return [(self.first + index, entry) for index, entry in zip(indices, late.entries, strict=True)]

    def is_same(self, part: m.ManifestPart, body: bytes) -> bool:
        """Whether this part is the one that was taken."""
        return zlib.decompress(self.packed) == body or self.unpack() == part

    def rest(self) -> None:
        """Let go of the entries, if nothing of them is open."""
        if not self._open:
            self._entries = None

    def wake(self) -> tuple[m.Entry, ...]:
        """Return the entries, and keep them until `rest`."""
        self._entries = entries = self.entries
        return entries

    # --- states

    @property
    def is_open(self) -> bool:
        """Whether something of it is to come, or to be compared."""
        return self._open > 0

    def state(self, index: int) -> int:
        """Return the state of one file."""
        return self._states[index]

    def set(self, index: int, state: int) -> None:
        """Put a file into this state."""
        self._open += (state in _OPEN) - (self._states[index] in _OPEN)
        self._states[index] = state

    def states(self) -> bytes:
        """Return the states of all files, as they are now."""
        return bytes(self._states)

    def digest(self, index: int) -> bytes:
        """Return the digest of a small file that is VERIFIED or HELD."""
        return bytes(self._digests[index * _SIZE : (index + 1) * _SIZE])

    def settle(self, index: int, state: int, digest: bytes) -> None:
        """Put a small file into the state VERIFIED or HELD."""
        self._digests[index * _SIZE : (index + 1) * _SIZE] = digest
        self.set(index, state)

    def abandon(self, connection: Connection) -> None:
        """Take back the small files that this connection was writing."""
        for index in [index for index, file in self.writing.items() if file.connection is connection]:
            self.writing.pop(index).abandon()
            if self._states[index] == WRITING:
                self.set(index, FREE)

    def digests(self) -> Iterator[bytes | memoryview]:
        """Yield the digests of everything that has one, in order."""
        marks = self._states.translate(_HAS_DIGEST)
        large = [index for index in sorted(self.large) if marks[index]]
        view = memoryview(self._digests).toreadonly()
        at = 0
        for index in [*large, self.count]:
            first = marks.find(1, at, index)
            while first >= 0:
                end = marks.find(0, first, index)
                end = index if end < 0 else end
                yield view[first * _SIZE : end * _SIZE]
                first = marks.find(1, end, index)
            if index < self.count:
                yield from self.large[index].all_digests()
            at = index + 1

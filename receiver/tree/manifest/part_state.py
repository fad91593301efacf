"""The state of each file of one ManifestPart (receiver/file/states.py lists the states), while the part is in memory.

A part is pending while any file of it is FREE, CLAIMED or WRITING. For a large file, WRITING says that some of its
segments are here; the state of each segment is in its `LargeFile`.
"""

import threading
from typing import Final

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.grid import WHOLE
from receiver.file.states import CLAIMED, DECLINED, FREE, HELD, NOTHING, UNCHECKED, VERIFIED, WRITING, StateTable
from receiver.file.target import Connection
from receiver.tree.commit.small_file import SmallFile
from receiver.tree.manifest.large_file import LargeFile, Spooled

_PENDING: Final = (FREE, CLAIMED, WRITING)
_IS_PENDING: Final = bytes(state in _PENDING for state in range(256))
HAS_DIGEST: Final = bytes(state in (VERIFIED, HELD) for state in range(256))
"""For bytes.translate: 1 for a state with a digest, else 0."""


class PartState(StateTable):
    """The files of one part. The lock protects everything but the number, the first file_id and the entries."""

    def __init__(self, number: int, first: int, entries: tuple[m.Entry, ...]) -> None:
        """Begin with NOTHING for every file; `number` counts the parts, `first` is the file_id of the first entry."""
        count = len(entries)
        super().__init__(bytearray(bytes([NOTHING]) * count), bytearray(limits.DIGEST_BYTES * count))
        self.number = number
        self.first = first
        self.entries = entries
        self.lock = threading.Lock()
        self.borrowed_bytes = 0
        """Memory that was borrowed for its entries."""
        self.is_active = False
        """Whether connections write into this object; if not, it is a read-only copy from the archive."""
        self.is_archived = False
        """Whether the part was archived meanwhile: a thread that waited for the lock must look it up again."""
        self.large: dict[int, LargeFile] = {}
        """Files of more than one segment, by index."""
        self.writing: dict[int, SmallFile] = {}
        """Small files that a connection is writing, by index."""
        self.found: set[int] | None = set()
        """Files of which something had the name when they were prepared, by index; None in a copy from the archive."""
        self._pending = 0
        """How many files are FREE, CLAIMED or WRITING."""

    # --- the table

    def set(self, index: int, state: int) -> None:
        """Set the state of a file."""
        self._pending += _IS_PENDING[state] - _IS_PENDING[self._states[index]]
        self._states[index] = state

    def set_all(self, indices: range, state: int) -> None:
        """Set the state of files that have none yet; UNCHECKED ones were found when they were prepared."""
        self._states[indices.start : indices.stop] = bytes([state]) * len(indices)
        self._pending += len(indices) * _IS_PENDING[state]
        if self.found is not None and state == UNCHECKED:
            self.found.update(indices)

    def set_with_digest(self, index: int, state: int, digest: bytes) -> None:
        """Set the state of a small file to VERIFIED or HELD."""
        self._digests[index * limits.DIGEST_BYTES : (index + 1) * limits.DIGEST_BYTES] = digest
        self.set(index, state)

    def restore(self, first: int, states: bytes, digests: bytes) -> None:
        """Set the states and digests of files, as they were archived."""
        super().restore(first, states, digests)
        self.found = None
        self._pending = sum(self._states.count(state) for state in _PENDING)

    def states(self) -> bytes:
        """Return the states of all files."""
        return bytes(self._states)

    def digests(self) -> bytes:
        """Return the digests of all files: zeros for a large file, and where there is none."""
        return bytes(self._digests)

    # --- questions

    @property
    def is_pending(self) -> bool:
        """Whether a file is to be received or to be re-hashed."""
        return self._pending > 0

    @property
    def is_idle(self) -> bool:
        """Whether the part is not pending, and no connection or re-hashing thread uses a file of it."""
        return not (self._pending or self.writing) and not any(
            large.open_file is not None and (large.open_file.inside or large.open_file.rehashing)
            for large in self.large.values()
        )

    def is_partial(self, index: int) -> bool:
        """Whether segments of a large file are here, received or found in its staging, and it is not complete."""
        large = self.large.get(index)
        return large is not None and (large.open_file is not None or large.spooled is Spooled.TABLE)

    def own_bytes(self, index: int) -> int:
        """Return the bytes of a file that this transfer moves: of one that several shards move, those of its share."""
        large = self.large.get(index)
        return self.entries[index].size if large is None or large.share is WHOLE else large.own_bytes

    def note_found(self, index: int) -> None:
        """Note that something has the name of a file that is being prepared."""
        if self.found is not None:
            self.found.add(index)

    def is_new(self, index: int) -> bool:
        """Whether nothing had the name of a file when it was prepared, as far as is known."""
        return self.found is not None and index not in self.found

    # --- connections

    def detach(self, connection: Connection) -> None:
        """Discard the small files that this connection was writing: they are to be sent again."""
        for index in [index for index, file in self.writing.items() if file.connection is connection]:
            file = self.writing.pop(index)
            file.discard()
            if self._states[index] == WRITING:  # else it was withdrawn
                self.set(index, DECLINED if file.is_declined else FREE)

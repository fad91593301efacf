"""The files of one ManifestPart of a tree at the receiver, while something of them is under way: 17 bytes for each.

    NOTHING    no segment: a directory, a symlink, a link, an empty file, holes alone
    FREE       to be sent                                      answered: Needed
    CLAIMED    being compared where it lies                    not answered yet
    WRITING    on its way: a connection writes it, or it is a large file of which a part is here
    VERIFIED   all of it is here                               answered: Held
    HELD       was here before, and compared                   answered: Held
    UNCHECKED  was here before, accepted unread                answered: Held.unchecked
    WITHDRAWN  not going to be sent after all

A portion is open while a file of it is FREE, CLAIMED or WRITING. Then it is kept in the `archive`.
"""

import threading
from typing import Final

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from receiver.file.target import Connection
from receiver.tree.commit.small_file import SmallFile
from receiver.tree.manifest.large_file import TABLE, Large

NOTHING: Final = 0
FREE: Final = 1
CLAIMED: Final = 2
WRITING: Final = 3
VERIFIED: Final = 4
HELD: Final = 5
UNCHECKED: Final = 6
WITHDRAWN: Final = 7

_OPEN: Final = (FREE, CLAIMED, WRITING)
HAS_DIGEST: Final = bytes(state in (VERIFIED, HELD) for state in range(256))
_SIZE: Final = limits.DIGEST_BYTES


class PartState:
    """The lock protects every field but the first few, which do not change."""

    def __init__(self, number: int, first: int, entries: tuple[m.Entry, ...]) -> None:
        """Begin with no segment for any file. `number` counts the parts of the manifest."""
        self.number = number
        self.first = first
        self.count = len(entries)
        self.entries = entries
        self.lock = threading.Lock()
        self.borrowed_bytes = 0
        """What it has of the memory for all."""
        self.is_kept = False
        """Whether it is the one that is under way; any other is a copy, to be looked at."""
        self.is_retired = False
        """It was kept, and is in the archive by now: a thread that waited for the lock looks for it anew."""
        self.large: dict[int, Large] = {}
        """Files of more than one segment, by index."""
        self.writing: dict[int, SmallFile] = {}
        self._states = bytearray(self.count)
        self._digests = bytearray(_SIZE * self.count)
        self._open = 0

    def restore(self, states: bytes, digests: bytes) -> None:
        """Put every file into the state that it had."""
        self._states[:] = states
        self._digests[:] = digests
        self._open = sum(states.count(state) for state in _OPEN)

    # --- states

    @property
    def is_open(self) -> bool:
        """Whether something of it is to come, or to be compared."""
        return self._open > 0

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing of it is under way, nor in the hands of a connection."""
        return not (self._open or self.writing) and not any(
            large.open_file is not None and (large.open_file.inside or large.open_file.rehashing)
            for large in self.large.values()
        )

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

    def digests(self) -> bytes:
        """Return the digests of all small files, zeros where there is none."""
        return bytes(self._digests)

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

    def is_partial(self, index: int) -> bool:
        """Whether a part of a large file is here, or was found in its staging."""
        large = self.large.get(index)
        return large is not None and (large.open_file is not None or large.kind == TABLE)

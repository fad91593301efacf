"""The states of chunks and of files, and the table that keeps one for each, with its digest: 17 bytes.

Two tables use it: `ChunkStates` (receiver/file) has one row for each chunk of a file, `PartState` (receiver/tree) one
row for each file of a manifest part.

    FREE       not here                                    answered: Needed
    CLAIMED    may be here, and is being re-hashed         not answered yet
    HELD       was here before, and was re-hashed          answered: Held, with its digest
    WRITING    a connection is writing it                  answered: Needed
    VERIFIED   written in this transfer, digest checked    answered: Held, with its digest
    ZERO       chunks only: zeros, told and not sent       answered: Zeros, has no digest
    NOTHING    files only: has no segment to send          not answered, has no digest
    UNCHECKED  was here, accepted unread (all chunks)      answered: Held.unchecked, has no digest
    WITHDRAWN  files only: the sender will not send it     not answered, has no digest
    LEFT       files only: differs, and is left as it is   answered: Held.left, has no digest
    OTHERS     chunks only: of another shard of a tree    not answered, has no digest
    DECLINED   files only: it can't be put in place        answered: Declined; has no digest until all of it came
"""

from typing import Final

from filestreamer.wire import limits

FREE: Final = 0
CLAIMED: Final = 1
"""Must be 1: the table of a ledger's claims, which has 1 for each chunk that is there, becomes the table of states."""
HELD: Final = 2
WRITING: Final = 3
VERIFIED: Final = 4
ZERO: Final = 5
NOTHING: Final = 6
UNCHECKED: Final = 7
WITHDRAWN: Final = 8
DECLINED: Final = 9
LEFT: Final = 10
OTHERS: Final = 11

_SIZE: Final = limits.DIGEST_BYTES


class StateTable:
    """One state and one digest for each row. Not thread-safe: the owner of the table has a lock."""

    def __init__(self, states: bytearray, digests: bytearray) -> None:
        """Use these tables, which are changed in place: a byte and DIGEST_BYTES for each row."""
        self._states = states
        self._digests = digests

    def state(self, index: int) -> int:
        """Return the state of one row."""
        return self._states[index]

    def digest(self, index: int) -> bytes:
        """Return the digest of one row; meaningful where the row is HELD or VERIFIED."""
        return bytes(self._digests[index * _SIZE : (index + 1) * _SIZE])

    def put_digest(self, index: int, digest: bytes) -> None:
        """Set the digest of one row, and leave its state."""
        self._digests[index * _SIZE : (index + 1) * _SIZE] = digest

    def states_between(self, first: int, end: int) -> bytes:
        """Return the states of the rows [first, end)."""
        return bytes(self._states[first:end])

    def restore(self, first: int, states: bytes, digests: bytes) -> None:
        """Set the states and digests of rows that follow each other, from row `first` on."""
        self._states[first : first + len(states)] = states
        self._digests[first * _SIZE : first * _SIZE + len(digests)] = digests

"""The digests of what this process has read of its files, so that a chunk that goes to many receivers is hashed once.

A digest is that of a range of bytes of a file as it was, by its `Identity`: a file that is written to has another one.
"""

import random
import threading
from typing import Final

from sender.source.item import Identity

DIGESTS_MAX: Final = 1 << 17
"""Some 30 MB; enough for half a TiB in chunks of 4 MiB."""

_Key = tuple[Identity, int]


class KnownDigests:
    """Digests by file and place; when there are too many, any of them goes. Any thread may call."""

    def __init__(self, most: int = DIGESTS_MAX, rng: random.Random | None = None) -> None:
        self._most = most
        self._rng = rng or random.Random()
        self._mutex = threading.Lock()  # protects the fields below
        self._found: dict[_Key, tuple[int, bytes, int]] = {}  # length, digest, and the place in the list of keys
        self._keys: list[_Key] = []

    def __len__(self) -> int:
        return len(self._found)

    def get(self, file: Identity, offset: int, length: int) -> bytes | None:
        """Return the digest of `length` bytes at `offset` of a file; None where it is not known."""
        found = self._found.get((file, offset))
        return found[1] if found is not None and found[0] == length else None

    def add(self, file: Identity, offset: int, length: int, digest: bytes) -> None:
        """Keep a digest, in the place of another one if there are too many."""
        key = file, offset
        with self._mutex:
            if key in self._found:
                self._found[key] = length, digest, self._found[key][2]
                return
            # Not the oldest one: receivers that come one after another read all of a large source from its beginning,
            # and would find nothing of it.
            if len(self._keys) >= self._most:
                self._remove(self._rng.choice(self._keys))
            self._found[key] = length, digest, len(self._keys)
            self._keys.append(key)

    def forget(self, file: Identity, offset: int) -> None:
        """Have what is at `offset` of a file hashed anew."""
        with self._mutex:
            if (file, offset) in self._found:
                self._remove((file, offset))

    def _remove(self, key: _Key) -> None:
        _, _, place = self._found.pop(key)
        last = self._keys.pop()
        if last != key:
            self._keys[place] = last
            length, digest, _ = self._found[last]
            self._found[last] = length, digest, place

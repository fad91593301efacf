"""The extended attributes of an entry in the messages of a manifest (proto/README.md, "Xattr").

They may be larger than a frame. Then the part ends with their entry, and they follow alone: in further ManifestParts
without entries, the values cut into pieces. `split` cuts a part so, `PartJoiner` puts it together again.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import RemoteProtocolError

FILE_SYSTEM_NAMES: Final = frozenset(
    f"trusted.{name}".encode() for name in "SGI_ACL_FILE SGI_ACL_DEFAULT lov lmv lma link fid som hsm dmv".split()
)
"""Attributes by which XFS and Lustre keep what is theirs: neither end touches them."""
XATTR_BYTES: Final = 16
"""The most that an attribute takes in a frame beside its name and its value."""
INLINE_BYTES: Final = 16 * limits.KIB
"""Attributes that take more than this follow alone, if their entry is the last of its part."""
_PIECE_BYTES: Final = 48 * limits.KIB
"""The most bytes of attributes in one message."""


def xattrs_bytes(xattrs: Sequence[m.Xattr]) -> int:
    """Return the most that attributes take in a frame, in bytes."""
    return sum([len(xattr.name) + len(xattr.value) + XATTR_BYTES for xattr in xattrs])


def split(part: m.ManifestPart) -> Iterator[m.ManifestPart]:
    """Yield the messages that list a part: one, unless the attributes of its last entry follow alone."""
    if not part.entries or xattrs_bytes(part.entries[-1].xattrs) <= INLINE_BYTES:
        yield part
        return
    *entries, last = part.entries
    yield m.ManifestPart(part.first_file_id, (*entries, last._replace(xattrs=())), False, (), True)
    end = part.first_file_id + len(part.entries)
    waiting: list[m.Xattr] = []
    for xattr in _pieces(last.xattrs):
        if xattrs_bytes((*waiting, xattr)) > _PIECE_BYTES and waiting:
            yield m.ManifestPart(end, (), False, tuple(waiting), True)
            waiting = []
        waiting.append(xattr)
    yield m.ManifestPart(end, (), part.last, tuple(waiting), False)


def _pieces(xattrs: Sequence[m.Xattr]) -> Iterator[m.Xattr]:
    for name, value in xattrs:
        yield m.Xattr(name, value[:_PIECE_BYTES])
        for at in range(_PIECE_BYTES, len(value), _PIECE_BYTES):
            yield m.Xattr(name, value[at : at + _PIECE_BYTES])


class PartJoiner:
    """Puts a part together whose last entry has attributes that follow."""

    def __init__(self) -> None:
        self._begun: m.ManifestPart | None = None
        self._xattrs: dict[bytes, bytearray] = {}
        self._bytes = 0

    @property
    def is_waiting(self) -> bool:
        """Whether the attributes of an entry are incomplete."""
        return self._begun is not None

    def begin_again(self) -> None:
        """Drop what is incomplete: it is sent again from the beginning of its part."""
        self._begun, self._xattrs, self._bytes = None, {}, 0

    def join(self, part: m.ManifestPart) -> m.ManifestPart | None:
        """Take the next message; return the part once it is complete. Raises RemoteProtocolError."""
        begun = self._begun
        if begun is None:
            if part.more_xattrs:
                raise RemoteProtocolError("extended attributes go on that no entry began")
            for entry in part.entries:
                if entry.xattrs:
                    _check_bytes(sum([len(name) + len(value) for name, value in entry.xattrs]))
            if not part.xattrs_continue:
                return part
            self._begun = begun = part
            self._take(part.entries[-1].xattrs)
            return None
        if part.entries or part.first_file_id != begun.first_file_id + len(begun.entries):
            raise RemoteProtocolError("extended attributes of an entry were to go on, and another part came")
        self._take(part.more_xattrs)
        if part.xattrs_continue:
            return None
        xattrs = tuple([m.Xattr(name, bytes(value)) for name, value in self._xattrs.items()])
        self.begin_again()
        entries = (*begun.entries[:-1], begun.entries[-1]._replace(xattrs=xattrs))
        return m.ManifestPart(begun.first_file_id, entries, part.last)

    def _take(self, xattrs: Sequence[m.Xattr]) -> None:
        for name, value in xattrs:
            self._bytes += len(value) if name in self._xattrs else len(name) + len(value)
            _check_bytes(self._bytes)
            self._xattrs.setdefault(name, bytearray()).extend(value)
        if len(self._xattrs) > limits.XATTRS_PER_ENTRY:
            raise RemoteProtocolError(f"an entry has more than {limits.XATTRS_PER_ENTRY} extended attributes")


def _check_bytes(count: int) -> None:
    if count > limits.XATTRS_BYTES:
        raise RemoteProtocolError(f"the extended attributes of an entry have more than {limits.XATTRS_BYTES} bytes")

"""How many entries one ManifestPart takes (proto/README.md, "Control conversation")."""

from typing import Final

from filestreamer.wire import limits
from filestreamer.wire.xattr_parts import xattrs_bytes
from sender.source.item import Item

_ENTRY_BYTES: Final = 40
"""The values of an entry in all columns are at most this long, besides its path."""
_DETAILS_BYTES: Final = 40
"""So are its EntryDetails, besides the target of its link and its attributes."""
_PART_BYTES: Final = limits.FRAME_BYTES - limits.KIB


def encoded_bytes(item: Item) -> int:
    """Return the most that an entry takes in a frame, in bytes."""
    entry = item.entry
    size = _ENTRY_BYTES + len(entry.path)
    if entry.data_bytes is None and not (entry.hard_link_group or entry.link_target or entry.xattrs):
        return size  # as nearly always
    return size + _DETAILS_BYTES + len(entry.link_target) + xattrs_bytes(entry.xattrs)


class PartBudget:
    """Counts the entries and bytes of a part, to know when it is full."""

    def __init__(self) -> None:
        self._entries = 0
        self._bytes = 0

    def take(self, item: Item) -> bool:
        """Count one more entry; return False, and count nothing, where it does not fit into this part.

        The first one always fits: where its extended attributes are too large, they follow alone (`xattr_parts`).
        """
        size = encoded_bytes(item)
        if self._entries and (self._entries == limits.ENTRIES_PER_PART or self._bytes + size > _PART_BYTES):
            return False
        self._entries += 1
        self._bytes += size
        return True

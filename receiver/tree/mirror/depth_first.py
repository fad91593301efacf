"""Follows a manifest that is listed depth first, and says which directories are complete."""

from filestreamer.wire.errors import RemoteProtocolError
from filestreamer.wire.messages import Entry, EntryType


class DepthFirst:
    """The directories that lead to the latest entry, the destination itself first."""

    def __init__(self) -> None:
        self._open = [b""]

    def take(self, entry: Entry) -> int:
        """Take the next entry; return how many of the innermost directories no entry will come for any more.

        Raises RemoteProtocolError where the directory of the entry was not listed, or counted as complete before.
        """
        if entry.type is EntryType.KEPT and entry.path == self._open[-1]:
            return 0
        parent = entry.path.rpartition(b"/")[0]
        complete = 0
        while self._open[-1] != parent:
            self._open.pop()
            complete += 1
            if not self._open:
                raise RemoteProtocolError(
                    "the manifest is not listed depth first, which Offer.delete needs: an entry comes outside of its"
                    " directory"
                )
        if entry.type is EntryType.DIRECTORY:
            self._open.append(entry.path)
        return complete

"""Follows a manifest that is listed depth first, and says which directories are complete."""

from filestreamer.wire.errors import RemoteProtocolError
from filestreamer.wire.messages import Entry, EntryType


class DepthFirst:
    """The directories that lead to the latest entry. Of thousands of them, the innermost one has the paths of all."""

    def __init__(self) -> None:
        self.path = b""
        """The innermost of these directories; b"" is the destination itself."""
        self._above: list[int] = []
        """The lengths of the paths of the others, the destination first."""

    def take(self, entry: Entry) -> int:
        """Take the next entry; return how many of the innermost directories no entry will come for any more.

        Raises RemoteProtocolError where the directory of the entry was not listed, or counted as complete before.
        """
        if entry.type is EntryType.KEPT and entry.path == self.path:
            return 0
        parent = entry.path.rpartition(b"/")[0]
        complete = 0
        while self.path != parent:
            complete += 1
            if not self._above:
                raise RemoteProtocolError(
                    "the manifest is not listed depth first, which Offer.delete needs: an entry comes outside of its"
                    " directory"
                )
            self.path = self.path[: self._above.pop()]
        if entry.type is EntryType.DIRECTORY:
            self._above.append(len(self.path))
            self.path = entry.path
        return complete

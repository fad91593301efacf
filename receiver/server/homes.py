"""The registries of names: one for the destination or, with --tokens, one for each user's directory below it.

So nobody reads, replaces, removes or waits for what is another user's: files, staging, locks, the names of jobs. A user
has a registry while there are transfers of that user; it opens the directory when the first name is claimed.
"""

from receiver.disk.destination import Destination
from receiver.pipe.standard_output import OpenFile
from receiver.server.registry import Registry
from receiver.server.users import NOBODY


class Homes:
    """Finds the registry of a user. Not thread-safe: the admission has the lock."""

    def __init__(self, destination: Destination | OpenFile, output_name: bytes | None) -> None:
        """`output_name` replaces the name that senders give."""
        self._destination = destination
        self._registries = {NOBODY: Registry(destination, output_name)}

    def of(self, user: str) -> Registry:
        """Return the registry of a user, new where there is none."""
        if user not in self._registries:
            self._registries[user] = Registry(lambda: self._open(user), None)
        return self._registries[user]

    def leave(self, user: str) -> None:
        """Forget the registry of a user who has no transfer, unless a thread that hangs still has names in it."""
        if user != NOBODY and user in self._registries and self._registries[user].is_idle:
            del self._registries[user]

    def _open(self, user: str) -> Destination:
        """Open the directory of a user. Raises TransferFailed(DESTINATION)."""
        assert isinstance(self._destination, Destination)
        return self._destination.subdirectory(user)

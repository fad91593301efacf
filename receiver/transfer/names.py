"""The interfaces between transfers and the registry of names (`receiver.server.registry`).

A transfer is a `Claimant`: it claims its names before it receives anything, and may have to yield them to a newer one.
The registry is `Names`.
"""

from typing import Protocol

from filestreamer.wire import messages as m
from filestreamer.wire.errors import FilestreamerError
from filestreamer.wire.grid import Grid, Share
from receiver.disk.destination import Destination
from receiver.file.file_share import FileShare
from receiver.memory.budget import Account
from receiver.pipe.standard_output import OpenFile
from receiver.tree.top_level_names import TopLevelNames


class Claimant(Protocol):
    """A transfer, as the registry and other transfers see it; compared by identity."""

    @property
    def account(self) -> Account:
        """The memory that it may use for its peer."""

    @property
    def is_complete(self) -> bool:
        """Whether everything is durable: the transfer is only kept to send Complete again."""

    @property
    def has_passed_on(self) -> bool:
        """Whether bytes of the transfer were written to an output: they can't be taken back."""

    @property
    def yields(self) -> bool:
        """Whether a newer transfer may take its names."""

    @property
    def hangs(self) -> str | None:
        """Why an ended transfer still has its names: one of its threads waits for a disk. None if none does."""

    def yield_to_newer(self) -> None:
        """Ask the transfer to end soon, because a newer one needs its names."""

    def end_soon(self, error: FilestreamerError) -> None:
        """Ask the transfer to end soon, with this error."""

    def cut(self) -> None:
        """Shut the connections of the transfer, so that none of its threads waits for a peer any more."""

    def join(self, timeout: float) -> None:
        """Wait until the transfer has ended, at most `timeout` seconds."""


class Names(Protocol):
    """Gives names in the destination to transfers. Any thread may call it."""

    @property
    def allow_privileged(self) -> bool:
        """Whether the receiver's user lets senders set what is privileged (`Destination`)."""

    def claim(
        self, transfer: Claimant, entry: m.Entry, grid: Grid, share: Share, *, checksum: bool = False
    ) -> FileShare:
        """Give a transfer its share of a file, and open the file. Raises TransferFailed.

        With `checksum`, a file that is there is compared by its bytes, whatever its mtime is.
        """

    def claim_root(self, transfer: Claimant, name: bytes, offer: m.Offer | None = None, job: str = "") -> TopLevelNames:
        """Give a tree its first name in the destination, and the means to claim others. Raises TransferFailed.

        Shards of one `job` share their names; `offer` says whether the tree is one.
        """

    def claim_stdout(self, transfer: Claimant) -> OpenFile | None:
        """Give a transfer the output of this receiver; None where it has a directory. Raises TransferFailed(BUSY)."""

    def destination_for(self, *, is_alone: bool) -> tuple[Destination, bytes | None]:
        """Return the destination, and the name that replaces that of a file which is sent alone, if there is one.

        Raises TransferFailed(POLICY) where this receiver has no destination, or takes one file and another was offered.
        """

    def is_in_use(self, name: bytes, job: str = "") -> bool:
        """Whether a transfer that does not hang has this name, as that of a file or in a tree.

        Shards of a tree need not have a name in common: those of this job count as well.
        """

    def has_spent_output(self, transfer: Claimant) -> bool:
        """Whether a transfer has written to the output, so that no other one can any more."""

    def release_committed(self, transfer: Claimant) -> None:
        """Let other transfers have the name of a file that this one has committed."""

    def release(self, transfer: Claimant, *, cleanly: bool) -> None:
        """Take back everything that a transfer has claimed; `cleanly`: no thread of it hangs in a file."""

"""What a receiver takes that has fetched something itself: what it has asked for, and nothing else.

A receiver that waits for senders takes whatever names they give. One that names paths at another machine (--from) must
not let that machine choose other names: it could put a `.bashrc` beside what was asked for (scp: CVE-2019-6111, rsync:
CVE-2022-29154), or a file where the user has one that --exclude names. Nor may the sender choose what becomes of files
that exist.
"""

from collections.abc import Iterable, Sequence

from filestreamer.process.log import printable
from filestreamer.records import Record
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, TransferFailed
from filestreamer.wire.patterns import Wanted


class Asked(Record):
    """What the user has asked for."""

    names: frozenset[bytes]
    """The last component of each path: the first one of whatever comes."""
    existing: m.Existing
    """What becomes of files that exist."""
    deletes: bool
    """Whether what is not at the source is removed from the directories that were asked for."""
    checksum: bool
    """Whether files that are there are compared by their bytes."""
    xattrs: bool
    """Whether extended attributes are kept."""
    excludes: tuple[bytes, ...] = ()
    """The patterns of --exclude: what matches one is not removed."""
    wanted: Wanted | None = None
    """What --include and --exclude choose below each path; None: everything."""

    def check_offer(self, offer: m.Offer) -> None:
        """Raise TransferFailed(POLICY) where an offer is not that of what was asked for."""
        if offer.dry_run or offer.shard is not None:
            raise _refusal("a dry run, or a share of a file")
        if offer.existing is not self.existing:
            raise _refusal(f"to {offer.existing.name.lower()} files that exist")
        if offer.checksum is not self.checksum:
            raise _refusal("another way to compare files that exist (--checksum)")
        if offer.xattrs and not self.xattrs:
            raise _refusal("extended attributes")
        if offer.delete is None:
            return
        if not self.deletes:
            raise _refusal("to remove files")
        if offer.delete.excludes != self.excludes:
            raise _refusal("to remove what --exclude keeps")
        self._check_names(offer.delete.roots, "to remove files below")

    def check_entries(self, entries: Sequence[m.Entry]) -> None:
        """Raise TransferFailed(POLICY) where an entry lies outside of what was asked for."""
        self._check_names((entry.path for entry in entries), "the file")
        if self.wanted is None:
            return
        for entry in entries:
            _, slash, below = entry.path.partition(b"/")
            is_directory = entry.type is m.EntryType.DIRECTORY
            # What is kept is not touched; and no pattern is for the path itself that was asked for.
            if slash and entry.type is not m.EntryType.KEPT and not self.wanted(below, is_directory):
                raise _refusal(_shown("the file", entry.path))

    def _check_names(self, paths: Iterable[bytes], what: str) -> None:
        for path in paths:
            if path.partition(b"/")[0] not in self.names:
                raise _refusal(_shown(what, path))


def _shown(what: str, path: bytes) -> str:
    return f"{what} {printable(path.decode(errors='surrogateescape'))}"


def _refusal(what: str) -> TransferFailed:
    return TransferFailed(Code.POLICY, f"the sender offers {what}, which was not asked for: nothing of it is taken")

"""A table of which transfer has which name in the destination. It neither waits nor touches the disk.

A name belongs to one transfer, or to the shards of one job; a tree may have any number of names. Not thread-safe: the
registry has the lock.
"""

from dataclasses import replace

from filestreamer.records import Record
from filestreamer.wire.errors import Code, TransferFailed
from filestreamer.wire.grid import Share
from receiver.file.file_share import FileShare
from receiver.file.shared_file import File, SourceVersion
from receiver.transfer.names import Claimant
from receiver.tree.top_level_names import TopLevelNames


class TreeShardClaim(Record):
    """A shard of a tree."""

    job: str
    index: int
    count: int
    chunk_size: int
    checksum: bool

    def is_sibling_of(self, other: "TreeShardClaim") -> bool:
        """Whether this is another shard of the same job, divided in the same way."""
        return replace(self, index=other.index) == other and self.index != other.index


class NameTable:
    """The files and trees that transfers have claimed."""

    def __init__(self) -> None:
        self.files: dict[bytes, File] = {}
        """The files that are being received, by name: a shard of the same job can join one."""
        self.shares: dict[Claimant, FileShare] = {}
        self.trees: dict[Claimant, TopLevelNames] = {}
        self.newcomers: dict[Claimant, bytes] = {}
        """The names for which transfers of trees are waiting: who has them is about to end."""
        self.shards: dict[Claimant, TreeShardClaim] = {}
        """The transfers that are shards of trees."""
        self.closing: set[Claimant] = set()
        """Those of them that set the modes and times of directories."""
        self.closed: set[Claimant] = set()
        """Those of them that have done so, and write nothing any more."""

    def holders(self, name: bytes) -> list[Claimant]:
        """Return the transfers that have a name, as a file or in a tree."""
        file = self.files.get(name)
        return (self.sharers(file) if file is not None else []) + self.tree_holders(name)

    def rivals_for(self, transfer: Claimant, name: bytes) -> list[Claimant]:
        """Return the transfers that a tree would have to displace to get a name: not the shards of its own job."""
        siblings = self.siblings(transfer)
        return [holder for holder in self.holders(name) if holder is not transfer and holder not in siblings]

    def siblings(self, transfer: Claimant) -> list[Claimant]:
        """Return the other shards of the job of a transfer."""
        shard = self.shards.get(transfer)
        if shard is None:
            return []
        return [other for other, theirs in self.shards.items() if theirs.is_sibling_of(shard)]

    def writing_siblings(self, transfer: Claimant) -> list[Claimant]:
        """Return those of them that may still write."""
        return [other for other in self.siblings(transfer) if not (other in self.closed or other.is_complete)]

    def tree_holders(self, name: bytes) -> list[Claimant]:
        """Return the transfers of trees that have a name."""
        return [transfer for transfer, names in self.trees.items() if name in names]

    def sharers(self, file: File) -> list[Claimant]:
        """Return the transfers that have a share of a file."""
        return [transfer for transfer, file_share in self.shares.items() if file_share.file is file]

    def rivals(self, name: bytes, source: SourceVersion, share: Share) -> list[Claimant]:
        """Return the transfers that a new one would have to displace to get its share of a file.

        These are all that have the file, where it is of another source or can't be joined; else the one that has the
        same share and is not complete.
        """
        if holders := self.tree_holders(name):
            return holders
        file = self.files.get(name)
        if file is None:
            return []
        sharers = self.sharers(file)
        if file.source != source or file.is_lost or file.is_closing:
            return sharers
        return [other for other in sharers if self.shares[other].share == share and not other.is_complete]

    def forget(self, file: File) -> None:
        """Let a new file have the name of this one."""
        if self.files.get(file.name) is file:
            del self.files[file.name]


def refusal(file: File, source: SourceVersion, share: Share, path: str) -> TransferFailed:
    """Return the error for a new transfer that can't have its share of a file, as other transfers receive it."""
    if file.source == source:
        what = f"shard {share} of {path}" if share.count > 1 else path
        return busy(what)
    if not file.source.shards == source.shards > 1:
        return busy(path, f" in {file.source.shards} shards" if file.source.shards > 1 else "")
    if (file.source.size, file.source.mtime_ns) != (source.size, source.mtime_ns):
        reason = f"the other shards of {path} have a source of another size or mtime"
        return TransferFailed(Code.SOURCE_CHANGED, f"{reason}: run all of them again, from one source")
    reason = f"the other shards of {path} have chunks of {file.source.chunk_size} bytes, this one {source.chunk_size}"
    return TransferFailed(Code.POLICY, f"{reason}: give all the same --chunk-size")


def busy(what: str, how: str = "") -> TransferFailed:
    """Return the error for a name that another transfer has."""
    return TransferFailed(Code.BUSY, f"{what} is locked by another transfer{how}; retrying")

"""Who receives what: each name in the destination belongs to one transfer, or to the shards of one job.

A name is claimed when it is offered, and released when its transfer is complete or has left. A file is known here while
a transfer has a share of it, and found again in its staging after that.
"""

import os
import threading
import time
from collections.abc import Callable
from typing import Final

from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, FilestreamerError, TransferFailed
from filestreamer.wire.grid import Grid, Share
from receiver.disk.destination import Destination
from receiver.disk.paths import check_name
from receiver.disk.readable import InPlace
from receiver.disk.staging import Staging
from receiver.file.file_share import FileShare
from receiver.file.shared_file import File, SourceVersion
from receiver.memory.budget import Account
from receiver.transfer.transfer import FENCE_SECONDS, Transfer
from receiver.tree.top_level_names import TopLevelNames

SEGMENT_BYTES: Final = 20
"""What a segment takes: 17 bytes in the table, and up to 3 of copies of its states while they are told."""
SEGMENTS_RESERVED: Final = 1 << 14
"""Segments of a single file that are in what is reserved for its transfer."""
GOODBYE_SECONDS: Final = 2.0
"""How long a transfer may take to say goodbye before its connections are cut."""


class Registry:
    """Who has a stake in which file. Transfers call it from their own threads."""

    def __init__(self, destination: Destination, output_name: bytes | None) -> None:
        """`output_name` replaces the name that senders give."""
        self._destination = destination
        self._output_name = output_name
        self._lock = threading.Lock()  # protects both tables
        self._files: dict[bytes, File] = {}  # by name: those that can be joined, or stand in the way
        self._shares: dict[Transfer, FileShare] = {}
        self._trees: dict[Transfer, TopLevelNames] = {}

    def claim_root(self, transfer: Transfer, name: bytes) -> TopLevelNames:
        """Give a tree its first name in the destination, and what it claims the others with.

        Raises TransferFailed: POLICY, BUSY.
        """
        if self._output_name is not None:
            raise TransferFailed(Code.POLICY, "this receiver takes one file, under a name of its own (--output-file)")
        roots = TopLevelNames(self._destination, lambda other: self._hold(transfer, roots, other))
        roots.claim(name)
        return roots

    def _hold(self, transfer: Transfer, roots: TopLevelNames, name: bytes) -> None:
        """Let a tree have a name, if no other transfer has it; one without sender gives way. Raises TransferFailed."""
        with self._lock:
            rivals = self._holders(name, transfer)
        self._displace(rivals)
        with self._lock:
            if self._holders(name, transfer):
                raise TransferFailed(Code.BUSY, f"{self._shown(name)} is being received from another sender")
            self._trees[transfer] = roots
            roots.take(name)

    def _holders(self, name: bytes, transfer: Transfer) -> list[Transfer]:
        """List who else has a name in the destination, as a file or as the root of a tree."""
        file = self._files.get(name)
        holders = [
            holder for holder, file_share in self._shares.items() if file is not None and file_share.file is file
        ]
        holders += self._planters(name)
        return [holder for holder in holders if holder is not transfer]

    def _planters(self, name: bytes) -> list[Transfer]:
        """List which trees hold a name."""
        return [transfer for transfer, roots in self._trees.items() if name in roots]

    def _displace(self, rivals: list[Transfer]) -> None:
        """Have others give way, if all of them do. Raises TransferFailed(BUSY) where one has ended, and hangs."""
        _check_hanging(rivals)
        if rivals and all(rival.yields for rival in rivals):
            for rival in rivals:
                rival.yield_to_newer()
            join_all(rivals)
            _check_hanging(rivals)

    def claim(self, transfer: Transfer, entry: m.Entry, grid: Grid, share: Share) -> FileShare:
        """Give a transfer its share of a file, if no other one has it; those that are deserted give way.

        Raises TransferFailed: PATH, POLICY, BUSY, SOURCE_CHANGED, LIMIT, EXISTS, DESTINATION, NO_SPACE.
        """
        name = check_name(entry.path)
        name = self._output_name or name
        source = SourceVersion(share.count, entry.size, entry.mtime_ns, grid.chunk_size)
        with self._lock:
            rivals = self._rivals(name, source, share)
        self._displace(rivals)
        with self._lock:
            if self._planters(name):
                raise TransferFailed(Code.BUSY, f"{self._shown(name)} is being received from another sender")
            if self._rivals(name, source, share):
                raise _refusal(self._files[name], source, share, self._shown(name))
            file_share = FileShare(self._file(name, source, transfer.account), share)
            self._shares[transfer] = file_share
            reserved_bytes = sum(file.left_bytes() for file in self._open_files() if file is not file_share.file)
        try:
            file_share.file.open(
                lambda: self._content(entry, file_share, reserved_bytes), self._failing(file_share.file)
            )
        except BaseException:
            self.leave(transfer, cleanly=True)
            raise
        file_share.begin_again()
        return file_share

    def _rivals(self, name: bytes, source: SourceVersion, share: Share) -> list[Transfer]:
        """List who is in the way of a newcomer: who moves its share or, where it is of another job, everybody."""
        if planters := self._planters(name):
            return planters
        file = self._files.get(name)
        if file is None:
            return []
        others = [
            (transfer, file_share.share) for transfer, file_share in self._shares.items() if file_share.file is file
        ]
        if file.source != source or file.is_lost or file.is_closing:
            return [transfer for transfer, _ in others]
        return [transfer for transfer, other in others if other == share and not transfer.is_complete]

    def _file(self, name: bytes, source: SourceVersion, account: Account) -> File:
        """Return the file of that name, new where there is none. Raises TransferFailed: TOO_LARGE, LIMIT."""
        file = self._files.get(name)
        if file is None:
            file = File(name, source)
            file.account = account.another()
            count = SEGMENT_BYTES * max(0, file.grid.segments - SEGMENTS_RESERVED)
            account.check(count)
            if count and not file.account.try_borrow(count):
                raise TransferFailed(Code.LIMIT, "no memory is left for the chunks of another file: try again later")
            self._files[name] = file
        return file

    def _open_files(self) -> set[File]:
        return {file_share.file for file_share in self._shares.values()}

    def _content(self, entry: m.Entry, file_share: FileShare, reserved_bytes: int) -> Staging | InPlace:
        """Stage a file; where a shard comes again after the commit, open what was committed. Raises TransferFailed."""
        name = file_share.file.name
        in_place = InPlace.open(self._destination, name, entry, file_share.grid) if file_share.share.count > 1 else None
        return in_place or Staging.open_single_file(self._destination, name, entry, file_share.grid, reserved_bytes)

    def _failing(self, file: File) -> Callable[[FilestreamerError], None]:
        """Return what ends every transfer of a file for an error."""

        def fail(error: FilestreamerError) -> None:
            with self._lock:
                transfers = [transfer for transfer, file_share in self._shares.items() if file_share.file is file]
            for transfer in transfers:
                transfer.end_soon(error)

        return fail

    def _shown(self, name: bytes) -> str:
        return os.path.join(self._destination.path, os.fsdecode(name))

    def release(self, transfer: Transfer) -> None:
        """Let others write what a transfer has committed."""
        with self._lock:
            if transfer in self._shares:
                self._forget(self._shares[transfer].file)

    def _forget(self, file: File) -> None:
        if self._files.get(file.name) is file:
            del self._files[file.name]

    def leave(self, transfer: Transfer, *, cleanly: bool) -> None:
        """Take a transfer out of its file, and close that behind the last one.

        `cleanly` is whether all its threads have left the file: where one hangs in a write, nothing is closed.
        """
        with self._lock:
            self._trees.pop(transfer, None)
            file_share = self._shares.get(transfer)
            if file_share is None:
                return
            file = file_share.file
            file.is_stuck = file.is_stuck or not cleanly
            is_last = all(other is file_share or other.file is not file for other in self._shares.values())
            file.is_closing = is_last
            if not is_last:
                del self._shares[transfer]
        if not is_last:
            if file.is_lost:
                self._failing(file)(
                    TransferFailed(Code.DESTINATION, f"the staging of {file.content.path} was lost: run it again")
                )
            return
        try:
            file.close()
        finally:  # whatever the disk says, others may have the name
            if file.account is not None:
                file.account.close()
            with self._lock:
                del self._shares[transfer]
                self._forget(file)

    def is_in_use(self, name: bytes) -> bool:
        """Whether any transfer has this name, as that of a file or of the root of a tree, and does not hang in it."""
        with self._lock:
            holders = [holder for holder, file_share in self._shares.items() if file_share.file.name == name]
            holders += self._planters(name)
        return any(holder.hangs is None for holder in holders)


def _refusal(file: File, source: SourceVersion, share: Share, shown: str) -> TransferFailed:
    """Say why a newcomer can't have its share of a file that others write."""
    if file.source == source:
        what = f"shard {share} of {shown}" if share.count > 1 else shown
        return TransferFailed(Code.BUSY, f"{what} is being received from another sender")
    if not file.source.shards == source.shards > 1:
        in_shards = f", in {file.source.shards} shards" if file.source.shards > 1 else ""
        return TransferFailed(Code.BUSY, f"{shown} is being received from another sender{in_shards}")
    if (file.source.size, file.source.mtime_ns) != (source.size, source.mtime_ns):
        reason = f"the other shards of {shown} have a source of another size or mtime"
        return TransferFailed(Code.SOURCE_CHANGED, f"{reason}: run all of them again, from one source")
    reason = f"the other shards of {shown} have chunks of {file.source.chunk_size} bytes, this one {source.chunk_size}"
    return TransferFailed(Code.POLICY, f"{reason}: give all the same --chunk-size")


def _check_hanging(rivals: list[Transfer]) -> None:
    """Raise TransferFailed(BUSY), with the reason, where a transfer has ended and a thread of it hangs on a disk."""
    for rival in rivals:
        if (reason := rival.hangs) is not None:
            raise TransferFailed(Code.BUSY, reason)


def join_all(transfers: list[Transfer], seconds: float = GOODBYE_SECONDS + FENCE_SECONDS) -> None:
    """Wait for the end of transfers, so long for all of them; those that hang on a peer are cut off before."""
    now = time.monotonic()
    for until in (now + GOODBYE_SECONDS, now + seconds):
        for transfer in transfers:
            transfer.join(max(0.0, until - time.monotonic()))
        for transfer in transfers:
            transfer.cut()

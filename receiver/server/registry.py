"""Gives names in the destination to transfers, and takes them back. It is the `Names` that transfers call.

A name is claimed when it is offered, and released when its transfer is complete or has ended. A new transfer displaces
the transfers that are in its way if all of them yield (their senders are gone, or they make no progress), and waits for
their end; else it is refused with BUSY, and its sender tries again.

A file is in the table while a transfer has a share of it; later runs find it in its staging. If the receiver writes to
an output, the output is the only thing to claim, and only one transfer may ever write to it.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, FilestreamerError, TransferFailed
from filestreamer.wire.grid import Grid, Share
from receiver.disk.destination import Destination
from receiver.disk.paths import check_name
from receiver.disk.staging.readable import InPlace
from receiver.disk.staging.staging import Staging
from receiver.file.file_share import FileShare
from receiver.file.shared_file import File, SourceVersion
from receiver.memory.budget import Account
from receiver.pipe.standard_output import OpenFile
from receiver.server.name_table import NameTable, TreeShardClaim, busy, refusal
from receiver.transfer.ending import FENCE_SECONDS
from receiver.transfer.names import Claimant
from receiver.tree.top_level_names import TopLevelNames

SEGMENT_BYTES: Final = 20
"""The memory of a segment: 17 bytes in the table, and up to 3 of copies of its state while it is answered."""
SEGMENTS_RESERVED: Final = 1 << 14
"""Segments of a single file whose memory is in what is reserved for its transfer."""
GOODBYE_SECONDS: Final = 2.0
"""How long a transfer may take to send its last message before its connections are shut."""


class Registry:
    """The names of one receiver. Transfers call it from their own threads."""

    def __init__(
        self, destination: Destination | OpenFile | Callable[[], Destination], output_name: bytes | None
    ) -> None:
        """`output_name` replaces the name that senders give. A function opens the destination for the first of them."""
        self._destination = destination
        self._output_name = output_name
        self._opening = threading.Lock()  # held while the destination is opened, which may wait for a disk
        self._lock = threading.Lock()  # protects the fields below; no thread waits while it holds the lock
        self._changed = threading.Condition(self._lock)  # notified when a shard of a tree has set modes, or has ended
        self._table = NameTable()
        self._output_holder: Claimant | None = None

    @property
    def _directory(self) -> Destination:
        """The directory that files and trees go to. With an output instead, `TargetOpener` claims neither."""
        assert isinstance(self._destination, Destination)
        return self._destination

    @property
    def allow_privileged(self) -> bool:
        """Whether the receiver's user lets senders set what is privileged."""
        return isinstance(self._destination, Destination) and self._destination.allow_privileged

    def _follow(self) -> Destination:
        """Return the directory that the user's path leads to now. Raises TransferFailed(DESTINATION)."""
        with self._opening:
            if callable(self._destination):
                self._destination = self._destination()
        there = self._directory.at_path()
        with self._lock:
            if there is not self._destination:
                self._destination = there
                for file in self._table.files.values():
                    file.is_elsewhere = True
        return there

    def _path(self, name: bytes) -> str:
        return os.path.join(self._directory.path, os.fsdecode(name))

    def destination_for(self, *, is_alone: bool) -> tuple[Destination, bytes | None]:
        """Return the destination, and the name that replaces that of a file which is sent alone, if there is one.

        Raises TransferFailed(POLICY) where this receiver has no destination, or takes one file and another was offered.
        """
        if isinstance(self._destination, OpenFile):
            raise TransferFailed(Code.POLICY, f"this receiver writes to {self._destination.path}: there is none to ask")
        if self._output_name is not None and not is_alone:
            raise TransferFailed(Code.POLICY, "this receiver takes one file, under a name of its own (--output-file)")
        return self._follow(), self._output_name

    # --- trees

    def claim_root(self, transfer: Claimant, name: bytes, offer: m.Offer | None = None, job: str = "") -> TopLevelNames:
        """Give a tree its first name in the destination, and the means to claim others.

        Shards of one `job` share their names; `offer` says whether the tree is one.

        Raises TransferFailed: POLICY, BUSY.
        """
        destination, _ = self.destination_for(is_alone=False)
        is_shard = offer is not None and offer.shard is not None
        roots = TopLevelNames(
            destination,
            lambda other: self._hold(transfer, roots, other),
            lambda other: self._try_hold(transfer, roots, other),
            (lambda: self._closing(transfer)) if is_shard else None,
        )
        if offer is not None and offer.shard is not None:
            index, count, _ = offer.shard
            self._join(transfer, TreeShardClaim(job, index, count, offer.chunk_size, offer.checksum))
        roots.claim(name)
        return roots

    def _join(self, transfer: Claimant, shard: TreeShardClaim) -> None:
        """Let a shard of a tree write beside the others of its job. Raises TransferFailed: BUSY, POLICY."""
        with self._lock:
            for other, theirs in self._table.shards.items():
                if other is transfer or other.is_complete or theirs.job != shard.job or theirs.count != shard.count:
                    continue  # of another job or number of shards, it has the names of the tree
                if theirs.chunk_size != shard.chunk_size or theirs.checksum != shard.checksum:
                    raise TransferFailed(
                        Code.POLICY,
                        f"other shards of job {shard.job} have another --chunk-size, or --checksum: give all the same",
                    )
                if other in self._table.closing:
                    raise busy(f"job {shard.job}", ", which is about to end")
            self._table.shards[transfer] = shard

    @contextlib.contextmanager
    def _closing(self, transfer: Claimant) -> Iterator[bool]:
        """Let a shard set the modes of directories, one at a time; yield whether no other one writes into them."""
        with self._changed:
            self._changed.wait_for(lambda: not self._table.closing.intersection(self._table.siblings(transfer)))
            self._table.closing.add(transfer)
            is_last = not self._table.writing_siblings(transfer)
        try:
            yield is_last
        finally:
            with self._changed:
                self._table.closing.discard(transfer)
                self._table.closed.add(transfer)
                self._changed.notify_all()

    def _hold(self, transfer: Claimant, roots: TopLevelNames, name: bytes) -> None:
        """Let a tree have a name, if no other transfer has it. Raises TransferFailed(BUSY)."""
        with self._lock:
            rivals = self._table.rivals_for(transfer, name)
            self._table.newcomers[transfer] = name  # so that the name is in use while it changes hands
        try:
            _displace(rivals)
            with self._lock:
                if self._table.rivals_for(transfer, name):
                    raise busy(self._path(name))
                self._table.trees[transfer] = roots
                roots.take(name)
        finally:
            with self._lock:
                self._table.newcomers.pop(transfer, None)

    def _try_hold(self, transfer: Claimant, roots: TopLevelNames, name: bytes) -> bool:
        """Let a tree have a name, if no transfer has it; return whether it has it now."""
        with self._lock:
            if self._table.holders(name):
                return False
            self._table.trees[transfer] = roots
            roots.take(name)
        return True

    # --- files

    def claim(
        self, transfer: Claimant, entry: m.Entry, grid: Grid, share: Share, *, checksum: bool = False
    ) -> FileShare:
        """Give a transfer its share of a file, and open the file.

        With `checksum`, a file that is there is compared by its bytes, whatever its mtime is.

        Raises TransferFailed: PATH, POLICY, BUSY, SOURCE_CHANGED, LIMIT, EXISTS, DESTINATION, NO_SPACE.
        """
        name = check_name(entry.path)
        name = self._output_name or name
        source = SourceVersion(share.count, entry.size, entry.mtime_ns, grid.chunk_size)
        destination = self._follow()
        with self._lock:
            rivals = self._table.rivals(name, source, share)
        _displace(rivals)
        with self._lock:
            if self._table.tree_holders(name):
                raise busy(self._path(name))
            if self._table.rivals(name, source, share):
                raise refusal(self._table.files[name], source, share, self._path(name))
            file_share = FileShare(self._file(name, source, transfer.account), share)
            self._table.shares[transfer] = file_share
            promised_bytes = self._promised_bytes(file_share.file)
        file = file_share.file
        try:
            file.open(
                lambda: self._content(destination, entry, file_share, promised_bytes, checksum=checksum),
                self._failing(file),
                (lambda: self._staging_after_all(destination, entry, file)) if share.count == 1 else None,
            )
        except BaseException:
            self.release(transfer, cleanly=True)
            raise
        file_share.begin_again()
        return file_share

    def _file(self, name: bytes, source: SourceVersion, account: Account) -> File:
        """Return the file of that name, new where there is none. Raises TransferFailed: TOO_LARGE, LIMIT."""
        file = self._table.files.get(name)
        if file is None:
            file = File(name, source)
            file.account = account.another()
            table_bytes = SEGMENT_BYTES * max(0, file.grid.segments - SEGMENTS_RESERVED)
            account.check(table_bytes)
            if table_bytes and not file.account.try_borrow(table_bytes):
                raise TransferFailed(Code.LIMIT, "no memory is left for the chunks of another file: try again later")
            self._table.files[name] = file
        return file

    def _promised_bytes(self, file: File) -> int:
        """Return the space that other files are still going to take. Call it with the lock."""
        others = {other.file for other in self._table.shares.values()} - {file}
        return sum(other.left_bytes() for other in others)

    def _content(
        self, destination: Destination, entry: m.Entry, file_share: FileShare, promised_bytes: int, *, checksum: bool
    ) -> Staging | InPlace:
        """Open what stands under the final name if it may be what is sent, else the staging. Raises TransferFailed."""
        file, is_shard = file_share.file, file_share.share.count > 1
        in_place = InPlace.open(destination, file.name, entry, file.grid, is_shard=is_shard, checksum=checksum)
        return in_place or Staging.open_single_file(destination, file.name, entry, file.grid, promised_bytes)

    def _staging_after_all(self, destination: Destination, entry: m.Entry, file: File) -> Staging:
        """Open the staging of a file that stands under its final name, and differs. Raises TransferFailed."""
        with self._lock:
            promised_bytes = self._promised_bytes(file)
        return Staging.open_single_file(destination, file.name, entry, file.grid, promised_bytes)

    def _failing(self, file: File) -> Callable[[FilestreamerError], None]:
        """Return a function that ends every transfer of a file for an error."""

        def fail(error: FilestreamerError) -> None:
            with self._lock:
                transfers = self._table.sharers(file)
            for transfer in transfers:
                transfer.end_soon(error)

        return fail

    # --- the output

    def claim_stdout(self, transfer: Claimant) -> OpenFile | None:
        """Give a transfer the output of this receiver; None where it has a directory. Raises TransferFailed(BUSY)."""
        if not isinstance(self._destination, OpenFile):
            return None
        with self._lock:
            other = self._output_holder
        # If the output has bytes of the other transfer, those of this one must not follow them.
        if other is not None and other.yields and not other.has_passed_on:
            other.yield_to_newer()
            join_all([other])
        with self._lock:
            if self._output_holder is not None:
                raise TransferFailed(Code.BUSY, "the output of this receiver is locked by another transfer; retrying")
            self._output_holder = transfer
        return self._destination

    def has_spent_output(self, transfer: Claimant) -> bool:
        """Whether a transfer has written to the output, so that no other one can any more."""
        with self._lock:
            return self._output_holder is transfer and (transfer.is_complete or transfer.has_passed_on)

    # --- the end

    def release_committed(self, transfer: Claimant) -> None:
        """Release the name of a file that this transfer has committed."""
        with self._lock:
            file_share = self._table.shares.get(transfer)
            if file_share is not None:
                self._table.forget(file_share.file)

    def release(self, transfer: Claimant, *, cleanly: bool) -> None:
        """Take back everything that a transfer has claimed; close its file behind the last transfer that shares it.

        `cleanly`: no thread of the transfer hangs in the file; else its descriptors stay open.
        """
        with self._lock:
            if self._output_holder is transfer and not (transfer.is_complete or transfer.has_passed_on):
                self._output_holder = None
            self._table.trees.pop(transfer, None)
            self._table.shards.pop(transfer, None)
            self._table.closed.discard(transfer)
            self._changed.notify_all()
            file_share = self._table.shares.get(transfer)
            if file_share is None:
                return
            file = file_share.file
            file.is_stuck = file.is_stuck or not cleanly
            is_last = self._table.sharers(file) == [transfer]
            file.is_closing = is_last
            if not is_last:
                del self._table.shares[transfer]
        if not is_last:
            if file.is_lost:
                self._failing(file)(
                    TransferFailed(
                        Code.DESTINATION, f"the staging of {file.content.path} was lost: run the command again"
                    )
                )
            return
        try:
            file.close()
        finally:  # even after a disk error, other transfers may have the name
            if file.account is not None:
                file.account.close()
            with self._lock:
                del self._table.shares[transfer]
                self._table.forget(file)

    @property
    def is_idle(self) -> bool:
        """Whether no transfer has a name, also none that hangs."""
        with self._lock:
            return not (self._table.shares or self._table.trees or self._table.shards)

    def is_in_use(self, name: bytes, job: str = "") -> bool:
        """Whether a transfer that does not hang has this name, as that of a file or in a tree, or is about to have it.

        Shards of a tree need not have a name in common: those of this job count as well.
        """
        with self._lock:
            holders = [transfer for transfer, share in self._table.shares.items() if share.file.name == name]
            holders += self._table.tree_holders(name)
            holders += [transfer for transfer, wanted in self._table.newcomers.items() if wanted == name]
            holders += [transfer for transfer, shard in self._table.shards.items() if shard.job == job]
        return any(holder.hangs is None for holder in holders)


def _displace(rivals: Sequence[Claimant]) -> None:
    """End the transfers that are in the way of a new one, if all of them yield, and wait for that.

    Raises TransferFailed(BUSY) where one of them hangs on a disk.
    """
    _check_hanging(rivals)
    if rivals and all(rival.yields for rival in rivals):
        for rival in rivals:
            rival.yield_to_newer()
        join_all(rivals)
        _check_hanging(rivals)


def _check_hanging(rivals: Sequence[Claimant]) -> None:
    for rival in rivals:
        if (reason := rival.hangs) is not None:
            raise TransferFailed(Code.BUSY, reason)


def join_all(transfers: Sequence[Claimant], seconds: float = GOODBYE_SECONDS + FENCE_SECONDS) -> None:
    """Wait `seconds` for the end of transfers, in all; cut off those that have not ended after GOODBYE_SECONDS."""
    now = time.monotonic()
    for until in (now + GOODBYE_SECONDS, now + seconds):
        for transfer in transfers:
            transfer.join(max(0.0, until - time.monotonic()))
        for transfer in transfers:
            transfer.cut()

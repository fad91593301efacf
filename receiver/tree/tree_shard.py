"""One shard of a tree, as its receiver sees it (proto/README.md, "Shards of trees").

What the entries and the files of the shard are, is in `filestreamer.wire.tree_shares`; which shards of the job are
finished, in `receiver.disk.staging.job_record`.
"""

from typing import Final

from filestreamer.telemetry.counters import JobCounts, TransferCounters
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, TransferFailed
from filestreamer.wire.grid import Share
from filestreamer.wire.messages import SkipKind
from filestreamer.wire.tree_shares import TreeShares
from receiver.disk.destination import Destination
from receiver.disk.report import Report
from receiver.disk.staging.closed_share import ClosedShare
from receiver.disk.staging.job_record import FinishedShard, JobRecord, SharedFile
from receiver.tree.commit.traits import Traits

_IN_PLACE: Final = (SkipKind.SPECIAL, SkipKind.ATTRIBUTE)
"""Kinds of which no file has to wait for a share in vain."""


class Shard:
    """That of a tree which is no shard: it does nothing."""

    shares: TreeShares | None = None
    """Which entries and segments are this shard's; None: all."""
    staging_name: bytes = b""
    """What the name of its staging has beside the root of the tree: each shard has a staging of its own."""
    complete: m.Complete | None = None
    """The Complete of a shard that is finished."""

    @property
    def shown(self) -> dict[str, str]:
        """What it is, for the log."""
        return {}

    def begin(self, traits: Traits) -> None:
        """Begin the shard, whose staging has these traits. Raises TransferFailed: POLICY, DESTINATION."""

    def waits(self, share: ClosedShare, prefix: bytes) -> None:
        """Note a file that waits for other shards; `prefix` is that of its place. Any thread may call."""

    def take_finish(self, finish: m.Finish) -> None:
        """Take the digest of the walk, which only shards have."""

    def look_for_pending(self) -> None:
        """Look which shared files are in place, before directories are closed. Raises TransferFailed(DESTINATION)."""

    def finish(self, counters: TransferCounters, first_files: int, report: Report) -> None:
        """Count the shard as finished, now that all of it is durable.

        Raises TransferFailed: SOURCE_CHANGED, DESTINATION.
        """


NO_SHARD: Final = Shard()


class TreeShard(Shard):
    """A shard. For one thread at a time, but for `waits`."""

    def __init__(self, offer: m.Offer, shard: m.Shard, job: str, run: str, destination: Destination) -> None:
        share = Share(shard.shard_index, shard.shard_count)
        self.shares = TreeShares(share, offer.chunk_size, checksum=offer.checksum)
        self._share = share
        self.staging_name = b"\0" + str(share).encode()
        self._job = job
        self._record = JobRecord(destination, job, run, share.index, share.count)
        self._walk_digest = b""

    @property
    def shown(self) -> dict[str, str]:
        """What it is, for the log."""
        return {"shard": str(self._share), "job": self._job}

    def begin(self, traits: Traits) -> None:
        """Begin the shard, whose staging has these traits. Raises TransferFailed: POLICY, DESTINATION."""
        lacking = None
        if traits.folds_names:
            lacking = "does not tell all names apart, and shards would replace each other's files"
        elif not traits.keeps_times:
            lacking = "keeps no times, by which shards tell what is there"
        if lacking is not None:
            raise TransferFailed(Code.POLICY, f"the destination {lacking}: send the tree without --shard")
        self._record.begin()

    def waits(self, share: ClosedShare, prefix: bytes) -> None:
        """Note a file that waits for other shards; `prefix` is that of its place. Any thread may call."""
        names, entry = share.names, share.entry
        self._record.note_pending(SharedFile(names.data, prefix, entry.path, entry.size, len(names.indices)))

    def take_finish(self, finish: m.Finish) -> None:
        """Take the digest of the walk, which only shards have."""
        self._walk_digest = finish.walk_digest

    def look_for_pending(self) -> None:
        """Look which shared files are in place, before directories are closed. Raises TransferFailed(DESTINATION)."""
        self._record.look_for_pending()

    def finish(self, counters: TransferCounters, first_files: int, report: Report) -> None:
        """Count the shard as finished, now that all of it is durable.

        Raises TransferFailed: SOURCE_CHANGED, DESTINATION.
        """
        # What was declined in the last step may not be counted yet: it is, when it is told.
        failed = report.untold(counters.is_failure) + counters.failed_files
        told = any(kind not in _IN_PLACE for kind in counters.skipped_kinds)
        left_out = report.is_short or told or bool(counters.left_files)
        finished = FinishedShard(self._walk_digest.hex(), first_files, counters.data_bytes, left_out, failed)
        state = self._record.finish(finished)
        files = sum(shard.files for shard in state.shards.values())
        size = sum(shard.bytes for shard in state.shards.values())
        done = len(state.shards)
        is_committed = done == state.shard_count
        if is_committed:
            counters.failed_by_others = sum(shard.failed for shard in state.shards.values()) - failed
        self.complete = m.Complete(is_committed, 0, 0, counters.left_files, done, files, size)
        counters.job = JobCounts(self._job, str(self._share), done, files, size)

"""Opens the target that receives what a sender offers; claims its names, and borrows its memory.

the receiver writes to an output, or a stream is offered    PipeTarget
one file at the top of the manifest                         FileTarget
anything else                                               TreeTarget
"""

import importlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, RemoteProtocolError, TransferFailed
from filestreamer.wire.grid import WHOLE, Grid, Share
from receiver.disk.attributes.attributes import Attributes
from receiver.disk.attributes.stored_times import Likeness
from receiver.disk.descriptors import patiently
from receiver.disk.destination import shown_path
from receiver.disk.existing import Fate, Policy, policy
from receiver.disk.paths import check_path
from receiver.file.file_share import FileShare
from receiver.file.file_target import FileTarget
from receiver.file.left_target import LeftTarget
from receiver.file.target import Target
from receiver.pipe.ordered_writer import OrderedWriter, StagedWriter
from receiver.pipe.pipe_target import PipeTarget
from receiver.pipe.reorder_buffer import ReorderBuffer
from receiver.pipe.standard_output import OpenFile
from receiver.pipe.window import borrow_window
from receiver.transfer.context import Context
from receiver.transfer.mailbox import Nudged

COMES_AGAIN: Final = (Code.BUSY, Code.LIMIT)
"""After these refusals a sender soon tries again: its tries are not reported as transfers of their own."""


class TargetOpener:
    """Opens the target of one transfer. For the thread of the `DiskWorker`."""

    def __init__(self, context: Context, window_bytes: int) -> None:
        """`window_bytes` is the most that a pipe may have as its window."""
        self._context = context
        self._window_bytes = window_bytes
        self.window_cost_bytes = 0
        """The memory that was borrowed for the window of a pipe."""
        self.was_offered = False
        """Whether the sender has offered something, and no other transfer receives that."""

    def open(self, offer: m.Offer, part: m.ManifestPart) -> Target:
        """Claim and open what the first part of a manifest offers. Raises TransferFailed, RemoteProtocolError."""
        if part.first_file_id:
            raise TransferFailed(Code.UNKNOWN_TRANSFER, "this receiver does not have the beginning of the manifest")
        # An entry at the top, which is all that is sent: the others are a tree, even a single one below a directory.
        is_alone = len(part.entries) == 1 and part.last and b"/" not in part.entries[0].path
        is_tree_shard = offer.shard is not None and offer.shard.tree
        if is_tree_shard and not self._context.job:
            raise RemoteProtocolError("a shard of a tree was offered, and Hello names no job")
        is_alone = is_alone and not is_tree_shard  # a shard of a tree may have one entry, or none
        entry = part.entries[0] if is_alone else None
        if offer.shard is not None and not is_tree_shard and (entry is None or entry.type is not m.EntryType.FILE):
            raise RemoteProtocolError("a shard of one file was offered of something else")
        has_say = offer.existing is not m.Existing.REPLACE and not is_tree_shard
        if offer.shard is not None and (offer.delete or offer.dry_run or has_say):
            raise RemoteProtocolError("a shard was offered with `delete`, `dry_run` or `existing`")
        if offer.delete is not None and entry is not None and entry.type in (m.EntryType.FILE, m.EntryType.STREAM):
            raise RemoteProtocolError("one file was offered with `delete`, which is for directories")
        if offer.dry_run:
            return self._open_check(offer, is_alone=is_alone)
        output = self._claim_output(is_alone=is_alone)
        if entry is not None and (output is not None or entry.type is m.EntryType.STREAM):
            return self._open_pipe(output, entry, offer)
        if entry is not None and entry.type is m.EntryType.FILE:
            context = self._context
            rule, left = self._check_existing(entry, offer)
            if left is not None:
                return left
            file_share = self._claim_file(entry, Grid(entry.size, offer.chunk_size), offer)
            file_share.file.follow(rule)
            return FileTarget(
                entry,
                file_share,
                context.counters,
                context.rehasher,
                context.log,
                attributes=self._attributes(offer, entry),
            )
        return self._open_tree(offer, part)

    @contextmanager
    def _reporting_refusal(self) -> Iterator[None]:
        """Count a refused offer as offered, unless the sender will try again (COMES_AGAIN)."""
        try:
            yield
        except TransferFailed as error:
            self.was_offered = error.code not in COMES_AGAIN
            raise

    def _claim_output(self, *, is_alone: bool) -> OpenFile | None:
        """Claim the output of the receiver, if it has one. Raises TransferFailed (POLICY, BUSY)."""
        output = self._context.names.claim_stdout(self._context.transfer)
        if output is not None and not is_alone:
            raise TransferFailed(
                Code.POLICY,
                f"this receiver writes one file to {output.path}, not a tree: use tar c DIR | filestreamer-sender -",
            )
        return output

    def _claim_file(self, entry: m.Entry, grid: Grid, offer: m.Offer) -> FileShare:
        share = Share(offer.shard.shard_index, offer.shard.shard_count) if offer.shard is not None else WHOLE
        if grid.segments > limits.CHUNKS_PER_FILE:
            raise RemoteProtocolError(f"{grid.segments} chunks are too many: the limit is {limits.CHUNKS_PER_FILE}")
        with self._reporting_refusal():
            claimed = self._context.names.claim(self._context.transfer, entry, grid, share, checksum=offer.checksum)
        self._context.names.destination_for(is_alone=True)[0].tell_lacking(self._context.report.warn)
        return claimed

    def _attributes(self, offer: m.Offer, entry: m.Entry) -> Attributes:
        """Return what sets the attributes of the one file of this transfer."""
        context = self._context
        xattrs_of = (lambda _: entry.xattrs) if offer.xattrs else None
        return Attributes(context.report, allow_privileged=context.names.allow_privileged, xattrs_of=xattrs_of)

    def _check_existing(self, entry: m.Entry, offer: m.Offer) -> tuple[Policy, Target | None]:
        """Return what becomes of a file that has the name of the only entry, and its target if it is left as it is.

        Raises TransferFailed(EXISTS) where the sender refuses to replace it.
        """
        destination, output_name = self._context.names.destination_for(is_alone=True)
        rule = policy(offer, replace=destination.replace)
        if offer.existing is m.Existing.REPLACE or not destination.replace:
            return rule, None  # what may not be replaced is found when the file is claimed
        name = output_name or entry.path
        check_path(name)
        try:
            there = os.stat(name, dir_fd=destination.fd, follow_symlinks=False)
        except OSError:  # if that is not because nothing has the name, it is told when the file is claimed
            return rule, None
        fate = rule.fate(there, entry.mtime_ns)
        if fate is Fate.REPLACED or stat.S_ISDIR(there.st_mode):
            return rule, None
        if entry.type is m.EntryType.FILE:
            likeness = destination.times.likeness(destination.fd, there, entry, checksum=offer.checksum)
            # What is equal is accepted. Bytes are compared only if that matters: what is to be left is left at once.
            if likeness is Likeness.SAME or (likeness is Likeness.UNSURE and fate is Fate.REFUSED):
                return rule, None
        shown = shown_path(destination, name)
        if fate is Fate.LEFT:
            return rule, LeftTarget(entry, name, shown, self._context.counters)
        with self._reporting_refusal():
            raise TransferFailed(Code.EXISTS, f"{shown} exists, and {rule.because}")

    def _open_tree(self, offer: m.Offer, part: m.ManifestPart) -> Target:
        # Most receivers take single files, and need not load all that trees do.
        from receiver.tree.mirror.extras import check_permitted

        patiently(lambda: importlib.import_module("receiver.tree.tree_target"))
        from receiver.tree.tree_target import TreeTarget

        context = self._context
        first = part.entries[0].path if part.entries else b""  # the contents of an empty directory
        if part.entries:
            check_path(first)
        root = first.partition(b"/")[0]
        with self._reporting_refusal():
            roots = context.names.claim_root(context.transfer, root, offer, context.job)
            if offer.delete is not None:
                check_permitted(roots.destination)
        return TreeTarget(
            offer,
            roots,
            root=root,
            job=context.job,
            run=context.run,
            account=context.account,
            counters=context.counters,
            rehasher=context.rehasher,
            failed=context.transfer.end_soon,
            nudge=lambda: context.mailbox.post_now(Nudged()),
            report=context.report,
            log=context.log,
        )

    def _open_check(self, offer: m.Offer, *, is_alone: bool) -> Target:
        """Open the target of a dry run, which claims nothing. Raises TransferFailed(POLICY)."""
        from receiver.check.check_target import CheckTarget

        context = self._context
        with self._reporting_refusal():
            return CheckTarget(
                offer,
                *context.names.destination_for(is_alone=is_alone),
                is_in_use=context.names.is_in_use,
                account=context.account,
                counters=context.counters,
                report=context.report,
                log=context.log,
            )

    def _open_pipe(self, output: OpenFile | None, entry: m.Entry, offer: m.Offer) -> Target:
        """Open the target of a pipe: the output of this receiver, or a new file for a stream."""
        context = self._context
        is_stream = entry.type is m.EntryType.STREAM
        if offer.shard is not None:
            raise TransferFailed(Code.POLICY, "standard output can't be received in shards")
        if not (is_stream or entry.type is m.EntryType.FILE):
            raise TransferFailed(Code.POLICY, "standard output takes one file or stream")
        if is_stream and offer.existing in (m.Existing.SKIP, m.Existing.NEWER):
            raise RemoteProtocolError("a stream, which is read once, was offered to be left out")
        with self._reporting_refusal():
            window_bytes, self.window_cost_bytes = borrow_window(context.account, offer.chunk_size, self._window_bytes)
        file_share: FileShare | None = None
        writer: OrderedWriter | None = output
        if writer is None:
            rule, _ = self._check_existing(entry, offer)
            file_share = self._claim_file(entry, Grid(0, offer.chunk_size), offer)
            file_share.file.follow(rule)
            writer = StagedWriter(file_share.file.content)
        buffer = ReorderBuffer(writer, None if is_stream else entry.size, offer.chunk_size, window_bytes)
        buffer.start(context.mailbox.post)
        return PipeTarget(
            entry, buffer, file_share, context.counters, context.log, attributes=self._attributes(offer, entry)
        )

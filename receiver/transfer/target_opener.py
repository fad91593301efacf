"""Opens the target that receives what a sender offers; claims its names, and borrows its memory.

the receiver writes to an output, or a stream is offered    PipeTarget
one file at the top of the manifest                         FileTarget
anything else                                               TreeTarget
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, RemoteProtocolError, TransferFailed
from filestreamer.wire.grid import WHOLE, Grid, Share
from receiver.disk.paths import check_path
from receiver.file.file_share import FileShare
from receiver.file.file_target import FileTarget
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
        entry = part.entries[0] if is_alone else None
        if offer.shard is not None and (entry is None or entry.type is not m.EntryType.FILE):
            raise RemoteProtocolError("a shard was offered of something other than one file without a directory")
        output = self._claim_output(is_alone=is_alone)
        if entry is not None and (output is not None or entry.type is m.EntryType.STREAM):
            return self._open_pipe(output, entry, offer)
        if entry is not None and entry.type is m.EntryType.FILE:
            context = self._context
            file_share = self._claim_file(entry, Grid(entry.size, offer.chunk_size), offer)
            return FileTarget(entry, file_share, context.counters, context.rehasher, context.log)
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
        if entry.xattrs:
            raise TransferFailed(Code.POLICY, "this receiver does not take extended attributes")
        share = Share(*offer.shard) if offer.shard is not None else WHOLE
        if grid.segments > limits.CHUNKS_PER_FILE:
            raise RemoteProtocolError(f"{grid.segments} chunks are too many: the limit is {limits.CHUNKS_PER_FILE}")
        with self._reporting_refusal():
            return self._context.names.claim(self._context.transfer, entry, grid, share)

    def _open_tree(self, offer: m.Offer, part: m.ManifestPart) -> Target:
        # Most receivers take single files, and need not load all that trees do.
        from receiver.tree.tree_target import TreeTarget

        context = self._context
        first = part.entries[0].path if part.entries else b""  # the contents of an empty directory
        if part.entries:
            check_path(first)
        root = first.partition(b"/")[0]
        with self._reporting_refusal():
            roots = context.names.claim_root(context.transfer, root)
        return TreeTarget(
            offer,
            roots,
            root=root,
            account=context.account,
            counters=context.counters,
            rehasher=context.rehasher,
            failed=context.transfer.end_soon,
            nudge=lambda: context.mailbox.post_now(Nudged()),
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
        if is_stream and entry.size:
            raise RemoteProtocolError("a stream was offered with a size")
        with self._reporting_refusal():
            window_bytes, self.window_cost_bytes = borrow_window(context.account, offer.chunk_size, self._window_bytes)
        file_share: FileShare | None = None
        writer: OrderedWriter | None = output
        if writer is None:
            file_share = self._claim_file(entry, Grid(0, offer.chunk_size), offer)
            writer = StagedWriter(file_share.file.content)
        buffer = ReorderBuffer(writer, None if is_stream else entry.size, offer.chunk_size, window_bytes)
        buffer.start(context.mailbox.post)
        return PipeTarget(entry, buffer, file_share, context.counters, context.log)

"""Runs of chunks: whatever the file, the chunks that are left and the connections, each chunk comes to its place.

A sender's queue and reader, and a receiver's file, without the sockets between them.
"""

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode, encode
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.grid import Grid, Share
from receiver.disk.destination import Destination
from receiver.file.file_share import FileShare
from receiver.file.target import IncomingRun
from receiver.server.registry import Registry
from sender.dispatch.manifest import Manifest
from sender.dispatch.schedule import Schedule
from sender.dispatch.send_queue import SendQueue
from sender.mailbox import Mailbox
from sender.source.item import Identity, Item
from sender.source.reader import Reader
from sender.source.run_reader import Places
from tests.support import disks
from tests.support.shares import Sender, staging


class Bringing:
    """A data connection, as far as a file uses it."""

    is_ended = False

    def __init__(self, connection_id: int) -> None:
        self.connection_id = connection_id

    def stop(self, seconds: float) -> bool:
        return seconds >= 0

    def acknowledge(self) -> None:
        """Nothing waits."""


@contextlib.contextmanager
def receiving(root: Path, size: int, grid: Grid, share: Share) -> Iterator[FileShare]:
    root.mkdir()
    destination = Destination(str(root))
    files = Registry(destination, None)
    transfer = Sender(files)
    yield files.claim(transfer, m.Entry(b"f", m.EntryType.FILE, size, 0o644, 7), grid, share)
    files.release(transfer, cleanly=True)
    destination.close()


def take_run(queue: SendQueue, manifest: Manifest, connection_id: int, most: int) -> range | None:
    first = queue.next(connection_id, queue.epoch)
    if first is None:
        return None
    return queue.take_run(first, connection_id, queue.epoch, most=most, end=manifest.end_of_run(first, 0))


def deliver(file_share: FileShare, connection: Bringing, header: m.ChunkHeader, payload: memoryview) -> list[bool]:
    """Take a run as a connection does."""
    incoming = file_share.begin_chunk(connection, header)
    length = len(payload) // header.chunks
    parts = [payload[at : at + length] for at in range(0, len(payload), length)]
    if isinstance(incoming, IncomingRun):
        incoming.sink.write_run(payload, incoming.segment.offset, length, incoming.distance)
    else:
        for segment, part in zip(incoming, parts, strict=True):
            if segment.write:
                segment.sink.write(part, segment.segment.offset)
    digests = list(map(segment_digest, parts))
    return file_share.end_chunk(connection, incoming, digests, list(digests))


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 3000),
    chunk_size=st.integers(1, 60),
    connections=st.sampled_from([1, 2, 3, 4, 5, 8]),
    shard=st.sampled_from([Share(), Share(0, 2), Share(2, 3)]),
    held=st.lists(st.integers(0, 2999), max_size=40),
    is_strict=st.booleans(),
    random=st.randoms(use_true_random=False),
)
def test_each_chunk_arrives_once_and_at_its_place(
    *, size: int, chunk_size: int, connections: int, shard: Share, held: list[int], is_strict: bool, random: Random
) -> None:
    """Connections take runs, lose some, take over those of others, and their number changes."""
    with disks.scratch(disks.MIB, Path(tempfile.gettempdir())) as root:
        source = root / "source"
        source.write_bytes(content := random.randbytes(size))
        grid = Grid(size, chunk_size)
        manifest = Manifest(chunk_size)
        status = source.stat()
        entry = m.Entry(b"f", m.EntryType.FILE, size, 0o644, status.st_mtime_ns)
        item = Item(entry, os.fsencode(source), Identity.of(status))
        manifest.add([item], last=True)
        schedule = Schedule(connections, shard_count=shard.count, strict_modulo=is_strict)
        queue = SendQueue(manifest, schedule, Mailbox(), shard)
        left = {shard.chunk(ordinal) for ordinal in range(shard.chunks(grid.segments))}
        there = {chunk_id for chunk_id in held if chunk_id in left} if grid.segments > 1 else set()
        for chunk_id in there:
            queue.hold(chunk_id, chunk_id + 1)
            queue.mark_done((chunk_id,), queue.epoch)
        queue.need(0, grid.segments)
        left -= there
        reader = Reader()
        with receiving(root / "there", size, grid, shard) as file_share:
            writers = [Bringing(number) for number in range(2 * connections)]
            turns, lost = itertools.cycle(range(2 * connections)), 0
            for _ in range(10 * size + 1000):
                connection_id = next(turns)
                run = take_run(queue, manifest, connection_id, random.choice((1, 2, 7, limits.CHUNKS_PER_RUN)))
                if run is None:
                    continue
                assert left.issuperset(run)
                assert len({queue.is_home(chunk_id, connection_id) for chunk_id in run}) == 1
                if lost < 20 and random.random() < 0.2:
                    queue.put_back(list(run), queue.epoch)
                    lost += 1
                    continue
                if random.random() < 0.1:
                    queue.resize(random.choice((connections, 2 * connections)))
                segment = m.Segment(0, grid.offset(run[0]), grid.length(run[0]))
                header = decode(encode(m.ChunkHeader(run[0], (segment,), len(run), run.step)))
                assert isinstance(header, m.ChunkHeader)
                assert header.chunk_ids == run
                view = memoryview(bytearray(header.length))
                reader.read_run(item, view, *Places.of(header))
                good = deliver(file_share, writers[connection_id], header, view)
                assert good == [True] * len(run)
                queue.mark_done(header.chunk_ids, queue.epoch, connection_id)
                left -= set(run)
                if not left:
                    break
            assert not left
            assert queue.all_done
            block = bytearray(size)
            staging(file_share).read_into(memoryview(block), 0)
            reader.close()
            mine = [shard.chunk(ordinal) for ordinal in range(shard.chunks(grid.segments))]
            for chunk_id in set(mine) - there:
                where = slice(grid.offset(chunk_id), grid.offset(chunk_id) + grid.length(chunk_id))
                assert block[where] == content[where], chunk_id

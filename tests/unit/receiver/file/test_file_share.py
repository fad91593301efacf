"""The share of one transfer: its segments alone, and what the sender is told of them."""

from typing import Any

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import RemoteProtocolError
from filestreamer.wire.grid import WHOLE, Grid, Share
from receiver.file.answers import needed_messages
from receiver.file.file_share import FileShare
from receiver.file.target import IncomingRun
from receiver.server.registry import Registry
from tests.support.shares import CONTENT, GRID, Sender, answer, claim, leave, staging, write


def test_a_segment_of_another_share_is_none(files: Registry) -> None:
    _, file_share = claim(files, Share(1, 3))
    positions = [file_share.position(m.Segment(0, GRID.offset(k), GRID.length(k))) for k in range(GRID.segments)]
    assert positions == [None, 1, None, None]


def test_messages_have_segments_and_not_ordinals(files: Registry) -> None:
    sender, file_share = claim(files, Share(1, 2))
    write(sender, file_share, 3)
    now = answer(file_share)
    assert list(needed_messages(0, file_share.share, now.needed)) == [m.Needed((), (m.SegmentRange(0, 1, 1),))]
    assert list(file_share.held_messages(now.held)) == [m.Held(0, 3, segment_digest(CONTENT[9:]))]


def test_answers_come_message_by_message(files: Registry) -> None:
    """A file of many runs has as many ranges: they are told as they are made, each once."""
    grid = Grid(10_000, 1)
    sender, file_share = claim(files, grid=grid)
    for position in range(0, grid.segments, 2):
        file_share.begin(position, sender)
        digest = segment_digest(b"x")
        assert file_share.deliver(position, sender, digest, digest, 0)
    told = list(file_share.answers())
    needed = [part for message in told if isinstance(message, m.Needed) for part in message.segments]
    held = [message for message in told if isinstance(message, m.Held)]
    assert [part.first_segment for part in needed] == list(range(1, grid.segments, 2))
    assert [message.first_segment for message in held] == list(range(0, grid.segments, 2))
    assert max(len(message.segments) for message in told if isinstance(message, m.Needed)) == 1024
    assert file_share.missing(3) == [(1, 2), (3, 4), (5, 6)]
    leave(files, sender)


# --- runs of chunks


def run_of(first: int, chunks: int, stride: int, length: int = 3, file_id: int = 0) -> m.ChunkHeader:
    return m.ChunkHeader(first, (m.Segment(file_id, first * length, length),), chunks, stride)


def begin(sender: Sender, file_share: FileShare, header: m.ChunkHeader) -> Any:
    connection: Any = sender
    connection.connection_id = 3
    return file_share.begin_chunk(connection, header)


def test_a_run_of_missing_chunks_is_one(files: Registry) -> None:
    """Each of its chunks is verified by itself: those that are damaged are missing, and the others here."""
    sender, file_share = claim(files, grid=Grid(35, 3))
    run = begin(sender, file_share, run_of(1, 4, 3))
    assert isinstance(run, IncomingRun)
    assert (run.positions, run.distance) == (range(1, 11, 3), 9)
    run.sink.write_run(memoryview(b"abcdefghijkl"), 3, 3, 9)
    one_by_one = [(segment.position, segment.segment.offset, segment.write) for segment in run.each()]
    assert one_by_one == [(1, 3, True), (4, 12, True), (7, 21, True), (10, 30, True)]
    digests = [segment_digest(part) for part in (b"abc", b"def", b"ghi", b"jkl")]
    connection: Any = sender
    good = file_share.end_chunk(connection, run, digests, [*digests[:2], bytes(16), digests[3]])
    assert good == [True, True, False, True]
    assert answer(file_share).held == [(1, 2), (4, 5), (10, 11)]
    block = bytearray(35)
    staging(file_share).read_into(memoryview(block), 0)
    assert [bytes(block[at : at + 3]) for at in (3, 12, 21, 30)] == [b"abc", b"def", b"ghi", b"jkl"]
    leave(files, sender)


def test_of_a_run_that_came_in_part_the_rest_is_written(files: Registry) -> None:
    sender, file_share = claim(files)
    write(sender, file_share, 1)
    begun = begin(sender, file_share, run_of(0, 3, 1))
    assert [(segment.position, segment.write) for segment in begun] == [(0, True), (1, False), (2, True)]
    leave(files, sender)


@pytest.mark.parametrize(
    ("share", "header"),
    [
        (WHOLE, run_of(0, 4, 1)),  # the last chunk is shorter than the others
        (WHOLE, run_of(0, 2, 7)),
        (WHOLE, run_of(0, 2, 1, length=1)),
        (WHOLE, run_of(0, 2, 1, length=6)),
        (WHOLE, run_of(0, 2, 1, file_id=1)),
        (Share(0, 2), run_of(0, 2, 1)),
    ],
    ids=["short", "beyond", "smaller", "larger", "another file", "another shard"],
)
def test_a_run_that_leaves_the_grid_is_refused_whole(files: Registry, share: Share, header: m.ChunkHeader) -> None:
    sender, file_share = claim(files, share)
    with pytest.raises(RemoteProtocolError):
        begin(sender, file_share, header)
    assert answer(file_share).needed == [(0, file_share.chunks)]
    leave(files, sender)

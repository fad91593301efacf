"""The share of one transfer: its segments alone, and what the sender is told of them."""

from filestreamer.wire import messages as m
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.grid import Grid, Share
from receiver.server.registry import Registry
from tests.support.shares import CONTENT, GRID, answer, claim, leave, write


def test_a_segment_of_another_share_is_none(files: Registry) -> None:
    _, file_share = claim(files, Share(1, 3))
    positions = [file_share.position(m.Segment(0, GRID.offset(k), GRID.length(k))) for k in range(GRID.segments)]
    assert positions == [None, 1, None, None]


def test_messages_have_segments_and_not_ordinals(files: Registry) -> None:
    sender, file_share = claim(files, Share(1, 2))
    write(sender, file_share, 3)
    now = answer(file_share)
    assert list(file_share.needed_messages(now.needed)) == [m.Needed((), (m.SegmentRange(0, 1, 1),))]
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

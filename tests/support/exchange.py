"""The steps of a sound exchange, frame by frame: what tests of hostile peers do before, beside and after the attack."""

import os
from collections.abc import Iterable

from filestreamer.wire import messages as m
from filestreamer.wire.limits import DIGEST_BYTES
from tests.support.peer import Link, RawSender, Sample, acknowledged
from tests.support.services import Pair


def needs_all(control: Link, sample: Sample) -> None:
    """Read the answer to an offer: every segment is needed."""
    assert control.expect(m.Needed) == m.Needed((), (m.SegmentRange(0, 0, sample.grid.segments),))


def deliver(data: Link, sample: Sample, indices: Iterable[int]) -> None:
    """Send chunks back to back, and wait until each of them, and no other, was acknowledged."""
    sent = list(indices)
    data.send_raw(b"".join(map(sample.chunk, sent)))
    assert sorted(acknowledged(data, len(sent))) == sorted(sent)


def offer_new(peer: RawSender, sample: Sample) -> Link:
    """Offer a file of which the receiver has nothing; return the control connection."""
    control = peer.offer(sample)
    needs_all(control, sample)
    return control


def deliver_all(peer: RawSender, sample: Sample) -> tuple[Link, Link]:
    """Offer a new file and deliver all of it, up to Finish; return (control, data)."""
    control, data = offer_new(peer, sample), peer.data()
    deliver(data, sample, range(sample.grid.segments))
    return control, data


def complete(
    control: Link,
    data: Link,
    sample: Sample,
    pair: Pair,
    delivered: Iterable[int] = (),
    *,
    told: Iterable[type[m.Message]] = (),
) -> None:
    """Deliver what was not delivered yet, finish, and check that the file is there; before, these messages come."""
    deliver(data, sample, sorted(set(range(sample.grid.segments)) - set(delivered)))
    control.send(sample.finish)
    for kind in told:
        control.expect(kind)
    assert control.expect(m.Complete) == m.Complete(True)
    control.end_writing()
    assert sample.content == (pair.destination / os.fsdecode(sample.name)).read_bytes()


def answers(control: Link, segments: int) -> tuple[set[int], dict[int, bytes]]:
    """Read Needed and Held until every segment is answered; return what is needed, and the digests of what is held."""
    needed: set[int] = set()
    held: dict[int, bytes] = {}
    while len(needed) + len(held) < segments:
        message = control.expect(tuple)
        assert isinstance(message, m.Needed | m.Held), message
        if isinstance(message, m.Needed):
            assert message.files == ()
            for files in message.segments:
                needed.update(range(files.first_segment, files.first_segment + files.segments))
        else:
            for at in range(0, len(message.digests), DIGEST_BYTES):
                held[message.first_segment + at // DIGEST_BYTES] = message.digests[at : at + DIGEST_BYTES]
    assert not needed & held.keys()
    return needed, held


def nothing_final(pair: Pair) -> None:
    """Check that nothing has a final name."""
    assert [name for name in pair.received() if name != ".filestreamer"] == []

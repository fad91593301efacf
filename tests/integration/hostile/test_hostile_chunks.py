"""Senders that break the protocol over data connections: chunks that are nonsense, damaged, cut, repeated or late."""

from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code
from filestreamer.wire.framing import frame
from tests.support.exchange import complete, deliver, deliver_all, needs_all, nothing_final, offer_new
from tests.support.peer import NO_RUNS, Ended, RawSender, Sample, ack, acknowledged
from tests.support.services import Pair, Service

KIB = 1024


BAD_SEGMENTS: dict[str, list[m.Segment]] = {
    "beyond the end": [m.Segment(0, 10 * KIB, KIB)],
    "across the end": [m.Segment(0, 9 * KIB, KIB)],
    "far beyond": [m.Segment(0, 1 << 62, KIB)],
    "a file never offered": [m.Segment(1, 0, KIB)],
    "a file number beyond all": [m.Segment((1 << 64) - 1, 0, KIB)],
    "not on the grid": [m.Segment(0, 1, KIB)],
    "half a segment": [m.Segment(0, 0, KIB // 2)],
    "two segments as one": [m.Segment(0, 0, 2 * KIB)],
    "the last one, too short": [m.Segment(0, 9 * KIB, 99)],
    "twice": [m.Segment(0, 0, KIB), m.Segment(0, 0, KIB)],
    "a good one and a bad one": [m.Segment(0, 0, KIB), m.Segment(0, 1, KIB)],
    "more than a chunk": [m.Segment(0, 0, KIB), m.Segment(0, KIB, KIB)],
}
BAD_RUNS: dict[str, m.Message] = {
    "a run beyond the end": m.ChunkHeader(0, (m.Segment(0, 0, KIB),), 4, 5),
    "a run with the last chunk, which is shorter": m.ChunkHeader(0, (m.Segment(0, 0, KIB),), 10, 1),
    "a run of halves": m.ChunkHeader(0, (m.Segment(0, 0, KIB // 2),), 2, 1),
}


def answers_on_data(receiver: Service, sample: Sample, messages: dict[str, m.Message]) -> dict[str, object]:
    """Say each of these on a data connection of a transfer of its own; return the code of the Abort that answers.

    Where no answer comes, the receiver waits for payload, or has taken it for good.
    """
    answers: dict[str, object] = {}
    for what, message in messages.items():
        with RawSender(Pair.address(receiver)) as peer:
            named = sample._replace(name=b"%d" % len(answers))
            offer_new(peer, named)
            data, other = peer.data(0), peer.data(1)
            deliver(other, named, [3])
            data.send(message)
            data.end_writing()
            try:
                answers[what] = data.expect(m.Abort).code
            except Ended as error:
                answers[what] = error
            else:
                data.ends()
    return answers


def test_bad_segments(pair: Pair, receiver: Service, sample: Sample) -> None:
    """Refused with PROTOCOL by the header alone, before a byte of payload is read or written."""
    headers = BAD_RUNS | {what: m.ChunkHeader(0, tuple(bad)) for what, bad in BAD_SEGMENTS.items()}
    assert answers_on_data(receiver, sample, headers) == dict.fromkeys(headers, Code.PROTOCOL)
    nothing_final(pair)


def test_nonsense_on_data_ends_the_transfer(pair: Pair, receiver: Service, peer: RawSender, sample: Sample) -> None:
    """PROTOCOL is not retryable: the whole transfer ends, with Abort on control and an error for the user."""
    control = offer_new(peer, sample)
    data, other = peer.data(0), peer.data(1)
    data.send(m.ChunkHeader(0, (m.Segment(0, 1, KIB),)))
    assert data.expect(m.Abort).code is Code.PROTOCOL
    data.close()
    assert control.expect(m.Abort).code is Code.PROTOCOL
    control.close()
    other.ends()
    (result,) = receiver.wait_for_results()
    assert (result["exit_code"], result["error"]["code"]) == (3, "protocol")
    nothing_final(pair)


def test_a_segment_twice_that_is_here_already(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """Twice in one chunk is refused also where it is verified and would only be compared."""
    offer_new(peer, sample)
    data = peer.data()
    deliver(data, sample, [0])
    data.send(m.ChunkHeader(0, (sample.segment(0), sample.segment(0))))
    assert data.expect(m.Abort).code is Code.PROTOCOL


def test_nonsense_on_data(pair: Pair, receiver: Service, sample: Sample) -> None:
    nonsense: dict[str, m.Message] = {
        "finish": m.Finish(1, bytes(16)),
        "progress": m.Progress(m.Phase.MOVING, 0, 0),
        "acknowledgement": m.ChunkAck(m.Verdict.OK, (0,)),
        "offer": m.Offer(KIB, None, False, 0),
        "no segments": m.ChunkHeader(0, ()),
        "empty segment": m.ChunkHeader(0, (m.Segment(0, 0, 0),)),
        "large segment": m.ChunkHeader(0, (m.Segment(0, 0, (1 << 30) + 1),)),
    }
    assert answers_on_data(receiver, sample, nonsense) == dict.fromkeys(nonsense, Code.PROTOCOL)
    nothing_final(pair)


def test_abort_on_data_ends_the_transfer(pair: Pair, receiver: Service, peer: RawSender, sample: Sample) -> None:
    """A code that is not retryable ends the transfer, on whichever connection it comes."""
    control = offer_new(peer, sample)
    peer.data().send(m.Abort(Code.SOURCE_CHANGED, "it changed"))
    control.end_writing()
    (result,) = receiver.wait_for_results()
    assert (result["exit_code"], result["error"]["code"]) == (4, "source_changed")
    nothing_final(pair)


def test_corrupt_frame_ends_its_connection_only(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """CORRUPT is retryable: the transfer goes on over the other connections, and over the same one anew."""
    control = offer_new(peer, sample)
    data = peer.data()
    damaged = bytearray(frame(m.ChunkHeader(0, (sample.segment(0),))))
    damaged[-1] ^= 1
    data.send_raw(bytes(damaged))
    assert data.expect(m.Abort).code is Code.CORRUPT
    complete(control, peer.data(), sample, pair)


def test_length_that_lies(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """Half a chunk, then the connection is cut: that chunk is not here, whatever its header said."""
    control = offer_new(peer, sample)
    data = peer.data()
    whole = sample.chunk(5)
    data.send_raw(whole[: len(whole) // 2])
    data.end_writing()
    data.ends()
    control.send(sample.finish)
    needs_all(control, sample)
    nothing_final(pair)
    complete(control, peer.data(), sample, pair)


def test_cut_inside_the_digest(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """All payload came, the digest did not: not here."""
    control = offer_new(peer, sample)
    data = peer.data()
    data.send_raw(sample.chunk(5)[:-1])
    data.reset()
    again = peer.data()
    deliver(again, sample, [0])
    control.send(sample.finish)
    assert control.expect(m.Needed) == m.Needed((), (m.SegmentRange(0, 1, 9),))
    complete(control, again, sample, pair, delivered={0})


def test_wrong_digest(pair: Pair, receiver: Service, peer: RawSender, sample: Sample) -> None:
    """DIGEST_MISMATCH, and the chunk can be sent again, over another connection too."""
    control = offer_new(peer, sample)
    data, other = peer.data(0), peer.data(1)
    for _ in range(5):  # how often is for the sender to bound
        data.send_raw(sample.chunk(2, digest=bytes(16)))
        assert ack(data) == m.ChunkAck(m.Verdict.DIGEST_MISMATCH, (2,))
    deliver(other, sample, [2])
    complete(control, data, sample, pair, delivered={2})
    (result,) = receiver.wait_for_results()
    assert result["resent_chunks"] == 5


def test_damage_in_a_run(pair: Pair, receiver: Service, peer: RawSender, sample: Sample) -> None:
    """The chunk that is damaged is asked for, the others are here; a run in which some are here brings the rest."""
    control = offer_new(peer, sample)
    data = peer.data()
    payload, digests = bytearray().join(map(sample.payload, range(0, 9, 2))), map(sample.digest, range(0, 9, 2))
    payload[3 * KIB] ^= 1
    data.send(m.ChunkHeader(0, (sample.segment(0),), 5, 2))
    data.send_raw(bytes(payload) + b"".join(digests))
    assert ack(data) == m.ChunkAck(m.Verdict.DIGEST_MISMATCH, (6,))
    assert ack(data) == m.ChunkAck(m.Verdict.OK, (8,), (m.ChunkRange(0, 3, 2),))
    data.send(m.ChunkHeader(4, (sample.segment(4),), 4, 1))
    data.send_raw(b"".join([*map(sample.payload, range(4, 8)), *map(sample.digest, range(4, 8))]))
    assert ack(data) == m.ChunkAck(m.Verdict.OK, (), (m.ChunkRange(4, 4, 1),))
    complete(control, data, sample, pair, delivered={0, 2, 4, 5, 6, 7, 8})
    (result,) = receiver.wait_for_results()
    assert (result["resent_chunks"], result["chunks"]) == (1, 10)


def test_a_run_whose_feature_was_not_named(receiver: Service, sample: Sample) -> None:
    with RawSender(Pair.address(receiver), named=NO_RUNS) as peer:
        offer_new(peer, sample)
        data = peer.data()
        data.send(m.ChunkHeader(0, (sample.segment(0),), 2, 1))
        abort = data.expect(m.Abort)
        assert (abort.code, "'chunk-runs'" in abort.reason) == (Code.PROTOCOL, True)


def test_damage_in_payload(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """A bit that flips on its way, past TCP's checksum."""
    control = offer_new(peer, sample)
    data = peer.data()
    damaged = bytearray(sample.chunk(2))
    damaged[-100] ^= 1
    data.send_raw(bytes(damaged))
    assert ack(data) == m.ChunkAck(m.Verdict.DIGEST_MISMATCH, (2,))
    complete(control, data, sample, pair)


def test_verified_chunk_is_not_written_again(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """A second delivery is compared: OK where it is the same, DIGEST_MISMATCH where not; the first stays."""
    control = offer_new(peer, sample)
    data = peer.data()
    other = Sample(sample.name, sample.content[::-1], sample.chunk_size)
    deliver(data, sample, [0])
    data.send_raw(other.chunk(0))
    assert ack(data) == m.ChunkAck(m.Verdict.DIGEST_MISMATCH, (0,))
    data.send_raw(other.chunk(0, digest=sample.digest(0)))
    assert ack(data) == m.ChunkAck(m.Verdict.DIGEST_MISMATCH, (0,))
    deliver(data, sample, [0])
    complete(control, data, sample, pair, delivered={0})


def test_chunk_that_is_being_written_elsewhere(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """The older connection is shut and has left first."""
    control = offer_new(peer, sample)
    older, newer = peer.data(0), peer.data(1)
    whole = sample.chunk(4)
    # One piece: chunk 3 is acknowledged when the receiver has to wait for the rest of chunk 4, which it has begun.
    older.send_raw(sample.chunk(3) + whole[: len(whole) // 2])
    assert acknowledged(older, 1) == [3]
    deliver(newer, sample, [4])
    complete(control, newer, sample, pair, delivered={3, 4})


def test_same_connection_id_supersedes(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """The older connection ends without a frame; what it had begun is not here."""
    control = offer_new(peer, sample)
    older = peer.data(2)
    whole = sample.chunk(4)
    older.send_raw(whole[:-17])
    newer = peer.data(2)
    older.ends()
    control.send(sample.finish)
    needs_all(control, sample)
    complete(control, newer, sample, pair)


def test_chunk_after_finish(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """A second delivery may cross the end; it changes nothing."""
    control, data = deliver_all(peer, sample)
    control.send(sample.finish)
    data.send_raw(sample.chunk(0, digest=bytes(16)))
    assert control.expect(m.Complete) == m.Complete(True)
    assert sample.content == (pair.destination / "sample.bin").read_bytes()

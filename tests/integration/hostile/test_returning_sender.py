"""Senders that lose control and come back, at any moment and with another offer: what was acknowledged stays so."""

import random

import pytest

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code
from filestreamer.wire.framing import frame
from tests.support.attacks import MIB, unharmed
from tests.support.exchange import answers, complete, deliver, deliver_all, nothing_final, offer_new
from tests.support.peer import RawSender, Sample, ack
from tests.support.services import Pair, Service
from tests.support.staging import Staging
from tests.support.waiting import until

KIB = 1024


@pytest.mark.parametrize("end", ["close", "reset", "keep"])
def test_control_comes_back(pair: Pair, peer: RawSender, sample: Sample, end: str) -> None:
    """The repeated Offer is answered from the chunk states; data connections stay."""
    control = offer_new(peer, sample)
    data = peer.data()
    deliver(data, sample, (0, 1, 4, 9))
    if end == "close":
        control.close()
    elif end == "reset":
        control.reset()
    again = peer.offer(sample)
    needed, held = answers(again, 10)
    assert needed == {2, 3, 5, 6, 7, 8}
    assert held == {index: sample.digest(index) for index in (0, 1, 4, 9)}
    if end == "keep":
        control.ends()
    complete(again, data, sample, pair, delivered={0, 1, 4, 9})


def test_rejoining_with_another_offer(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """PROTOCOL: a transfer is offered again as it was."""
    control = offer_new(peer, sample)
    control.close()
    assert peer.offers(sample.offer._replace(chunk_size=2 * KIB)).code is Code.PROTOCOL
    nothing_final(pair)


def test_rejoining_with_another_manifest(pair: Pair, peer: RawSender, sample: Sample) -> None:
    control = offer_new(peer, sample)
    control.close()
    entry = sample.entry._replace(path=b"another")
    assert peer.offers(sample.offer, m.ManifestPart(0, (entry,), True)).code is Code.PROTOCOL
    nothing_final(pair)


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize("once", [False, True], ids=["stays", "once"])
def test_complete_is_repeated(pair: Pair, sample: Sample, end: str, once: bool) -> None:
    """Complete was lost: a sender that reconnects after the commit gets it again, also if control was closed before."""
    receiver = pair.receiver(*(["--once"] if once else []))
    with RawSender(pair.address(receiver)) as peer:
        control, _ = deliver_all(peer, sample)
        control.send(sample.finish)
        if end == "close":
            control.end_writing()
        final = pair.destination / "sample.bin"
        until(final.exists, "it is put in place")
        control.reset()
        again = peer.offer(sample)
        answer = again.expect(tuple)
        while isinstance(answer, m.Held):  # the directory is being synced still
            answer = again.expect(tuple)
        assert answer == m.Complete(True)
        again.end_writing()
        again.ends()
    assert [result["status"] for result in receiver.wait_for_results()] == ["complete"]
    if once:
        assert receiver.wait() == 0
    assert sample.content == final.read_bytes()


def test_finish_is_repeated_without_waiting(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """Rejoining where all is done: Offer, ManifestPart and Finish at once; answers and Complete come."""
    control, _ = deliver_all(peer, sample)
    control.reset()
    again = peer.control()
    again.send(sample.offer, m.ManifestPart(0, (sample.entry,), True), sample.finish)
    _, held = answers(again, 10)
    assert len(held) == 10
    assert again.expect(m.Complete) == m.Complete(True)
    assert sample.content == (pair.destination / "sample.bin").read_bytes()


def test_finish_that_crosses_complete(pair: Pair) -> None:
    """A sender that rejoins says Finish without waiting; it is committed already, and the second Finish is dropped."""
    receiver = pair.receiver("--log-level", "debug")
    sample = Sample.random(6, 100, 10)
    with RawSender(pair.address(receiver)) as peer:
        control, _ = deliver_all(peer, sample)
        control.send(sample.finish)
        control.expect(m.Complete)
        for _ in range(3):
            control = peer.offer(sample)
            control.send(sample.finish, sample.finish)
            control.expect(m.Complete)
    assert (pair.destination / "sample.bin").read_bytes() == sample.content
    unharmed(receiver)


def test_control_taken_over_while_claims_are_hashed(pair: Pair) -> None:
    """A rejoined control connection that says nothing yet must not be told what is being found on the disk."""
    file = pair.file("f", 48 * MIB)
    Staging(pair.destination, "f").make(file, 16 * 1024, range(3072))
    receiver = pair.receiver()
    sample = Sample(b"f", file.read_bytes(), 16 * 1024)
    with RawSender(pair.address(receiver)) as peer:
        peer.offer(sample)
        for _ in range(20):
            peer.control()
        control = peer.control()
        control.send(sample.offer, m.ManifestPart(0, (sample.entry,), True))
        held = 0
        while held < 3072:
            answer = control.read()
            if isinstance(answer, m.Held):
                held += len(answer.digests) // limits.DIGEST_BYTES
            else:
                assert isinstance(answer, m.Progress), answer
    unharmed(receiver)


def test_corrupt_frame_on_control_is_not_the_end(pair: Pair, receiver: Service, peer: RawSender, seed: int) -> None:
    """CORRUPT is retryable: the sender opens control again, and what it believes acknowledged is still so.

    It may send what it had outstanding, and Finish, without waiting for answers: it was answered before.
    """
    sample = Sample.random(seed, 64 * 256 * KIB, 256 * KIB)
    control, data = deliver_all(peer, sample)
    damaged = bytearray(frame(m.Progress(m.Phase.MOVING, 1, 2)))
    damaged[-1] ^= 1
    control.send_raw(bytes(damaged))
    assert control.expect(m.Abort).code is Code.CORRUPT
    control.close()
    data.close()
    again = peer.control()
    again.send(sample.offer, m.ManifestPart(0, (sample.entry,), True), sample.finish)
    outcome: m.Message | None = None
    while outcome is None:
        message = again.read()
        if isinstance(message, m.Needed):  # in answer to Finish: it misses them, whatever was believed
            data = peer.data()
            for segments in message.segments:
                for index in range(segments.first_segment, segments.first_segment + segments.segments):
                    data.send_raw(sample.chunk(index))
                    ack(data)
            again.send(sample.finish)
        elif isinstance(message, m.Complete | m.Abort):
            outcome = message
    assert outcome == m.Complete(True)
    assert sample.content == (pair.destination / "sample.bin").read_bytes()


def test_a_later_transfer_resumes(pair: Pair, receiver: Service, sample: Sample) -> None:
    """What was acknowledged is held for another transfer of the file, whatever its sender did in the end."""
    with RawSender(Pair.address(receiver)) as first:
        control = offer_new(first, sample)
        data = first.data()
        deliver(data, sample, (0, 1, 4, 9))
        control.send(m.Abort(Code.SHUTTING_DOWN, "bye"))
    receiver.wait_for("transfer_failed")
    with RawSender(Pair.address(receiver)) as second:
        control = second.offer(sample)
        needed, held = answers(control, 10)
        assert needed == {2, 3, 5, 6, 7, 8}
        assert held == {index: sample.digest(index) for index in (0, 1, 4, 9)}
        complete(control, second.data(), sample, pair, delivered={0, 1, 4, 9})


def test_held_chunk_that_differs_is_replaced(pair: Pair, receiver: Service, sample: Sample, seed: int) -> None:
    """Another content under the same name: what differs is sent, what is equal need not be."""
    changed = Sample(sample.name, sample.content[: 5 * KIB] + random.Random(seed).randbytes(4 * KIB + 100), KIB)
    with RawSender(Pair.address(receiver)) as first:
        control, _ = deliver_all(first, sample)
        control.send(m.Abort(Code.SHUTTING_DOWN, "bye"))
    receiver.wait_for("transfer_failed")
    with RawSender(Pair.address(receiver)) as second:
        control = second.offer(changed)
        _, held = answers(control, 10)
        assert held == {index: sample.digest(index) for index in range(10)}
        complete(control, second.data(), changed, pair, delivered=range(5))

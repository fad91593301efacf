"""Where the receiver dials: a sender that listens, and receivers that mean no good; and the other way round."""

import contextlib
from collections.abc import Iterator

import pytest

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode, encode
from filestreamer.wire.errors import Code, Refused
from filestreamer.wire.framing import frame, frame_of, read_body
from filestreamer.wire.opening import ReceiverOpening, random_id
from tests.support.dialling_peer import DiallingReceiver, ListeningSender
from tests.support.peer import Ended, Link, Sample, ack, own_token, read_chunk
from tests.support.services import Pair, Service, same
from tests.support.waiting import until, with_patience

KIB = 1024
WRONG = b"a token that nobody here has at all"


# --- receivers that dial a real sender


@pytest.fixture
def sender(pair: Pair) -> Iterator[Service]:
    """Start a sender that listens; in the end it must still serve a real receiver."""
    file = pair.file("f", 40 * KIB)
    sender = pair.start(
        "sender", file, "--listen", "127.0.0.1:0", "--chunk-size", KIB, "--connections", 2, "--strict-modulo"
    )
    address = pair.address(sender)
    yield sender
    assert sender.poll() is None
    assert "Traceback" not in sender.stderr
    pair.start("receiver", "--connect", address, "--directory", pair.destination).succeeds()
    assert same(file, pair.destination / "f")


def refusal(link: Link) -> Code:
    """Read a Refusal, and the end."""
    message = link.expect(m.Refusal)
    link.ends()
    return message.code


def test_the_sender_says_hello_and_nothing_else_before_a_proof(sender: Service) -> None:
    """Not with a proof that is wrong, empty, or its own of another connection."""
    with DiallingReceiver(Pair.address(sender)) as receiver, DiallingReceiver(Pair.address(sender)) as other:
        theirs, opening = other.greet(m.Role.CONTROL)
        other_welcome = opening.answer(read_body(theirs.read_exact, limits.OPENING_FRAME_BYTES))
        for welcome in (encode(m.Welcome(b"")), encode(m.Welcome(bytes(32))), other_welcome):
            link, _ = receiver.greet(m.Role.CONTROL)
            link.expect(m.Hello)
            link.send_raw(frame_of(welcome))
            assert refusal(link) is Code.TOKEN


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (frame(m.Greeting(1, 1, bytes(16), bytes(16), False, (), m.Role.CONTROL)), Code.TOKEN),
        (frame_of(ReceiverOpening(bytes(16), (WRONG,)).greeting_body), Code.PROTOCOL),
        (frame(m.Greeting(2, 3, bytes(16), bytes(16), True, (), m.Role.CONTROL)), Code.VERSION),
        (frame(m.Welcome(b"")), Code.PROTOCOL),
        (frame(m.Hello(1, 1, bytes(16), m.Role.CONTROL, 0, 1, bytes(16), True)), Code.PROTOCOL),
        (b"GET / HTTP/1.1\r\n\r\n", Code.PROTOCOL),
        (frame(m.Greeting(1, 1, bytes(16), bytes(16), True, (), m.Role.DATA)), Code.UNKNOWN_TRANSFER),
    ],
    ids=["no token", "no role", "version", "welcome", "a sender", "http", "data of nobody"],
)
def test_what_is_no_greeting(sender: Service, first: bytes, code: Code) -> None:
    with DiallingReceiver(Pair.address(sender)) as receiver:
        link = receiver.connect()
        link.send_raw(first)
        assert refusal(link) is code


def test_who_proves_nothing_disturbs_no_transfer(sender: Service) -> None:
    """Not even with the incarnation of a receiver that is served: it keeps its control, its places and its chunks."""
    with DiallingReceiver(Pair.address(sender)) as receiver:
        control, hello = receiver.open(m.Role.CONTROL)
        assert control.expect(m.Connections).wanted == 2
        control.expect(m.Offer)
        control.expect(m.ManifestPart)
        with DiallingReceiver(Pair.address(sender), token=WRONG, incarnation=receiver.incarnation) as stranger:
            for role in [m.Role.CONTROL, *[m.Role.DATA] * 20]:
                link, opening = stranger.greet(role)
                named = decode(read_body(link.read_exact, limits.OPENING_FRAME_BYTES))
                assert isinstance(named, m.Hello)
                assert named.transfer_id == hello.transfer_id
                if role is m.Role.CONTROL:
                    link.send_raw(frame_of(opening.answer(encode(named))))
                    assert refusal(link) is Code.TOKEN
            control.send(m.Needed((), (m.SegmentRange(0, 0, 40),)))
            opened = [receiver.open(m.Role.DATA) for _ in range(2)]
            assert {said.connection_id for _, said in opened} == {0, 1}
            assert read_chunk(opened[0][0]).segments
            with pytest.raises(Refused) as caught:
                receiver.open(m.Role.DATA)
            assert caught.value.code is Code.LIMIT


def test_a_chunk_that_arrived_damaged_is_sent_again(sender: Service) -> None:
    with DiallingReceiver(Pair.address(sender)) as receiver:
        control, _ = receiver.open(m.Role.CONTROL)
        control.expect(m.Connections)
        control.expect(m.Offer)
        control.expect(m.ManifestPart)
        control.send(m.Needed((), (m.SegmentRange(0, 0, 1),)))
        data, _ = receiver.open(m.Role.DATA)
        first = read_chunk(data)
        data.send(m.ChunkAck(m.Verdict.DIGEST_MISMATCH, (first.chunk_id,)))
        assert read_chunk(data) == first


# --- senders that a real receiver dials


def connecting(pair: Pair, sender: ListeningSender, *args: object) -> Service:
    return pair.start("receiver", "--connect", sender.address, "--directory", pair.destination, *args)


def hello(sender: ListeningSender, role: m.Role = m.Role.CONTROL, *, can_prove: bool = True) -> m.Hello:
    return m.Hello(1, 1, sender.transfer_id, role, 0, 4, random_id(), can_prove)


@pytest.mark.parametrize("says", ["offer", "greeting", "role", "no token", "needs", "version", "refusal"])
def test_what_is_no_hello(pair: Pair, says: str) -> None:
    with ListeningSender() as sender:
        answers: dict[str, tuple[m.Message, int, str]] = {
            "offer": (m.Offer(8, None, False, 0), 3, "protocol"),
            "greeting": (m.Greeting(1, 1, bytes(16), bytes(16), True), 3, "protocol"),
            "role": (hello(sender, m.Role.DATA), 3, "protocol"),
            "no token": (hello(sender, can_prove=False), 3, "token"),
            "needs": (hello(sender)._replace(features=("x",), needs=("x",)), 3, "policy"),
            "version": (hello(sender)._replace(lowest_version=2, highest_version=2), 3, "version"),
            "refusal": (m.Refusal(Code.POLICY, "no"), 3, "policy"),
        }
        message, exit_code, error = answers[says]
        receiver = connecting(pair, sender)
        link = sender.accept()
        greeting = link.expect(m.Greeting)
        assert (greeting.role, greeting.token_required) == (m.Role.CONTROL, True)
        link.send(message)
        receiver.fails(exit_code, error, status="refused")
        assert [type(each) for each in link.rest()] == ([] if says == "refusal" else [m.Refusal])
        assert pair.received() == []


def test_a_sender_that_does_not_know_the_token(pair: Pair) -> None:
    """It gets the proof of the receiver, and can't answer it; what it offers instead is not looked at."""
    for proof in (m.Proof(bytes(32)), m.Offer(8, None, False, 0)):
        with ListeningSender() as sender:
            receiver = connecting(pair, sender)
            link = sender.accept()
            link.expect(m.Greeting)
            link.send(hello(sender))
            assert link.expect(m.Welcome).mac
            link.send(proof)
            receiver.fails(3, "token", status="refused")
            assert link.expect(m.Abort).code is Code.TOKEN
            assert pair.received() == []


def test_a_sender_that_wants_more_connections_than_it_has_announced(pair: Pair) -> None:
    with ListeningSender(connections=4) as sender:
        receiver = connecting(pair, sender)
        control = sender.open(m.Role.CONTROL)
        control.send(m.Connections(5))
        assert control.expect(m.Abort).code is Code.PROTOCOL
        receiver.fails(3, "protocol", status="refused")


def complete(control: Link, data: Link, sample: Sample) -> None:
    """Send all of a file, up to Complete."""
    for index in range(sample.grid.segments):
        data.send_raw(sample.chunk(index))
    acknowledged = 0
    while acknowledged < sample.grid.segments:
        acknowledged += len(ack(data).chunk_ids)
    control.send(sample.finish)
    while not isinstance(said := control.read(), m.Complete):
        assert isinstance(said, m.Progress | m.Held), said  # what was kept of an earlier transfer is held
    control.end_writing()


@pytest.mark.parametrize("code", [Code.SUPERSEDED, Code.SHUTTING_DOWN, Code.CORRUPT])
def test_a_sender_that_begins_again(pair: Pair, code: Code) -> None:
    """The receiver dials for another transfer, and goes on with what it has."""
    sample = Sample.random(1, 10 * KIB, KIB)
    with ListeningSender() as sender:
        receiver = connecting(pair, sender)
        for is_last in (False, True):
            control = sender.open(m.Role.CONTROL)
            control.send(m.Connections(1), sample.offer, m.ManifestPart(0, (sample.entry,), True))
            control.expect(m.Needed)
            data = sender.open(m.Role.DATA)
            if is_last:
                complete(control, data, sample)
            else:
                data.send_raw(sample.chunk(0))
                assert ack(data).chunk_ids == (0,)
                control.send(m.Abort(code, "again"))
                control.end_writing()
                sender.transfer_id = random_id()
        receiver.succeeds()
    assert (pair.destination / "sample.bin").read_bytes() == sample.content


def test_a_sender_that_begins_again_without_end(pair: Pair) -> None:
    """As one does whose file another receiver is receiving: the receiver gives up, and does not begin ever faster."""
    with_patience(lambda seconds: begins_again(pair, seconds) > 2, "begun more than twice")


def begins_again(pair: Pair, give_up_after: float) -> int:
    """Turn a receiver away until it gives up, for that reason; return how often it was, which is not ever faster."""
    sample = Sample.random(1, 10 * KIB, KIB)
    with ListeningSender() as sender:
        receiver = connecting(pair, sender, "--give-up-after", give_up_after)
        sender.patience(0.2)
        times = 0
        while receiver.poll() is None:
            with contextlib.suppress(OSError, Ended):  # the receiver may give up at any of these steps
                control = sender.open(m.Role.CONTROL)
                control.send(sample.offer, m.ManifestPart(0, (sample.entry,), True))
                while not isinstance(control.read(), m.Needed):
                    pass
                control.send(m.Abort(Code.BUSY, "another receiver gets it"))
                control.end_writing()
                sender.transfer_id = random_id()
                times += 1
        reason = receiver.fails(1, "timeout")
    assert times < 20
    return times if "another receiver gets it" in reason else 0


@pytest.mark.parametrize(("code", "exit_code"), [(Code.SOURCE_CHANGED, 4), (Code.POLICY, 3), (Code.DIGEST, 1)])
def test_a_sender_that_ends_for_good(pair: Pair, code: Code, exit_code: int) -> None:
    with ListeningSender() as sender:
        receiver = connecting(pair, sender)
        control = sender.open(m.Role.CONTROL)
        control.send(m.Abort(code, "no more of this"))
        control.end_writing()
        status = "refused" if exit_code == 3 else "failed"
        assert "no more of this" in receiver.fails(exit_code, code.name.lower(), status=status)


def test_a_sender_that_refuses_the_connections_that_it_wants(pair: Pair) -> None:
    """They are dialled again, after pauses that grow."""
    sample = Sample.random(1, 10 * KIB, KIB)
    with ListeningSender() as sender:
        receiver = connecting(pair, sender)
        control = sender.open(m.Role.CONTROL)
        control.send(m.Connections(1), sample.offer, m.ManifestPart(0, (sample.entry,), True))
        control.expect(m.Needed)
        for _ in range(3):
            refused = sender.accept()
            refused.expect(m.Greeting)
            refused.send(m.Refusal(Code.LIMIT, "not now"))
        complete(control, sender.open(m.Role.DATA), sample)
        receiver.succeeds()
    assert (pair.destination / "sample.bin").read_bytes() == sample.content


def test_a_sender_that_names_another_transfer_on_a_data_connection(pair: Pair) -> None:
    sample = Sample.random(1, 10 * KIB, KIB)
    with ListeningSender() as sender:
        receiver = connecting(pair, sender)
        control = sender.open(m.Role.CONTROL)
        control.send(m.Connections(1), sample.offer, m.ManifestPart(0, (sample.entry,), True))
        control.expect(m.Needed)
        sender.transfer_id = random_id()
        data = sender.open(m.Role.DATA)
        assert data.expect(m.Abort).code is Code.UNKNOWN_TRANSFER
        assert receiver.poll() is None


def test_nothing_is_written_outside_of_the_destination(pair: Pair) -> None:
    with ListeningSender() as sender:
        receiver = connecting(pair, sender)
        control = sender.open(m.Role.CONTROL)
        entry = m.Entry(b"../outside", m.EntryType.FILE, 1, 0o644, 0)
        control.send(m.Offer(8, None, False, 1), m.ManifestPart(0, (entry,), True))
        assert control.expect(m.Abort).code is Code.PATH
        control.end_writing()
        receiver.fails(3, "path", status="refused")


def test_the_own_token_is_there() -> None:
    """A check of the tests above: these peers know the token where they are to know it."""
    until(lambda: own_token() is not None, "some service has made it")

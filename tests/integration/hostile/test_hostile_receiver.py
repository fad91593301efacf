"""Receivers that lie to the real sender of one file, hang up, damage what they say, or are something else.

`RawReceiver` answers; the sender's exit codes are those of proto/README.md.
"""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from filestreamer.wire import auth, limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode
from filestreamer.wire.errors import CONSEQUENCES, Code
from filestreamer.wire.framing import frame, frame_of, read_body
from filestreamer.wire.opening import ReceiverOpening, random_id
from tests.support.attacks import DAMAGE, MIB, STRANGERS, TOKEN, WITH_TOKEN
from tests.support.peer import NO_RUNS, Ended, Link, RawReceiver, read_chunk, refuses
from tests.support.processes import Watch
from tests.support.services import EACH_TICK, HANG, UNIT, Pair, Service, impatient, make_file
from tests.support.waiting import with_patience

KIB = 1024


# ---------------------------------------------------------------------------------------------------- a decent exchange


@pytest.fixture
def source(pair: Pair) -> Path:
    """Return ten segments of 1 KiB."""
    return pair.file("f", 10 * KIB)


def start_sender(pair: Pair, source: Path, receiver: RawReceiver, *args: object) -> Service:
    return pair.sender(source, receiver.address, "--chunk-size", KIB, "--connections", 1, *args)


def test_data_connections_are_opened_while_control_is(pair: Pair, source: Path) -> None:
    """Each step as soon as it may be: on a long path every one of them takes a round-trip."""
    with RawReceiver() as receiver:
        sender = start_sender(pair, source, receiver)
        control, data = receiver.accept(), receiver.accept()
        openings = [ReceiverOpening(receiver.incarnation, None, features=NO_RUNS) for _ in range(2)]
        for link, opening in zip((control, data), openings, strict=True):
            link.send_raw(frame_of(opening.greeting_body))
        assert control.expect(m.Hello).role is m.Role.CONTROL
        control.send(openings[0].welcome())
        assert data.expect(m.Hello).role is m.Role.DATA
        data.send(openings[1].welcome())
        control.expect(m.Offer)
        control.expect(m.ManifestPart)
        control.send(m.Needed((), (m.SegmentRange(0, 0, 10),)))
        chunk_ids = tuple(read_chunk(data).chunk_id for _ in range(10))
        data.send(m.ChunkAck(m.Verdict.OK, chunk_ids))
        assert control.expect(m.Finish).chunks == 10
        control.send(m.Complete(True))
        receiver.hang_up()
        assert sender.succeeds()["connections"] == 1


# -------------------------------------------------------------------------------------------------------------- answers


ANSWERS: dict[str, m.Message] = {
    "a segment too many": m.Needed((), (m.SegmentRange(0, 0, 11),)),
    "beyond the file": m.Needed((), (m.SegmentRange(0, 5, 6),)),
    "far beyond the file": m.Needed((), (m.SegmentRange(0, (1 << 23) - 1, 1),)),
    "segments of a file never offered": m.Needed((), (m.SegmentRange(1, 0, 1),)),
    "a file never offered": m.Needed((m.FileRange(1, 1),), ()),
    "more files than were offered": m.Needed((m.FileRange(0, 2),), ()),
    "a digest too many": m.Held(0, 0, bytes(16 * 11)),
    "held beyond the file": m.Held(0, 9, bytes(32)),
    "held of another file": m.Held(1, 0, bytes(16)),
    "unchecked beyond the file": m.Held(0, 0, b"", (m.FileRange(0, 2),)),
    "a share of a whole": m.Complete(False),
    "offer": m.Offer(KIB, None, False, 0),
    "acknowledgement on control": m.ChunkAck(m.Verdict.OK, (0,)),
    "finish": m.Finish(0, bytes(16)),
    "welcome again": m.Welcome(b""),
    "greeting again": m.Greeting(1, 1, bytes(16), bytes(16), False),
    "declined, the only file": m.Declined((m.DeclinedEntry(0, m.SkipKind.DECLINED, "why", b"f"),)),
    "left, the only file": m.Declined((m.DeclinedEntry(0, m.SkipKind.EXISTING, "why", b"f"),)),
    "attributes of another file": m.Declined((m.DeclinedEntry(1, m.SkipKind.ATTRIBUTE, "why", b"f"),)),
    "attributes again and again": m.Declined((m.DeclinedEntry(0, m.SkipKind.ATTRIBUTE, "why", b"f"),) * 3),
    "zeros that were not told": m.Zeros((m.SegmentRange(0, 0, 1),)),
    "zeros beyond the file": m.Zeros((m.SegmentRange(0, 9, 2),)),
    "zeros of another file": m.Zeros((m.SegmentRange(1, 0, 1),)),
    "left, though it is to be replaced": m.Held(0, 0, b"", (), False, (m.FileRange(0, 1),)),
    "verdicts without a question": m.Verdicts((m.EntryVerdict(m.Standing.SAME, 0, 1),)),
}


def test_nonsense_from_a_receiver(pair: Pair, source: Path) -> None:
    """The sender says PROTOCOL and exits 3; it does not believe any of it."""

    def is_refused(answer: m.Message) -> bool:
        with RawReceiver() as receiver:
            sender = start_sender(pair, source, receiver)
            control, _, _ = receiver.control()
            return refuses(sender, control, answer)

    with ThreadPoolExecutor(4) as pool:
        refused = dict(zip(ANSWERS, pool.map(is_refused, ANSWERS.values()), strict=True))
    assert refused == dict.fromkeys(ANSWERS, True)


@pytest.mark.parametrize("args", [("--checksum",), ("--shard", "0/2")], ids=["checksum", "shard"])
def test_a_file_accepted_unread_that_has_to_be_compared(pair: Pair, source: Path, args: tuple[str, ...]) -> None:
    with RawReceiver() as receiver:
        sender = start_sender(pair, source, receiver, *args)
        control, _, _ = receiver.control()
        assert refuses(sender, control, m.Held(0, 0, b"", (m.FileRange(0, 1),)))


def test_complete_before_anything_was_sent(pair: Pair, source: Path) -> None:
    """Exit 0 means that every byte was acknowledged or found: who has sent nothing has nothing completed."""
    with RawReceiver() as receiver:
        sender = start_sender(pair, source, receiver)
        control, _, _ = receiver.control()
        control.send(m.Complete(True))
        assert sender.wait() != 0


COUNTS: dict[str, m.Complete] = {
    "removed": m.Complete(True, deleted=1),
    "not removed": m.Complete(True, undeletable=1),
    "left as it is": m.Complete(True, left=1),
    "shards": m.Complete(True, shards_finished=1),
    "files of shards": m.Complete(True, job_files=1, job_bytes=1),
}


@pytest.mark.parametrize("what", COUNTS)
def test_complete_that_counts_what_was_not_asked_for(pair: Pair, source: Path, what: str) -> None:
    with RawReceiver() as receiver:
        sender = start_sender(pair, source, receiver)
        control, _, _ = receiver.control()
        control.send(m.Held(0, 0, b"", (m.FileRange(0, 1),)))
        control.expect(m.Finish)
        assert refuses(sender, control, COUNTS[what])


def abort_of(control: Link) -> m.Abort:
    """Read the Abort of a sender, which may have said Finish ahead of its chunks."""
    message = control.read()
    while isinstance(message, m.Finish | m.Progress):
        message = control.read()
    assert isinstance(message, m.Abort), message
    return message


def test_acknowledgement_of_a_chunk_that_was_not_sent(pair: Pair, source: Path) -> None:
    with RawReceiver() as receiver:
        sender = start_sender(pair, source, receiver)
        control, data = receiver.needs(10)
        data.send(m.ChunkAck(m.Verdict.OK, (10,)))
        assert abort_of(control).code is Code.PROTOCOL
        receiver.hang_up()
        sender.fails(3, "protocol", status="refused")


def test_acknowledgement_twice(pair: Pair, source: Path) -> None:
    with RawReceiver() as receiver:
        sender = start_sender(pair, source, receiver)
        control, data = receiver.needs(10)
        chunk = read_chunk(data)
        data.send(m.ChunkAck(m.Verdict.OK, (chunk.chunk_id, chunk.chunk_id)))
        assert abort_of(control).code is Code.PROTOCOL
        receiver.hang_up()
        sender.fails(3, "protocol", status="refused")


def test_chunk_that_always_arrives_damaged(pair: Pair, source: Path) -> None:
    """Sent SENDS_PER_CHUNK times, then exit 1 with the advice to suspect the network."""
    with RawReceiver() as receiver:
        sender = pair.sender(source, receiver.address, "--chunk-size", KIB, "--connections", 1)
        _, data = receiver.needs(10)
        sends = 0
        try:
            while True:
                chunk = read_chunk(data)
                sends += chunk.chunk_id == 4
                consequence = m.Verdict.DIGEST_MISMATCH if chunk.chunk_id == 4 else m.Verdict.OK
                data.send(m.ChunkAck(consequence, (chunk.chunk_id,)))
        except Ended:
            pass
        message = sender.fails(1, "digest")
    assert sends == limits.SENDS_PER_CHUNK
    assert "chunk 4" in message


def test_flood_of_answers_from_a_receiver(pair: Pair) -> None:
    """The sender reads all of them, and keeps none: its memory does not grow with their rate."""
    file = pair.file("f", 1000)
    again = frame(m.Progress(m.Phase.OFFERING, 0, 0))
    with RawReceiver() as hostile:
        sender = pair.sender(file, hostile.address, "--give-up-after", 6 * UNIT)
        control, _, _ = hostile.control()
        with Watch(sender.process.pid) as watch:
            control.send_raw(again * 300_000)
            assert watch.grown_bytes < 4 * MIB
        control.send(m.Abort(Code.EXISTS, "enough"))
        sender.fails(3, "exists", status="refused")


# ----------------------------------------------------------------------------------------------------------------- ends


@pytest.mark.parametrize("how", ["refusal", "abort"])
def test_codes(pair: Pair, source: Path, how: str) -> None:
    """The sender exits as CONSEQUENCES says: at once, or after trying again until it gives up; the reason is shown."""

    def check(code: Code) -> None:
        if CONSEQUENCES[code].retryable:
            with_patience(lambda seconds: check_code(pair, source, code, how, seconds) > 1, f"{code.name}, tried again")
        else:
            assert check_code(pair, source, code, how, 6 * UNIT) == 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(check, Code))


def check_code(pair: Pair, source: Path, code: Code, how: str, give_up_after: float) -> int:
    """Answer with this code each time; return how often the sender has come. What it says in the end is checked."""
    consequence = CONSEQUENCES[code]
    tries = 0
    with RawReceiver() as receiver:
        sender = start_sender(pair, source, receiver, "--give-up-after", give_up_after)
        receiver.patience(0.1)
        while sender.process.poll() is None:
            try:
                link, hello, welcome = receiver.hello()
            except (TimeoutError, Ended):
                continue
            tries += hello.role is m.Role.CONTROL
            reason = "because of\x1b[31m a test\n"
            link.send(*([m.Refusal(code, reason)] if how == "refusal" else [welcome, m.Abort(code, reason)]))
            link.rest()  # up to its end: the sender has acted on it, and comes again for no connection that ended
        sender.wait()
        if consequence.retryable and "because of" not in sender.result["error"]["message"]:
            return 0  # it has given up before it had an answer
        expected = "busy" if code is Code.BUSY else "timeout" if consequence.retryable else code.name.lower()
        status = "refused" if consequence.exit_code == 3 else "failed"
        message = sender.fails(consequence.exit_code, expected, status=status)
    assert "because of" in message
    assert message.isprintable()
    return tries


def test_closes_after_hello(pair: Pair, source: Path) -> None:
    """It may be a receiver that restarts: tried again until --give-up-after, exit 1."""

    def is_tried_again(give_up_after: float) -> bool:
        with RawReceiver() as receiver:
            sender = start_sender(pair, source, receiver, "--give-up-after", give_up_after)
            tries = 0
            receiver.patience(0.1)
            while sender.process.poll() is None:
                try:
                    receiver.hello()[0].close()
                    tries += 1
                except (TimeoutError, Ended):
                    continue
            return "closed the connection" in sender.fails(1, "timeout") and tries >= 2

    with_patience(is_tried_again, "closed twice, and told so")


def test_data_connections_say_nothing_where_control_is_turned_away(pair: Pair, source: Path) -> None:
    """The second try, and what is told of the first: once, by control."""
    with RawReceiver() as receiver:
        sender = start_sender(pair, source, receiver)
        control, data = receiver.accept(), receiver.accept()
        for link in (control, data):
            link.send_raw(frame_of(ReceiverOpening(receiver.incarnation, None).greeting_body))
        control.expect(m.Hello)
        control.send(m.Refusal(Code.BUSY, "later"))
        data.ends()
        _, data = receiver.needs(10)
        data.send(m.ChunkAck(m.Verdict.OK, tuple(read_chunk(data).chunk_id for _ in range(10))))
        sender.wait_for("connected")
        assert len(sender.events("cannot_connect")) == 1
        assert sender.events("connection_lost") == []


def test_a_greeting_beyond_the_limit_of_an_opening(pair: Pair, source: Path, tmp_path: Path) -> None:
    """On a data connection, too, where chunks are sent before it is read: there is no token at all."""
    with RawReceiver() as receiver:
        to = ("--to", receiver.address, "--chunk-size", "1KiB", "--connections", 1)
        sender = pair.start("sender", source, *to, env={"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)})
        control, data = receiver.accept(), receiver.accept()
        openings = [ReceiverOpening(receiver.incarnation, None, features=NO_RUNS) for _ in range(2)]
        control.send_raw(frame_of(openings[0].greeting_body))
        control.expect(m.Hello)
        control.send(openings[0].welcome())
        control.expect(m.Offer)
        control.expect(m.ManifestPart)
        unknown_field = b"\xfa\x07\xd0\x0f" + bytes(2000)
        data.send_raw(frame_of(openings[1].greeting_body + unknown_field))
        control.send(m.Needed((), (m.SegmentRange(0, 0, 10),)))
        assert "the limit is 1024" in sender.wait_for("connection_lost")["reason"]


def test_another_incarnation_for_data(pair: Pair, source: Path) -> None:
    """The name leads to two receivers: no chunk goes to the other one, and the error says so in the end."""

    def is_told(give_up_after: float) -> bool:
        with RawReceiver() as receiver:
            sender = start_sender(pair, source, receiver, "--give-up-after", give_up_after)
            try:
                control, _, _ = receiver.control()
            except Ended:
                return False  # it has given up by then
            control.send(m.Needed((), (m.SegmentRange(0, 0, 10),)))
            receiver.patience(0.5)
            first, received = receiver.incarnation, 0
            while sender.process.poll() is None:
                receiver.incarnation = bytes(16)
                try:
                    link, hello, welcome = receiver.hello()
                    if hello.role is m.Role.CONTROL:
                        link.close()
                        continue
                    link.send(welcome)
                    received += len(link.rest())
                except (TimeoutError, Ended):
                    continue
            assert (received, first != bytes(16)) == (0, True)
            return "several receivers" in sender.fails(1, "timeout")

    with_patience(is_told, "data has met another receiver")


# ----------------------------------------------------------------------------------------------- the window of a stream


def test_the_sender_stays_in_the_window(pair: Pair) -> None:
    """Over all of its connections, of a file that it could send at once."""
    file = pair.file("f", 20 * KIB)
    with RawReceiver() as receiver:
        pair.sender(file, receiver.address, "--chunk-size", KIB, "--connections", 1)
        control, _, _ = receiver.control()
        control.send(m.Needed((m.FileRange(0, 1),), (), 3 * KIB + 5))
        data, _ = receiver.welcome(m.Role.DATA)
        assert [read_chunk(data).chunk_id for _ in range(3)] == [0, 1, 2]
        data.send(m.ChunkAck(m.Verdict.OK, (1,)))
        data.socket.settimeout(UNIT / 20)
        with contextlib.suppress(TimeoutError):
            raise AssertionError(f"chunk {read_chunk(data).chunk_id} was sent beyond the window")
        data.socket.settimeout(HANG)
        data.send(m.ChunkAck(m.Verdict.OK, (0,)))
        assert [read_chunk(data).chunk_id for _ in range(2)] == [3, 4]


def test_a_receiver_that_waits_is_no_reason_to_give_up(pair: Pair) -> None:
    """Progress in phase WAITING counts, though nothing is acknowledged."""
    file = pair.file("f", 2 * KIB)
    with RawReceiver() as receiver:
        give_up_after = UNIT / 2
        flags = ("--chunk-size", KIB, "--give-up-after", give_up_after, "--connections", 1)
        sender = pair.start("sender", file, "--to", receiver.address, *flags, **impatient("sender", EACH_TICK))
        control, _, _ = receiver.control()
        control.send(m.Needed((m.FileRange(0, 1),), (), 8 * KIB))
        data, _ = receiver.welcome(m.Role.DATA)
        chunks = [read_chunk(data) for _ in range(2)]
        waited_until = time.monotonic() + 1.2 * give_up_after
        while time.monotonic() < waited_until:
            control.expect(m.Progress)
            control.send(m.Progress(m.Phase.WAITING, 0, 0))
            assert sender.poll() is None
        data.send(m.ChunkAck(m.Verdict.OK, tuple(chunk.chunk_id for chunk in chunks)))
        control.expect(m.Finish)
        control.send(m.Complete(True))
        receiver.hang_up()
        sender.succeeds()


# --------------------------------------------------------------------------------------------------- no receiver at all


def test_something_else_listens_there(pair: Pair, source: Path) -> None:
    """Another service on that port: exit 3 at once where it is known for one, else exit 1 after some more tries."""
    greetings = {**STRANGERS, "http": b"HTTP/1.1 400 Bad Request\r\n\r\n"}

    def end(what: str) -> str:
        with RawReceiver() as receiver:
            patience = 1 if what in DAMAGE else 6 * UNIT
            sender = start_sender(pair, source, receiver, "--give-up-after", patience)
            receiver.patience(0.1)
            while sender.process.poll() is None:
                try:
                    receiver.accept().send_raw(greetings[what])
                except TimeoutError:
                    continue
            if what in DAMAGE:
                return sender.fails(1, "timeout")
            return sender.fails(3, "protocol", status="refused")

    with ThreadPoolExecutor(4) as pool:
        messages = dict(zip(greetings, pool.map(end, greetings), strict=True))
    assert ("HTTP" in messages["http"], "SSH" in messages["ssh"], "TLS" in messages["tls"]) == (True, True, True)


def test_something_that_closes_listens_there(pair: Pair, source: Path) -> None:
    """It may be a receiver that starts, or a proxy before it: tried again until --give-up-after, exit 1."""
    with RawReceiver() as receiver:
        sender = start_sender(pair, source, receiver, "--give-up-after", 1)
        receiver.patience(0.1)
        while sender.process.poll() is None:
            try:
                receiver.accept().close()
            except TimeoutError:
                continue
        assert receiver.address in sender.fails(1, "timeout")


# --------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("where", ["control", "data"])
def test_garbage_from_a_receiver(pair: Pair, source: Path, where: str) -> None:
    """A sound frame with nonsense in it is nobody's damage: PROTOCOL, exit 3."""
    with RawReceiver() as receiver:
        sender = start_sender(pair, source, receiver)
        control, data = receiver.needs(10)
        (control if where == "control" else data).send_raw(frame_of(b"\xff\xff\xff\xff"))
        assert abort_of(control).code is Code.PROTOCOL
        receiver.hang_up()
        sender.fails(3, "protocol", status="refused")


@pytest.mark.parametrize("damage", [bytes(100), b"\xff" * 100, STRANGERS["wrong checksum"]], ids=["0", "1", "sum"])
def test_damage_on_control_is_not_the_end(pair: Pair, source: Path, damage: bytes) -> None:
    """The sender opens control again, and offers the same file under the same transfer_id."""
    with RawReceiver() as receiver:
        sender = start_sender(pair, source, receiver)
        control, hello = receiver.welcome(m.Role.CONTROL)
        offers = [(control.expect(m.Offer), control.expect(m.ManifestPart))]
        control.send_raw(damage)
        again, hello_again = receiver.welcome(m.Role.CONTROL)
        offers.append((again.expect(m.Offer), again.expect(m.ManifestPart)))
        assert offers[0] == offers[1]
        assert hello.transfer_id == hello_again.transfer_id
        control.close()
        again.send(m.Abort(Code.POLICY, "enough"))
        sender.fails(3, "policy", status="refused")


def test_damage_on_data_is_not_the_end(pair: Pair, source: Path) -> None:
    """What was sent on that connection and not acknowledged is sent again, over a new one of the same number."""
    with RawReceiver() as receiver:
        sender = start_sender(pair, source, receiver)
        control, data = receiver.needs(10)
        first = [read_chunk(data).chunk_id for _ in range(10)]
        data.send(m.ChunkAck(m.Verdict.OK, (0, 1, 2)))
        data.send_raw(bytes(100))
        again, hello = receiver.welcome(m.Role.DATA)
        data.close()
        second = []
        for _ in range(7):  # the next connection begins with one chunk
            second.append(read_chunk(again).chunk_id)
            again.send(m.ChunkAck(m.Verdict.OK, (second[-1],)))
        assert (first, second, hello.connection_id) == (list(range(10)), list(range(3, 10)), 0)
        assert control.expect(m.Finish).chunks == 10
        control.send(m.Complete(True))
        again.ends()
        receiver.hang_up()
        result = sender.succeeds()
    assert (result["resent_chunks"], result["reconnects"], result["sent_bytes"]) == (7, 1, 17 * KIB)


# ------------------------------------------------------------------------------------------------------------- no token


@pytest.mark.parametrize("answer", ["echo", "nothing", "zeros", "its own"])
def test_receiver_that_does_not_know_the_token(pair: Pair, answer: str) -> None:
    """It asks for the proof, and echoes it, or makes something up: the sender says not one word about its file."""
    sender = pair.source / "a-name-that-stands-out"
    make_file(sender, 1000)
    with RawReceiver() as impostor:
        service = pair.sender(sender, impostor.address, env=WITH_TOKEN)
        link = impostor.accept()
        opening = ReceiverOpening(impostor.incarnation, (b"another token of some length",))
        link.send_raw(frame_of(opening.greeting_body))
        hello = read_body(link.read_exact, limits.OPENING_FRAME_BYTES)
        proof = decode(read_body(link.read_exact, limits.OPENING_FRAME_BYTES))
        assert isinstance(decode(hello), m.Hello)
        assert isinstance(proof, m.Proof)
        macs = {
            "echo": proof.mac,
            "nothing": b"",
            "zeros": bytes(limits.MAC_BYTES),
            "its own": opening_mac(opening, hello),
        }
        link.send(m.Welcome(macs[answer]))
        assert link.rest() == [], "nothing may follow: no Offer, no name"
        message = service.fails(3, "token", status="refused")
    assert "token" in message
    assert TOKEN not in service.stderr


def opening_mac(opening: ReceiverOpening, hello: bytes) -> bytes:
    """Return the proof of a receiver that has another token."""
    transcript = auth.Transcript(opening.greeting_body, hello)
    return transcript.receiver_proof(b"another token of some length", bytes(32))


def test_receiver_that_asks_for_no_token(pair: Pair) -> None:
    """Who poses as the receiver and asks for no proof gets nothing but Hello, which says nothing of the file."""
    with RawReceiver() as impostor:
        service = pair.sender(pair.file("f", 10), impostor.address, env=WITH_TOKEN)
        link = impostor.accept()
        link.send(m.Greeting(1, 1, impostor.incarnation, random_id(), False))
        assert [type(message) for message in link.rest()] == [m.Hello]
        assert "token" in service.fails(3, "token", status="refused")

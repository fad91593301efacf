"""Who gives up says what it waited for, and how long it waits depends on whether anything was moved."""

import signal
import socket
import time
from collections.abc import Iterator

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.limits import KIB
from tests.support.exchange import deliver
from tests.support.peer import RawReceiver, RawSender, Sample, read_chunk
from tests.support.services import EACH_TICK, HANG, UNIT, Pair, Service, impatient
from tests.support.staging import statuses

GIVE_UP = 0.5 * UNIT


@pytest.fixture
def mute() -> Iterator[str]:
    """Return the address of a listener that takes connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def gives_up(pair: Pair, to: str, *args: object, **more: object) -> str:
    sender = pair.sender(pair.file("f", 10 * KIB), to, "--give-up-after", GIVE_UP, *args, **more)  # type: ignore[arg-type]
    return sender.fails(1, "timeout")


def test_the_name_of_a_receiver(pair: Pair) -> None:
    assert "does not resolve" in gives_up(pair, "no-such-host.invalid:7800")


def test_a_port_without_a_listener(pair: Pair) -> None:
    port = pair.port()
    message = gives_up(pair, f"127.0.0.1:{port}")
    assert f"127.0.0.1:{port}" in message
    assert "refused" in message


def test_a_listener_that_says_nothing(pair: Pair, mute: str) -> None:
    message = gives_up(pair, mute)
    assert f"Greeting of {mute}" in message or "the receiver's answer took too long" in message


def test_a_listener_that_does_not_shake_hands(pair: Pair, mute: str) -> None:
    assert f"the TLS handshake of {mute}" in gives_up(pair, mute, "--tls")


def test_an_answer_to_the_offer(pair: Pair) -> None:
    with RawReceiver() as receiver:
        sender = pair.sender(pair.file("f", 10 * KIB), receiver.address, "--give-up-after", GIVE_UP)
        control, _, _ = receiver.control()
        control.send(m.Progress(m.Phase.OFFERING, 0, 4 * KIB))
        control.rest()
        receiver.hang_up()
        message = sender.fails(1, "timeout")
        assert "waiting for the receiver's answer to the offer, which has re-hashed 4.00 KiB" in message


def test_acknowledgements(pair: Pair) -> None:
    with RawReceiver() as receiver:
        sender = pair.sender(pair.file("f", 10 * KIB), receiver.address, "--give-up-after", GIVE_UP, "--connections", 1)
        control, data = receiver.needs(1)
        read_chunk(data)
        control.rest()
        receiver.hang_up()
        message = sender.fails(1, "timeout")
        assert "waiting for acknowledgements of 10.0 KiB on 1 connection; none came in" in message


def test_a_sync(pair: Pair) -> None:
    with RawReceiver() as receiver:
        sender = pair.sender(pair.file("f", 10 * KIB), receiver.address, "--give-up-after", GIVE_UP, "--connections", 1)
        control, data = receiver.needs(1)
        data.send(m.ChunkAck(m.Verdict.OK, (read_chunk(data).chunk_id,)))
        control.expect(m.Finish)
        control.rest()
        receiver.hang_up()
        assert "the receiver to sync the files" in sender.fails(1, "timeout")


def test_chunks_of_a_sender(pair: Pair) -> None:
    sample = Sample.random(1, 10 * KIB, KIB)
    receiver = pair.receiver("--give-up-after", GIVE_UP)
    with RawSender(Pair.address(receiver)) as peer:
        control = peer.offer(sample)
        control.expect(m.Needed)
        deliver(peer.data(), sample, [0])
        reason = control.expect(m.Abort).reason
    assert "waiting for chunks from the sender; there is 1 data connection, and the last byte came" in reason


# ------------------------------------------------------------------------------------------------------------ how long

FIRST, LATER = "filestreamer.settings.common.FIRST_SECONDS", "filestreamer.settings.common.LATER_SECONDS"
LEDGER_BYTES = 200
"""What a ledger has where several chunks are noted: they are acknowledged, or are at once."""
BOUNDS = {**EACH_TICK, FIRST: 0.2 * UNIT, LATER: 100 * UNIT}


def interrupted(pair: Pair, *args: object) -> Service:
    """Return a sender whose receiver was killed after it had acknowledged some chunks."""
    receiver = pair.receiver()
    file = pair.file("f", 512 * KIB)
    slowly = ("--rate-limit", "64KiB", "--chunk-size", "16KiB")
    sender = pair.start("sender", file, "--to", pair.address(receiver), *slowly, *args, **impatient("sender", BOUNDS))
    end = time.monotonic() + HANG
    while not any(each.st_size > LEDGER_BYTES for each in statuses(pair.destination, "*.ledger")):
        assert time.monotonic() < end
        time.sleep(0.02)
    receiver.signal(signal.SIGKILL)
    receiver.wait()
    return sender


def test_what_has_begun_waits_longer(pair: Pair) -> None:
    sender = interrupted(pair)
    with pytest.raises(AssertionError, match="still runs"):
        sender.wait(0.8 * UNIT)
    pair.receiver(listen=str(sender.events("connected")[0]["address"])).wait_for("listening")
    sender.succeeds()


def test_what_has_not_begun_does_not(pair: Pair) -> None:
    to = f"127.0.0.1:{pair.port()}"
    sender = pair.start("sender", pair.file("f", KIB), "--to", to, **impatient("sender", BOUNDS))
    assert f"gave up after {BOUNDS[FIRST]:g} s" in sender.fails(1, "timeout")


def test_a_value_holds_for_both(pair: Pair) -> None:
    sender = interrupted(pair, "--give-up-after", GIVE_UP)
    assert f"gave up after {GIVE_UP:g} s" in sender.fails(1, "timeout")

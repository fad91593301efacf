"""TLS between the real services: who is trusted, who is not, and that nothing falls back to clear text.

The certificates are made by the `openssl` command, which has to be there (tests.support.certificates).
"""

import contextlib
import os
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode
from filestreamer.wire.errors import Code
from filestreamer.wire.framing import frame_of, read_body
from filestreamer.wire.opening import SenderOpening, random_id
from tests.support.certificates import HERE, Authority, Pem, make_key, openssl
from tests.support.peer import Ended, Link, RawSender
from tests.support.relay import Relay
from tests.support.services import HANG, Pair, Service, same
from tests.support.staging import Staging

TOKEN = "a token that is long enough"
MIB = 1 << 20


class Certificates(NamedTuple):
    """Two authorities, and what they signed."""

    ours: Authority
    theirs: Authority
    receiver: Pem
    sender: Pem
    stranger: Pem
    """A sender's, signed by the other authority."""


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Return certificates for the whole module."""
    directory = tmp_path_factory.mktemp("pki")
    ours, theirs = Authority(directory, "ours"), Authority(directory, "theirs")
    return Certificates(
        ours, theirs, ours.issue("receiver"), ours.issue("sender", "DNS:sender"), theirs.issue("stranger", "DNS:sender")
    )


def check_still_serving(receiver: Service) -> None:
    assert receiver.process.poll() is None
    assert "Traceback" not in receiver.stderr
    assert "internal" not in receiver.stderr


# ------------------------------------------------------------------------------------------------------------- it works


def test_identical_over_tls(pair: Pair, pki: Certificates) -> None:
    file = pair.file("f", 20 * MIB + 1)
    receiver = pair.receiver("--once", *pki.receiver.shown)
    pair.sender(file, pair.address(receiver), *pki.ours.trusted).succeeds()
    receiver.succeeds()
    assert same(file, pair.destination / "f")
    assert pair.received() == ["f"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_name_of_the_certificate(pair: Pair, pki: Certificates, host: str) -> None:
    """By name and by address, and with a token beside it."""
    file = pair.file("f", 3 * MIB)
    token = {"FILESTREAMER_TOKEN": TOKEN}
    receiver = pair.receiver("--once", *pki.receiver.shown, env=token)
    port = pair.address(receiver).rpartition(":")[2]
    pair.sender(file, f"{host}:{port}", *pki.ours.trusted, env=token).succeeds()
    assert same(file, pair.destination / "f")


def test_mutual_tls(pair: Pair, pki: Certificates) -> None:
    file = pair.file("f", 5 * MIB)
    receiver = pair.receiver("--once", *pki.receiver.shown, *pki.ours.trusted)
    pair.sender(file, pair.address(receiver), *pki.ours.trusted, *pki.sender.shown).succeeds()
    receiver.succeeds()
    assert same(file, pair.destination / "f")


def test_two_authorities(pair: Pair, pki: Certificates) -> None:
    """Each side may have a CA of its own: what one shows need not be signed by the one that it trusts."""
    file = pair.file("f", MIB)
    receiver = pair.receiver("--once", *pki.receiver.shown, *pki.theirs.trusted)
    pair.sender(file, pair.address(receiver), *pki.ours.trusted, *pki.stranger.shown).succeeds()
    assert same(file, pair.destination / "f")


def test_sixteen_connections(pair: Pair, pki: Certificates) -> None:
    file = pair.file("f", 24 * MIB + 5)
    receiver = pair.receiver("--once", *pki.receiver.shown)
    flags = ("--connections", 16, "--chunk-size", "256KiB", "--strict-modulo")  # so that each of them has chunks
    result = pair.sender(file, pair.address(receiver), *pki.ours.trusted, *flags).succeeds()
    assert same(file, pair.destination / "f")
    assert result["connections"] == 16
    assert len(file.read_bytes()) == sum(each["bytes"] for each in result["per_connection"])


def test_empty_file(pair: Pair, pki: Certificates) -> None:
    file = pair.file("f", 0)
    receiver = pair.receiver("--once", *pki.receiver.shown)
    pair.sender(file, pair.address(receiver), *pki.ours.trusted).succeeds()
    assert (pair.destination / "f").read_bytes() == b""


def test_a_chain_with_an_intermediate_and_text_around_it(pair: Pair, pki: Certificates, tmp_path: Path) -> None:
    """The first certificate of the file is the receiver's own: it is the one that proofs are bound to."""
    file = pair.file("f", MIB)
    chain = tmp_path / "chain.pem"
    about = "# Zertifikat für den Empfänger\n"  # what tools and people write between certificates
    chain.write_text(about + pki.receiver.certificate.read_text() + pki.ours.certificate.read_text())
    token = {"FILESTREAMER_TOKEN": TOKEN}
    receiver = pair.receiver("--once", "--tls-cert", chain, "--tls-key", pki.receiver.key, env=token)
    pair.sender(file, pair.address(receiver), *pki.ours.trusted, env=token).succeeds()
    assert same(file, pair.destination / "f")


# -------------------------------------------------------------------------------------------------- who is not trusted


def refused(pair: Pair, receiver: Service, *flags: object, env: dict[str, str] | None = None) -> str:
    """Send to a receiver that must not get the file: exit 3 with one line, which is returned; nothing was written."""
    file = pair.file("f", 100_000)
    before = pair.received()
    sender = pair.sender(file, pair.address(receiver), *flags, env=env)
    assert sender.wait() == 3, sender.stderr
    message = sender.fails(3, sender.result["error"]["code"], status="refused")
    assert not sender.result["error"]["retryable"]
    assert sender.result["sent_bytes"] == 0
    assert before == pair.received()
    check_still_serving(receiver)
    return message


def test_wrong_ca(pair: Pair, pki: Certificates) -> None:
    message = refused(pair, pair.receiver(*pki.receiver.shown), *pki.theirs.trusted)
    assert "certificate" in message
    assert "--tls-ca" in message


def test_the_systems_cas_do_not_know_it(pair: Pair, pki: Certificates) -> None:
    """They decide where there is no token, not even one of the user's own."""
    nowhere = {"XDG_RUNTIME_DIR": "/not/there", "XDG_CACHE_HOME": "/not/there", "HOME": "/not/there"}
    receiver = pair.receiver("--anonymous", *pki.receiver.shown)
    assert "pass --tls-ca" in refused(pair, receiver, "--tls", env=nowhere)


def test_expired_certificate(pair: Pair, pki: Certificates) -> None:
    expired = pki.ours.issue("expired", expired=True)
    assert "expired" in refused(pair, pair.receiver(*expired.shown), *pki.ours.trusted)


def test_wrong_host_name(pair: Pair, pki: Certificates) -> None:
    elsewhere = pki.ours.issue("elsewhere", "DNS:elsewhere.example", "IP:192.0.2.1")
    message = refused(pair, pair.receiver(*elsewhere.shown), *pki.ours.trusted)
    assert "127.0.0.1" in message
    assert "match" in message


def test_missing_client_certificate(pair: Pair, pki: Certificates) -> None:
    receiver = pair.receiver(*pki.receiver.shown, *pki.ours.trusted)
    message = refused(pair, receiver, *pki.ours.trusted)
    assert "--tls-cert" in message
    receiver.wait_for("connection_refused")


def test_client_certificate_of_another_ca(pair: Pair, pki: Certificates) -> None:
    receiver = pair.receiver(*pki.receiver.shown, *pki.ours.trusted)
    message = refused(pair, receiver, *pki.ours.trusted, *pki.stranger.shown)
    assert "certificate" in message
    assert "unknown ca" in message


def test_expired_client_certificate(pair: Pair, pki: Certificates) -> None:
    expired = pki.ours.issue("expired-sender", "DNS:sender", expired=True)
    receiver = pair.receiver(*pki.receiver.shown, *pki.ours.trusted)
    assert "expired" in refused(pair, receiver, *pki.ours.trusted, *expired.shown)


def test_token_of_its_own_inside_tls(pair: Pair, pki: Certificates) -> None:
    receiver = pair.receiver(*pki.receiver.shown, env={"FILESTREAMER_TOKEN": TOKEN})
    message = refused(pair, receiver, *pki.ours.trusted, env={"FILESTREAMER_TOKEN": TOKEN[::-1]})
    assert "token" in message


# ---------------------------------------------------------------------------------------------- TLS against clear text


def test_clear_text_sender_against_a_tls_receiver(pair: Pair, pki: Certificates) -> None:
    """Each waits for the other to begin: the receiver has to say it before the sender gives the opening up."""
    message = refused(pair, pair.receiver(*pki.receiver.shown), "--give-up-after", 30)
    assert "TLS" in message
    assert "--tls" in message


def test_clear_text_sender_against_a_tls_receiver_far_away(pair: Pair, pki: Certificates) -> None:
    """Where each word takes a quarter of a second: the receiver must not wait for as long as the sender does."""
    receiver = pair.receiver(*pki.receiver.shown)
    with Relay(pair.address(receiver), delay_seconds=0.25) as relay:
        sender = pair.sender(pair.file("f", 10), relay.address, "--give-up-after", 12)
        assert "--tls" in sender.fails(3, "policy", status="refused")


def test_tls_sender_against_a_clear_text_receiver(pair: Pair, pki: Certificates) -> None:
    receiver = pair.receiver()
    message = refused(pair, receiver, *pki.ours.trusted)
    assert "TLS" in message
    assert "TLS" in receiver.wait_for("connection_refused")["reason"]


def test_nothing_in_clear_text(pair: Pair, pki: Certificates) -> None:
    """Who records the connections finds TLS 1.3 records from the first byte on: no frame, no name, no payload."""
    file = pair.source / "a-name-that-stands-out"
    marked = b"a payload that stands out, " * 40_000
    file.write_bytes(marked)
    token = {"FILESTREAMER_TOKEN": TOKEN}
    receiver = pair.receiver(*pki.receiver.shown, env=token)
    with Relay(pair.address(receiver)) as relay:
        pair.sender(file, relay.address, *pki.ours.trusted, env=token).succeeds()
    assert same(file, pair.destination / file.name)
    assert len(relay.carried) > 1
    for each in relay.carried:
        assert bytes(each.up).startswith(b"\x16\x03")
        assert bytes(each.down).startswith(b"\x16\x03")
    for word in (b"stands out", b"that-stands-out", TOKEN.encode()):
        assert word not in relay.heard


def test_no_fall_back_to_clear_text(pair: Pair, pki: Certificates) -> None:
    """A TLS sender tries nothing but TLS, and a TLS receiver never greets who speaks clear text."""
    file = pair.file("a-name-that-stands-out", 1000)
    with Relay(pair.address(pair.receiver())) as relay:
        pair.sender(file, relay.address, *pki.ours.trusted).fails(3, "policy", status="refused")
    for each in relay.carried:
        assert bytes(each.up).startswith(b"\x16\x03")
    assert file.name.encode() not in relay.heard
    assert pair.received() == []

    receiver = pair.receiver(*pki.receiver.shown)
    with RawSender(pair.address(receiver)) as peer:
        link = peer.connect()
        link.send_raw(frame_of(b"\x12\x00"))  # a Hello, of sorts: no TLS
        refusal = link.expect(m.Refusal)
        assert (refusal.code, "--tls" in refusal.reason) == (Code.POLICY, True)
        link.ends()
    check_still_serving(receiver)


def test_receiver_that_turns_clear_text_meanwhile(pair: Pair, pki: Certificates) -> None:
    """A receiver that is replaced by one without TLS gets nothing from the running sender."""
    file = pair.file("f", 8 * MIB)
    port = pair.port()
    first = pair.receiver(*pki.receiver.shown, listen=f"127.0.0.1:{port}")
    sender = pair.sender(
        file, f"127.0.0.1:{port}", *pki.ours.trusted, "--rate-limit", "1MiB/s", "--chunk-size", "64KiB"
    )
    Staging(pair.destination, "f").wait_for_records(5)
    first.signal(signal.SIGKILL)
    first.wait()
    pair.receiver(listen=f"127.0.0.1:{port}")
    sender.fails(3, "policy", status="refused")
    assert "f" not in pair.received()


# ------------------------------------------------------------------------------------------------- what TLS is made of


def tls_link(address: str, context: ssl.SSLContext) -> Link:
    """Connect and do the handshake. Raises OSError."""
    host, _, port = address.rpartition(":")
    sock = socket.create_connection((host, int(port)), HANG)
    try:
        return Link(context.wrap_socket(sock, server_hostname=host))
    except OSError:
        sock.close()
        raise


def test_tls_1_2_is_refused(pair: Pair, pki: Certificates) -> None:
    receiver = pair.receiver(*pki.receiver.shown)
    old = ssl.create_default_context(cafile=str(pki.ours.certificate))
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(OSError, match=r"(?i)protocol.version|reset"):
        tls_link(pair.address(receiver), old)
    assert "tls" in receiver.wait_for("connection_refused")["reason"].lower()
    check_still_serving(receiver)


def test_what_is_agreed_on(pair: Pair, pki: Certificates) -> None:
    receiver = pair.receiver(*pki.receiver.shown)
    modern = ssl.create_default_context(cafile=str(pki.ours.certificate))
    link = tls_link(pair.address(receiver), modern)
    assert isinstance(link.socket, ssl.SSLSocket)
    assert link.socket.version() == "TLSv1.3"
    assert isinstance(decode(read_body(link.read_exact, limits.OPENING_FRAME_BYTES)), m.Greeting)
    link.close()


def test_no_session_is_resumed(pair: Pair, pki: Certificates) -> None:
    """Who was let in once shows its certificate again: it may have expired since, and resuming asks for none."""
    address = pair.address(pair.receiver("--anonymous", *pki.receiver.shown, *pki.ours.trusted))
    context = ssl.create_default_context(cafile=str(pki.ours.certificate))
    context.load_cert_chain(*pki.sender)
    session: ssl.SSLSession | None = None
    for _ in range(2):
        host, _, port = address.rpartition(":")
        with (
            socket.create_connection((host, int(port)), HANG) as sock,
            context.wrap_socket(sock, server_hostname=host, session=session) as secured,
        ):
            assert secured.recv(1)  # of the Greeting: what comes before it was read
            assert not secured.session_reused
            session = secured.session


def test_sender_refuses_tls_1_2(pair: Pair, pki: Certificates) -> None:
    """The same the other way: a receiver, or who poses as one, can't talk the sender down."""
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.load_cert_chain(pki.receiver.certificate, pki.receiver.key)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with Relay(pair.address(pair.receiver()), as_server=old) as relay:
        pair.sender(pair.file("f", 10), relay.address, *pki.ours.trusted).fails(3, "policy", status="refused")
        assert relay.carried == []


# ----------------------------------------------------------------------------------- the token is bound to the channel


def kinds_of(said: bytes) -> list[type[m.Message]]:
    """Return which messages somebody said, one behind the other."""
    kinds = []
    view = memoryview(said)

    def read_exact(count: int) -> memoryview:
        nonlocal view
        some, view = view[:count], view[count:]
        return some

    while view:
        kinds.append(type(decode(read_body(read_exact, limits.FRAME_BYTES))))
    return kinds


def test_man_in_the_middle_with_a_trusted_certificate(pair: Pair, pki: Certificates) -> None:
    """A certificate of the same authority for the same name, the opening relayed: the proof is of another channel."""
    token = {"FILESTREAMER_TOKEN": TOKEN}
    receiver = pair.receiver(*pki.receiver.shown, env=token)
    middle = pki.ours.issue("middle")
    as_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    as_server.load_cert_chain(middle.certificate, middle.key)
    as_client = ssl.create_default_context(cafile=str(pki.ours.certificate))
    file = pair.file("f", 10_000)
    with Relay(pair.address(receiver), as_server=as_server, as_client=as_client) as relay:
        message = pair.sender(file, relay.address, *pki.ours.trusted, env=token).fails(3, "token", status="refused")
        assert "token" in message
        carried = [bytes(each.up) for each in relay.carried if each.up]
    assert receiver.wait_for("connection_refused")["code"] == "token"
    assert carried
    for opened in carried:  # control was not welcomed: nobody else says Hello, though control itself may try again
        assert kinds_of(opened) == [m.Hello, m.Proof], "the middle saw a true opening, and nothing after it"
    assert pair.received() == []


def test_without_a_token_the_certificate_alone_decides(pair: Pair, pki: Certificates) -> None:
    """What the token adds: the same man in the middle gets the file where there is none. README says so."""
    receiver = pair.receiver("--anonymous", *pki.receiver.shown)
    middle = pki.ours.issue("middle-without-a-token")
    as_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    as_server.load_cert_chain(middle.certificate, middle.key)
    as_client = ssl.create_default_context(cafile=str(pki.ours.certificate))
    with Relay(pair.address(receiver), as_server=as_server, as_client=as_client) as relay:
        pair.sender(pair.file("f", 10_000), relay.address, *pki.ours.trusted).succeeds()


@pytest.mark.parametrize("bound_to", ["nothing", "another certificate", "its own"])
def test_proof_of_another_channel(pair: Pair, pki: Certificates, bound_to: str) -> None:
    """A proof that was made for clear text, or for another certificate, is a wrong proof; for this one it is right."""
    receiver = pair.receiver(*pki.receiver.shown, env={"FILESTREAMER_TOKEN": TOKEN})
    bound = {"nothing": b"", "another certificate": pki.sender.sha256, "its own": pki.receiver.sha256}[bound_to]
    link = tls_link(pair.address(receiver), ssl.create_default_context(cafile=str(pki.ours.certificate)))
    opening = SenderOpening(TOKEN.encode(), bound)
    greeting = read_body(link.read_exact, limits.OPENING_FRAME_BYTES)
    bodies = opening.answer(greeting, random_id(), m.Role.CONTROL, 0, 1)
    link.send_raw(b"".join(map(frame_of, bodies)))
    answer = read_body(link.read_exact, limits.OPENING_FRAME_BYTES)
    if bound_to == "its own":
        opening.enter(answer)
    else:
        refusal = decode(answer)
        assert isinstance(refusal, m.Refusal)
        assert refusal.code is Code.TOKEN
        assert link.rest() == []
    link.close()


# ------------------------------------------------------------------------------------------------ files that are wrong


def wrong_files(pki: Certificates, directory: Path) -> dict[str, tuple[tuple[object, ...], str]]:
    """Return flags that name files which can't be used, and which of them the error has to name."""
    missing = directory / "missing.pem"
    garbage = directory / "garbage.pem"
    garbage.write_bytes(os.urandom(2000))
    empty = directory / "empty.pem"
    empty.write_bytes(b"")
    hollow = directory / "hollow.pem"
    hollow.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    encrypted = directory / "encrypted.key"
    openssl("pkey", "-in", pki.receiver.key, "-aes256", "-passout", "pass:secret", "-out", encrypted)
    other_key = make_key(directory / "other.key")
    certificate, key = pki.receiver
    return {
        "no certificate": (("--tls-cert", missing, "--tls-key", key), "--tls-cert"),
        "no key": (("--tls-cert", certificate, "--tls-key", missing), "--tls-key"),
        "garbage certificate": (("--tls-cert", garbage, "--tls-key", key), "--tls-cert"),
        "garbage key": (("--tls-cert", certificate, "--tls-key", garbage), "--tls-key"),
        "empty certificate": (("--tls-cert", empty, "--tls-key", key), "--tls-cert"),
        "empty key": (("--tls-cert", certificate, "--tls-key", empty), "--tls-key"),
        "hollow certificate": (("--tls-cert", hollow, "--tls-key", key), "--tls-cert"),
        "certificate is a directory": (("--tls-cert", directory, "--tls-key", key), "--tls-cert"),
        "key of another certificate": (("--tls-cert", certificate, "--tls-key", other_key), "--tls-key"),
        "encrypted key": (("--tls-cert", certificate, "--tls-key", encrypted), "--tls-key"),
        "certificate without key": (("--tls-cert", certificate), "--tls-key"),
        "key without certificate": (("--tls-key", key), "--tls-cert"),
        "no ca": (("--tls-cert", certificate, "--tls-key", key, "--tls-ca", missing), "--tls-ca"),
        "garbage ca": (("--tls-cert", certificate, "--tls-key", key, "--tls-ca", garbage), "--tls-ca"),
        "empty ca": (("--tls-cert", certificate, "--tls-key", key, "--tls-ca", empty), "--tls-ca"),
        "hollow ca": (("--tls-cert", certificate, "--tls-key", key, "--tls-ca", hollow), "--tls-ca"),
        "ca is a directory": (("--tls-cert", certificate, "--tls-key", key, "--tls-ca", directory), "--tls-ca"),
    }


@pytest.mark.parametrize("command", ["sender", "receiver"])
def test_files_that_are_wrong(pair: Pair, pki: Certificates, tmp_path: Path, command: str) -> None:
    """Exit 2 before anything happens; the one line names the flag and the file."""
    file = pair.file("f", 10)
    started: dict[str, tuple[Service, str]] = {}
    for what, (flags, flag) in wrong_files(pki, tmp_path).items():
        if command == "sender":
            started[what] = (pair.sender(file, "127.0.0.1:1", *flags), flag)
        else:
            started[what] = (pair.receiver(*flags), flag)
        if len(started) % 4 == 0:
            started[what][0].wait()
    wrong = {}
    for what, (service, flag) in started.items():
        try:
            message = service.fails(2, "usage")
            assert flag in message
            assert "secret" not in message
        except AssertionError as error:
            wrong[what] = str(error)
    assert wrong == {}
    assert pair.received() == []


def test_encrypted_key_says_what_to_do(pair: Pair, pki: Certificates, tmp_path: Path) -> None:
    """It must not ask for a password either, on whatever terminal."""
    encrypted = tmp_path / "encrypted.key"
    openssl("pkey", "-in", pki.receiver.key, "-aes256", "-passout", "pass:secret", "-out", encrypted)
    message = pair.receiver("--tls-cert", pki.receiver.certificate, "--tls-key", encrypted).fails(2, "usage")
    assert str(encrypted) in message
    assert "decrypt" in message


def test_receiver_that_checks_senders_needs_a_certificate(pair: Pair, pki: Certificates) -> None:
    """`--tls-ca` alone must not quietly mean clear text."""
    assert "--tls-cert" in pair.receiver(*pki.ours.trusted).fails(2, "usage")


# --------------------------------------------------------------------------------------------------------- it survives


def test_resumed_after_the_receiver_was_killed(pair: Pair, pki: Certificates) -> None:
    """The running sender finds the restarted receiver; what was acknowledged is not sent again."""
    file = pair.file("f", 24 * MIB)
    port = pair.port()
    shown = (*pki.receiver.shown, *pki.ours.trusted)
    first = pair.receiver(*shown, listen=f"127.0.0.1:{port}")
    flags = (*pki.ours.trusted, *pki.sender.shown, "--rate-limit", "12MiB/s", "--chunk-size", "256KiB")
    sender = pair.sender(file, f"127.0.0.1:{port}", *flags)
    Staging(pair.destination, "f").wait_for_records(20)
    first.signal(signal.SIGKILL)
    first.wait()
    second = pair.receiver("--once", *shown, listen=f"127.0.0.1:{port}")
    result = sender.succeeds()
    second.succeeds()
    assert same(file, pair.destination / "f")
    assert result["held_bytes"] >= 15 * 256 * 1024
    assert sender.events("receiver_restarted")


def test_connections_reset_on_the_way(pair: Pair, pki: Certificates) -> None:
    """Each connection through the relay is reset once, control too; the transfer goes on over new ones."""
    file = pair.file("f", 24 * MIB)
    receiver = pair.receiver("--once", *pki.receiver.shown)
    with Relay(pair.address(receiver)) as relay:
        flags = ("--rate-limit", "12MiB/s", "--chunk-size", "256KiB", "--connections", 4)
        sender = pair.sender(file, relay.address, *pki.ours.trusted, *flags)
        staging = Staging(pair.destination, "f")
        for records in (5, 20):
            staging.wait_for_records(records)
            for each in relay.carried:
                each.reset()
        result = sender.succeeds()
    receiver.succeeds()
    assert same(file, pair.destination / "f")
    assert result["reconnects"] >= 4


IN_THE_HANDSHAKE = 400
"""A byte of what the TLS server says first: of its certificate, which is encrypted already."""


@pytest.mark.parametrize("nth", [0, 2])
def test_a_handshake_that_is_damaged_on_the_way(pair: Pair, pki: Certificates, nth: int) -> None:
    """That costs a connection, and not the transfer, be it the first one or one of several."""
    file = pair.file("f", 5 * MIB)
    receiver = pair.receiver("--once", *pki.receiver.shown)
    with Relay(pair.address(receiver), flips={nth: IN_THE_HANDSHAKE}) as relay:
        # With a rate limit, the transfer goes on when the damaged connection is lost.
        flags = ("--connections", 4, "--chunk-size", "256KiB", "--rate-limit", "4MiB/s")
        sender = pair.sender(file, relay.address, *pki.ours.trusted, *flags)
        sender.succeeds()
    receiver.succeeds()
    assert same(file, pair.destination / "f")
    said = [line["reason"] for line in sender.log if line["level"] == "warning"]
    assert [reason for reason in said if "the TLS handshake was damaged on the way" in reason]


def test_a_handshake_with_a_sender_that_listens_is_damaged(pair: Pair, pki: Certificates) -> None:
    file = pair.file("f", 5 * MIB)
    sender = pair.start("sender", file, "--listen", "127.0.0.1:0", "--once", *pki.receiver.shown)
    flips = dict.fromkeys((0, 2), IN_THE_HANDSHAKE)
    with Relay(pair.address(sender), flips=flips) as relay:
        flags = ("--connect", relay.address, "--directory", pair.destination)
        pair.start("receiver", *flags, *pki.ours.trusted).succeeds()
    sender.succeeds()
    assert same(file, pair.destination / "f")


# --------------------------------------------------------------------------------------------------------- strangers


@pytest.fixture
def slow_shakers(pair: Pair, pki: Certificates) -> Iterator[tuple[Service, list[socket.socket]]]:
    """Return a receiver, and 300 peers that began a handshake and say no more."""
    receiver = pair.receiver(*pki.receiver.shown)
    host, _, port = pair.address(receiver).rpartition(":")
    sockets = []
    try:
        for index in range(300):
            sockets.append(socket.create_connection((host, int(port)), HANG))
            sockets[-1].sendall([b"", b"\x16\x03\x01\x02\x00\x01", b"\x16\x03\x01"][index % 3])
        yield receiver, sockets
    finally:
        for sock in sockets:
            sock.close()


def test_handshakes_that_never_end(
    pair: Pair, pki: Certificates, slow_shakers: tuple[Service, list[socket.socket]]
) -> None:
    """They keep nobody out, and each is closed after the opening's time, like any other."""
    receiver, sockets = slow_shakers
    file = pair.file("f", MIB)
    pair.sender(file, pair.address(receiver), *pki.ours.trusted).succeeds()
    assert same(file, pair.destination / "f")
    end = time.monotonic() + HANG
    for sock in sockets:
        sock.settimeout(max(0.1, end - time.monotonic()))
        with contextlib.suppress(ConnectionError):
            while sock.recv(4096):
                pass
    check_still_serving(receiver)


def test_garbage_against_tls(pair: Pair, pki: Certificates, seed: int) -> None:
    """Whatever comes before, in and after the handshake: a cheap end, and the next one is served."""
    import random

    generator = random.Random(seed)
    receiver = pair.receiver(*pki.receiver.shown)
    address = pair.address(receiver)
    context = ssl.create_default_context(cafile=str(pki.ours.certificate))
    hello = client_hello(context)
    for _ in range(100):
        with RawSender(address) as peer:
            damaged = bytearray(hello)
            for _ in range(generator.randint(1, 8)):
                damaged[generator.randrange(len(damaged))] = generator.randrange(256)
            link = peer.connect()
            link.send_raw(
                generator.choice([bytes(damaged), generator.randbytes(200), hello[: generator.randrange(300)]])
            )
            link.end_writing()
            with contextlib.suppress(Ended):
                while True:
                    link.read_exact(1)
    link = tls_link(address, context)
    link.send_raw(generator.randbytes(1000))
    with contextlib.suppress(Ended, ssl.SSLError):
        while True:
            link.read_exact(1)
    link.close()
    pair.sender(pair.file("f", 1000, generator.randrange(99)), address, *pki.ours.trusted).succeeds()
    check_still_serving(receiver)


def client_hello(context: ssl.SSLContext) -> bytes:
    """Return the first flight of a handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def test_names_of_this_machine_are_what_certificates_are_for() -> None:
    """A check of the tests themselves: a certificate without a name would fail everything for the wrong reason."""
    assert "IP:127.0.0.1" in HERE

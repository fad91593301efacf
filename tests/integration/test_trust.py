"""TLS where nobody has a CA: the receiver's certificate of one run, and what makes a sender trust it.

A token vouches for the certificate, as both proofs cover its digest; --tls-pin and --tls-ca decide instead of it.
"""

import contextlib
import signal
import ssl
from pathlib import Path
from typing import NamedTuple

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode
from filestreamer.wire.framing import read_body
from filestreamer.wire.limits import FRAME_BYTES
from filestreamer.wire.sockets import tls
from filestreamer.wire.sockets.certificate import make_ephemeral
from tests.integration.test_moves import own_address, printed_command, run_as_printed
from tests.support.certificates import Authority, Pem
from tests.support.relay import Relay
from tests.support.services import Pair, Service, same
from tests.support.staging import Staging
from tests.support.waiting import until

SHORT = "a token of 25 characters."
LONG = "a token that is long enough to vouch"
SIZE = 8_000_000
SLOW = ("--rate-limit", "2MB", "--connections", 2, "--chunk-size", "128KiB")
NOWHERE = {"XDG_RUNTIME_DIR": "/not/there", "XDG_CACHE_HOME": "/not/there", "HOME": "/not/there"}
"""The environment of a user who has no token of their own."""


class Certificates(NamedTuple):
    """Two authorities, and what the first one signed."""

    ours: Authority
    theirs: Authority
    receiver: Pem
    sender: Pem


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Return certificates for the whole module."""
    directory = tmp_path_factory.mktemp("pki")
    ours, theirs = Authority(directory, "ours"), Authority(directory, "theirs")
    return Certificates(ours, theirs, ours.issue("receiver"), ours.issue("sender", "DNS:sender"))


def token(text: str) -> dict[str, str]:
    return {"FILESTREAMER_TOKEN": text}


def digest(receiver: Service) -> str:
    """Return the SHA-256 of the certificate that a receiver has logged."""
    found = receiver.wait_for("certificate")["sha256"]
    assert isinstance(found, str)
    return found


def colons(sha256: str) -> str:
    """Write a digest as openssl does."""
    return ":".join(sha256[at : at + 2] for at in range(0, 64, 2)).upper()


def is_refused(pair: Pair, sender: Service, code: str) -> str:
    """Check that nothing was sent and nothing written; return the error."""
    message = sender.fails(3, code, status="refused")
    assert sender.result["sent_bytes"] == 0
    assert "f" not in pair.received()
    return message


# ---------------------------------------------------------------------------------------------- a token vouches for it


def test_the_same_user_types_nothing_but_tls(pair: Pair) -> None:
    file = pair.file("f", 3_000_000)
    receiver = pair.receiver("--once", "--tls")
    with Relay(pair.address(receiver)) as relay:
        pair.sender(file, relay.address, "--tls").succeeds()
        assert all(bytes(each.up).startswith(b"\x16\x03") for each in relay.carried)
        assert file.read_bytes()[:1000] not in relay.heard
    receiver.succeeds()
    assert same(file, pair.destination / "f")
    assert "--tls" in receiver.wait_for("token")["hint"]


def test_a_token_that_is_long_enough(pair: Pair) -> None:
    file = pair.file("f", 3_000_000)
    receiver = pair.receiver("--once", "--tls", env=token(LONG))
    pair.sender(file, pair.address(receiver), "--tls", env=token(LONG)).succeeds()
    assert same(file, pair.destination / "f")


def test_whatever_certificate_the_receiver_has(pair: Pair, pki: Certificates) -> None:
    """Of an unknown CA, expired, for another name: none of that matters to the proof."""
    expired = pki.theirs.issue("expired", "DNS:elsewhere.example", expired=True)
    receiver = pair.receiver("--once", *expired.shown, env=token(LONG))
    file = pair.file("f", 10_000)
    pair.sender(file, pair.address(receiver), "--tls", env=token(LONG)).succeeds()
    assert same(file, pair.destination / "f")


def in_between(pair: Pair, receiver: Service) -> Relay:
    """Return a relay with a certificate of its own, as who sits in between makes it."""
    as_client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    as_client.check_hostname, as_client.verify_mode = False, ssl.CERT_NONE
    as_server = tls.ephemeral_server_context(make_ephemeral([]), None).context
    return Relay(pair.address(receiver), as_server=as_server, as_client=as_client)


@pytest.mark.parametrize("env", [token(LONG), {}], ids=["given", "the user's own"])
def test_somebody_in_between_gets_a_proof_and_nothing_else(pair: Pair, env: dict[str, str]) -> None:
    receiver = pair.receiver("--tls", env=env)
    with in_between(pair, receiver) as relay:
        sender = pair.sender(pair.file("f", 10_000), relay.address, "--tls", env=env)
        assert "token" in is_refused(pair, sender, "token")
        heard = [bytes(each.up) for each in relay.carried if each.up]
    # A TLS handshake of the one in between that the sender has left is refused, too, and may be the first.
    until(lambda: "token" in [line["code"] for line in receiver.events("connection_refused")], "the token is refused")
    for opened in heard:
        # Control was not welcomed, so that no data connection says Hello. Control itself may be opened again: a reset
        # of the one in between may overtake the Refusal.
        assert kinds(opened) <= {"Hello CONTROL", "Proof"}


def kinds(said: bytes) -> set[str]:
    """Return the kinds of the frames that were said; a Hello with its role."""
    found, view = set(), memoryview(said)

    def read_exact(count: int) -> memoryview:
        nonlocal view
        if len(view) < count:
            raise EOFError
        some, view = view[:count], view[count:]
        return some

    with contextlib.suppress(EOFError):
        while True:
            message = decode(read_body(read_exact, FRAME_BYTES))
            found.add(f"Hello {message.role.name}" if isinstance(message, m.Hello) else type(message).__name__)
    return found


@pytest.mark.parametrize("env", [token(LONG), {}], ids=["given", "the user's own"])
def test_a_receiver_that_asks_for_no_token_is_not_trusted(pair: Pair, env: dict[str, str]) -> None:
    """Else whoever answers at the address could take the file: nothing vouches for the certificate."""
    receiver = pair.receiver("--tls", "--anonymous")
    with in_between(pair, receiver) as relay:
        sender = pair.sender(pair.file("f", 10_000), relay.address, "--tls", env=env)
        assert "token" in is_refused(pair, sender, "token")
        assert all(kinds(bytes(each.up)) <= {"Hello CONTROL"} for each in relay.carried)


def test_who_passes_no_token_is_not_told_of_one_that_was_given(pair: Pair) -> None:
    """On loopback the user's own token is proved, which nobody has passed: what helps is another thing."""
    file = pair.file("f", 10_000)
    anonymous = pair.receiver("--tls", "--anonymous")
    message = is_refused(pair, pair.sender(file, pair.address(anonymous), "--tls"), "token")
    assert "this user's own does not vouch for its certificate: pass --tls-ca, or --tls-pin" in message
    given = pair.receiver("--tls", env=token(LONG))
    message = is_refused(pair, pair.sender(file, pair.address(given), "--tls"), "token")
    assert message == "the receiver has another token than this user's own: pass --token-file or FILESTREAMER_TOKEN"
    pair.sender(file, pair.address(anonymous), "--tls-pin", digest(anonymous)).succeeds()


def test_a_receiver_that_is_started_anew(pair: Pair) -> None:
    """It has another certificate then: the token vouches for that one, too."""
    listen = f"127.0.0.1:{pair.port()}"
    first = pair.receiver("--tls", listen=listen, env=token(LONG))
    pair.address(first)
    file = pair.file("f", SIZE)
    sender = pair.sender(file, listen, "--tls", *SLOW, env=token(LONG))
    Staging(pair.destination, file.name).wait_for_records(4)
    first.signal(signal.SIGKILL)
    first.wait()
    second = pair.receiver("--once", "--tls", listen=listen, env=token(LONG))
    assert sender.succeeds()["held_bytes"] > 0
    second.succeeds()
    assert digest(first) != digest(second)
    assert same(file, pair.destination / "f")


def test_the_printed_command(pair: Pair) -> None:
    """Copied into a shell as it stands, it sends a file over TLS, to an address that no certificate names."""
    file = pair.file("FILE", 1_000_000)
    receiver = pair.receiver("--once", "--tls", listen=f"{own_address()}:0")
    command = printed_command(receiver)
    assert command.endswith(" --tls")
    assert run_as_printed(command, file).returncode == 0
    receiver.succeeds()
    assert same(file, pair.destination / "FILE")


# ----------------------------------------------------------------------------------------------- a token that is short


def test_a_short_token_vouches_for_nothing(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(SHORT)
    for flags, env in (((), token(SHORT)), (("--token-file", tmp_path / "token"), {})):
        sender = pair.sender(pair.file("f", 10), "127.0.0.1:9", "--tls", *flags, env=env)
        message = sender.fails(2, "usage")
        assert "25 characters" in message
        assert "--tls-ca or --tls-pin" in message
    receiver = pair.receiver("--once", "--tls", env=token(SHORT))
    told = receiver.wait_for("certificate")
    assert told["level"] == "warning"
    assert f"--tls-pin {told['sha256']}" in told["reason"]
    assert "fewer than 32 characters" in told["reason"]
    file = pair.file("f", 10_000)
    pair.sender(file, pair.address(receiver), "--tls-pin", told["sha256"], env=token(SHORT)).succeeds()
    assert same(file, pair.destination / "f")


def test_without_a_token(pair: Pair) -> None:
    receiver = pair.receiver("--once", "--tls", "--anonymous")
    told = receiver.wait_for("certificate")
    assert f"there is no token: senders have to pass --tls-pin {told['sha256']}" in told["reason"]
    file = pair.file("f", 10_000)
    message = is_refused(pair, pair.sender(file, pair.address(receiver), "--tls", env=NOWHERE), "policy")
    assert f"--tls-pin {told['sha256']}" in message
    assert "a token of at least 32 characters" in message
    pair.sender(file, pair.address(receiver), "--tls-pin", told["sha256"], env=NOWHERE).succeeds()


# ---------------------------------------------------------------------------------------------------------------- pins


@pytest.mark.parametrize("write", [str, str.upper, colons, lambda pin: f"{'0' * 64},{pin}"])
def test_a_pin_alone_decides(pair: Pair, pki: Certificates, write: object) -> None:
    """Of a certificate that has expired and is for another name, of a CA that nobody knows."""
    assert callable(write)
    expired = pki.theirs.issue("pinned", "DNS:elsewhere.example", expired=True)
    receiver = pair.receiver("--once", *expired.shown)
    assert digest(receiver) == expired.sha256.hex()
    file = pair.file("f", 3_000_000)
    pair.sender(file, pair.address(receiver), "--tls-pin", write(digest(receiver))).succeeds()
    assert same(file, pair.destination / "f")


def test_the_wrong_pin(pair: Pair) -> None:
    """Even with the right token: what the user names decides."""
    receiver = pair.receiver("--tls", env=token(LONG))
    sender = pair.sender(pair.file("f", 10), pair.address(receiver), "--tls-pin", "ab" * 32, env=token(LONG))
    message = is_refused(pair, sender, "policy")
    assert f"has the SHA-256 {digest(receiver)}" in message
    assert f"--tls-pin expects {'ab' * 32}" in message


def test_pins_from_everywhere(pair: Pair, tmp_path: Path) -> None:
    receiver = pair.receiver("--tls")
    address, pin = pair.address(receiver), digest(receiver)
    (tmp_path / "config.json").write_text(f'{{"tls_pin": ["{"00" * 32}", "{pin}"]}}')
    pair.sender(pair.file("f", 10), address, "--config", tmp_path / "config.json").succeeds()
    pair.sender(pair.file("g", 10), address, env={"FILESTREAMER_TLS_PIN": f"{'00' * 32}\n{colons(pin)}"}).succeeds()
    pair.sender(pair.file("h", 10), address, "--tls-pin", "00" * 32, "--tls-pin", pin).succeeds()


def test_a_ca_and_a_pin_must_both_hold(pair: Pair, pki: Certificates) -> None:
    receiver = pair.receiver("--once", *pki.receiver.shown)
    address, pin = pair.address(receiver), ("--tls-pin", digest(receiver))
    file = pair.file("f", 10)
    assert "expects" in is_refused(
        pair, pair.sender(file, address, *pki.ours.trusted, "--tls-pin", "ab" * 32), "policy"
    )
    assert "issuer" in is_refused(pair, pair.sender(file, address, *pki.theirs.trusted, *pin), "policy")
    pair.sender(file, address, *pki.ours.trusted, *pin).succeeds()


def test_a_ca_decides_instead_of_the_token(pair: Pair, pki: Certificates) -> None:
    receiver = pair.receiver("--tls", env=token(LONG))
    sender = pair.sender(pair.file("f", 10), pair.address(receiver), *pki.ours.trusted, env=token(LONG))
    assert "signed by itself" in is_refused(pair, sender, "policy")


def test_a_pinned_receiver_that_is_started_anew_is_another_one(pair: Pair) -> None:
    listen = f"127.0.0.1:{pair.port()}"
    first = pair.receiver("--tls", listen=listen)
    pair.address(first)
    file = pair.file("f", SIZE)
    sender = pair.sender(file, listen, "--tls-pin", digest(first), *SLOW)
    Staging(pair.destination, file.name).wait_for_records(4)
    first.signal(signal.SIGKILL)
    first.wait()
    second = pair.receiver("--tls", listen=listen)
    assert digest(second) in sender.fails(3, "policy", status="refused")


# ------------------------------------------------------------------------------------------------- the receiver's side


def test_senders_certificates_without_one_of_the_receiver(pair: Pair, pki: Certificates) -> None:
    receiver = pair.receiver("--once", "--tls", *pki.ours.trusted)
    address, file = pair.address(receiver), pair.file("f", 10_000)
    message = is_refused(pair, pair.sender(file, address, "--tls"), "policy")
    assert "pass --tls-cert and --tls-key" in message
    pair.sender(file, address, *pki.sender.shown).succeeds()
    assert same(file, pair.destination / "f")


def test_a_ca_for_nothing(pair: Pair, pki: Certificates) -> None:
    message = pair.receiver(*pki.ours.trusted).fails(2, "usage")
    assert "or --tls for a certificate of this run" in message


@pytest.mark.parametrize("side", ["receiver", "sender"])
def test_an_expired_certificate_is_told_at_the_start(pair: Pair, pki: Certificates, side: str) -> None:
    expired = pki.ours.issue(f"expired-{side}", expired=True)
    receiver = pair.receiver("--tls", *(expired.shown if side == "receiver" else ()))
    sender = pair.sender(
        pair.file("f", 10), pair.address(receiver), "--tls", *(expired.shown if side == "sender" else ())
    )
    sender.succeeds()  # the token vouches for the receiver's, and nobody asked for the sender's
    (told,) = {"receiver": receiver, "sender": sender}[side].events("certificate_not_valid")
    if side == "receiver":
        events = [line["event"] for line in receiver.log]
        assert events.index("certificate_not_valid") < events.index("listening")
    assert "expired on 2020-01-02 00:00 UTC; this machine's clock says 20" in told["reason"]

"""Certificates, CAs and tokens whose files are replaced while services run, without any signal."""

import os
import shutil
import socket
import ssl
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.certificates import Authority, Pem
from tests.support.proxy import Proxy
from tests.support.relay import Relay
from tests.support.services import Pair, Service, same
from tests.support.staging import Staging
from tests.support.waiting import until

OLD, NEW = "the token of before", "the token from now on"
SLOW = ("--rate-limit", "1MB", "--connections", 2, "--chunk-size", "128KiB")
SIZE = 8_000_000


class Certificates(NamedTuple):
    """Two authorities, a receiver's certificate of each, and one for a sender of each."""

    old: Authority
    new: Authority
    old_receiver: Pem
    new_receiver: Pem
    old_sender: Pem
    new_sender: Pem


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Return certificates for the whole module."""
    directory = tmp_path_factory.mktemp("pki")
    old, new = Authority(directory, "old"), Authority(directory, "new")
    receivers = old.issue("old-receiver"), new.issue("new-receiver")
    return Certificates(old, new, *receivers, old.issue("old-sender"), new.issue("new-sender"))


def put(text: str, path: Path) -> None:
    """Replace a file as a whole: half of one is none that a service could use, and it says so."""
    new = path.with_name(f".{path.name}")
    new.write_text(text)
    new.chmod(0o600)
    new.rename(path)


class Files:
    """The files that services are given; what they say is replaced in the tests."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.certificate = directory / "tls.crt"
        self.key = directory / "tls.key"
        self.ca = directory / "ca.crt"
        self.token = directory / "token"

    def show(self, pem: Pem) -> None:
        put(pem.certificate.read_text(), self.certificate)
        put(pem.key.read_text(), self.key)

    def trust(self, authority: Authority) -> None:
        put(authority.certificate.read_text(), self.ca)

    def say(self, token: str) -> None:
        put(token, self.token)

    @property
    def shown(self) -> tuple[object, ...]:
        return "--tls-cert", self.certificate, "--tls-key", self.key

    @property
    def trusted(self) -> tuple[object, ...]:
        return "--tls-ca", self.ca

    @property
    def secret(self) -> tuple[object, ...]:
        return "--token-file", self.token


@pytest.fixture
def ours(tmp_path: Path) -> Files:
    """Return the receiver's files."""
    return Files(tmp_path / "receiver-files")


@pytest.fixture
def theirs(tmp_path: Path) -> Files:
    """Return the sender's files."""
    return Files(tmp_path / "sender-files")


def certificate_of(address: str) -> str:
    """Return the certificate that a receiver shows, as PEM."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port))) as sock, context.wrap_socket(sock) as secured:
        shown = secured.getpeercert(binary_form=True)
    assert shown
    return ssl.DER_cert_to_PEM_cert(shown).strip()


def moving(pair: Pair, file: Path, sender: Service) -> None:
    """Wait until some of a file is in the staging."""
    Staging(pair.destination, file.name).wait_for_records(4)
    assert sender.poll() is None


# ------------------------------------------------------------------------------------------------------- certificates


def test_a_renewed_certificate_is_shown(pair: Pair, pki: Certificates, ours: Files) -> None:
    """Not before the key fits, too; and a transfer that is under way goes on."""
    ours.show(pki.old_receiver)
    receiver = pair.receiver(*ours.shown)
    address = pair.address(receiver)
    file = pair.file("f", SIZE)
    sender = pair.sender(file, address, *pki.old.trusted, *SLOW)
    moving(pair, file, sender)
    put(pki.new_receiver.certificate.read_text(), ours.certificate)
    assert "does not belong to the certificate" in receiver.wait_for("not_renewed")["reason"]
    assert certificate_of(address) == pki.old_receiver.certificate.read_text().strip()
    put(pki.new_receiver.key.read_text(), ours.key)
    receiver.wait_for("renewed")
    assert certificate_of(address) == pki.new_receiver.certificate.read_text().strip()
    assert len(receiver.events("not_renewed")) == 1
    assert sender.succeeds()["reconnects"] == 0
    pair.sender(pair.file("g", 1000), address, *pki.new.trusted).succeeds()
    pair.sender(pair.file("h", 1000), address, *pki.old.trusted).fails(3, "policy", status="refused")


def test_a_secret_of_kubernetes(pair: Pair, pki: Certificates, tmp_path: Path) -> None:
    """Its files are links through `..data`, which is replaced."""
    secret = tmp_path / "secret"
    for name, pem in (("..1", pki.old_receiver), ("..2", pki.new_receiver)):
        (secret / name).mkdir(parents=True)
        shutil.copy(pem.certificate, secret / name / "tls.crt")
        shutil.copy(pem.key, secret / name / "tls.key")
    (secret / "..data").symlink_to("..1")
    for name in ("tls.crt", "tls.key"):
        (secret / name).symlink_to(f"..data/{name}")
    receiver = pair.receiver("--tls-cert", secret / "tls.crt", "--tls-key", secret / "tls.key")
    address = pair.address(receiver)
    (secret / "..data_tmp").symlink_to("..2")
    (secret / "..data_tmp").rename(secret / "..data")
    shutil.rmtree(secret / "..1")
    receiver.wait_for("renewed")
    assert certificate_of(address) == pki.new_receiver.certificate.read_text().strip()
    assert not receiver.events("not_renewed")


def test_a_chain_that_is_half_written(pair: Pair, pki: Certificates, ours: Files, tmp_path: Path) -> None:
    """Its first certificate is whole, and fits the key; without the others, no sender would trust the receiver."""
    middle = Authority(tmp_path, "middle", pki.old)
    below = middle.issue("below")
    chain = below.certificate.read_text() + middle.certificate.read_text()
    ours.show(below)
    put(chain, ours.certificate)
    receiver = pair.receiver(*ours.shown)
    address = pair.address(receiver)
    put(chain[:-100], ours.certificate)
    assert "it is cut short" in receiver.wait_for("not_renewed")["reason"]
    pair.sender(pair.file("f", 1000), address, *pki.old.trusted).succeeds()
    put(chain, ours.certificate)
    receiver.wait_for("renewed")
    pair.sender(pair.file("g", 1000), address, *pki.old.trusted).succeeds()


def test_files_that_are_gone(pair: Pair, pki: Certificates, ours: Files) -> None:
    ours.show(pki.old_receiver)
    ours.say(OLD)
    receiver = pair.receiver(*ours.shown, *ours.secret)
    address = pair.address(receiver)
    for path in (ours.certificate, ours.key, ours.token):
        path.unlink()
    receiver.wait_for("not_renewed", count=2)
    token = {"FILESTREAMER_TOKEN": OLD}
    pair.sender(pair.file("f", 1000), address, *pki.old.trusted, env=token).succeeds()
    ours.show(pki.new_receiver)
    ours.say(NEW)
    receiver.wait_for("renewed", count=2)
    pair.sender(pair.file("g", 1000), address, *pki.new.trusted, env={"FILESTREAMER_TOKEN": NEW}).succeeds()
    assert len(receiver.events("not_renewed")) == 2


def test_both_sides_get_certificates_of_another_ca(pair: Pair, pki: Certificates, ours: Files, theirs: Files) -> None:
    """The sender connects again with its new one, and accepts the receiver's new one."""
    ours.show(pki.old_receiver)
    ours.trust(pki.old)
    theirs.show(pki.old_sender)
    theirs.trust(pki.old)
    receiver = pair.receiver("--once", *ours.shown, *ours.trusted)
    file = pair.file("f", SIZE)
    address = pair.address(receiver)
    with Relay(address) as relay:
        sender = pair.sender(file, relay.address, *theirs.shown, *theirs.trusted, *SLOW)
        moving(pair, file, sender)
        for files, renewed in ((theirs, pki.new_sender), (ours, pki.new_receiver)):
            files.trust(pki.new)
            files.show(renewed)
        until(lambda: certificate_of(address) == pki.new_receiver.certificate.read_text().strip(), "it is renewed")
        for connection in relay.carried:
            connection.reset()
        assert sender.succeeds()["reconnects"] >= 1
    receiver.succeeds()
    assert sender.events("renewed")
    assert same(file, pair.destination / "f")


# -------------------------------------------------------------------------------------------------------------- tokens


def test_a_renewed_token_is_asked_for(pair: Pair, ours: Files) -> None:
    ours.say(OLD)
    receiver = pair.receiver(*ours.secret)
    address = pair.address(receiver)
    ours.say("short")
    assert "5 characters" in receiver.wait_for("not_renewed")["reason"]
    pair.sender(pair.file("f", 1000), address, env={"FILESTREAMER_TOKEN": OLD}).succeeds()
    ours.say(NEW)
    receiver.wait_for("renewed")
    pair.sender(pair.file("g", 1000), address, env={"FILESTREAMER_TOKEN": NEW}).succeeds()
    pair.sender(pair.file("h", 1000), address, env={"FILESTREAMER_TOKEN": OLD}).fails(3, "token", status="refused")
    assert NEW not in receiver.stderr


def test_a_transfer_goes_on_with_the_token_of_before(pair: Pair, ours: Files) -> None:
    """Its sender has it from the environment, and all of its connections are lost."""
    ours.say(OLD)
    receiver = pair.receiver(*ours.secret)
    file = pair.file("f", SIZE)
    old = {"FILESTREAMER_TOKEN": OLD}
    with Proxy(pair.address(receiver)) as proxy:
        sender = pair.sender(file, proxy.address, *SLOW, env=old)
        moving(pair, file, sender)
        ours.say(NEW)
        receiver.wait_for("renewed")
        proxy.reset("*")
        assert sender.succeeds()["reconnects"] >= 1
        pair.sender(pair.file("g", 1000), proxy.address, env=old).fails(3, "token", status="refused")
    assert same(file, pair.destination / "f")


def test_the_sender_connects_again_with_the_renewed_token(pair: Pair, ours: Files, theirs: Files) -> None:
    """A receiver that was restarted meanwhile knows only the new one."""
    ours.say(OLD)
    theirs.say(OLD)
    receiver = pair.receiver(*ours.secret)
    file = pair.file("f", SIZE)
    address = pair.address(receiver)
    sender = pair.sender(file, address, *theirs.secret, *SLOW)
    moving(pair, file, sender)
    receiver.end()
    ours.say(NEW)
    theirs.say(NEW)
    receiver = pair.receiver("--once", *ours.secret, listen=address)
    assert sender.succeeds()["held_bytes"] > 0
    receiver.succeeds()
    assert same(file, pair.destination / "f")


def test_a_sender_whose_token_is_renewed_first(pair: Pair, ours: Files, theirs: Files) -> None:
    """The receiver does not know the new one yet: the one of before does."""
    ours.say(OLD)
    theirs.say(OLD)
    receiver = pair.receiver("--once", *ours.secret)
    file = pair.file("f", SIZE)
    with Proxy(pair.address(receiver)) as proxy:
        sender = pair.sender(file, proxy.address, *theirs.secret, *SLOW)
        moving(pair, file, sender)
        theirs.say(NEW)
        proxy.reset("*")
        assert sender.succeeds()["reconnects"] >= 1
    receiver.succeeds()
    assert sender.events("renewed")
    assert same(file, pair.destination / "f")


def test_a_token_that_nobody_knows_any_more_is_refused(pair: Pair, ours: Files, theirs: Files) -> None:
    """Neither the new one nor the one of before: that does not get better by trying."""
    ours.say(OLD)
    theirs.say(OLD)
    receiver = pair.receiver(*ours.secret)
    file = pair.file("f", SIZE)
    address = pair.address(receiver)
    sender = pair.sender(file, address, *theirs.secret, *SLOW)
    moving(pair, file, sender)
    receiver.end()
    ours.say("a third one that is known to nobody")
    theirs.say(NEW)
    pair.receiver(*ours.secret, listen=address)
    assert "token" in sender.fails(3, "token", status="refused")


def test_a_token_from_a_pipe_is_read_once(pair: Pair, tmp_path: Path) -> None:
    pipe = tmp_path / "token"
    os.mkfifo(pipe)
    receiver = pair.receiver("--token-file", pipe)
    pipe.write_text(OLD)
    address = pair.address(receiver)
    pipe.unlink()
    pipe.write_text(NEW)
    for name in ("f", "g"):
        pair.sender(pair.file(name, 1000), address, env={"FILESTREAMER_TOKEN": OLD}).succeeds()
    assert not receiver.events("not_renewed") + receiver.events("renewed")


@pytest.mark.parametrize("where", ["the user's own", "kept in the destination"])
def test_a_token_that_the_receiver_chose(pair: Pair, tmp_path: Path, where: str) -> None:
    """Removing its file and starting another receiver makes a new one: the first receiver takes that, too."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    if where == "the user's own":
        env, listen, file = {"XDG_RUNTIME_DIR": str(runtime)}, "127.0.0.1:0", runtime / "filestreamer" / "token"
    else:
        env, listen, file = {}, "0.0.0.0:0", pair.destination / ".filestreamer" / "token"
    receiver = pair.receiver(listen=listen, env=env)
    port = pair.address(receiver).rpartition(":")[2]
    old = file.read_text()
    file.unlink()
    receiver.wait_for("not_renewed")
    pair.sender(pair.file("f", 1000), f"127.0.0.1:{port}", env={"FILESTREAMER_TOKEN": old.strip()}).succeeds()
    pair.address(pair.receiver(listen=listen, env=env))
    receiver.wait_for("renewed")
    new = file.read_text()
    assert new != old
    pair.sender(pair.file("g", 1000), f"127.0.0.1:{port}", env={"FILESTREAMER_TOKEN": new.strip()}).succeeds()

"""What each end says of a handshake that fails for a certificate: which fault it is, and what to do, on both sides."""

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from filestreamer.wire.errors import Code, RemoteProtocolError, UsageError
from filestreamer.wire.sockets import tls, tls_errors
from filestreamer.wire.sockets.certificate import facts, make_ephemeral
from tests.support.certificates import Authority, Pem, make_key, openssl

HOST = "localhost"
FUTURE = ("-startdate", "20400101000000Z", "-enddate", "20410101000000Z")


class Pki(NamedTuple):
    """Two authorities, an intermediate of the first, and what they signed."""

    directory: Path
    ours: Authority
    theirs: Authority
    middle: Authority
    receiver: Pem
    sender: Pem


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Return certificates for the whole module."""
    directory = tmp_path_factory.mktemp("pki")
    ours, theirs = Authority(directory, "ours"), Authority(directory, "theirs")
    middle = Authority(directory, "middle", ours)
    return Pki(directory, ours, theirs, middle, ours.issue("receiver"), ours.issue("sender", "DNS:sender"))


class Said(NamedTuple):
    """What the two ends say; None where the handshake succeeds there."""

    sender: str | None
    receiver: str | None


def shake(server: ssl.SSLContext, client: ssl.SSLContext, host: str = HOST, *, has_ca: bool = True) -> Said:
    """Do a handshake in memory, and a read of the client: it gets the server's refusal after its own handshake."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = {
        "sender": client.wrap_bio(down, up, server_hostname=host),
        "receiver": server.wrap_bio(up, down, server_side=True),
    }
    said: dict[str, str] = {}
    for _ in range(3):
        for name, end in ends.items():
            if name in said:
                continue
            try:
                end.do_handshake()
                end.read(1)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                chain = tls_errors.verified_chain(end)
                if name == "sender":
                    explained = tls_errors.explain(error, chain=chain, host=host, has_ca=has_ca)
                else:
                    explained = tls_errors.explain_as_receiver(error, chain)
                assert explained.code is Code.POLICY
                assert str(explained).isprintable()
                said[name] = str(explained)
    return Said(said.get("sender"), said.get("receiver"))


def server(shown: Pem, ca: Path | None = None) -> ssl.SSLContext:
    return tls.server_context(str(shown.certificate), str(shown.key), str(ca) if ca else None).context


def client(ca: Path, shown: Pem | None = None) -> ssl.SSLContext:
    own = (str(shown.certificate), str(shown.key)) if shown else (None, None)
    return tls.client_context(str(ca), *own).context


def issue_below(ca: Path, ca_key: Path, directory: Path, name: str, *extensions: str) -> Pem:
    """Issue a certificate by another CA than an `Authority`, without that CA above it."""
    made = Pem(directory / f"{name}-leaf.pem", make_key(directory / f"{name}.key"))
    request, file = directory / f"{name}.csr", directory / f"{name}.extensions"
    file.write_text("\n".join(("subjectAltName=DNS:localhost", *extensions)))
    openssl("req", "-new", "-key", made.key, "-subj", "/CN=leaf", "-out", request)
    signing = ("-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-extfile", file, "-days", 2)
    openssl("x509", "-req", "-in", request, *signing, "-out", made.certificate)
    return made


def with_above(shown: Pem, ca: Path) -> Pem:
    chain = shown.certificate.with_suffix(".chain")
    chain.write_bytes(shown.certificate.read_bytes() + ca.read_bytes())
    return shown._replace(certificate=chain)


Issue = Callable[[Pki, str], Pem]

FAULTS: dict[str, tuple[Issue, tuple[str, ...], tuple[str, ...], str]] = {
    # the certificate; words of the end that refuses it; those that it must not say; a word of the end that showed it
    "expired": (
        lambda pki, name: pki.ours.issue(name, expired=True),
        ("expired on 2020-01-02 00:00 UTC", "this machine's clock says 20", "renew it, or put the clock right"),
        ("--tls-ca",),
        "has expired by",
    ),
    "not yet valid": (
        lambda pki, name: pki.ours.issue(name, times=FUTURE),
        ("is not valid before 2040-01-01 00:00 UTC", "this machine's clock says 20", "put the clock right"),
        ("--tls-ca",),
        "not valid yet",
    ),
    "another issuer": (
        lambda pki, name: pki.theirs.issue(name),
        ("issuer", "filestreamer test theirs", "--tls-ca must have the CA that signed it"),
        ("renew",),
        "--tls-ca there must have the CA",
    ),
    "key usage": (
        lambda pki, name: pki.ours.issue(name, extensions=["keyUsage=critical,keyCertSign"]),
        ("key usage without digitalSignature", "purpose"),
        ("--tls-ca",),
        "key usage",
    ),
}


@pytest.fixture(params=list(FAULTS))
def fault(request: pytest.FixtureRequest) -> tuple[Issue, tuple[str, ...], tuple[str, ...], str]:
    """Return one fault after the other."""
    return FAULTS[request.param]


def check(refuses: str | None, shows: str | None, fault: tuple[Issue, tuple[str, ...], tuple[str, ...], str]) -> None:
    _, words, others, word = fault
    assert refuses is not None
    assert shows is not None
    assert [each for each in words if each not in refuses] == []
    assert [each for each in others if each in refuses] == []
    assert word in shows
    assert "log or error" in shows


def test_a_receivers_certificate(pki: Pki, fault: tuple[Issue, tuple[str, ...], tuple[str, ...], str]) -> None:
    said = shake(server(fault[0](pki, "bad-receiver")), client(pki.ours.certificate))
    check(said.sender, said.receiver, fault)
    assert str(said.sender).startswith(("the receiver's certificate", "the issuer of the receiver's certificate"))
    assert str(said.receiver).startswith("the sender does not accept this receiver's certificate")


def test_a_senders_certificate(pki: Pki, fault: tuple[Issue, tuple[str, ...], tuple[str, ...], str]) -> None:
    shown = fault[0](pki, "bad-sender")
    said = shake(server(pki.receiver, pki.ours.certificate), client(pki.ours.certificate, shown))
    check(said.receiver, said.sender, fault)
    assert str(said.receiver).startswith(("the sender's certificate", "the issuer of the sender's certificate"))
    assert str(said.sender).startswith("the receiver does not accept this sender's certificate")


def test_certificates_of_the_other_side_of_tls(pki: Pki) -> None:
    for_clients = pki.ours.issue("for-clients", extensions=["extendedKeyUsage=clientAuth"])
    for_servers = pki.ours.issue("for-servers", extensions=["extendedKeyUsage=serverAuth"])
    said = shake(server(for_clients), client(pki.ours.certificate))
    assert "extended key usage clientAuth, and needs serverAuth" in str(said.sender)
    assert "extended key usage" in str(said.receiver)
    said = shake(server(pki.receiver, pki.ours.certificate), client(pki.ours.certificate, for_servers))
    assert "extended key usage serverAuth, and needs clientAuth" in str(said.receiver)
    assert "extended key usage" in str(said.sender)


@pytest.mark.parametrize(
    "extensions",
    [
        ["keyUsage=digitalSignature"],
        ["keyUsage=keyEncipherment,dataEncipherment", "extendedKeyUsage=serverAuth"],  # what many instructions have
        ["keyUsage=keyEncipherment"],
        ["keyUsage=keyAgreement"],
        ["keyUsage=nonRepudiation"],
        ["extendedKeyUsage=serverAuth,clientAuth"],
        ["extendedKeyUsage=clientAuth"],
        ["extendedKeyUsage=anyExtendedKeyUsage"],
        ["extendedKeyUsage=anyExtendedKeyUsage,serverAuth"],
        ["extendedKeyUsage=codeSigning"],
        ["basicConstraints=critical,CA:TRUE"],
    ],
    ids=" ".join,
)
def test_what_is_told_of_ones_own_certificate_is_what_peers_do(pki: Pki, extensions: list[str]) -> None:
    """Whether it is good for a side, which is told when that side starts; and peers that refuse it say the same."""
    shown = pki.ours.issue("of-some-usage", extensions=extensions)
    read = facts(ssl.PEM_cert_to_DER_cert(shown.certificate.read_text()))
    assert read is not None
    refusals = {
        "receiver": shake(server(shown), client(pki.ours.certificate)).sender,
        "sender": shake(server(pki.receiver, pki.ours.certificate), client(pki.ours.certificate, shown)).receiver,
    }
    for side, refusal in refusals.items():
        fault = read.fault_of_usage("receiver" if side == "receiver" else "sender")
        assert (fault is None) == (refusal is None)
        assert (fault or "") in (refusal or "")


def test_a_ca_that_is_for_one_side_of_tls_only(pki: Pki) -> None:
    """It is named, and not the certificate below it, which would be the same if it were issued anew."""
    key, ca = make_key(pki.directory / "servers-ca.key"), pki.directory / "servers-ca.pem"
    pki.ours.sign(key, "/CN=servers ca", ca, "basicConstraints=critical,CA:TRUE", "extendedKeyUsage=serverAuth")
    shown = with_above(issue_below(ca, key, pki.directory, "below"), ca)
    said = shake(server(pki.receiver, pki.ours.certificate), client(pki.ours.certificate, shown))
    assert "the CA CN=servers ca above the sender's certificate has the extended key usage serverAuth" in str(
        said.receiver
    )
    assert "by another CA" in str(said.receiver)


def test_a_ca_that_was_made_anew_under_its_name(pki: Pki, tmp_path: Path) -> None:
    """A certificate may say nothing of the key of its issuer, whose name is known here."""
    key, ca = make_key(tmp_path / "anew.key"), tmp_path / "anew.pem"
    openssl("req", "-x509", "-key", key, "-subj", "/CN=filestreamer test ours", "-days", 2, "-out", ca)
    shown = issue_below(ca, key, tmp_path, "shown", "authorityKeyIdentifier=none")
    refused = (
        "is not signed by the CA of its issuer's name here: --tls-ca must have the CA that signed it",
        "--tls-ca there must have the CA that did",
    )
    said = shake(server(shown), client(pki.ours.certificate))
    assert refused[0] in str(said.sender)
    assert refused[1] in str(said.receiver)
    said = shake(server(pki.receiver, pki.ours.certificate), client(pki.ours.certificate, shown))
    assert refused[0] in str(said.receiver)
    assert refused[1] in str(said.sender)


def test_a_sender_without_a_certificate(pki: Pki) -> None:
    said = shake(server(pki.receiver, pki.ours.certificate), client(pki.ours.certificate))
    assert "pass --tls-cert and --tls-key" in str(said.sender)
    assert "the sender shows no certificate: it needs --tls-cert" in str(said.receiver)


@pytest.mark.parametrize(
    ("names", "host", "shown"),
    [
        (("DNS:elsewhere.example", "IP:192.0.2.1"), "localhost", "it is for elsewhere.example, 192.0.2.1."),
        (("DNS:elsewhere.example",), "127.0.0.1", "it is for elsewhere.example."),
        (("email:somebody@elsewhere.example",), "localhost", "it is for somebody@elsewhere.example."),
        ((f"DNS:{'a' * 50}.{'b' * 50}.example",), "localhost", f"it is for {'a' * 50}.{'b' * 49}...."),
    ],
)
def test_another_name(pki: Pki, names: tuple[str, ...], host: str, shown: str) -> None:
    said = shake(server(pki.ours.issue("named", *names)), client(pki.ours.certificate), host)
    assert f"does not match {host}: {shown} Use such a name in --to" in str(said.sender)
    assert "--tls-ca" not in str(said.sender)
    assert "another name" in str(said.receiver)


@pytest.mark.parametrize(
    ("name", "host", "kind"),
    [("DNS:127.0.0.1", "127.0.0.1", "an IP address"), ("URI:localhost", "localhost", "a DNS name")],
)
def test_a_name_that_is_of_another_kind(pki: Pki, name: str, host: str, kind: str) -> None:
    """Such as an address among the DNS names, as many tools make it: it is not told that 127.0.0.1 is another name."""
    said = shake(server(pki.ours.issue("named", name)), client(pki.ours.certificate), host)
    assert f"does not match {host}: it has that in its subjectAltName, but not as {kind}:" in str(said.sender)
    assert "Use such a name" not in str(said.sender)


def test_a_certificate_without_names(pki: Pki) -> None:
    out = pki.directory / "nameless.pem"
    key = make_key(pki.directory / "nameless.key")
    pki.ours.sign(key, "/CN=somebody", out)
    said = shake(server(Pem(out, key)), client(pki.ours.certificate))
    assert "does not match localhost: it names no host (subjectAltName)" in str(said.sender)


def test_a_certificate_that_signs_itself(pki: Pki) -> None:
    made = make_ephemeral([])
    context = tls.ephemeral_server_context(made, None)
    said = shake(context.context, client(pki.ours.certificate))
    assert "signed by itself" in str(said.sender)
    assert f"--tls-pin {context.sha256.hex()}" in str(said.sender)
    # Without --tls-ca, a token is a remedy, too.
    said = shake(context.context, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), has_ca=False)
    assert "a token of at least 32 characters" in str(said.sender)


def test_the_ca_has_expired(pki: Pki) -> None:
    """The certificate is good: the one above it has to be renewed, and is named."""
    key = make_key(pki.directory / "old-ca.key")
    old = pki.directory / "old-ca.pem"
    times = ("-startdate", "20200101000000Z", "-enddate", "20200102000000Z")
    pki.ours.sign(key, "/CN=old ca", old, "basicConstraints=critical,CA:TRUE", times=times)
    shown = with_above(issue_below(old, key, pki.directory, "under-old"), old)
    said = shake(server(shown), client(pki.ours.certificate))
    assert "the CA CN=old ca above the receiver's certificate expired on 2020-01-02" in str(said.sender)


@pytest.mark.parametrize(
    ("algorithm", "digest", "says"),
    [
        (("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"), "sha256", "its key is too short"),
        (("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"), "sha1", "SHA-1 or MD5"),
    ],
)
def test_a_weak_certificate(pki: Pki, algorithm: tuple[str, ...], digest: str, says: str) -> None:
    """Who shows it is told at the start; who gets it from a peer that is less strict says the same."""
    key = pki.directory / "weak.key"
    openssl("genpkey", *algorithm, "-out", key)
    weak = pki.ours.issue("weak", key=key, digest=digest)
    if ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).security_level < 2:
        pytest.skip("OpenSSL accepts such certificates here")
    with pytest.raises(UsageError, match=rf"--tls-cert .*: .*{says}.*: make a new one with a key of RSA 2048"):
        server(weak)
    lax = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    lax.set_ciphers("DEFAULT:@SECLEVEL=0")
    lax.load_cert_chain(weak.certificate, weak.key)
    said = shake(lax, client(pki.ours.certificate))
    assert says in str(said.sender)
    assert "make a new one" in str(said.sender)
    assert "weak" in str(said.receiver)


@pytest.mark.parametrize("anchor", ["ours", "middle", "itself"])
def test_what_may_be_trusted(pki: Pki, anchor: str) -> None:
    """A root, an intermediate, or the certificate itself, by either end; the peer shows the whole chain, or its own."""
    leaf = pki.middle.issue("under-middle")
    chain = pki.directory / "chain.pem"
    chain.write_bytes(leaf.certificate.read_bytes() + pki.middle.certificate.read_bytes())
    ca = {"ours": pki.ours.certificate, "middle": pki.middle.certificate, "itself": leaf.certificate}[anchor]
    for shown in {"ours": [chain]}.get(anchor, [chain, leaf.certificate]):
        own = Pem(shown, leaf.key)
        assert shake(server(own), client(ca)) == Said(None, None)
        assert shake(server(own, ca), client(ca, own)) == Said(None, None)
    assert shake(server(pki.receiver), client(leaf.certificate)).sender is not None


def test_a_missing_intermediate(pki: Pki) -> None:
    said = shake(server(pki.middle.issue("alone")), client(pki.ours.certificate))
    assert "filestreamer test middle" in str(said.sender)
    assert "the receiver's --tls-cert those in between" in str(said.sender)


def test_the_wrong_pin_shows_both() -> None:
    said = str(tls_errors.wrong_pin(b"\x01" * 32, [b"\x02" * 32, b"\x03" * 32]))
    assert f"has the SHA-256 {'01' * 32}" in said
    assert f"--tls-pin expects {'02' * 32} or {'03' * 32}" in said


def test_a_peer_without_tls_1_3(pki: Pki) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(pki.ours.certificate)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert "speaks no TLS 1.3" in str(shake(server(pki.receiver), old).receiver)


def test_a_server_without_tls_1_3(pki: Pki) -> None:
    """It is no receiver: a proxy, for instance. It sends an alert or, if it is an old one, a Hello of TLS 1.2."""
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.load_cert_chain(pki.receiver.certificate, pki.receiver.key)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    expected = "speaks no TLS 1.3: either it is not the receiver, or a proxy before it ends TLS"
    assert expected in str(shake(old, client(pki.ours.certificate)).sender)
    assert expected in str(tls_errors.explain(failure("UNSUPPORTED_PROTOCOL")))


def failure(reason: str) -> ssl.SSLError:
    """Return an error of this reason, as OpenSSL names it."""
    error = ssl.SSLError(1, reason.lower())
    error.reason = reason
    return error


@pytest.mark.parametrize(
    "reason",
    ["DECRYPTION_FAILED_OR_BAD_RECORD_MAC", "SSLV3_ALERT_BAD_RECORD_MAC", "TLSV1_ALERT_DECODE_ERROR", "BAD_EXTENSION"],
)
def test_a_handshake_that_was_damaged(reason: str) -> None:
    for explained in (tls_errors.explain(failure(reason)), tls_errors.explain_as_receiver(failure(reason))):
        assert (explained.code, explained.retryable) == (Code.CORRUPT, True)
        assert "damaged on the way" in str(explained)


@pytest.mark.parametrize("reason", ["WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"])
def test_bytes_that_are_no_record(reason: str) -> None:
    """The versions of OpenSSL have several words for them. From a peer that has said Hello, they are damaged."""
    for explain in (tls_errors.explain, tls_errors.explain_as_receiver):
        assert "does not speak TLS" in str(explain(failure(reason)))
        assert explain(failure(reason), speaks_tls=True).code is Code.CORRUPT


def test_who_has_said_hello_speaks_tls(pki: Pki) -> None:
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    sender = client(pki.ours.certificate).wrap_bio(down, up, server_hostname=HOST)
    receiver = server(pki.receiver).wrap_bio(up, down, server_side=True)
    assert not tls_errors.speaks_tls(sender)
    assert not tls_errors.speaks_tls(receiver)
    for end in (sender, receiver):
        with pytest.raises(ssl.SSLWantReadError):
            end.do_handshake()
    assert tls_errors.speaks_tls(receiver)
    said = bytearray(down.read())
    said[-1] ^= 1
    down.write(said)
    with pytest.raises(ssl.SSLError):
        sender.do_handshake()
    assert tls_errors.speaks_tls(sender)


def test_a_key_that_tls_1_3_has_no_signature_for(pki: Pki) -> None:
    key = pki.directory / "odd.key"
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp256k1", "-out", key)
    odd = pki.ours.issue("odd", key=key)
    with pytest.raises(UsageError, match=r"TLS 1\.3 has no signature for the key of --tls-cert: make a new one"):
        server(odd)
    with pytest.raises(UsageError, match=r"TLS 1\.3 has no signature for the key of --tls-cert: make a new one"):
        client(pki.ours.certificate, odd)


def test_what_no_handshake_explains() -> None:
    error = ssl.SSLError(1, "something else")
    for explained in (tls_errors.explain(error), tls_errors.explain_as_receiver(error)):
        assert isinstance(explained, RemoteProtocolError)
        assert "something else" in str(explained)


def test_names_can_not_break_the_line(pki: Pki) -> None:
    """What is in a certificate is a peer's to choose."""
    out, key = pki.directory / "evil.pem", make_key(pki.directory / "evil.key")
    pki.theirs.sign(key, "/CN=evil\x1b[2J\u2028line", out, "subjectAltName=DNS:evil\x1b[2J.example")
    read = facts(ssl.PEM_cert_to_DER_cert(out.read_text()))
    assert read is not None
    assert read.subject.isprintable()
    assert all(name.isprintable() for name in read.names)


def test_what_is_no_certificate() -> None:
    assert facts(b"") is None
    assert facts(b"\x30\x03\x02\x01\x01") is None

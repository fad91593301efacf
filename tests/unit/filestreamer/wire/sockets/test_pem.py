"""Certificates and keys, however a file has them: out they come, or one line says what the file is instead."""

import base64
import os
import re
import ssl
import threading
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filestreamer.wire.errors import UsageError
from filestreamer.wire.sockets import pem, tls
from tests.support.certificates import Authority, Pem, openssl

TEXT: Final = "# Zertifikat für den Empfänger\nsubject=/CN=x\n\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pem, Path]:
    """Return a certificate with its key, and the directory that they lie in."""
    directory = tmp_path_factory.mktemp("pem")
    return Authority(directory, "ca").issue("receiver"), directory


def der(path: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(path.read_text())


@pytest.mark.parametrize("label", ["CERTIFICATE", "X509 CERTIFICATE"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n", "  \n\t"], ids=repr)
def test_a_certificate_under_each_label_and_line_end(made: tuple[Pem, Path], label: str, end: str) -> None:
    text = made[0].certificate.read_text()
    written = (TEXT + text.replace("CERTIFICATE", label)).replace("\n", end).encode()
    for content in (written, b"\xef\xbb\xbf" + written, text.encode() + written):
        assert set(pem.certificates(content)) == {der(made[0].certificate)}


def test_the_trust_settings_of_a_certificate_are_left_out(made: tuple[Pem, Path]) -> None:
    shown, directory = made
    trusted = directory / "trusted.pem"
    openssl("x509", "-in", shown.certificate, "-trustout", "-addtrust", "serverAuth", "-out", trusted)
    assert b"TRUSTED CERTIFICATE" in trusted.read_bytes()
    assert pem.certificates(trusted.read_bytes()) == [der(shown.certificate)]


def test_in_the_order_of_the_file(made: tuple[Pem, Path]) -> None:
    own, ca = made[0].certificate, made[1] / "ca.pem"
    found = pem.certificates(ca.read_bytes() + made[0].key.read_bytes() + own.read_bytes())
    assert found == [der(ca), der(own)]
    assert pem.certificates(pem.chain(found)) == found


@pytest.mark.parametrize("form", ["pkcs8", "ec", "ec with its parameters", "rsa"])
def test_a_key_in_each_form(made: tuple[Pem, Path], form: str) -> None:
    path = made[1] / "a.key"
    if form == "rsa":
        openssl("genrsa", "-traditional", "-out", path, 2048)
    elif form == "ec with its parameters":
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-out", path)
    else:
        openssl("ec" if form == "ec" else "pkey", "-in", made[0].key, "-out", path)
    for content in (path.read_bytes(), path.read_bytes().replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + path.read_bytes()):
        (key,) = pem.private_keys(made[0].certificate.read_bytes() + content)
        (made[1] / "b.key").write_bytes(key)
        openssl("pkey", "-in", made[1] / "b.key", "-noout")


@pytest.mark.parametrize(
    ("command", "certificate", "key"),
    [
        (
            "x509 -in {0.certificate} -outform DER -out {1}",
            "openssl x509 -inform DER",
            "it is DER, but not a private key",
        ),
        ("pkey -in {0.key} -outform DER -out {1}", "it is DER, but not a certificate", "openssl pkey -inform DER"),
        ("ec -in {0.key} -outform DER -out {1}", "it is DER, but not a certificate", "openssl pkey -inform DER"),
        (
            "pkcs12 -export -in {0.certificate} -inkey {0.key} -passout pass:x -out {1}",
            "openssl pkcs12 -in FILE -nodes",
            "openssl pkcs12 -in FILE -nodes",
        ),
        ("req -new -key {0.key} -subj /CN=x -out {1}", "CERTIFICATE REQUEST", "CERTIFICATE REQUEST"),
        ("crl2pkcs7 -nocrl -certfile {0.certificate} -out {1}", "only PKCS7: make .* -print_certs", "only PKCS7$"),
        (
            "crl2pkcs7 -nocrl -certfile {0.certificate} -outform DER -out {1}",
            "openssl pkcs7 -inform DER -print_certs",
            "it is PKCS#7, which has no key",
        ),
        (
            "pkcs8 -topk8 -in {0.key} -outform DER -passout pass:x -out {1}",
            "it is DER, but not a certificate",
            "the key is encrypted: decrypt it with openssl pkey -inform DER",
        ),
        ("pkey -in {0.key} -pubout -out {1}", "no certificate, only PUBLIC KEY", "no private key, only PUBLIC KEY"),
        ("pkey -in {0.key} -aes256 -passout pass:x -out {1}", "only ENCRYPTED PRIVATE KEY", "the key is encrypted"),
        ("ec -in {0.key} -aes256 -passout pass:x -out {1}", "only EC PRIVATE KEY", "the key is encrypted"),
    ],
)
def test_what_is_none_says_what_it_is(made: tuple[Pem, Path], command: str, certificate: str, key: str) -> None:
    path = made[1] / "other"
    openssl(*command.format(made[0], path).split())
    with pytest.raises(ValueError, match=certificate):
        pem.certificates(path.read_bytes())
    with pytest.raises(ValueError, match=key):
        pem.private_keys(path.read_bytes())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b" \r\n", "it is empty"),
        (b"hello", "it is not PEM"),
        ("-----BEGIN CERTIFICATE-----".encode("utf-16"), "it is UTF-16 text: save it as UTF-8"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n", "it is cut short"),
        (b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", "it is damaged"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "it is damaged"),
        (b"-----BEGIN CERTIFICATE-----\n<html>\n-----END CERTIFICATE-----\n", "it is damaged"),
        (b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", "it is damaged"),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n", "OPENSSH PRIVATE KEY"),
        (b"0", "it is DER"),
        (b"0\x84", "it is DER"),
    ],
)
def test_what_is_nothing(content: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pem.certificates(content)


def test_what_is_cut_short(made: tuple[Pem, Path]) -> None:
    """Wherever that is: what is there of a chain, of CAs, or of keys is not all of them."""
    one, key = made[0].certificate.read_bytes(), made[0].key.read_bytes()
    for parse, whole in ((pem.certificates, one), (pem.private_keys, key)):
        for before in (b"", whole):
            for length in range(len(b"-----BEGIN "), len(whole.rstrip())):
                with pytest.raises(ValueError, match="it is cut short"):
                    parse(before + whole[:length])


def test_what_comes_from_a_pipe_is_there_for_each_transfer(made: tuple[Pem, Path], tmp_path: Path) -> None:
    """A sender whose transfer begins again makes its context again; a file, though, is read anew."""
    shown, directory = made
    paths = []
    for file in (directory / "ca.pem", shown.certificate, shown.key):
        pipe = tmp_path / file.name
        os.mkfifo(pipe)
        threading.Thread(target=pipe.write_bytes, args=(file.read_bytes(),), daemon=True).start()
        paths.append(str(pipe))
    for _ in range(3):
        assert tls.client_context(*paths).context.get_ca_certs()
    file = tmp_path / "ca-copy.pem"
    file.write_bytes((directory / "ca.pem").read_bytes())
    tls.client_context(str(file), None, None)
    file.write_bytes(b"")
    with pytest.raises(UsageError, match=f"--tls-ca {file}: it is empty"):
        tls.client_context(str(file), None, None)


def test_each_file_that_openssl_does_not_read_is_named(made: tuple[Pem, Path], tmp_path: Path) -> None:
    """It is PEM, and what is in it is DER; what that says is what it should not be."""
    (certificate, key), odd = made[0], tmp_path / "odd.pem"
    body = base64.b64encode(b"\x30\x03\x02\x01\x01").decode()
    damaged = "it is damaged (copy it anew), or of a kind that OpenSSL does not take"
    for label, before, flag, files in (
        ("CERTIFICATE", "", "--tls-cert", (odd, key)),
        ("CERTIFICATE", certificate.read_text(), "--tls-cert", (odd, key)),
        ("PRIVATE KEY", "", "--tls-key", (certificate, odd)),
    ):
        odd.write_text(f"{before}-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
        with pytest.raises(UsageError, match=re.escape(f"{flag} {odd}: {damaged}") + "$"):
            tls.server_context(str(files[0]), str(files[1]), None)
    odd.write_text(f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
    with pytest.raises(UsageError, match=re.escape(f"--tls-ca {odd}: {damaged}") + "$"):
        tls.client_context(str(odd), None, None)


def test_more_certificates_than_a_peer_takes(made: tuple[Pem, Path], tmp_path: Path) -> None:
    """Such as all CAs of a system behind one's own; the key is not what is wrong then."""
    chain = tmp_path / "chain.pem"
    chain.write_text(made[0].certificate.read_text() * 1000)
    says = "the 1000 certificates of --tls-cert are more than a TLS peer takes"
    with pytest.raises(UsageError, match=says):
        tls.server_context(str(chain), str(made[0].key), None)
    with pytest.raises(UsageError, match=says):
        tls.client_context(None, str(chain), str(made[0].key))


def test_a_file_without_end() -> None:
    with pytest.raises(UsageError, match="--tls-ca /dev/zero: it has more than 4 MiB"):
        tls.client_context("/dev/zero", None, None)


def test_without_proc(made: tuple[Pem, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """In a chroot OpenSSL gets a file that is gone at once."""
    monkeypatch.setattr(os.path, "exists", lambda _path: False)
    own = tls.server_context(str(made[0].certificate), str(made[0].key), None)
    assert own.sha256 == made[0].sha256


@given(
    st.one_of(
        st.binary(max_size=200),
        st.builds(
            lambda label, body: b"-----BEGIN %b-----\n%b\n-----END %b-----" % (label, body, label),
            st.sampled_from([b"CERTIFICATE", b"TRUSTED CERTIFICATE", b"PRIVATE KEY", b"EC PRIVATE KEY"]),
            st.one_of(st.binary(max_size=60), st.binary(max_size=60).map(base64.b64encode)),
        ),
    )
)
def test_whatever_a_file_holds(content: bytes) -> None:
    for parse in (pem.certificates, pem.private_keys):
        said, found = "", []
        try:
            found = parse(content)
        except ValueError as error:
            said = str(error)
        assert bool(found) != bool(said)
        assert all(found)
        assert "\n" not in said

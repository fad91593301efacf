"""What a certificate says, for people; and a certificate that a receiver makes for itself.

The only module that imports `cryptography`, which takes its time: it is imported where TLS needs it, and nowhere else.
Nothing here decides whom to trust: OpenSSL does that.
"""

import contextlib
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from filestreamer.wire.session import Side

_EPHEMERAL_NAME: Final = "filestreamer receiver, this run only"
_PURPOSES: Final[dict[Side, x509.ObjectIdentifier]] = {
    "receiver": ExtendedKeyUsageOID.SERVER_AUTH,
    "sender": ExtendedKeyUsageOID.CLIENT_AUTH,
}
"""What the certificate of each side has to be good for (RFC 5280, 4.2.1.12)."""
_PURPOSE_NAMES: Final = {
    ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth",
    ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth",
    ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE: "anyExtendedKeyUsage",
}
_UNREADABLE: Final = (
    ValueError,
    TypeError,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises for a certificate that it can't read; OpenSSL accepts some of these."""
_SHOWN_NAMES: Final = 8
_SHOWN_CHARACTERS: Final = 100


class Facts(NamedTuple):
    """What people have to know of a certificate. Every text is one short line, whatever the certificate holds."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    """The hosts that it is for (subjectAltName), the first _SHOWN_NAMES of them."""
    not_before: datetime
    not_after: datetime
    purposes: tuple[x509.ObjectIdentifier, ...] | None
    """The extended key usages; None where it has no such restriction."""
    key_usage: x509.KeyUsage | None
    """What its key may do; None where it has no such restriction."""

    def fault_of_time(self, now: datetime) -> str | None:
        """Say that it is not valid at this moment, with both clocks; None where it is valid."""
        clock = f"this machine's clock says {_date(now)}"
        if now > self.not_after:
            return f"expired on {_date(self.not_after)}; {clock}"
        if now < self.not_before:
            return f"is not valid before {_date(self.not_before)}; {clock}"
        return None

    def fault_of_usage(self, side: Side) -> str | None:
        """Say that it must not be used by this side; None where it may be."""
        if fault := self.fault_of_purpose(side):
            return fault
        allowed = self.key_usage
        # OpenSSL takes more than digitalSignature, as it does not ask for which version of TLS a certificate is.
        is_good = allowed is None or allowed.digital_signature or allowed.key_agreement
        if is_good or (allowed is not None and side == "receiver" and allowed.key_encipherment):
            return None
        return "has a key usage without digitalSignature"

    def fault_of_purpose(self, side: Side) -> str | None:
        """Say that neither it nor what it signs must be used by this side; None where that is allowed."""
        if self.purposes is None or _PURPOSES[side] in self.purposes:  # to OpenSSL, "any" is none of them
            return None
        found = ", ".join(_PURPOSE_NAMES.get(each, each.dotted_string) for each in self.purposes[:_SHOWN_NAMES])
        return f"has the extended key usage {found}, and needs {_PURPOSE_NAMES[_PURPOSES[side]]}"


def facts(der: bytes) -> Facts | None:
    """Read a certificate (DER); return None where that fails."""
    with warnings.catch_warnings(), contextlib.suppress(*_UNREADABLE):
        warnings.simplefilter("ignore")  # of what is odd in certificates of others
        read = x509.load_der_x509_certificate(der)
        return Facts(
            _line(read.subject.rfc4514_string()),
            _line(read.issuer.rfc4514_string()),
            tuple(_names(read)),
            read.not_valid_before_utc,
            read.not_valid_after_utc,
            _purposes(read),
            _key_usage(read),
        )
    return None


def _names(read: x509.Certificate) -> Iterator[str]:
    with contextlib.suppress(x509.ExtensionNotFound):
        found = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        for name in list(found)[:_SHOWN_NAMES]:
            yield _line(str(name.value))


def _purposes(read: x509.Certificate) -> tuple[x509.ObjectIdentifier, ...] | None:
    try:
        return tuple(read.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return None


def _key_usage(read: x509.Certificate) -> x509.KeyUsage | None:
    try:
        return read.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None


def _line(text: str) -> str:
    """Return a text of a peer as one short line."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}..."


def _date(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


class Ephemeral(NamedTuple):
    """A certificate that lives as long as its process, and its key."""

    certificate: bytes
    """DER."""
    key: bytes
    """PEM, not encrypted: never to be written to a disk."""


def make_ephemeral(hosts: list[str]) -> Ephemeral:
    """Make a key (ECDSA, P-256) and a certificate that it signs itself, for the numeric addresses among `hosts`.

    Senders know the certificate by a proof or by its digest, not by its dates. So it is valid at any time (RFC 5280,
    4.1.2.5): a machine whose clock is wrong can use it, too.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _EPHEMERAL_NAME)])
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(1970, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
        .add_extension(x509.SubjectAlternativeName(_own_names(hosts)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Ephemeral(certificate.public_bytes(serialization.Encoding.DER), pem)


def _own_names(hosts: list[str]) -> list[x509.GeneralName]:
    """Return the names of an ephemeral certificate: not the machine's own name, which any stranger could read there."""
    addresses = {ip_address("127.0.0.1"), ip_address("::1")}
    for host in hosts:
        with contextlib.suppress(ValueError):
            addresses.add(ip_address(host.partition("%")[0]))
    shown = sorted((each for each in addresses if not each.is_unspecified), key=str)
    return [x509.DNSName("localhost"), *map(x509.IPAddress, shown)]

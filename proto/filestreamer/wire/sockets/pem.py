"""Certificates and keys from PEM files, whatever tool wrote them. Pure.

OpenSSL expects certificates in one order, and says little about a file that it does not take. Here, certificates are
found under any label and in any text around them, and become DER. Where there is none, a ValueError says what the file
is instead, and which command makes PEM of it.
"""

import base64
import binascii
import re
from collections.abc import Iterator
from typing import Final

_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----", re.DOTALL)
_BEGIN: Final = b"-----BEGIN "
_CERTIFICATES: Final = (b"CERTIFICATE", b"X509 CERTIFICATE", b"TRUSTED CERTIFICATE")
_SEQUENCE: Final = 0x30
_INTEGER_3: Final = b"\x02\x01\x03"
_INTEGER: Final = b"\x02"
_OBJECT_IDENTIFIER: Final = b"\x06"
_SIGNED_DATA: Final = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02"
"""The OID with which PKCS#7 begins (RFC 2315, 14)."""
_ENCRYPTED: Final = "the key is encrypted: decrypt it with openssl pkey {}-in FILE -out FILE.pem"
_PKCS7: Final = "make PEM of its certificates with openssl pkcs7 {}-print_certs -in FILE -out FILE.pem"


def certificates(content: bytes) -> list[bytes]:
    """Return the DER of each certificate, in the order of the file.

    Raises ValueError where there is none, or one is damaged.
    """
    found = [_first_value(_decoded(body)) for label, body in _blocks(content) if label in _CERTIFICATES]
    if not found:
        raise ValueError(_what_it_is(content, "certificate", "x509"))
    return found


def private_keys(content: bytes) -> list[bytes]:
    """Return each private key as PEM that OpenSSL reads. Raises ValueError where there is none, or one is damaged."""
    found = []
    for label, body in _blocks(content):
        if label == b"ENCRYPTED PRIVATE KEY" or (label.endswith(b"PRIVATE KEY") and b"ENCRYPTED" in body):
            raise ValueError(_ENCRYPTED.format(""))
        if label == b"OPENSSH PRIVATE KEY":
            raise ValueError(
                "the key is in OpenSSH's format: make PEM of a copy of it with ssh-keygen -p -m PEM -f COPY"
            )
        if label.endswith(b"PRIVATE KEY"):
            found.append(_encoded(label, _decoded(body)))
    if not found:
        raise ValueError(_what_it_is(content, "private key", "pkey"))
    return found


def chain(found: list[bytes]) -> bytes:
    """Write certificates as PEM, in this order."""
    return b"".join(_encoded(b"CERTIFICATE", der) for der in found)


def _blocks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield label and body of each block. Raises ValueError behind the last one where another one has no end."""
    end = 0
    for match in _BLOCK.finditer(content):
        yield match[1], match[2]
        end = match.end()
    # A file that is being written, or was not copied to its end: no peer trusts a part of a chain.
    if _BEGIN in content[end:]:
        raise ValueError("it is cut short: behind its last BEGIN there is no END")


def _decoded(body: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(body.split()), validate=True)
    except binascii.Error:
        raise ValueError("it is damaged: what is between BEGIN and END is not base64") from None


def _encoded(label: bytes, der: bytes) -> bytes:
    lines = base64.encodebytes(der)
    return b"-----BEGIN %b-----\n%b-----END %b-----\n" % (label, lines, label)


def _first_value(der: bytes) -> bytes:
    """Return the certificate without what may follow it: the trust settings of a TRUSTED CERTIFICATE."""
    end = _header_bytes(der) + _length(der)
    if der[:1] != bytes([_SEQUENCE]) or end > len(der):
        raise ValueError("it is damaged: a certificate in it is cut short")
    return der[:end]


def _header_bytes(der: bytes) -> int:
    """Return how many bytes the type and the length of the first DER value take."""
    return 2 + (der[1] & 0x7F if len(der) > 1 and der[1] & 0x80 else 0)


def _length(der: bytes) -> int:
    if len(der) < 2:
        return 0
    return int.from_bytes(der[2 : _header_bytes(der)], "big") if der[1] & 0x80 else der[1]


def _what_it_is(content: bytes, wanted: str, command: str) -> str:
    """Say what a file is that has no certificate or key, and what to do about it; `command` is that of openssl."""
    if not content.strip():
        return "it is empty"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "it is UTF-16 text: save it as UTF-8"
    labels = sorted({label.decode() for label, _ in _blocks(content)})
    if labels:
        remedy = f": {_PKCS7.format('')}" if wanted == "certificate" and labels == ["PKCS7"] else ""
        return f"it has no {wanted}, only {', '.join(labels)}{remedy}"
    if content[0] != _SEQUENCE:
        return f"it is not PEM: there is no {wanted} in it"
    return _what_der_is(content, wanted, command)


def _what_der_is(content: bytes, wanted: str, command: str) -> str:
    inside = content[_header_bytes(content) :]
    if inside.startswith(_INTEGER_3):
        return "it is PKCS#12: make PEM of it with openssl pkcs12 -in FILE -nodes -out FILE.pem"
    if inside.startswith(_SIGNED_DATA):
        return f"it is PKCS#7, which has no key: {_PKCS7.format('-inform DER ')}"
    # Of an encrypted key, the first value names the cipher (RFC 5958, 3).
    is_encrypted = inside[:1] == bytes([_SEQUENCE]) and inside[_header_bytes(inside) :].startswith(_OBJECT_IDENTIFIER)
    if is_encrypted and wanted == "private key":
        return _ENCRYPTED.format("-inform DER ")
    if (is_encrypted or inside.startswith(_INTEGER)) == (wanted == "certificate"):
        return f"it is DER, but not a {wanted}"
    return f"it is DER: make PEM of it with openssl {command} -inform DER -in FILE -out FILE.pem"

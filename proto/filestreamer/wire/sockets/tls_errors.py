"""What a failed TLS handshake means, and what to do about it, for the people at each end.

The end that refuses a certificate has it at hand, and says what is wrong with it. The other end gets an alert, which is
one word (RFC 8446, 6.2); it says what that word means, and that the other end knows more.
"""

import re
import ssl
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from filestreamer.wire.errors import Code, RemoteProtocolError
from filestreamer.wire.session import Side
from filestreamer.wire.sockets.addresses import is_numeric

if TYPE_CHECKING:
    from filestreamer.wire.sockets.certificate import Facts

# OpenSSL's results of a verification (openssl/x509_vfy.h).
_OUT_OF_DATE: Final = (9, 10)
_SELF_SIGNED: Final = 18
_UNKNOWN_ISSUER: Final = (2, 19, 20, 21, 27)
_BAD_USAGE: Final = 26
_NO_CA: Final = (24, 25, 32, 79)
_OTHER_NAME: Final = (62, 64)
_OTHER_SIGNATURE: Final = 7
_WEAK: Final = {
    66: "its key is too short",
    67: "the key of a CA above it is too short",
    68: "it, or a CA above it, is signed with SHA-1 or MD5, which can be forged",
}
_WEAK_REASONS: Final = {"EE_KEY_TOO_SMALL": 66, "CA_KEY_TOO_SMALL": 67, "CA_MD_TOO_WEAK": 68}
_MAKE_STRONG: Final = "make a new one with a key of RSA 2048 or ECDSA P-256 (or more), signed with SHA-256"

UNUSABLE_KEY: Final = f"TLS 1.3 has no signature for the key of --tls-cert: {_MAKE_STRONG}"

_DAMAGED: Final = (
    "BAD_RECORD_MAC",
    "DECODE_ERROR",
    "ILLEGAL_PARAMETER",
    "UNEXPECTED_MESSAGE",
    "BAD_EXTENSION",
    "INVALID_SESSION_ID",
    "LENGTH_MISMATCH",
    "BAD_LENGTH",
)
"""OpenSSL's words, its own and those of alerts, for bytes that no end of TLS sends: they were changed on the way, and
TCP's checksum of 16 bits let that pass."""
_ALERT: Final = re.compile(r"ALERT_(\w+)$")
_ALERTS: Final = {
    "CERTIFICATE_EXPIRED": "it has expired by {peer}'s clock: renew it, or put the clock right that is wrong",
    "UNKNOWN_CA": "{peer} does not trust its issuer: --tls-ca there must have the CA that signed it",
    "UNSUPPORTED_CERTIFICATE": "its key usage or extended key usage does not allow this",
    "BAD_CERTIFICATE": "it is not valid yet by {peer}'s clock, is for another name, or its key or signature is weak",
    "CERTIFICATE_REVOKED": "it was revoked: make a new one",
    "CERTIFICATE_UNKNOWN": "{peer} can't use it",
    "DECRYPT_ERROR": "the CA of its issuer's name there has not signed it: --tls-ca there must have the CA that did",
}
"""Why the peer does not accept a certificate, by the alert that it sends."""
_END: Final = re.compile(r"\b(the|this) (sender|receiver)\b")
_NO_CERTIFICATE: Final = "CERTIFICATE_REQUIRED"
_CLOCK_ALERTS: Final = ("CERTIFICATE_EXPIRED", "BAD_CERTIFICATE")


class _Words(NamedTuple):
    """How an end names the two certificates and the flags of its peer's, for its messages."""

    peers: str
    own: str
    peer: str
    renew: str


_WORDS: Final[dict[Side, _Words]] = {
    "sender": _Words("the receiver's", "this sender's", "the receiver", "the receiver's --tls-cert"),
    "receiver": _Words("the sender's", "this receiver's", "the sender", "the sender's --tls-cert"),
}
"""By the end that says them."""
_PEER: Final[dict[str, Side]] = {"sender": "receiver", "receiver": "sender"}


def weakness(error: ssl.SSLError) -> str | None:
    """Say in which way a certificate is too weak, and what to do, where OpenSSL refuses to load it for that."""
    code = _WEAK_REASONS.get(_reason(error))
    return None if code is None else f"{_WEAK[code]}: {_MAKE_STRONG}"


def verified_chain(session: ssl.SSLObject) -> list[bytes]:
    """Return the chain (DER) that OpenSSL made of what the peer showed, the peer's own certificate first.

    It is there after a verification that failed, too: then nothing of it is to be trusted. Empty where there is none.
    """
    # Public only since Python 3.13; the object behind it has it in every version.
    get = getattr(getattr(session, "_sslobj", None), "get_verified_chain", None)
    found: Iterable[object] = (get() if get is not None else None) or ()
    return [ssl.PEM_cert_to_DER_cert(each.public_bytes()) for each in found if hasattr(each, "public_bytes")]


def speaks_tls(session: ssl.SSLObject) -> bool:
    """Whether the peer has said a Hello of TLS that this end could take, be the handshake over or not."""
    return session.cipher() is not None


def explain(
    error: ssl.SSLError,
    *,
    chain: Sequence[bytes] = (),
    host: str = "",
    has_ca: bool = False,
    speaks_tls: bool = False,
) -> RemoteProtocolError:
    """Return the error that a failed handshake means to a sender. Only one that was damaged is retryable (CORRUPT).

    `chain` is what the receiver showed, and `host` the name it was called by; `has_ca` is whether --tls-ca was given,
    and `speaks_tls` what the function of that name says.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return _refusal(_untrusted("sender", error, chain, host=host, has_ca=has_ca))
    reason = _reason(error)
    if _is_damaged(reason, speaks_tls=speaks_tls):
        return _damaged(reason)
    if _is_no_tls(reason):
        return _refusal(
            "the other side does not speak TLS: leave out --tls, or start the receiver with --tls", Code.POLICY
        )
    if _is_older_tls(reason):
        return _refusal(
            "the other side speaks no TLS 1.3: either it is not the receiver, or a proxy before it ends TLS, which has"
            " to pass TLS on as it is"
        )
    if _NO_CERTIFICATE in reason:
        return _refusal(
            "the receiver asks for a certificate: pass --tls-cert and --tls-key, signed by a CA of its --tls-ca"
        )
    return _refusal(_other("sender", error))


def explain_refusal(error: OSError) -> RemoteProtocolError | None:
    """Return the error of an established session in which the receiver refuses the sender's certificate.

    In TLS 1.3 it does so when the sender's handshake is over (RFC 8446, 2). None for any other error.
    """
    alert = _ALERT.search(_reason(error))
    if alert is None or alert[1] not in (*_ALERTS, _NO_CERTIFICATE):
        return None
    assert isinstance(error, ssl.SSLError)
    return explain(error)


def explain_as_receiver(
    error: ssl.SSLError, chain: Sequence[bytes] = (), *, speaks_tls: bool = False
) -> RemoteProtocolError:
    """Return the error that a failed handshake means to a receiver; `chain` is what the sender showed.

    `speaks_tls` is what the function of that name says.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return _refusal(_untrusted("receiver", error, chain, has_ca=True))
    reason = _reason(error)
    if _is_damaged(reason, speaks_tls=speaks_tls):
        return _damaged(reason)
    if "PEER_DID_NOT_RETURN_A_CERTIFICATE" in reason:
        return _refusal(
            "the sender shows no certificate: it needs --tls-cert and --tls-key, signed by a CA of --tls-ca"
        )
    if _is_no_tls(reason):
        return _refusal("the TLS handshake failed: the other side does not speak TLS")
    if _is_older_tls(reason):
        return _refusal("the TLS handshake failed: the other side speaks no TLS 1.3")
    return _refusal(_other("receiver", error))


def wrong_pin(shown: bytes, pins: Sequence[bytes]) -> RemoteProtocolError:
    """Return the error of a receiver whose certificate has another SHA-256 than those expected."""
    expected = " or ".join(pin.hex() for pin in pins)
    return _refusal(
        f"the receiver's certificate has the SHA-256 {shown.hex()}, and --tls-pin expects {expected}:"
        " compare with what the receiver's log says at its start (without --tls-cert it has a new one each time);"
        " if that is another one, somebody is in between"
    )


def _refusal(reason: str, code: Code = Code.POLICY) -> RemoteProtocolError:
    return RemoteProtocolError(reason, code)


def _is_damaged(reason: str, *, speaks_tls: bool) -> bool:
    # Newer versions of OpenSSL have one word (RECORD_LAYER_FAILURE) for a record whose checksum is wrong, and for bytes
    # that are no TLS. A peer that has said Hello speaks TLS.
    return any(word in reason for word in _DAMAGED) or (speaks_tls and _is_no_tls(reason))


def _damaged(reason: str) -> RemoteProtocolError:
    return _refusal(f"the TLS handshake was damaged on the way ({_plain(reason)})", Code.CORRUPT)


def _is_older_tls(reason: str) -> bool:
    return "UNSUPPORTED_PROTOCOL" in reason or "ALERT_PROTOCOL_VERSION" in reason


def _is_no_tls(reason: str) -> bool:
    return any(word in reason for word in ("WRONG_VERSION", "RECORD", "PACKET_LENGTH", "HTTP_REQUEST", "HTTPS_PROXY"))


def _other(side: Side, error: ssl.SSLError) -> str:
    """Explain what is no verification of this end: alerts, above all."""
    words = _WORDS[side]
    reason = _reason(error)
    alert = _ALERT.search(reason)
    if "NO_SUITABLE_SIGNATURE_ALGORITHM" in reason:
        return f"the TLS handshake failed: {UNUSABLE_KEY}"
    if alert is None:
        return f"the TLS handshake failed: {_plain(reason) or error}"
    if (meaning := _ALERTS.get(alert[1])) is None:
        return f"{words.peer} ended TLS (alert: {_plain(alert[1])}): its log or error says why"
    clock = f" (this machine's says {_now():%Y-%m-%d %H:%M} UTC)" if alert[1] in _CLOCK_ALERTS else ""
    return (
        f"{words.peer} does not accept {words.own} certificate (alert: {_plain(alert[1])}):"
        f" {meaning.format(peer=words.peer)}{clock}; the log or error of {words.peer} says more"
    )


def _reason(error: OSError) -> str:
    """Return OpenSSL's name of an error; "" where it is none of OpenSSL's."""
    return getattr(error, "reason", None) or ""


def _plain(reason: str) -> str:
    return reason.lower().replace("_", " ")


def _now() -> datetime:
    return datetime.now(UTC)


def _untrusted(
    side: Side,
    error: ssl.SSLCertVerificationError,
    chain: Sequence[bytes],
    *,
    host: str = "",
    has_ca: bool,
) -> str:
    """Say why this end does not trust its peer's certificate, and what to do."""
    from filestreamer.wire.sockets.certificate import facts

    words = _WORDS[side]
    found = [each for each in map(facts, chain) if each is not None]
    leaf = found[0] if found else None
    what = f"{words.peers} certificate"
    code = error.verify_code
    if code in _OUT_OF_DATE:
        return _out_of_date(words, found, error)
    if code in _OTHER_NAME and leaf is not None:
        return _other_name(leaf, host)
    if code in _WEAK:
        return f"{what} is not accepted: {_WEAK[code]}: {_MAKE_STRONG}"
    if code == _BAD_USAGE:
        return _other_purpose(side, found)
    if code in _NO_CA:
        return f"{what} is signed by one that may not sign ({error.verify_message}): issue {words.renew} anew by a CA"
    issuer = f", {found[-1].issuer}," if found else ""
    unsigned = {
        _SELF_SIGNED: f"{what} is signed by itself, and no CA vouches for it",
        _OTHER_SIGNATURE: f"{what} is not signed by the CA of its issuer's name here",
        **dict.fromkeys(_UNKNOWN_ISSUER, f"the issuer of {what}{issuer} is not trusted here"),
    }
    if code in unsigned:
        return f"{unsigned[code]}: {_trust(side, chain, has_ca=has_ca)}"
    return f"{what} is not trusted: {error.verify_message}"


def _other_purpose(side: Side, found: Sequence["Facts"]) -> str:
    words = _WORDS[side]
    what, peer_side = f"{words.peers} certificate", _PEER[side]
    of_tls = "(unsuitable certificate purpose)"
    if found and (fault := found[0].fault_of_usage(peer_side)):
        return f"{what} is for another purpose: it {fault} {of_tls}: issue {words.renew} anew"
    for each in found[1:]:
        if fault := each.fault_of_purpose(peer_side):
            return f"the CA {each.subject} above {what} {fault} {of_tls}: issue {words.renew} anew by another CA"
    return f"{what} is for another purpose: it is a CA, or not for this side of TLS {of_tls}: issue {words.renew} anew"


def _out_of_date(words: _Words, found: Sequence["Facts"], error: ssl.SSLCertVerificationError) -> str:
    now = _now()
    clock = f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC"
    remedy = f"renew it, or put the clock right that is wrong ({error.verify_message})"
    for at, each in enumerate(found):
        if fault := each.fault_of_time(now):
            what = f"{words.peers} certificate" if at == 0 else f"the CA {each.subject} above {words.peers} certificate"
            return f"{what} {fault}: {remedy}"
    return f"{words.peers} certificate, or a CA above it, is out of date; {clock}: {remedy}"


def _other_name(leaf: "Facts", host: str) -> str:
    if not leaf.names:
        return (
            f"the receiver's certificate does not match {host}: it names no host (subjectAltName):"
            f" issue one for {host}, or pass --tls-pin"
        )
    if host in leaf.names:  # of another kind: what makes certificates often takes an address for a name
        kind = "an IP address" if is_numeric(host) else "a DNS name"
        return (
            f"the receiver's certificate does not match {host}: it has that in its subjectAltName, but not as {kind}:"
            " issue one where it is, or pass --tls-pin"
        )
    names = ", ".join(leaf.names)
    return (
        f"the receiver's certificate does not match {host}: it is for {names}."
        f" Use such a name in --to, issue one for {host}, or pass --tls-pin"
    )


def _trust(side: Side, chain: Sequence[bytes], *, has_ca: bool) -> str:
    """Say how a certificate that nobody vouches for can be trusted."""
    if side == "receiver":
        return "--tls-ca must have the CA that signed it, and --tls-cert of the sender those in between"
    import hashlib

    pin = f"--tls-pin {hashlib.sha256(chain[0]).hexdigest()}" if chain else "--tls-pin"
    known = f"{pin}, if the receiver's log says the same SHA-256"
    if has_ca:
        return (
            f"--tls-ca must have the CA that signed it, and the receiver's --tls-cert those in between; or pass {known}"
        )
    return f"pass --tls-ca with that CA, or {known}, or both sides a token of at least 32 characters"


def exchange_ends(text: str) -> str:
    """Return a message that was written for a sender that dials, or its receiver, for the ends the other way round."""
    text = text.replace("--to,", "--connect,")
    return _END.sub(lambda found: f"{found[1]} {_PEER[found[2]]}", text)

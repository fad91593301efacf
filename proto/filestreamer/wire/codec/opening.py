"""The messages of the opening, and Abort, which has the form of Refusal."""

from itertools import pairwise
from typing import Any

from filestreamer.v1 import wire_pb2 as pb
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec.checks import enum, require, sized, within
from filestreamer.wire.codec.tables import Decoders, Encoders
from filestreamer.wire.codec.texts import clean_reason, clip_reason
from filestreamer.wire.errors import Code
from filestreamer.wire.job_name import is_job_name

_FEATURE_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


def _features(names: Any, what: str) -> tuple[str, ...]:
    """Decode the names of features. One form for one set, so that it can be compared."""
    within(len(names), 0, limits.FEATURES_MAX, f"the number of {what}")
    features = tuple(names)
    for name in features:
        within(len(name), 1, limits.FEATURE_NAME_BYTES, f"the length of a name in {what}")
        require(_FEATURE_CHARACTERS.issuperset(name), f"{what} has a name with something other than a-z, 0-9 and '-'")
    require(all(a < b for a, b in pairwise(features)), f"{what} is not sorted, or has a name twice")
    return features


def _job(name: str, what: str) -> str:
    """Decode the name of a job; empty where there is none."""
    require(not name or is_job_name(name), f"{what} is not the name of a job")
    return name


def _encode_greeting(g: m.Greeting) -> pb.Frame:
    fields = g._asdict()
    return pb.Frame(greeting=pb.Greeting(**{**fields, "role": int(g.role or 0)}))


def _decode_greeting(g: pb.Greeting) -> m.Greeting:
    within(g.lowest_version, 1, g.highest_version, "Greeting.lowest_version")
    return m.Greeting(
        g.lowest_version,
        g.highest_version,
        sized(g.incarnation, limits.ID_BYTES, "Greeting.incarnation"),
        sized(g.nonce, limits.ID_BYTES, "Greeting.nonce"),
        g.token_required,
        _features(g.features, "Greeting.features"),
        enum(m.Role, g.role, "Greeting.role") if g.role else None,
    )


def _encode_hello(h: m.Hello) -> pb.Frame:
    fields = h._asdict()
    return pb.Frame(hello=pb.Hello(**{**fields, "role": int(h.role)}))


def _decode_hello(h: pb.Hello) -> m.Hello:
    connections = within(h.connections, 1, limits.CONNECTIONS_MAX, "Hello.connections")
    role = enum(m.Role, h.role, "Hello.role")
    highest_id = connections - 1 if role is m.Role.DATA else 0
    within(h.lowest_version, 1, h.highest_version, "Hello.lowest_version")
    features, needs = _features(h.features, "Hello.features"), _features(h.needs, "Hello.needs")
    require(set(features).issuperset(needs), "Hello.needs has a feature that Hello.features does not name")
    return m.Hello(
        h.lowest_version,
        h.highest_version,
        sized(h.transfer_id, limits.ID_BYTES, "Hello.transfer_id"),
        role,
        within(h.connection_id, 0, highest_id, "Hello.connection_id"),
        connections,
        sized(h.nonce, limits.ID_BYTES, "Hello.nonce"),
        h.can_prove,
        features,
        needs,
        _job(h.job, "Hello.job"),
    )


def _decode_proof(p: pb.Proof) -> m.Proof:
    return m.Proof(sized(p.mac, limits.MAC_BYTES, "Proof.mac"))


def _decode_welcome(w: pb.Welcome) -> m.Welcome:
    mac = sized(w.mac, limits.MAC_BYTES, "Welcome.mac") if w.mac else b""
    return m.Welcome(mac, _job(w.job, "Welcome.job"))


def _encode_end(e: m.Refusal | m.Abort) -> dict[str, Any]:
    return {"code": int(e.code), "reason": clip_reason(e.reason)}


def _decode_refusal(r: pb.Refusal) -> m.Refusal:
    return m.Refusal(enum(Code, r.code, "Refusal.code"), clean_reason(r.reason))


def _decode_abort(a: pb.Abort) -> m.Abort:
    return m.Abort(enum(Code, a.code, "Abort.code"), clean_reason(a.reason))


ENCODERS: Encoders = {
    m.Greeting: _encode_greeting,
    m.Hello: _encode_hello,
    m.Proof: lambda p: pb.Frame(proof=pb.Proof(mac=p.mac)),
    m.Welcome: lambda w: pb.Frame(welcome=pb.Welcome(mac=w.mac, job=w.job)),
    m.Refusal: lambda r: pb.Frame(refusal=pb.Refusal(**_encode_end(r))),
    m.Abort: lambda a: pb.Frame(abort=pb.Abort(**_encode_end(a))),
}
DECODERS: Decoders = {
    "greeting": _decode_greeting,
    "hello": _decode_hello,
    "proof": _decode_proof,
    "welcome": _decode_welcome,
    "refusal": _decode_refusal,
    "abort": _decode_abort,
}

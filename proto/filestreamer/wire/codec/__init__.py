"""Messages to frame bodies and back: the only package that imports the generated code.

`decode` accepts exactly what proto/README.md allows. A body that does not parse, has no known kind, an unspecified or
unknown enum value, or a field out of bounds raises RemoteProtocolError; unknown fields are ignored. `encode` raises
LocalProtocolError for a message that does not fit a frame.

    opening    Greeting, Hello, Proof, Welcome, Refusal, Abort
    manifest   Offer, ManifestPart, Withdrawn
    answers    Needed, Held, Zeros
    reports    Progress, Connections, Finish, Declined, Notice, Verdicts, Complete
    chunks     ChunkHeader, ChunkAck

Each of these has the encoder and the decoder of a message one after the other, and tables by which they are found here.
`checks` and `texts` are what they share.
"""

from google.protobuf.message import DecodeError

from filestreamer.v1 import wire_pb2 as pb
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import answers, chunks, manifest, opening, reports
from filestreamer.wire.codec.tables import Decoders, Encoders
from filestreamer.wire.codec.texts import clip, clip_path, clip_reason
from filestreamer.wire.errors import LocalProtocolError, RemoteProtocolError

__all__ = ["clip", "clip_path", "clip_reason", "decode", "encode"]

_MODULES = (opening, manifest, answers, reports, chunks)
_ENCODERS: Encoders = {kind: encoder for module in _MODULES for kind, encoder in module.ENCODERS.items()}
_DECODERS: Decoders = {kind: decoder for module in _MODULES for kind, decoder in module.DECODERS.items()}


def encode(message: m.Message) -> bytes:
    """Serialize a message to a frame body.

    Raises LocalProtocolError where the message is larger than a frame may be, or a value does not fit its field. The
    bounds that `decode` checks are not checked here: the caller must keep to them.
    """
    try:
        body: bytes = _ENCODERS[type(message)](message).SerializeToString()
    except (TypeError, ValueError) as error:
        raise LocalProtocolError(f"{type(message).__name__} can't be encoded: {error}") from None
    if len(body) > limits.FRAME_BYTES:
        raise LocalProtocolError(f"{type(message).__name__} of {len(body)} bytes is over {limits.FRAME_BYTES}")
    return body


def decode(body: bytes | bytearray | memoryview) -> m.Message:
    """Parse a frame body into a message.

    Raises RemoteProtocolError, which names message and field, for anything that the protocol does not allow.
    """
    try:
        frame = pb.Frame.FromString(body)  # type: ignore[arg-type]
    except DecodeError:
        raise RemoteProtocolError(f"a frame of {len(body)} bytes does not parse") from None
    kind = frame.WhichOneof("kind")
    if kind is None:
        raise RemoteProtocolError("a frame of no known kind")
    return _DECODERS[kind](getattr(frame, kind))

"""The golden vectors (proto/README.md, "Golden vectors"): what was on the wire once is read and written still.

Framing, proofs and digests are computed here a second time, from struct, hmac, hashlib and xxhash alone.
"""

import hashlib
import hmac
import struct
from collections.abc import Iterator
from typing import Any

import pytest
import xxhash

from filestreamer.wire import auth, opening, receiver_dials
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode, encode
from filestreamer.wire.digests import root_digest, segment_digest, segment_hasher
from filestreamer.wire.errors import Code, RemoteProtocolError
from filestreamer.wire.framing import frame, frame_of, read_body
from filestreamer.wire.grid import Grid, Share
from filestreamer.wire.opening import ReceiverOpening, SenderOpening
from filestreamer.wire.receiver_dials import DialledSenderOpening, DiallingReceiverOpening, Joined
from filestreamer.wire.session import Session
from sender.dispatch.schedule import Schedule
from tests.golden import generate
from tests.golden.vectors import MESSAGES, fields_of, load, message_of, packed, unpacked

MESSAGE_VECTORS = load("messages.json")["vectors"]
OPENINGS = load("opening.json")["vectors"]
CHUNKS = load("chunks.json")
EXCHANGE = load("exchange.json")
REFUSED = load("refused.json")

HEADER = struct.Struct(">I8s")


def described(vector: dict[str, Any]) -> str:
    return str(vector["description"])


def xxh3_128(data: bytes) -> bytes:
    return xxhash.xxh3_128(data).intdigest().to_bytes(16, "big")


def split(wire: bytes) -> tuple[bytes, bytes]:
    """Cut the first frame off, with struct and xxhash alone; return its body, and what follows."""
    length, checksum = HEADER.unpack_from(wire)
    body = wire[HEADER.size : HEADER.size + length]
    assert len(body) == length
    assert checksum == xxhash.xxh3_64(body).intdigest().to_bytes(8, "big")
    return body, wire[HEADER.size + length :]


class Reader:
    """A byte stream, read as the framing reads it."""

    def __init__(self, wire: bytes) -> None:
        self.left = wire

    def __call__(self, count: int) -> bytes:
        assert count <= len(self.left), "read beyond the end"
        data, self.left = self.left[:count], self.left[count:]
        return data


# --- the files


@pytest.mark.parametrize("name", generate.FILES)
def test_what_is_committed_is_what_the_generator_makes(name: str) -> None:
    assert generate.FILES[name]() == load(name), "the protocol has changed: see tests/golden/generate.py"


def test_long_hex_is_packed_and_unpacked() -> None:
    data = b"\x01\x02" + b"ab" * 70 + b"\x09" + bytes(100)

    assert packed(data) == "0102(6162)*70 09(00)*100"
    assert unpacked(packed(data)) == data


# --- messages


def test_every_message_has_a_vector() -> None:
    assert {vector["message"] for vector in MESSAGE_VECTORS} == set(MESSAGES)


@pytest.mark.parametrize("vector", MESSAGE_VECTORS, ids=described)
def test_message_vector(vector: dict[str, Any]) -> None:
    message = message_of(vector["message"], vector["fields"])
    body, wire = bytes.fromhex(vector["body"]), bytes.fromhex(vector["frame"])

    assert split(wire) == (body, b"")
    assert frame(message) == wire
    decoded = decode(body)
    assert type(decoded) is type(message)
    assert repr(decoded) == repr(message)  # == does not tell types of NamedTuples apart, nor enums from numbers
    assert fields_of(decoded) == vector["fields"]


# --- opening


def independent_proof(label: bytes, vector: dict[str, Any], *tail: bytes) -> bytes:
    greeting, hello = (bytes.fromhex(step["body"]) for step in vector["frames"][:2])
    transcript = struct.pack(">I", len(greeting)) + greeting + struct.pack(">I", len(hello)) + hello
    transcript += bytes([{None: 0, "receiver": 1, "sender": 2}[vector["tls_server"]]])
    data = label + b"\0" + transcript + bytes.fromhex(vector["certificate_sha256"]) + b"".join(tail)
    return hmac.new(vector["token"].encode(), data, hashlib.sha256).digest()


@pytest.mark.parametrize("vector", OPENINGS, ids=described)
def test_opening_vector_is_framed_and_decodes(vector: dict[str, Any]) -> None:
    for step in vector["frames"]:
        assert split(bytes.fromhex(step["frame"])) == (bytes.fromhex(step["body"]), b"")
        assert decode(bytes.fromhex(step["body"])) == message_of(step["message"], step["fields"])


@pytest.mark.parametrize("vector", [v for v in OPENINGS if v["token"]], ids=described)
def test_opening_vector_proofs(vector: dict[str, Any]) -> None:
    """The second proof covers the first one: who was dialled proves last."""
    names = [step["message"] for step in vector["frames"]]
    assert names[:2] == ["Greeting", "Hello"]
    first, second = (bytes.fromhex(step["fields"]["mac"]) for step in vector["frames"][2:])

    if vector["frames"][0]["fields"]["role"] is None:
        assert names[2:] == ["Proof", "Welcome"]
        assert first == independent_proof(b"filestreamer/1 sender", vector)
        assert second == independent_proof(b"filestreamer/1 receiver", vector, first)
    else:
        assert names[2:] == ["Welcome", "Proof"]
        assert first == independent_proof(b"filestreamer/1 receiver", vector)
        assert second == independent_proof(b"filestreamer/1 sender", vector, first)


def the_receiver_dials(vector: dict[str, Any]) -> bool:
    return vector["frames"][0]["fields"]["role"] is not None


def of_opening(vector: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[m.Greeting, m.Hello, bytes | None]:
    """Return the Greeting, the Hello and the token of an opening, whose nonces are going to be used."""
    greeting, hello = (message_of(step["message"], step["fields"]) for step in vector["frames"][:2])
    assert isinstance(greeting, m.Greeting)
    assert isinstance(hello, m.Hello)
    nonces = iter([greeting.nonce, hello.nonce])
    for module in (opening, receiver_dials):
        monkeypatch.setattr(module, "random_id", lambda: next(nonces))
    return greeting, hello, vector["token"].encode() if vector["token"] else None


@pytest.mark.parametrize("vector", [v for v in OPENINGS if not the_receiver_dials(v)], ids=described)
def test_opening_vector_is_what_both_ends_say(vector: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    greeting, hello, token = of_opening(vector, monkeypatch)
    certificate = bytes.fromhex(vector["certificate_sha256"])
    assert vector["tls_server"] == ("receiver" if certificate else None)

    tokens = None if token is None else (token,)
    receiver = ReceiverOpening(greeting.incarnation, tokens, certificate, features=greeting.features, job=hello.job)
    sender = SenderOpening(token, certificate, features=hello.features, job=hello.job)
    said = [receiver.greeting_body]
    said += sender.answer(said[0], hello.transfer_id, hello.role, hello.connection_id, hello.connections)
    let_in = [receiver.receive(body) for body in said[1:]]
    said.append(encode(receiver.welcome()))
    sender.enter(said[-1])

    assert said == [bytes.fromhex(step["body"]) for step in vector["frames"]]
    assert let_in == [None] * (len(said) - 3) + [hello]


@pytest.mark.parametrize("vector", [v for v in OPENINGS if the_receiver_dials(v)], ids=described)
def test_opening_vector_where_the_receiver_dials(vector: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    greeting, hello, token = of_opening(vector, monkeypatch)
    certificate = bytes.fromhex(vector["certificate_sha256"])
    assert vector["tls_server"] == ("sender" if certificate else None)
    joined = Joined(hello.transfer_id, hello.connection_id, hello.connections, hello.needs, hello.job)

    receiver = DiallingReceiverOpening(
        greeting.incarnation, hello.role, token, certificate, features=greeting.features, job=hello.job
    )
    sender = DialledSenderOpening(token, certificate, join=lambda _: joined, features=hello.features)
    said = [receiver.greeting_body]
    said.append(sender.take(said[-1]) or b"")
    said.append(receiver.answer(said[-1]))
    if (proof := sender.take(said[-1])) is not None:
        said.append(proof)
        receiver.enter(proof)

    assert said == [bytes.fromhex(step["body"]) for step in vector["frames"]]
    assert sender.is_over


# --- chunks


@pytest.mark.parametrize("vector", CHUNKS["vectors"], ids=described)
def test_chunk_vector(vector: dict[str, Any]) -> None:
    body, rest = split(bytes.fromhex(vector["wire"]))
    header = decode(body)
    assert isinstance(header, m.ChunkHeader)
    segments = header.all_segments
    payload = rest[: sum(segment.length for segment in segments)]
    digests = rest[len(payload) :]

    assert fields_of(header) == vector["header"]["fields"]
    assert payload.hex() == vector["payload"]
    assert digests.hex() == "".join(vector["digests"])
    for index, segment in enumerate(segments):
        data, payload = payload[: segment.length], payload[segment.length :]
        assert digests[16 * index : 16 * index + 16] == xxh3_128(data) == segment_digest(data)


@pytest.mark.parametrize("vector", CHUNKS["root_digests"], ids=described)
def test_root_digest_vector(vector: dict[str, Any]) -> None:
    digests = [xxh3_128(bytes.fromhex(segment)) for segment in vector["segments"]]

    assert xxh3_128(b"".join(digests)).hex() == vector["root_digest"]
    assert root_digest(digests).hex() == vector["root_digest"]


@pytest.mark.parametrize("vector", CHUNKS["shards"], ids=described)
def test_shard_vector(vector: dict[str, Any]) -> None:
    """Which chunks are in the share, where they are at home, and what its root digest covers."""
    content = bytes.fromhex(vector["content"])
    grid = Grid(len(content), vector["chunk_size"])
    share = Share(vector["shard_index"], vector["shard_count"])
    chunk_ids = [share.chunk(ordinal) for ordinal in range(share.chunks(grid.segments))]
    assert (chunk_ids, len(chunk_ids), share.bytes_of(grid)) == (vector["chunk_ids"], vector["chunks"], vector["bytes"])
    schedule = Schedule(2, shard_count=share.count)
    assert [schedule.home(chunk_id) for chunk_id in chunk_ids] == vector["homes"]
    digests = [segment_digest(content[grid.offset(k) : grid.offset(k) + grid.length(k)]) for k in chunk_ids]
    assert root_digest(digests).hex() == vector["root_digest"]


def test_xxh3_is_the_published_one() -> None:
    """The values that the specification of XXH3 gives for no input and seed 0."""
    assert frame_of(b"")[4:].hex() == "2d06800538d394c2"
    assert segment_digest(b"").hex() == root_digest([]).hex() == "99aa06d3014798d86001c324468d497f"


def test_a_digest_in_steps_is_the_same() -> None:
    hasher = segment_hasher()
    for part in (b"hello, ", memoryview(b"world"), b"\n"):
        hasher.update(part)

    assert hasher.digest() == segment_digest(b"hello, world\n")


# --- one exchange


def exchange_stream(connection: str, who: str) -> bytes:
    steps = (s for s in EXCHANGE["steps"] if (s["connection"], s["from"]) == (connection, who))
    return b"".join(bytes.fromhex(step["wire"]) for step in steps)


def exchange_messages() -> Iterator[tuple[dict[str, Any], m.Message, bytes]]:
    """Yield (step, message, what follows it raw) for every step of the example."""
    for step in EXCHANGE["steps"]:
        body, rest = split(bytes.fromhex(step["wire"]))
        yield step, decode(body), rest


def test_exchange_is_legal_at_both_ends() -> None:
    sessions: dict[tuple[str, str], Session] = {}
    for step, message, _ in exchange_messages():
        if isinstance(message, m.Greeting | m.Hello | m.Proof):
            continue
        role = m.Role.CONTROL if step["connection"] == "control" else m.Role.DATA
        sender = sessions.setdefault((step["connection"], "sender"), Session("sender", role))
        receiver = sessions.setdefault((step["connection"], "receiver"), Session("receiver", role))
        if isinstance(message, m.Welcome):
            continue
        speaker, listener = (sender, receiver) if step["from"] == "sender" else (receiver, sender)
        speaker.sending(message)
        listener.received(message)

    assert {session.state for (connection, _), session in sessions.items() if connection == "control"} == {"complete"}


def test_exchange_moves_the_file() -> None:
    content = bytearray(len(EXCHANGE["content"]) // 2)
    digests = {}
    for _, message, rest in exchange_messages():
        if isinstance(message, m.ChunkHeader):
            (segment,) = message.segments
            payload, digest = rest[: segment.length], rest[segment.length :]
            grid = Grid(len(content), EXCHANGE["chunk_size"])
            assert grid.index_of(segment.offset, segment.length) == message.chunk_id
            assert digest == xxh3_128(payload)
            content[segment.offset : segment.offset + segment.length] = payload
            digests[message.chunk_id] = digest
        elif isinstance(message, m.Finish):
            assert message == m.Finish(2, xxh3_128(digests[0] + digests[1]))

    assert content.hex() == EXCHANGE["content"]


@pytest.mark.parametrize("connection", ["control", "data 0"])
def test_exchange_proofs(connection: str) -> None:
    steps = (step for step in EXCHANGE["steps"] if step["connection"] == connection)
    by_name = {step["what"]: split(bytes.fromhex(step["wire"]))[0] for step in steps}
    greeting, hello = by_name["Greeting"], by_name["Hello"]
    token = EXCHANGE["token"].encode()
    transcript = struct.pack(">I", len(greeting)) + greeting + struct.pack(">I", len(hello)) + hello + b"\0"
    proof = hmac.digest(token, b"filestreamer/1 sender\0" + transcript, hashlib.sha256)
    mac = hmac.digest(token, b"filestreamer/1 receiver\0" + transcript + proof, hashlib.sha256)

    ours = auth.Transcript(greeting, hello)
    assert decode(by_name["Proof"]) == m.Proof(proof) == m.Proof(ours.sender_proof(token))
    assert decode(by_name["Welcome"]) == m.Welcome(mac) == m.Welcome(ours.receiver_proof(token, proof))


def test_exchange_is_read_from_one_stream() -> None:
    """What a connection's sender said, back to back: each frame ends where the next begins."""
    read = Reader(exchange_stream("control", "sender"))
    kinds = []
    while read.left:
        kinds.append(type(decode(read_body(read, 1024))))

    assert kinds == [m.Hello, m.Proof, m.Offer, m.ManifestPart, m.Finish]


# --- what is refused


@pytest.mark.parametrize("vector", REFUSED["frames"], ids=described)
def test_refused_frame(vector: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        read_body(Reader(bytes.fromhex(vector["wire"])), vector["limit"])

    assert caught.value.code is Code[vector["code"]]
    assert vector["says"] in str(caught.value)


@pytest.mark.parametrize("vector", REFUSED["bodies"], ids=described)
def test_refused_body(vector: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(unpacked(vector["body"]))

    assert caught.value.code is Code[vector["code"]]
    assert vector["says"] in str(caught.value)


@pytest.mark.parametrize("file", CHUNKS["tree_shares"]["files"], ids=lambda file: str(file["path"]))
def test_whose_a_file_of_a_tree_is(file: dict[str, Any]) -> None:
    """By the rule of proto/README.md, "Shards of trees", written down once more."""
    first = xxhash.xxh3_64_intdigest(file["path"].encode())
    segments = -(-file["size"] // CHUNKS["tree_shares"]["chunk_size"])
    for index, moved in enumerate(file["shards"]):
        if file["is_linked"]:
            expected = list(range(segments)) if index == 0 else None
        elif segments < 2:
            expected = list(range(segments)) if first % 3 == index else None
        else:
            expected = [k for k in range(segments) if (first + k) % 3 == index] or None
        assert moved == expected


def test_the_digest_of_a_walk() -> None:
    found = CHUNKS["tree_shares"]
    records = [
        struct.pack(">BQ", 0, found["chunk_size"]),
        struct.pack(">BQq", 1, 0, 0) + b"photos",
        struct.pack(">BQq", 2, 0, -1) + b"latest",
        struct.pack(">BQq", 6, 0, 0) + b"fifo",
    ]
    for file in found["files"]:
        kind = 5 if file["is_linked"] else 4 if file["size"] > found["chunk_size"] else 3
        records.append(struct.pack(">BQq", kind, file["size"], file["mtime_ns"]) + file["path"].encode())

    total = sum(map(xxhash.xxh3_128_intdigest, records)) % (1 << 128)

    assert f"{total:032x}" == found["walk_digest"]

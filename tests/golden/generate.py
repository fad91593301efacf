"""Make the golden vectors anew: `python -m tests.golden.generate`, in the project's root.

A deliberate step. What is committed was on the wire once; a difference means that the protocol has changed, so that old
and new peers no longer understand each other. Look at `git diff tests/golden` before you commit one. With `--readme` it
prints the example exchange as it stands in proto/README.md.

Everything here is fixed: ids and nonces count up, and negative vectors are written byte by byte, not by the codec.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from filestreamer.wire import auth, limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import encode
from filestreamer.wire.digests import checksum, root_digest, segment_digest
from filestreamer.wire.errors import Code
from filestreamer.wire.framing import frame_of
from filestreamer.wire.grid import Grid, Share
from filestreamer.wire.session import Side
from filestreamer.wire.tree_shares import TreeShares, WalkDigest
from tests.golden.vectors import GOLDEN, fields_of, packed

TOKEN = "correct horse battery staple"
TRANSFER_ID = bytes(range(0x10))
INCARNATION = bytes(range(0x10, 0x20))
RECEIVER_NONCE = bytes(range(0x20, 0x30))
SENDER_NONCE = bytes(range(0x30, 0x40))
CERTIFICATE_SHA256 = bytes(range(0x80, 0xA0))
MTIME_NS = 1_767_225_600_123_456_789  # 2026-01-01 00:00:00.123456789 UTC
CONTENT = b"hello, world\n"
CHUNK_SIZE = 8
SHARD_CHUNK_SIZE = 3
HOMES = 2
"""Data connections of each shard."""

FEATURES = (
    "checksum",
    "chunk-runs",
    "delete",
    "dry-run",
    "existing",
    "owner",
    "shards",
    "streams",
    "tree-shards",
    "trees",
    "xattrs",
)

JOB = "photos.to-volume-2"

GREETING = m.Greeting(1, 1, INCARNATION, RECEIVER_NONCE, True, FEATURES)
GREETING_OPEN = GREETING._replace(token_required=False)
HELLO_CONTROL = m.Hello(1, 1, TRANSFER_ID, m.Role.CONTROL, 0, 8, SENDER_NONCE, True, FEATURES)
GREETING_CONTROL = GREETING._replace(role=m.Role.CONTROL)
GREETING_DATA = GREETING._replace(role=m.Role.DATA)
"""Where the receiver dials."""
HELLO_DATA = HELLO_CONTROL._replace(role=m.Role.DATA, connection_id=7)
MOST_FEATURES = tuple(sorted(f"a-feature-of-a-later-version-{number:03}" for number in range(28)))
"""As many of the longest names as a frame of the opening has room for."""

FILE = m.Entry(b"hello.txt", m.EntryType.FILE, len(CONTENT), 0o644, MTIME_NS)
TREE = (
    m.Entry(b"photos", m.EntryType.DIRECTORY, 0, 0o755, MTIME_NS),
    m.Entry("photos/Übersicht 1.jpg".encode(), m.EntryType.FILE, 5_000_000_000, 0o640, MTIME_NS, uid=0, gid=1000),
    m.Entry(b"photos/\xff\x01", m.EntryType.FILE, 0, 0, -1),
    m.Entry(b"latest", m.EntryType.SYMLINK, 0, 0o777, 0, link_target=b"photos/../photos"),
    m.Entry(
        b"disk.img",
        m.EntryType.FILE,
        1 << 20,
        0o600,
        MTIME_NS,
        hard_link_group=1,
        data_bytes=1 << 16,
        xattrs=(m.Xattr(b"user.origin", b"camera \x00 1"), m.Xattr(b"user.empty", b"")),
    ),
)

MESSAGES: list[tuple[str, m.Message]] = [
    ("a receiver that wants a token", GREETING),
    ("a receiver that lets everybody in", GREETING_OPEN),
    ("a receiver that speaks versions 1 to 3", GREETING_OPEN._replace(highest_version=3)),
    ("a receiver that dials, for control", GREETING_CONTROL),
    ("a receiver that dials, for data, and has no token", GREETING_OPEN._replace(role=m.Role.DATA)),
    ("a control connection; connection_id is 0 and so not on the wire", HELLO_CONTROL),
    ("the last of eight data connections", HELLO_DATA),
    ("a receiver that names no feature", GREETING._replace(features=())),
    ("a receiver that names features of a later version", GREETING._replace(features=("0", "trees", "x-1"))),
    ("as many features of 32 characters as there is room for", GREETING._replace(features=MOST_FEATURES)),
    ("a sender that names no feature", HELLO_CONTROL._replace(features=())),
    ("a sender that names features of a later version", HELLO_DATA._replace(features=("trees", "z" * 32))),
    ("a sender without a token", HELLO_CONTROL._replace(can_prove=False)),
    ("a sender that speaks versions 1 to 3", HELLO_CONTROL._replace(highest_version=3)),
    ("a transfer that needs two of the features", HELLO_CONTROL._replace(needs=("shards", "trees"))),
    ("the largest connection_id there is", HELLO_DATA._replace(connection_id=255, connections=256)),
    ("a transfer that is of a job", HELLO_CONTROL._replace(job=JOB)),
    ("a job of 63 characters", HELLO_DATA._replace(job="a" * 62 + "1")),
    ("a job of one character", HELLO_DATA._replace(job="7")),
    ("a sender's proof", m.Proof(bytes(range(0x40, 0x60)))),
    ("come in; nobody has to prove anything", m.Welcome(b"")),
    ("come in; the receiver proves that it knows the token", m.Welcome(bytes(range(0x60, 0x80)))),
    ("come in, for this job", m.Welcome(bytes(range(0x60, 0x80)), JOB)),
    ("come in, for this job; nobody has to prove anything", m.Welcome(b"", JOB)),
    ("of another job", m.Refusal(Code.JOB, "this receiver is of job 'mails'")),
    ("turned away", m.Refusal(Code.TOKEN, "the token is wrong")),
    ("turned away, without a word", m.Refusal(Code.LIMIT, "")),
    ("one file in chunks of 8 bytes", m.Offer(CHUNK_SIZE, None, False, len(CONTENT))),
    (
        "the largest chunk size, share 0 of 4, final files compared, size not known yet",
        m.Offer(limits.CHUNK_SIZE_MAX, m.Shard(0, 4), True, 0),
    ),
    (
        "share 2 of 4 of a tree",
        m.Offer(limits.CHUNK_SIZE_DEFAULT, m.Shard(2, 4, tree=True), False, 0),
    ),
    (
        "an exact mirror of one directory; what is there already stays unless the source has a newer one",
        m.Offer(
            limits.CHUNK_SIZE_DEFAULT,
            None,
            False,
            0,
            m.Existing.NEWER,
            m.Deletion((b"photos",), (b"*.tmp", b"/cache/")),
        ),
    ),
    (
        "what is in a directory, into the destination itself; the receiver is only asked",
        m.Offer(limits.CHUNK_SIZE_DEFAULT, None, True, 0, m.Existing.REFUSE, m.Deletion((b"",)), True),
    ),
    (
        "a FIFO at the source: what has its name at the destination is kept",
        m.ManifestPart(5, (m.Entry(b"photos/fifo", m.EntryType.KEPT, 0, 0, 0),), True),
    ),
    ("the whole manifest of a transfer of one file", m.ManifestPart(0, (FILE,), True)),
    ("a manifest with everything an entry may have", m.ManifestPart(0, TREE, False)),
    ("the end of a manifest whose last entry was in the part before", m.ManifestPart(5, (), True)),
    ("the offer of a sender that rejoins", m.Offer(CHUNK_SIZE, None, False, len(CONTENT), again=True)),
    ("a manifest that keeps extended attributes", m.Offer(CHUNK_SIZE, None, False, 0, xattrs=True)),
    ("a part whose last entry has large extended attributes", m.ManifestPart(0, (FILE,), False, (), True)),
    (
        "extended attributes of the last entry so far, and the end of the manifest",
        m.ManifestPart(1, (), True, (m.Xattr(b"user.large", b"one"), m.Xattr(b"user.large", b" value"))),
    ),
    ("file 0 is needed as a whole", m.Needed((m.FileRange(0, 1),), ())),
    (
        "files 3 to 12 are needed, and of file 1 the segments 0 to 4 and 1000",
        m.Needed((m.FileRange(3, 10),), (m.SegmentRange(1, 0, 5), m.SegmentRange(1, 1000, 1))),
    ),
    ("segments 5 and 6 of file 1 are held", m.Held(1, 5, segment_digest(b"five") + segment_digest(b"six"))),
    (
        "files 3, 5 and 6, which have one segment each, are held",
        m.Held(
            0,
            0,
            segment_digest(b"three") + segment_digest(b"five") + segment_digest(b"six"),
            files=(m.FileRange(3, 1), m.FileRange(5, 2)),
        ),
    ),
    ("files 20 to 29 are accepted unread", m.Held(0, 0, b"", (m.FileRange(20, 10),))),
    ("all of file 7 is held, under its final name", m.Held(7, 0, segment_digest(b"seven"), (), True)),
    ("files 30 to 39 exist, and are left as they are", m.Held(0, 0, b"", (), False, (m.FileRange(30, 10),))),
    (
        "how entries stand, in a dry run",
        m.Verdicts(
            (
                m.EntryVerdict(m.Standing.SAME, 0, 4),
                m.EntryVerdict(m.Standing.NEW, 4),
                m.EntryVerdict(m.Standing.DECLINED, 5, reason="a directory has this name"),
                m.EntryVerdict(m.Standing.EXTRA, path=b"photos/old.jpg"),
            )
        ),
    ),
    ("a stream is needed, at most 64 MiB ahead", m.Needed((m.FileRange(0, 1),), (), 64 * limits.MIB)),
    (
        "a stream, whose size nobody knows",
        m.ManifestPart(0, (m.Entry(b"stdin", m.EntryType.STREAM, 0, 0o644, MTIME_NS),), True),
    ),
    ("the end of a stream of 13 bytes", m.Finish(2, root_digest([segment_digest(b"one")]), 13)),
    ("two files went away before they were read", m.Withdrawn((3, 1200))),
    (
        "a directory and what is in it can't be made, one owner can't be set",
        m.Declined(
            (
                m.DeclinedEntry(4, m.SkipKind.DECLINED, "a file has this name", b"photos/2025"),
                m.DeclinedEntry(5, m.SkipKind.DECLINED, "it lies below photos/2025", b"photos/2025/\xff.jpg"),
                m.DeclinedEntry(1200, m.SkipKind.ATTRIBUTE, "its owner can't be set", b"latest"),
            )
        ),
    ),
    (
        "a file is there, and may not be replaced",
        m.Declined((m.DeclinedEntry(0, m.SkipKind.EXISTING, "it exists", b"b"),)),
    ),
    (
        "hard links become copies",
        m.Notice(("the destination has no hard links: further names are copies",)),
    ),
    (
        "zeros: segments 0 to 99 of file 1, and the last of file 2",
        m.Zeros((m.SegmentRange(1, 0, 100), m.SegmentRange(2, 7, 1))),
    ),
    ("a heartbeat of a receiver whose reader takes nothing", m.Progress(m.Phase.WAITING, 1 << 20, 0)),
    ("a sender that wants eight data connections, where the receiver dials", m.Connections(8)),
    ("a sender that wants no data connection, likewise; the empty message", m.Connections(0)),
    ("the heartbeat of a receiver that syncs", m.Progress(m.Phase.SYNCING, 5_000_000_000, 1 << 40)),
    ("a heartbeat with stages", m.Progress(m.Phase.MOVING, 1 << 20, 0, (1_500_000, 0, 1, 1 << 40))),
    ("a heartbeat of a receiver that removes what is not listed", m.Progress(m.Phase.SYNCING, 1 << 20, 0, (), 7)),
    ("a heartbeat of a receiver that reads slowly", m.Progress(m.Phase.MOVING, 0, 0, (), 0, 65_536)),
    (
        "a heartbeat of a receiver that gets nothing over two connections",
        m.Progress(m.Phase.MOVING, 0, 0, starved=(1, 255)),
    ),
    ("the first heartbeat of a sender", m.Progress(m.Phase.OFFERING, 0, 0)),
    (
        "a heartbeat of a sender that has found a million files, none of which it lists",
        m.Progress(m.Phase.OFFERING, 0, 0, passed_over=1_000_000),
    ),
    ("every chunk is acknowledged or held", m.Finish(2, root_digest([segment_digest(b"one"), segment_digest(b"two")]))),
    ("nothing had to be moved: the digest of no digests", m.Finish(0, root_digest([]))),
    (
        "all but three entries of a tree, of which two are named",
        m.Finish(
            1,
            root_digest([segment_digest(b"one")]),
            0,
            (m.LeftOutCount(m.SkipKind.VANISHED, 2), m.LeftOutCount(m.SkipKind.SPECIAL, 1)),
            (
                m.LeftOut(b"photos/tmp", m.SkipKind.VANISHED, "changed while it was sent (it is gone)"),
                m.LeftOut(b"photos/fifo", m.SkipKind.SPECIAL, "it is a FIFO"),
            ),
        ),
    ),
    (
        "a shard of a tree is done, with the digest of what its walk found",
        m.Finish(1, root_digest([segment_digest(b"one")]), walk_digest=segment_digest(b"walk")),
    ),
    ("the file has its final name", m.Complete(True)),
    ("the last of four shards of a tree is done", m.Complete(True, 0, 0, 0, 4, 1200, 5_000_000_000)),
    ("three entries were removed, one could not be, and two were left as they are", m.Complete(True, 3, 1, 2)),
    ("a share is synced in staging; the empty message", m.Complete(False)),
    ("one segment of a large file", m.ChunkHeader(1200, (m.Segment(1, 1200 << 22, 1 << 22),))),
    ("a bundle of three small files", m.ChunkHeader(0, (m.Segment(0, 0, 3), m.Segment(2, 0, 1), m.Segment(3, 0, 4)))),
    (
        "a segment with two holes, and a file that is nothing but a hole",
        m.ChunkHeader(3, (m.Segment(0, 0, 100, (10, 20, 30, 40)), m.Segment(1, 0, 9, (0, 9)))),
    ),
    (
        "a run: chunks 3, 8, 13 and 18 of a file in chunks of 1 KiB",
        m.ChunkHeader(3, (m.Segment(1, 3 << 10, 1 << 10),), 4, 5),
    ),
    ("three chunks are written and in the ledger", m.ChunkAck(m.Verdict.OK, (0, 1, 1200))),
    (
        "a chunk, and two runs of which one chunk arrived damaged",
        m.ChunkAck(m.Verdict.OK, (7,), (m.ChunkRange(3, 2, 5), m.ChunkRange(18, 254, 5))),
    ),
    ("a chunk arrived damaged", m.ChunkAck(m.Verdict.DIGEST_MISMATCH, (7,))),
    ("the transfer ends", m.Abort(Code.SOURCE_CHANGED, "input changed while it was sent (its times changed)")),
    ("a reason outside ASCII", m.Abort(Code.NO_SPACE, "kein Platz auf »/srv«")),
    ("the last code there is", m.Abort(Code.JOB, "another one")),
]


def frame_vector(message: m.Message) -> dict[str, Any]:
    """Describe one message and its bytes."""
    body = encode(message)
    return {
        "message": type(message).__name__,
        "fields": fields_of(message),
        "body": body.hex(),
        "frame": frame_of(body).hex(),
    }


def messages() -> dict[str, Any]:
    """Every message, at least once."""
    return {
        "about": "each message: its fields, the body that encodes them, and the whole frame",
        "vectors": [{"description": description, **frame_vector(message)} for description, message in MESSAGES],
    }


# --- opening -----------------------------------------------------------------------------------------------------


def opening_steps(
    greeting: m.Greeting,
    hello: m.Hello,
    token: bytes | None,
    certificate: bytes = b"",
    tls_server: Side = "receiver",
) -> list[tuple[str, m.Message]]:
    """Who says what in an opening that succeeds."""
    if token is None:
        return [("receiver", greeting), ("sender", hello), ("receiver", m.Welcome(b"", hello.job))]
    transcript = auth.Transcript(encode(greeting), encode(hello), certificate, tls_server)
    if greeting.role is not None:  # the receiver dials, and who was dialled proves last
        mac = transcript.receiver_proof(token)
        proof = transcript.sender_proof(token, mac)
        welcome = m.Welcome(mac, hello.job)
        return [("receiver", greeting), ("sender", hello), ("receiver", welcome), ("sender", m.Proof(proof))]
    proof = transcript.sender_proof(token)
    mac = transcript.receiver_proof(token, proof)
    welcome = m.Welcome(mac, hello.job)
    return [("receiver", greeting), ("sender", hello), ("sender", m.Proof(proof)), ("receiver", welcome)]


def opening() -> dict[str, Any]:
    """Build openings that succeed, with and without a token."""
    no_token = HELLO_CONTROL._replace(can_prove=False)
    greeting_no_token = GREETING_CONTROL._replace(token_required=False)
    dialled = "where the receiver dials"
    cases: list[tuple[str, m.Greeting, m.Hello, str | None, bytes, Side | None]] = [
        ("control, with a token", GREETING, HELLO_CONTROL, TOKEN, b"", None),
        ("data, with a token outside ASCII", GREETING, HELLO_DATA, "Schlüssel aus 25 Zeichen!", b"", None),
        ("data, with a token, inside TLS", GREETING, HELLO_DATA, TOKEN, CERTIFICATE_SHA256, "receiver"),
        ("control, without a token", GREETING_OPEN, no_token, None, b"", None),
        (f"control, with a token, {dialled}", GREETING_CONTROL, HELLO_CONTROL, TOKEN, b"", None),
        (f"data, with a token, {dialled}", GREETING_DATA, HELLO_DATA, TOKEN, b"", None),
        (f"data, with a token, inside TLS, {dialled}", GREETING_DATA, HELLO_DATA, TOKEN, CERTIFICATE_SHA256, "sender"),
        (f"control, without a token, {dialled}", greeting_no_token, no_token, None, b"", None),
        ("control, with a token, of a job", GREETING, HELLO_CONTROL._replace(job=JOB), TOKEN, b"", None),
        (f"control, of a job, {dialled}", GREETING_CONTROL, HELLO_CONTROL._replace(job=JOB), TOKEN, b"", None),
    ]
    vectors = []
    for description, greeting, hello, token, certificate, server in cases:
        secret = token.encode() if token else None
        steps = opening_steps(greeting, hello, secret, certificate, server or "receiver")
        frames = [{"from": who, **frame_vector(message)} for who, message in steps]
        vectors.append(
            {
                "description": description,
                "token": token,
                "tls_server": server,
                "certificate_sha256": certificate.hex(),
                "frames": frames,
            }
        )
    return {"about": "openings with fixed nonces; the proofs are in Proof and in Welcome", "vectors": vectors}


# --- chunks ------------------------------------------------------------------------------------------------------


def chunk_vector(description: str, header: m.ChunkHeader, payload: bytes) -> dict[str, Any]:
    """Describe one chunk on the wire."""
    digests, at = [], 0
    for segment in header.all_segments:
        digests.append(segment_digest(payload[at : at + segment.length]))
        at += segment.length
    vector = {"description": description, "header": frame_vector(header), "payload": payload.hex()}
    vector["digests"] = [digest.hex() for digest in digests]
    vector["wire"] = (frame_of(encode(header)) + payload + b"".join(digests)).hex()
    return vector


def shard_vector(share: Share, chunk_size: int) -> dict[str, Any]:
    """Describe the share of one shard of CONTENT."""
    parts = [CONTENT[at : at + chunk_size] for at in range(0, len(CONTENT), chunk_size)]
    chunk_ids = list(range(share.index, len(parts), share.count))
    return {
        "description": f"shard {share} of a file of {len(parts)} chunks, over {HOMES} connections",
        "content": CONTENT.hex(),
        "chunk_size": chunk_size,
        "shard_index": share.index,
        "shard_count": share.count,
        "chunk_ids": chunk_ids,
        "homes": [(chunk_id // share.count) % HOMES for chunk_id in chunk_ids],
        "bytes": sum(len(parts[chunk_id]) for chunk_id in chunk_ids),
        "chunks": len(chunk_ids),
        "root_digest": root_digest([segment_digest(parts[chunk_id]) for chunk_id in chunk_ids]).hex(),
    }


def chunks() -> dict[str, Any]:
    """Build chunks on the wire, and root digests."""
    grid = Grid(len(CONTENT), CHUNK_SIZE)
    parts = [CONTENT[grid.offset(i) : grid.offset(i) + grid.length(i)] for i in range(grid.segments)]
    sliced = [
        chunk_vector(
            f"chunk {i} of a file of {len(CONTENT)} bytes in chunks of {CHUNK_SIZE}",
            m.ChunkHeader(i, (m.Segment(0, grid.offset(i), grid.length(i)),)),
            part,
        )
        for i, part in enumerate(parts)
    ]
    bundle = m.ChunkHeader(0, (m.Segment(0, 0, 3), m.Segment(2, 0, 1), m.Segment(3, 0, 4)))
    # Chunks 0, 2 and 4 of CONTENT in chunks of 2 bytes; the last one, of 1 byte, is not in a run.
    run = m.ChunkHeader(0, (m.Segment(0, 0, 2),), 3, 2)
    run_payload = b"".join([CONTENT[at : at + 2] for at in (0, 4, 8)])
    roots = [
        ("the file above", parts),
        ("the three files of the bundle", [b"abc", b"d", b"efgh"]),
        ("an empty file: no segment, no digest", []),
    ]
    return {
        "about": "chunks as they are on a data connection, shares of shards, root digests (XXH3-128 over the digests)",
        "vectors": [
            *sliced,
            chunk_vector("a bundle: files 0, 2 and 3, file 1 being empty", bundle, b"abcdefgh"),
            chunk_vector("a run: chunks 0, 2 and 4 of that file in chunks of 2", run, run_payload),
        ],
        "shards": [
            *(shard_vector(Share(index, 3), SHARD_CHUNK_SIZE) for index in range(3)),
            shard_vector(Share(2, 3), CHUNK_SIZE),
        ],
        "tree_shares": tree_shares(),
        "root_digests": [
            {
                "description": description,
                "segments": [part.hex() for part in segments],
                "root_digest": root_digest([segment_digest(part) for part in segments]).hex(),
            }
            for description, segments in roots
        ],
    }


def tree_shares() -> dict[str, Any]:
    """Return what three shards of a tree move of its files, and the digest of their walks."""
    found = [
        (b"photos/1.jpg", 5, False),
        (b"photos/2.jpg", 20, False),
        (b"photos/3.jpg", 20, True),
        (b"empty", 0, False),
    ]
    shards = [TreeShares(Share(index, 3), CHUNK_SIZE, checksum=False) for index in range(3)]
    walk = WalkDigest(shards[0], CHUNK_SIZE)
    walk.directory(b"photos")
    walk.symlink(b"latest", -1)
    walk.other(b"fifo")
    files = []
    for path, size, is_linked in found:
        walk.file(path, size, MTIME_NS, is_linked=is_linked)
        owned = []
        for shares in shards:
            share = shares.share(path) if shares.is_shared(size, is_linked=is_linked) else Share()
            segments = [k for k in range(Grid(size, CHUNK_SIZE).segments) if share.holds(k)]
            owned.append(segments if shares.has_file(path, size, is_linked=is_linked) else None)
        files.append(
            {"path": path.decode(), "size": size, "mtime_ns": MTIME_NS, "is_linked": is_linked, "shards": owned}
        )
    return {
        "about": "for each of 3 shards the segments that it moves, null where it does not list the file; the walk found"
        " also the directory photos, the symlink latest (mtime_ns -1) and the FIFO fifo",
        "chunk_size": CHUNK_SIZE,
        "files": files,
        "walk_digest": walk.digest().hex(),
    }


# --- one exchange ------------------------------------------------------------------------------------------------


def exchange_steps() -> Iterator[tuple[str, str, str, bytes]]:
    """Yield (connection, who, what, bytes) for a transfer of CONTENT over one data connection, with a token."""
    token = TOKEN.encode()
    hellos = {
        "control": HELLO_CONTROL._replace(connections=1),
        "data 0": HELLO_DATA._replace(connection_id=0, connections=1),
    }
    openings = {
        connection: [
            (connection, who, type(message).__name__, frame_of(encode(message)))
            for who, message in opening_steps(GREETING._replace(nonce=nonce), hello, token)
        ]
        for (connection, hello), nonce in zip(hellos.items(), (RECEIVER_NONCE, bytes(range(0xA0, 0xB0))), strict=True)
    }

    def said(connection: str, who: str, message: m.Message, raw: bytes = b"") -> tuple[str, str, str, bytes]:
        what = type(message).__name__ + (", payload, digest" if raw else "")
        return connection, who, what, frame_of(encode(message)) + raw

    yield from openings["control"]
    yield said("control", "sender", m.Offer(CHUNK_SIZE, None, False, len(CONTENT)))
    yield said("control", "sender", m.ManifestPart(0, (FILE,), True))
    yield said("control", "receiver", m.Needed((m.FileRange(0, 1),), ()))
    yield from openings["data 0"]
    grid = Grid(len(CONTENT), CHUNK_SIZE)
    digests = []
    for index in range(grid.segments):
        offset, length = grid.offset(index), grid.length(index)
        payload = CONTENT[offset : offset + length]
        digests.append(segment_digest(payload))
        header = m.ChunkHeader(index, (m.Segment(0, offset, length),))
        yield said("data 0", "sender", header, payload + digests[-1])
    yield said("data 0", "receiver", m.ChunkAck(m.Verdict.OK, (0, 1)))
    yield said("control", "sender", m.Finish(2, root_digest(digests)))
    yield said("control", "receiver", m.Progress(m.Phase.SYNCING, len(CONTENT), 0))
    yield said("control", "receiver", m.Complete(True))


def exchange() -> dict[str, Any]:
    """Describe that transfer."""
    steps = [
        {"connection": connection, "from": who, "what": what, "wire": wire.hex()}
        for connection, who, what, wire in exchange_steps()
    ]
    about = "a whole transfer, frame by frame: hello.txt over one data connection, in chunks of 8 bytes"
    return {"about": about, "token": TOKEN, "content": CONTENT.hex(), "chunk_size": CHUNK_SIZE, "steps": steps}


def readme_exchange() -> str:
    """Write that transfer as proto/README.md shows it."""
    lines = []
    for connection, who, what, wire in exchange_steps():
        other = "receiver" if who == "sender" else "sender"
        lines.append(f"{connection:<8} {who:>8} -> {other:<8}  {what}")
        lines += [f"    {wire[at : at + 32].hex(' ', -4)}" for at in range(0, len(wire), 32)]
    return "\n".join(lines)


# --- what is refused ---------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    """Write one base-128 number."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def pb(*fields: tuple[int, int | bytes]) -> bytes:
    """Write protobuf fields, in this order: an int as a varint, bytes with their length."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value % (1 << 64))
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


ID = bytes(16)
MAC = bytes(32)
_HELLO: dict[int, int | bytes] = {1: 1, 2: 1, 3: ID, 4: 2, 5: 0, 6: 8, 7: ID}
_GREETING: dict[int, int | bytes] = {1: 1, 2: 1, 3: ID, 4: ID}
_ENTRY: dict[int, int | bytes] = {2: b"f", 3: 1, 4: 8, 5: 0, 6: 0}


def hello(**changes: int | bytes | list[bytes]) -> bytes:
    """Write a Hello, with the fields `f1`, `f2`, ... changed."""
    return pb((2, _changed(_HELLO, changes)))


def greeting(**changes: int | bytes | list[bytes]) -> bytes:
    """Write a Greeting, likewise."""
    return pb((1, _changed(_GREETING, changes)))


def entry(*details: tuple[int, int | bytes], **changes: int | bytes | list[bytes]) -> bytes:
    """Write a ManifestPart of one entry, likewise; with `details`, if there are any."""
    more = pb((9, pb(*details))) if details else b""
    return pb((17, _changed(_ENTRY, changes) + more))


VANISHED = (4, b"\x08\x01\x10\x02")
"""Of a Finish: two entries vanished."""
LEFT_OUT = b"\x0a\x01x\x10\x01"
XATTR = b"\x0a\x06user.x"
"""One of them."""


DECLINED = b"\x10\x04\x22\x01x"
"""Of a Declined: an entry."""


def finish(*more: tuple[int, int | bytes]) -> bytes:
    """Write a Finish, with more fields."""
    return pb((21, pb((1, 1), (2, bytes(16)), *more)))


def _changed(fields: dict[int, int | bytes], changes: Mapping[str, int | bytes | list[bytes]]) -> bytes:
    """Write fields, in the order of their numbers; a list is a repeated field."""
    merged = {**fields, **{int(name[1:]): value for name, value in changes.items()}}
    listed = [(number, value if isinstance(value, list) else [value]) for number, value in sorted(merged.items())]
    return pb(*[(number, each) for number, values in listed for each in values])


def header(*segments: bytes, run: tuple[int, int] | None = None, first: int = 3) -> bytes:
    """Write a ChunkHeader; `run` is how many chunks, and their stride."""
    return pb((32, pb((1, first), *((2, segment) for segment in segments), *zip((3, 4), run or (), strict=False))))


def acknowledged_range(first: int, chunks: int, stride: int) -> tuple[int, bytes]:
    """Write a range of a ChunkAck."""
    return 3, pb((1, first), (2, chunks), (3, stride))


U64 = (1 << 64) - 1

REFUSED_BODIES: list[tuple[str, bytes, str]] = [
    # (what is wrong, the body, what the refusal has to name)
    ("an empty body: no kind", b"", "no known kind"),
    ("a kind of a later version", pb((15, b"")), "no known kind"),
    ("a kind whose wire type is wrong", pb((1, 5)), "no known kind"),
    ("not protobuf", b"GET / HTTP/1.1\r\n\r\n", "does not parse"),
    ("a field that ends early", pb((2, _changed(_HELLO, {})))[:-1], "does not parse"),
    ("a group that never ends", b"\x0b", "does not parse"),
    ("a reason that is not UTF-8", pb((48, pb((1, 3), (2, b"\xff\xfe")))), "does not parse"),
    ("versions from 0", greeting(f1=0), "Greeting.lowest_version"),
    ("versions from 2 to 1", greeting(f1=2), "Greeting.lowest_version"),
    ("a short incarnation", greeting(f3=ID[1:]), "Greeting.incarnation"),
    ("a long receiver's nonce", greeting(f4=ID + b"\0"), "Greeting.nonce"),
    ("a short transfer_id", hello(f3=ID[1:]), "Hello.transfer_id"),
    ("no transfer_id", hello(f3=b""), "Hello.transfer_id"),
    ("a role of 0", hello(f4=0), "Hello.role"),
    ("an unknown role", hello(f4=3), "Hello.role"),
    ("a negative role", hello(f4=-1), "Hello.role"),
    ("no connections", hello(f6=0), "Hello.connections"),
    ("257 connections", hello(f6=257), "Hello.connections"),
    ("connection 8 of 8", hello(f5=8), "Hello.connection_id"),
    ("a control connection with an id", hello(f4=1, f5=1), "Hello.connection_id"),
    ("no sender's nonce", hello(f7=b""), "Hello.nonce"),
    ("33 features", greeting(f6=[b"%02d" % number for number in range(33)]), "Greeting.features"),
    ("a feature without a name", greeting(f6=[b""]), "Greeting.features"),
    ("a feature of 33 characters", greeting(f6=[b"x" * 33]), "Greeting.features"),
    ("a feature in capitals", greeting(f6=[b"Trees"]), "Greeting.features"),
    ("a feature with an underscore", greeting(f6=[b"two_words"]), "Greeting.features"),
    ("a feature that is not ASCII", greeting(f6=["größe".encode()]), "Greeting.features"),
    ("features that are not sorted", greeting(f6=[b"trees", b"shards"]), "Greeting.features"),
    ("a feature twice", greeting(f6=[b"trees", b"trees"]), "Greeting.features"),
    ("a feature that is not UTF-8", greeting(f6=[b"\xff"]), "does not parse"),
    ("a receiver that dials for a role that is unknown", greeting(f7=3), "Greeting.role"),
    ("33 features of the sender", hello(f9=[b"%02d" % number for number in range(33)]), "Hello.features"),
    ("a feature of the sender in capitals", hello(f9=[b"TREES"]), "Hello.features"),
    ("a feature of the sender twice", hello(f9=[b"a", b"a"]), "Hello.features"),
    ("a sender that speaks no version", hello(f1=0, f2=0), "Hello.lowest_version"),
    ("a sender whose versions are the wrong way round", hello(f1=3, f2=2), "Hello.lowest_version"),
    ("a feature that is needed and not named", hello(f9=[b"a"], f10=[b"b"]), "Hello.needs"),
    ("a needed feature in capitals", hello(f10=[b"TREES"]), "Hello.needs"),
    ("a job in capitals", hello(f11=b"JOB"), "Hello.job"),
    ("a job of 64 characters", hello(f11=b"j" * 64), "Hello.job"),
    ("a job with a slash", hello(f11=b"a/b"), "Hello.job"),
    ("a job that begins with a hyphen", hello(f11=b"-a"), "Hello.job"),
    ("a job that ends with a dot", hello(f11=b"a."), "Hello.job"),
    ("a job with a new line", hello(f11=b"a\n"), "Hello.job"),
    ("a job of the receiver in capitals", pb((4, pb((1, MAC), (2, b"JOB")))), "Welcome.job"),
    ("a job of the receiver of 64 characters", pb((4, pb((1, MAC), (2, b"j" * 64)))), "Welcome.job"),
    ("an empty proof", pb((3, b"")), "Proof.mac"),
    ("a short proof", pb((3, pb((1, MAC[1:])))), "Proof.mac"),
    ("a short proof of the receiver", pb((4, pb((1, MAC[1:])))), "Welcome.mac"),
    ("a refusal without a code", pb((5, pb((2, b"no")))), "Refusal.code"),
    ("a refusal with an unknown code", pb((5, pb((1, 99)))), "Refusal.code"),
    ("chunks of 0 bytes", pb((16, pb((4, 1)))), "Offer.chunk_size"),
    ("chunks of 1 GiB and a byte", pb((16, pb((1, limits.CHUNK_SIZE_MAX + 1)))), "Offer.chunk_size"),
    ("more bytes than files can have", pb((16, pb((1, 8), (4, 1 << 63)))), "Offer.total_bytes"),
    ("one shard", pb((16, pb((1, 8), (2, pb((2, 1)))))), "Offer.shard.shard_count"),
    ("1025 shards", pb((16, pb((1, 8), (2, pb((2, limits.SHARDS_MAX + 1)))))), "Offer.shard.shard_count"),
    ("shard 2 of 2", pb((16, pb((1, 8), (2, pb((1, 2), (2, 2)))))), "Offer.shard.shard_index"),
    ("a short digest of a walk", pb((21, pb((2, bytes(16)), (7, bytes(15))))), "Finish.walk_digest"),
    ("1025 shards that are finished", pb((22, pb((5, limits.SHARDS_MAX + 1)))), "Complete.shards_finished"),
    ("file ids that run over", pb((17, pb((1, 1 << 63), (10, 1)))), "ManifestPart.first_file_id"),
    ("no entry, and not the last part", pb((17, b"")), "ManifestPart.paths"),
    ("extended attributes beside entries", entry(f11=XATTR), "ManifestPart.paths"),
    ("extended attributes of no entry go on", pb((17, pb((10, 1), (12, 1)))), "ManifestPart.xattrs_continue"),
    ("they go on behind the last part", pb((17, pb((10, 1), (11, XATTR), (12, 1)))), "ManifestPart.xattrs_continue"),
    ("an attribute without a name", pb((17, pb((11, pb((2, b"x")))))), "more_xattrs.name"),
    ("an attribute with a name of 256 bytes", pb((17, pb((11, pb((1, b"x" * 256)))))), "more_xattrs.name"),
    ("an attribute with a 0 in its name", pb((17, pb((11, pb((1, b"x\0")))))), "more_xattrs.name"),
    ("1025 attributes", pb((17, pb(*[(11, XATTR)] * 1025))), "ManifestPart.more_xattrs"),
    ("1025 entries", pb((17, _changed(_ENTRY, {}) * 1025)), "ManifestPart.paths"),
    ("two paths and one of all else", entry(f2=[b"f", b"g"]), "ManifestPart.types"),
    ("a size too few", pb((17, _changed(_ENTRY, {}) + pb((2, b"g"), (3, 1), (5, 0), (6, 0)))), "ManifestPart.sizes"),
    ("a mode too few", pb((17, _changed(_ENTRY, {}) + pb((2, b"g"), (3, 1), (4, 8), (6, 0)))), "ManifestPart.modes"),
    ("a time too many", pb((17, _changed(_ENTRY, {}) + pb((6, 0)))), "ManifestPart.mtimes_ns"),
    ("two owners of one entry", pb((17, _changed(_ENTRY, {}) + pb((7, 0), (7, 0)))), "ManifestPart.uids"),
    ("two groups of one entry", pb((17, _changed(_ENTRY, {}) + pb((8, 0), (8, 0)))), "ManifestPart.gids"),
    ("an entry without a path", entry(f2=b""), "ManifestPart.paths"),
    ("a path of 4097 bytes", entry(f2=b"x" * 4097), "ManifestPart.paths"),
    ("an entry of type 0", entry(f3=0), "ManifestPart.types"),
    ("an entry of an unknown type", entry(f3=9), "ManifestPart.types"),
    ("a directory of 8 bytes", entry(f3=2), "ManifestPart.sizes"),
    ("a file of 2^63 bytes", entry(f4=1 << 63), "ManifestPart.sizes"),
    ("mode bits beyond the permissions", entry(f5=0o10000), "ManifestPart.modes"),
    ("an owner of -2", entry(f7=3), "ManifestPart.uids"),
    ("a group of 2^32 - 1, which is -1 to chown(2)", entry(f8=2 * ((1 << 32) - 1)), "ManifestPart.gids"),
    ("details of an entry that is not there", entry((1, 1)), "ManifestPart.details.index"),
    ("details of an entry twice", pb((17, _changed(_ENTRY, {"f9": [b"", b""]}))), "ManifestPart.details"),
    ("a file with a link target", entry((2, b"x")), "ManifestPart.details.link_target"),
    ("a symlink without a target", entry(f3=3, f4=0), "ManifestPart.details.link_target"),
    ("a link target of 4097 bytes", entry((2, b"x" * 4097), f3=3, f4=0), "ManifestPart.details.link_target"),
    ("a link target with a byte 0", entry((2, b"x\0y"), f3=3, f4=0), "ManifestPart.details.link_target"),
    ("a hard-link group of a symlink", entry((2, b"x"), (3, 1), f3=3, f4=0), "ManifestPart.details.hard_link_group"),
    ("a hard-link group of a directory", entry((3, 1 << 31), f3=2, f4=0), "ManifestPart.details.hard_link_group"),
    ("more data than bytes", entry((5, 9)), "ManifestPart.details.data_bytes"),
    ("data of a directory", entry((5, 1), f3=2, f4=0), "ManifestPart.details.data_bytes"),
    ("1025 ranges of files", pb((18, pb((1, pb((2, 1)))) * 1025)), "Needed.files"),
    ("no file at all", pb((18, pb((1, pb((1, 3)))))), "Needed.files.files"),
    ("files that run over", pb((18, pb((1, pb((1, 1), (2, (1 << 63) - 1)))))), "Needed.files.files"),
    ("a first file that runs over", pb((18, pb((1, pb((1, 1 << 63), (2, 1)))))), "Needed.files.first_file_id"),
    ("1025 ranges of segments", pb((18, pb((2, pb((3, 1)))) * 1025)), "Needed.segments"),
    ("a first segment beyond any file", pb((18, pb((2, pb((2, (1 << 23) + 1), (3, 1)))))), "first_segment"),
    ("no segment at all", pb((18, pb((2, pb((2, 3)))))), "Needed.segments.segments"),
    ("2^23 segments from the second", pb((18, pb((2, pb((2, 1), (3, 1 << 23)))))), "Needed.segments.segments"),
    ("17 bytes of digests", pb((19, pb((3, bytes(17))))), "Held.digests"),
    ("2049 digests", pb((19, pb((3, bytes(2049 * 16))))), "Held.digests"),
    ("a digest beyond any file", pb((19, pb((2, 1 << 23), (3, bytes(16))))), "Held.first_segment"),
    ("a digest of two files", pb((19, pb((3, bytes(16)), (7, pb((2, 2)))))), "Held has 1 digests"),
    ("files, and a segment of one", pb((19, pb((2, 1), (3, bytes(16)), (7, pb((2, 1)))))), "Held has files"),
    ("files, and one of them", pb((19, pb((1, 1), (3, bytes(16)), (7, pb((2, 1)))))), "Held has files"),
    ("no held file at all", pb((19, pb((7, b"")))), "Held.files.files"),
    ("no unchecked file at all", pb((19, pb((4, b"")))), "Held.unchecked.files"),
    ("a heartbeat without a phase", pb((20, b"")), "Progress.phase"),
    ("a heartbeat of an unknown phase", pb((20, pb((1, 5)))), "Progress.phase"),
    ("a heartbeat with 17 stages", pb((20, pb((1, 2), (4, bytes(17))))), "Progress.stage_microseconds"),
    ("257 connections are starved", pb((20, pb((1, 2), (7, bytes(257))))), "Progress.starved"),
    ("the connection 256 is starved", pb((20, pb((1, 2), (7, b"\x80\x02")))), "Progress.starved"),
    ("257 data connections are wanted", pb((28, pb((1, 257)))), "Connections.wanted"),
    ("a root digest of 15 bytes", pb((21, pb((1, 1), (2, bytes(15))))), "Finish.root_digest"),
    ("nothing is declined", pb((24, b"")), "the number of Declined.entries"),
    ("513 entries are declined", pb((24, pb(*[(1, DECLINED)] * 513))), "the number of Declined.entries"),
    ("declined for no reason", pb((24, pb((1, pb((4, b"x")))))), "Declined.entries.kind"),
    ("declined, as it vanished", pb((24, pb((1, pb((2, 1), (4, b"x")))))), "for the sender to say"),
    ("declined without a path", pb((24, pb((1, pb((2, 4)))))), "Declined.entries.path"),
    ("declined with a path of 257 bytes", pb((24, pb((1, pb((2, 4), (4, b"x" * 257)))))), "Declined.entries.path"),
    ("no warning", pb((25, b"")), "the number of Notice.texts"),
    ("65 warnings", pb((25, pb(*[(1, b"x")] * 65))), "the number of Notice.texts"),
    ("left out for no reason", finish((4, pb((2, 1)))), "Finish.left_out_counts.kind"),
    ("left out for an unknown reason", finish((4, pb((1, 100), (2, 1)))), "Finish.left_out_counts.kind"),
    ("left out, and not one entry", finish((4, pb((1, 1)))), "Finish.left_out_counts.entries"),
    ("2^63 entries left out", finish((4, pb((1, 1), (2, 1 << 63)))), "Finish.left_out_counts.entries"),
    ("a kind that is counted twice", finish((4, pb((1, 1), (2, 1))), (4, pb((1, 1), (2, 3)))), "a kind twice"),
    ("101 entries left out", finish(VANISHED, *[(5, LEFT_OUT)] * 101), "Finish.left_out"),
    ("more entries left out than were counted", finish(VANISHED, *[(5, LEFT_OUT)] * 3), "more of a kind"),
    ("an entry left out of another kind", finish(VANISHED, (5, pb((1, b"x"), (2, 2)))), "more of a kind"),
    ("an entry left out for no reason", finish(VANISHED, (5, pb((1, b"x")))), "Finish.left_out.kind"),
    ("an entry left out without a path", finish(VANISHED, (5, pb((2, 1)))), "Finish.left_out.path"),
    ("left out, with a path of 257 bytes", finish(VANISHED, (5, pb((1, b"x" * 257), (2, 1)))), "Finish.left_out.path"),
    ("a chunk without segments", header(), "ChunkHeader.segments"),
    ("1025 segments", header(*[pb((3, 1))] * 1025), "ChunkHeader.segments"),
    ("an empty segment", header(pb((1, 1))), "ChunkHeader.segments.length"),
    ("a segment of 1 GiB and a byte", header(pb((3, (1 << 30) + 1))), "ChunkHeader.segments.length"),
    ("a segment whose end runs over", header(pb((2, (1 << 63) - 1), (3, 1))), "ChunkHeader.segments.offset"),
    ("a chunk of 1 GiB and a byte", header(pb((3, 1 << 30)), pb((1, 1), (3, 1))), "payload"),
    ("runs without a hole", header(pb((3, 8), (4, b"\x08"))), "ChunkHeader.segments.runs"),
    ("runs with an empty hole", header(pb((3, 8), (4, b"\x04\x00\x04"))), "ChunkHeader.segments.runs"),
    ("runs of too few bytes", header(pb((3, 8), (4, b"\x01\x06"))), "ChunkHeader.segments.runs"),
    ("runs of too many bytes", header(pb((3, 8), (4, b"\x01\x08"))), "ChunkHeader.segments.runs"),
    ("8193 runs", header(pb((3, 8193), (4, b"\x01" * 8193))), "ChunkHeader.segments.runs"),
    ("a run of one chunk", header(pb((3, 8)), run=(1, 1)), "ChunkHeader.chunks"),
    ("a run of 257 chunks", header(pb((3, 8)), run=(257, 1)), "ChunkHeader.chunks"),
    ("a stride without a run", header(pb((3, 8)), run=(0, 1)), "ChunkHeader.chunks"),
    ("a run without a stride", header(pb((3, 8)), run=(2, 0)), "ChunkHeader.stride"),
    ("a stride beyond any file", header(pb((3, 8)), run=(2, (1 << 23) + 1)), "ChunkHeader.stride"),
    ("a run of bundles", header(pb((3, 8)), pb((1, 1), (3, 8)), run=(2, 1)), "ChunkHeader.segments"),
    ("a run of chunks with holes", header(pb((3, 8), (4, b"\x04\x04")), run=(2, 1)), "ChunkHeader.segments.runs"),
    ("a run of 512 KiB and 2 bytes", header(pb((3, (256 << 10) + 1)), run=(2, 1)), "ChunkHeader.segments.length"),
    ("a run of chunks beyond 2^64", header(pb((3, 8)), run=(2, 1), first=U64), "ChunkHeader.chunk_id"),
    ("a run whose end runs over", header(pb((2, (1 << 63) - 16), (3, 8)), run=(2, 1)), "ChunkHeader.segments.offset"),
    ("zeros of nothing", pb((26, b"")), "Zeros.segments"),
    ("1025 ranges of zeros", pb((26, pb((1, pb((3, 1)))) * 1025)), "Zeros.segments"),
    ("an empty range of zeros", pb((26, pb((1, pb((2, 3)))))), "Zeros.segments.segments"),
    ("zeros beyond any file", pb((26, pb((1, pb((2, 1), (3, 1 << 23)))))), "Zeros.segments.segments"),
    ("an acknowledgement of nothing", pb((33, pb((1, 1)))), "ChunkAck.chunk_ids"),
    ("1025 acknowledgements", pb((33, pb((1, 1), (2, bytes(1025))))), "ChunkAck.chunk_ids"),
    ("a range of one chunk", pb((33, pb((1, 1), acknowledged_range(7, 1, 1)))), "ChunkAck.ranges.chunks"),
    ("a range without a stride", pb((33, pb((1, 1), acknowledged_range(7, 2, 0)))), "ChunkAck.ranges.stride"),
    ("a range beyond 2^64", pb((33, pb((1, 1), acknowledged_range(U64, 2, 1)))), "ChunkAck.ranges.first_chunk_id"),
    ("1025 chunks in two ranges", pb((33, pb((1, 1), *[acknowledged_range(7, n, 1) for n in (1000, 25)]))), "ChunkAck"),
    ("an acknowledgement without a verdict", pb((33, pb((2, b"\x01")))), "ChunkAck.verdict"),
    ("an unknown verdict", pb((33, pb((1, 3), (2, b"\x01")))), "ChunkAck.verdict"),
    ("an abort without a code", pb((48, b"")), "Abort.code"),
    ("an abort with a code beyond 32 bits", pb((48, pb((1, 1 << 31)))), "Abort.code"),
]


def refused_frames() -> Iterator[dict[str, Any]]:
    """Yield frames that are refused before their body is looked at."""
    body = encode(m.Complete(True))
    good = frame_of(body)
    wrong_body = bytes([*good[:-1], good[-1] ^ 1])
    wrong_checksum = good[:4] + bytes([good[4] ^ 0x80]) + good[5:]
    little_endian = good[:4] + checksum(body)[::-1] + body
    for description, wire, limit, code, says in [
        ("a frame of no bytes", bytes(12), limits.FRAME_BYTES, Code.CORRUPT, "0 bytes"),
        ("a byte too many after Welcome", b"\x00\x01\x00\x01" + bytes(8), limits.FRAME_BYTES, Code.CORRUPT, "65537"),
        ("a byte too many before Welcome", b"\x00\x00\x04\x01" + bytes(8), 1024, Code.CORRUPT, "1025"),
        ("the largest length there is", b"\xff" * 12, limits.FRAME_BYTES, Code.CORRUPT, "4294967295"),
        ("an HTTP request", b"GET / HTTP/1.1\r\n", 1024, Code.PROTOCOL, "HTTP"),
        ("a TLS ClientHello", bytes.fromhex("160301020001000001fc0303"), 1024, Code.PROTOCOL, "TLS"),
        ("an SSH banner", b"SSH-2.0-OpenSSH_9.9\r\n", 1024, Code.PROTOCOL, "SSH"),
        ("a bit flipped in the body", wrong_body, limits.FRAME_BYTES, Code.CORRUPT, "checksum"),
        ("a bit flipped in the checksum", wrong_checksum, limits.FRAME_BYTES, Code.CORRUPT, "checksum"),
        ("a checksum in little-endian order", little_endian, limits.FRAME_BYTES, Code.CORRUPT, "checksum"),
    ]:
        yield {"description": description, "wire": wire.hex(), "limit": limit, "code": code.name, "says": says}


def refused() -> dict[str, Any]:
    """Describe what a decoder must not accept."""
    return {
        "about": "what is refused: frames with the limit that holds, and bodies; the code, and what the reason names",
        "frames": list(refused_frames()),
        "bodies": [
            {"description": description, "body": packed(body), "code": Code.PROTOCOL.name, "says": says}
            for description, body, says in REFUSED_BODIES
        ],
    }


FILES = {
    "messages.json": messages,
    "opening.json": opening,
    "chunks.json": chunks,
    "exchange.json": exchange,
    "refused.json": refused,
}


def main() -> None:
    """Write every file, or print the example of proto/README.md."""
    if sys.argv[1:] == ["--readme"]:
        print(readme_exchange())
        return
    for name, make in FILES.items():
        (GOLDEN / name).write_text(json.dumps(make(), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

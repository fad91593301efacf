"""Messages to bodies and back (proto/README.md, "Messages"). Whole vectors are in test_golden; here are the edges."""

from collections.abc import Callable

import pytest

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import clip_reason, decode, encode
from filestreamer.wire.errors import Code, LocalProtocolError, RemoteProtocolError
from tests.golden.generate import entry, greeting, header, hello, pb

ID = bytes(16)
MAC = bytes(32)
U32 = (1 << 32) - 1
U63 = (1 << 63) - 1
U64 = (1 << 64) - 1
FILE = m.Entry(b"f", m.EntryType.FILE, 8, 0o644, 0)
LINK = m.Entry(b"l", m.EntryType.SYMLINK, 0, 0o777, 0, link_target=b"f")


def part(*entries: m.Entry) -> m.ManifestPart:
    return m.ManifestPart(0, entries, True)


def numbered(messages: list[m.Message]) -> list[str]:
    return [f"{number}-{type(message).__name__}" for number, message in enumerate(messages)]


def returned(message: m.Message) -> m.Message:
    """Send a message through the codec."""
    return decode(encode(message))


# --- what is just within bounds

LEFT_OUT = m.Finish(
    U64,
    ID,
    U63,
    tuple(m.LeftOutCount(kind, U63) for kind in m.SkipKind),
    tuple(
        m.LeftOut(b"p" * limits.LEFT_OUT_PATH_BYTES, m.SkipKind(1 + at % 6), "r" * limits.LEFT_OUT_REASON_BYTES)
        for at in range(limits.LEFT_OUT_PER_FINISH)
    ),
)

WITHIN: list[m.Message] = [
    m.Greeting(1, 1, ID, ID, False),
    m.Greeting(1, U32, ID, ID, True),
    m.Greeting(U32, U32, ID, ID, True),
    m.Hello(2, 7, ID, m.Role.DATA, 0, 1, ID),  # which versions are spoken is for the opening
    m.Hello(1, U32, ID, m.Role.DATA, limits.CONNECTIONS_MAX - 1, limits.CONNECTIONS_MAX, ID),
    m.Hello(1, 1, ID, m.Role.CONTROL, 0, limits.CONNECTIONS_MAX, ID),
    m.Greeting(1, 1, ID, ID, False, ("-", "0", "a" * limits.FEATURE_NAME_BYTES)),
    m.Hello(1, 1, ID, m.Role.CONTROL, 0, 1, ID, True, tuple(f"{number:02}" for number in range(limits.FEATURES_MAX))),
    m.Proof(MAC),
    m.Welcome(b""),
    m.Welcome(MAC),
    m.Refusal(Code.VERSION, "r" * limits.REASON_BYTES),
    m.Abort(Code.INTERNAL, ""),
    m.Offer(1, None, False, 0),
    m.Offer(limits.CHUNK_SIZE_MAX, m.Shard(0, 2), True, U63),
    m.Offer(1, m.Shard(limits.SHARDS_MAX - 1, limits.SHARDS_MAX), False, 0),
    m.ManifestPart(U63, (), True),
    m.ManifestPart(0, (FILE,) * limits.ENTRIES_PER_PART, False),
    part(FILE._replace(path=b"\x00")),  # which paths may be written is for the receiver
    part(FILE._replace(path=b"p" * limits.PATH_BYTES)),
    part(FILE._replace(size=0)),
    part(FILE._replace(size=limits.FILE_SIZE_MAX)),
    part(FILE._replace(mode=0)),
    part(FILE._replace(mode=0o7777)),
    part(FILE._replace(mtime_ns=-1 << 63)),
    part(FILE._replace(mtime_ns=U63)),
    part(FILE._replace(uid=0, gid=U32 - 1)),
    part(FILE, FILE._replace(uid=U32 - 1), FILE._replace(gid=0)),  # of others, they are not told
    part(FILE._replace(hard_link_group=U64)),
    part(FILE._replace(data_bytes=0)),
    part(FILE._replace(data_bytes=FILE.size)),
    part(FILE._replace(xattrs=(m.Xattr(b"x", b""), m.Xattr(b"user.x", b"y" * 60_000)))),
    part(LINK),
    part(FILE, LINK, FILE, LINK),
    part(LINK._replace(link_target=b"t" * limits.PATH_BYTES)),
    part(m.Entry(b"d", m.EntryType.DIRECTORY, 0, 0o755, 0)),
    m.Needed((), ()),
    m.Needed((m.FileRange(0, U63), m.FileRange(U63 - 1, 1)), ()),
    m.Needed((), (m.SegmentRange(U64, 0, limits.CHUNKS_PER_FILE), m.SegmentRange(0, limits.CHUNKS_PER_FILE - 1, 1))),
    m.Held(0, 0, b""),
    m.Held(U64, limits.CHUNKS_PER_FILE - 1, ID),
    m.Held(0, limits.CHUNKS_PER_FILE, b"", (m.FileRange(1, 1),)),
    m.Held(
        0, 0, ID * limits.DIGESTS_PER_HELD, files=(m.FileRange(U63 - limits.DIGESTS_PER_HELD, limits.DIGESTS_PER_HELD),)
    ),
    m.Progress(m.Phase.OFFERING, 0, 0),
    m.Progress(m.Phase.SYNCING, U64, U64, passed_over=U64),
    m.Finish(0, ID),
    m.Finish(U64, ID),
    LEFT_OUT,
    LEFT_OUT._replace(left_out=()),
    m.Complete(True),
    m.Complete(False),
    m.ChunkHeader(0, (m.Segment(0, 0, 1),)),
    m.ChunkHeader(U64, (m.Segment(U64, limits.FILE_SIZE_MAX - limits.CHUNK_SIZE_MAX, limits.CHUNK_SIZE_MAX),)),
    m.ChunkHeader(0, (m.Segment(0, limits.FILE_SIZE_MAX - 1, 1),)),
    m.ChunkHeader(0, (m.Segment(0, 0, 8, (0, 8)), m.Segment(1, 0, 8, (1, 7)), m.Segment(2, 0, 8, (0, 1, 7)))),
    m.ChunkHeader(0, (m.Segment(0, 0, limits.RUNS_PER_CHUNK, (1,) * limits.RUNS_PER_CHUNK),)),
    m.Zeros((m.SegmentRange(0, 0, 1),)),
    m.Zeros((m.SegmentRange(U64, limits.CHUNKS_PER_FILE - 1, 1), m.SegmentRange(0, 0, limits.CHUNKS_PER_FILE))),
    m.ChunkHeader(0, (m.Segment(0, 0, limits.RUN_BYTES // 2),), 2, limits.CHUNKS_PER_FILE),
    m.ChunkHeader(U64 - 255, (m.Segment(U64, 0, limits.KIB),), limits.CHUNKS_PER_RUN, 1),
    m.ChunkAck(m.Verdict.OK, (0,)),
    m.ChunkAck(m.Verdict.OK, (), (m.ChunkRange(U64 - 1023, limits.ACKS_PER_FRAME, 1),)),
    m.ChunkAck(m.Verdict.DIGEST_MISMATCH, (U64,) * limits.ACKS_PER_FRAME),
]

# The largest body that the limits allow for each message whose size they bound.
LARGEST: list[m.Message] = [
    m.Needed(
        (m.FileRange(1 << 62, 1 << 61),) * limits.RANGES_PER_NEEDED,
        (m.SegmentRange(U64, limits.CHUNKS_PER_FILE - 1, 1),) * limits.RANGES_PER_NEEDED,
    ),
    m.Held(
        U64,
        limits.CHUNKS_PER_FILE - limits.DIGESTS_PER_HELD,
        ID * limits.DIGESTS_PER_HELD,
        (m.FileRange(1 << 62, 1 << 61),) * limits.RANGES_PER_NEEDED,
    ),
    m.Held(
        0,
        0,
        ID * limits.DIGESTS_PER_HELD,
        files=(m.FileRange(1 << 62, 2),) * limits.RANGES_PER_NEEDED,
    ),
    LEFT_OUT,
    m.ChunkHeader(U64, (m.Segment(U64, 1 << 62, 1 << 20),) * limits.SEGMENTS_PER_CHUNK),
    m.ChunkHeader(U64, (m.Segment(U64, 0, 1 << 20, (0, 1 << 18, 1, (3 << 18) - 2, 1)),) * 1023),
    m.ChunkHeader(U64, (m.Segment(U64, 1 << 62, 1 << 30, (1 << 17,) * limits.RUNS_PER_CHUNK),)),
    m.Zeros((m.SegmentRange(U64, limits.CHUNKS_PER_FILE - 1, 1),) * limits.RANGES_PER_NEEDED),
    m.ChunkAck(m.Verdict.OK, (U64,) * limits.ACKS_PER_FRAME),
    m.ChunkAck(m.Verdict.OK, (), (m.ChunkRange(1 << 63, 2, limits.CHUNKS_PER_FILE),) * (limits.ACKS_PER_FRAME // 2)),
]

FEATURES = tuple(f"{number:0{limits.FEATURE_NAME_BYTES}}" for number in range(27))
"""Of the longest names, fewer than FEATURES_MAX fit into a frame of the opening."""
LARGEST_OPENING: list[m.Message] = [
    m.Greeting(U32, U32, ID, ID, True, FEATURES),
    m.Hello(U32, U32, ID, m.Role.DATA, limits.CONNECTIONS_MAX - 1, limits.CONNECTIONS_MAX, ID, True, FEATURES),
    m.Proof(MAC),
    m.Welcome(MAC),
    m.Refusal(Code.INTERNAL, "r" * limits.REASON_BYTES),
]


@pytest.mark.parametrize("message", WITHIN, ids=numbered(WITHIN))
def test_what_is_just_within_bounds_goes_through(message: m.Message) -> None:
    again = returned(message)

    assert type(again) is type(message)
    assert repr(again) == repr(message)


@pytest.mark.parametrize("message", LARGEST, ids=numbered(LARGEST))
def test_as_many_as_the_limits_allow_fit_into_a_frame(message: m.Message) -> None:
    assert len(encode(message)) <= limits.FRAME_BYTES
    assert returned(message) == message


@pytest.mark.parametrize("message", LARGEST_OPENING, ids=numbered(LARGEST_OPENING))
def test_the_opening_fits_into_its_frames(message: m.Message) -> None:
    assert len(encode(message)) <= limits.OPENING_FRAME_BYTES


@pytest.mark.parametrize(
    "body", [hello(), greeting(), entry(), header(pb((3, 1)))], ids=["Hello", "Greeting", "ManifestPart", "ChunkHeader"]
)
def test_the_negative_vectors_are_wrong_in_one_thing_only(body: bytes) -> None:
    """Their unchanged base is accepted (the vectors themselves: test_golden)."""
    decode(body)


# --- what protobuf leaves open


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_decode_takes_any_buffer(kind: Callable[[bytes], bytes]) -> None:
    assert decode(kind(encode(m.Complete(True)))) == m.Complete(True)


def test_decoded_bytes_do_not_depend_on_the_buffer() -> None:
    buffer = bytearray(encode(m.Proof(MAC)))
    proof = decode(memoryview(buffer))
    buffer[:] = b"\xff" * len(buffer)

    assert proof == m.Proof(MAC)


def test_fields_of_a_later_version_are_ignored() -> None:
    later = (99, b"later"), (100, 7)

    assert decode(pb((21, pb((1, 3), (2, ID), *later)), *later)) == m.Finish(3, ID)
    assert decode(entry(*later)) == m.ManifestPart(0, (m.Entry(b"f", m.EntryType.FILE, 8, 0, 0),), False)
    assert decode(header(pb((3, 1), *later))) == m.ChunkHeader(3, (m.Segment(0, 0, 1),))


def test_fields_come_in_any_order() -> None:
    assert decode(pb((21, pb((2, ID), (1, 3))))) == m.Finish(3, ID)


def test_the_last_of_two_counts() -> None:
    assert decode(pb((21, pb((1, 3), (2, MAC), (2, ID))))) == m.Finish(3, ID)
    assert decode(pb((21, pb((1, 3), (2, ID))), (22, pb((1, 1))))) == m.Complete(True)


def test_chunk_ids_need_not_be_packed() -> None:
    assert decode(pb((33, pb((1, 1), (2, 7), (2, 8))))) == m.ChunkAck(m.Verdict.OK, (7, 8))


# --- reasons


def test_a_reason_of_the_peer_is_made_fit_for_one_line() -> None:
    abort = decode(pb((48, pb((1, 3), (2, "no\r\n\x1b[31m\u202e\0 é".encode())))))

    assert abort == m.Abort(Code.POLICY, "no???[31m?? é")


@pytest.mark.parametrize("text", ["x" * 600, "é" * 600, "\U0001f600" * 600])
def test_a_long_reason_of_the_peer_is_cut(text: str) -> None:
    refusal = decode(pb((5, pb((1, 3), (2, text.encode())))))

    assert isinstance(refusal, m.Refusal)
    assert 0 < len(refusal.reason.encode()) <= limits.REASON_BYTES
    assert text.startswith(refusal.reason)


@pytest.mark.parametrize("text", ["x" * 600, "é" * 600, "x" + "é" * 600, "\U0001f600" * 600])
def test_a_long_reason_of_ours_is_cut_between_characters(text: str) -> None:
    abort = returned(m.Abort(Code.SOURCE, text))

    assert isinstance(abort, m.Abort)
    assert abort.reason == clip_reason(text)
    assert limits.REASON_BYTES - 3 <= len(abort.reason.encode()) <= limits.REASON_BYTES
    assert text.startswith(abort.reason)


def test_a_reason_with_a_file_name_that_is_not_utf8() -> None:
    assert returned(m.Abort(Code.SOURCE, "can't read a\udcffb")) == m.Abort(Code.SOURCE, "can't read a?b")


# --- what can't be encoded


@pytest.mark.parametrize(
    "message",
    [
        part(FILE._replace(xattrs=(m.Xattr(b"user.x", b"y" * limits.FRAME_BYTES),))),
        m.Held(0, 0, ID * (limits.FRAME_BYTES // 16)),
    ],
)
def test_what_is_larger_than_a_frame_is_our_error(message: m.Message) -> None:
    with pytest.raises(LocalProtocolError, match=f"{type(message).__name__} of .* bytes is over 65536"):
        encode(message)


@pytest.mark.parametrize(
    "message",
    [
        part(FILE._replace(size=-1)),
        part(FILE._replace(mtime_ns=1 << 63)),  # some file systems keep such times
        m.Finish(1 << 64, ID),
        m.ChunkHeader(0, (m.Segment(0, -1, 1),)),
        m.Proof("text"),  # type: ignore[arg-type]
    ],
)
def test_what_does_not_fit_its_field_is_our_error(message: m.Message) -> None:
    with pytest.raises(LocalProtocolError, match=f"{type(message).__name__} can't be encoded"):
        encode(message)


# --- what a hostile body costs


def test_counts_are_checked_before_ranges() -> None:
    """A frame full of empty messages names its count, and not the first thing that is wrong inside."""
    with pytest.raises(RemoteProtocolError, match=r"the number of Needed\.segments is 30000"):
        decode(pb((18, bytes([18, 0]) * 30_000)))
    with pytest.raises(RemoteProtocolError, match=r"the number of ManifestPart\.paths is 30000"):
        decode(pb((17, bytes([18, 0]) * 30_000)))
    with pytest.raises(RemoteProtocolError, match=r"the number of ChunkHeader\.segments is 30000"):
        decode(pb((32, bytes([18, 0]) * 30_000)))


def test_deep_nesting_does_not_parse() -> None:
    with pytest.raises(RemoteProtocolError, match="does not parse"):
        decode(b"\x0b" * 1000)


def test_what_was_left_out_is_cut_to_fit_and_printable() -> None:
    """Of a long path its end stays, as that is where its name is."""
    long = b"d/" * 1000 + b"name"
    counts = (m.LeftOutCount(m.SkipKind.CHANGED, 1),)
    sent = m.Finish(0, ID, 0, counts, (m.LeftOut(long, m.SkipKind.CHANGED, "\x1b[2J\n" + "é" * 300),))
    got = returned(sent)
    assert isinstance(got, m.Finish)
    (entry,) = got.left_out
    assert len(entry.path) == limits.LEFT_OUT_PATH_BYTES
    assert entry.path.startswith(b"...")
    assert entry.path.endswith(b"d/name")
    assert entry.reason.isprintable()
    assert entry.reason.endswith("é")
    assert len(entry.reason.encode()) <= limits.LEFT_OUT_REASON_BYTES

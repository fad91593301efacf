"""What holds for all messages, bytes, splits and sizes (proto/README.md, "Frames", "Messages", "Sessions")."""

import contextlib
import itertools
import socket
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import clip, clip_reason, decode, encode
from filestreamer.wire.digests import root_digest, segment_digest, segment_hasher
from filestreamer.wire.errors import Code, ConnectionLost, LocalProtocolError, Refused, RemoteProtocolError
from filestreamer.wire.framing import frame, frame_of, read_body
from filestreamer.wire.grid import Grid, comfortable_chunk_size, smallest_chunk_size
from filestreamer.wire.opening import ReceiverOpening, SenderOpening
from filestreamer.wire.receiver_dials import DialledSenderOpening, DiallingReceiverOpening, Joined
from filestreamer.wire.session import Session, Side, State
from filestreamer.wire.sockets.transport import Channel
from tests.golden.vectors import MESSAGES, fields_of, load, message_of, unpacked

# --- every message that the protocol allows ----------------------------------------------------------------------

U32 = (1 << 32) - 1
U63 = (1 << 63) - 1
U64 = (1 << 64) - 1
CHUNKS = limits.CHUNKS_PER_FILE


def integers(highest: int, lowest: int = 0) -> st.SearchStrategy[int]:
    return st.integers(lowest, highest)


def exactly(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


def tuples_of(items: st.SearchStrategy[Any], least: int = 0, most: int = 8) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(items, min_size=least, max_size=most).map(tuple)


ids = exactly(limits.ID_BYTES)
macs = exactly(limits.MAC_BYTES)
digests = exactly(limits.DIGEST_BYTES)
reasons = st.text(max_size=600).map(clip_reason).filter(str.isprintable)
paths = st.binary(min_size=1, max_size=40)
feature_names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=limits.FEATURE_NAME_BYTES)
features = st.sets(feature_names, max_size=limits.FEATURES_MAX).map(lambda names: tuple(sorted(names)))


XATTRS = st.builds(
    m.Xattr, st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name), st.binary(max_size=20)
)


@st.composite
def greetings(draw: st.DrawFn) -> m.Greeting:
    lowest, highest = sorted([draw(integers(U32, 1)), draw(integers(U32, 1))])
    role = draw(st.sampled_from([None, *m.Role]))
    return m.Greeting(lowest, highest, draw(ids), draw(ids), draw(st.booleans()), draw(features), role)


jobs = st.just("") | st.from_regex(rf"[a-z0-9]([a-z0-9.-]{{0,{limits.JOB_NAME_BYTES - 2}}}[a-z0-9])?", fullmatch=True)


@st.composite
def hellos(draw: st.DrawFn) -> m.Hello:
    role = draw(st.sampled_from(m.Role))
    connections = draw(integers(limits.CONNECTIONS_MAX, 1))
    connection_id = draw(integers(connections - 1)) if role is m.Role.DATA else 0
    lowest, highest = sorted([draw(integers(U32, 1)), draw(integers(U32, 1))])
    named = draw(features)
    needs = tuple(name for name in named if draw(st.booleans()))
    ends = draw(ids), draw(st.booleans()), named, needs
    return m.Hello(lowest, highest, draw(ids), role, connection_id, connections, *ends, draw(jobs))


@st.composite
def finishes(draw: st.DrawFn) -> m.Finish:
    kinds = draw(st.lists(st.sampled_from(m.SkipKind), unique=True))
    counts = tuple(m.LeftOutCount(kind, draw(integers(U63, 8))) for kind in kinds)
    reason = st.text(max_size=300).map(lambda text: clip(text, limits.LEFT_OUT_REASON_BYTES)).filter(str.isprintable)
    left_out = tuples_of(st.builds(m.LeftOut, paths, st.sampled_from(kinds), reason)) if kinds else st.just(())
    walk_digest = draw(st.one_of(st.just(b""), digests))
    return m.Finish(draw(integers(U64)), draw(digests), draw(integers(U63)), counts, draw(left_out), False, walk_digest)


@st.composite
def shards(draw: st.DrawFn) -> m.Shard:
    count = draw(integers(limits.SHARDS_MAX, 2))
    return m.Shard(draw(integers(count - 1)), count, draw(st.booleans()))


offers = st.builds(
    m.Offer,
    integers(limits.CHUNK_SIZE_MAX, 1),
    st.none() | shards(),
    st.booleans(),
    integers(U63),
    st.sampled_from(m.Existing),
    st.none()
    | st.builds(
        m.Deletion, tuples_of(st.binary(max_size=300), 1, 5), tuples_of(st.binary(min_size=1, max_size=300), 0, 5)
    ),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)


@st.composite
def entries(draw: st.DrawFn) -> m.Entry:
    kind = draw(st.sampled_from(m.EntryType))
    size = draw(integers(U63)) if kind is m.EntryType.FILE else 0
    return m.Entry(
        draw(paths),
        kind,
        size,
        draw(integers(0o7777)),
        draw(integers(U63, -1 << 63)),
        draw(st.none() | integers(U32 - 1)),
        draw(st.none() | integers(U32 - 1)),
        draw(paths.filter(lambda path: b"\0" not in path)) if kind is m.EntryType.SYMLINK else b"",
        draw(integers(U64)) if kind is m.EntryType.FILE else 0,
        draw(tuples_of(XATTRS, most=3)),
        draw(st.none() | integers(size)),
    )


@st.composite
def manifest_parts(draw: st.DrawFn) -> m.ManifestPart:
    last = draw(st.booleans())
    return m.ManifestPart(draw(integers(U63)), draw(tuples_of(entries(), 0 if last else 1)), last)


@st.composite
def file_ranges(draw: st.DrawFn) -> m.FileRange:
    first = draw(integers(U63 - 1))
    return m.FileRange(first, draw(integers(U63 - first, 1)))


@st.composite
def segment_ranges(draw: st.DrawFn) -> m.SegmentRange:
    first = draw(integers(CHUNKS - 1))
    return m.SegmentRange(draw(integers(U64)), first, draw(integers(CHUNKS - first, 1)))


answers_of_files = st.tuples(tuples_of(file_ranges()), st.booleans(), tuples_of(file_ranges()))


@st.composite
def entry_verdicts(draw: st.DrawFn) -> m.EntryVerdict:
    standing = draw(st.sampled_from(m.Standing))
    reason = draw(reasons.map(lambda text: clip(text, limits.LEFT_OUT_REASON_BYTES)))
    if standing is m.Standing.EXTRA:
        return m.EntryVerdict(standing, path=draw(paths), reason=reason)
    first = draw(integers(U63 - 1))
    return m.EntryVerdict(standing, first, draw(integers(U63 - first, 1)), b"", reason)


@st.composite
def helds(draw: st.DrawFn) -> m.Held:
    listed = draw(tuples_of(digests))
    first = draw(integers(CHUNKS - len(listed)))
    held = m.Held(draw(integers(U64)), first, b"".join(listed), *draw(answers_of_files))
    cuts = sorted(draw(st.sets(integers(len(listed)))) | {0, len(listed)})
    counts = [end - start for start, end in itertools.pairwise(cuts)]
    if draw(st.booleans()) and counts:
        files = tuple(m.FileRange(draw(integers(U63 - count)), count) for count in counts)
        held = held._replace(file_id=0, first_segment=0, files=files)
    return held


@st.composite
def segments(draw: st.DrawFn, most: int) -> m.Segment:
    length = draw(integers(most, 1))
    inner = sorted(draw(st.sets(integers(length - 1, 1), max_size=8))) if length > 1 else []
    edges = [*draw(st.sampled_from([[0], [0, 0]])), *inner, length]
    runs = tuple(end - start for start, end in itertools.pairwise(edges))
    return m.Segment(draw(integers(U64)), draw(integers(U63 - length)), length, runs if len(runs) > 1 else ())


@st.composite
def runs_of_chunks(draw: st.DrawFn) -> m.ChunkHeader:
    chunks = draw(integers(limits.CHUNKS_PER_RUN, 2))
    stride, length = draw(integers(CHUNKS, 1)), draw(integers(limits.RUN_BYTES // chunks, 1))
    distance = (chunks - 1) * stride
    segment = m.Segment(draw(integers(U64)), draw(integers(U63 - length - distance * length)), length)
    return m.ChunkHeader(draw(integers(U64 - distance)), (segment,), chunks, stride)


@st.composite
def chunk_ranges(draw: st.DrawFn) -> m.ChunkRange:
    chunks, stride = draw(integers(100, 2)), draw(integers(CHUNKS, 1))
    return m.ChunkRange(draw(integers(U64 - (chunks - 1) * stride)), chunks, stride)


BY_KIND: dict[str, st.SearchStrategy[m.Message]] = {
    "Greeting": greetings(),
    "Hello": hellos(),
    "Proof": st.builds(m.Proof, macs),
    "Welcome": st.builds(m.Welcome, macs | st.just(b""), jobs),
    "Refusal": st.builds(m.Refusal, st.sampled_from(Code), reasons),
    "Offer": offers,
    "ManifestPart": manifest_parts(),
    "Needed": st.builds(m.Needed, tuples_of(file_ranges()), tuples_of(segment_ranges()), integers(U63)),
    "Held": helds(),
    "Zeros": st.builds(m.Zeros, tuples_of(segment_ranges(), 1)),
    "Progress": st.builds(
        m.Progress,
        st.sampled_from(m.Phase),
        integers(U64),
        integers(U64),
        st.lists(integers(U64), max_size=limits.STAGES_PER_PROGRESS).map(tuple),
        integers(U64),
        integers(U64),
        st.lists(integers(limits.CONNECTIONS_MAX - 1), max_size=limits.CONNECTIONS_MAX).map(tuple),
        integers(U64),
    ),
    "Connections": st.builds(m.Connections, integers(limits.CONNECTIONS_MAX)),
    "Finish": finishes(),
    "Complete": st.builds(
        m.Complete,
        st.booleans(),
        integers(U63),
        integers(U63),
        integers(U63),
        integers(limits.SHARDS_MAX),
        integers(U63),
        integers(U63),
    ),
    "Verdicts": st.builds(m.Verdicts, tuples_of(entry_verdicts(), 1)),
    "Withdrawn": st.builds(m.Withdrawn, tuples_of(integers(U64), 1)),
    "Declined": st.builds(
        m.Declined,
        tuples_of(
            st.builds(
                m.DeclinedEntry,
                integers(U64),
                st.sampled_from(m.RECEIVER_KINDS),
                reasons.map(lambda text: clip(text, limits.LEFT_OUT_REASON_BYTES)),
                st.binary(min_size=1, max_size=limits.LEFT_OUT_PATH_BYTES),
            ),
            1,
        ),
    ),
    "Notice": st.builds(m.Notice, tuples_of(reasons, 1)),
    "ChunkHeader": st.builds(
        m.ChunkHeader, integers(U64), tuples_of(segments(limits.CHUNK_SIZE_MAX // 8), 1), st.just(1), st.just(1)
    )
    | runs_of_chunks(),
    "ChunkAck": st.builds(
        m.ChunkAck, st.sampled_from(m.Verdict), tuples_of(integers(U64), 1), tuples_of(chunk_ranges())
    ),
    "Abort": st.builds(m.Abort, st.sampled_from(Code), reasons),
}
messages = st.one_of(*BY_KIND.values())


def same(one: m.Message, other: m.Message) -> bool:
    """Whether two messages are equal, and of the same types all the way down, which == does not tell."""
    return one == other and type(one) is type(other) and repr(one) == repr(other)


def test_there_is_a_strategy_for_every_message() -> None:
    assert BY_KIND.keys() == MESSAGES.keys()


# --- codec -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BY_KIND)
@given(data=st.data())
def test_what_is_encoded_is_decoded(kind: str, data: st.DataObject) -> None:
    message = data.draw(BY_KIND[kind])
    body = encode(message)

    assert type(message) is MESSAGES[kind]
    assert same(decode(body), message)
    assert encode(decode(body)) == body


@given(messages)
def test_golden_files_can_hold_any_message(message: m.Message) -> None:
    assert same(message_of(type(message).__name__, fields_of(message)), message)


def decoded(body: bytes) -> m.Message | RemoteProtocolError:
    """Decode what anybody may have sent. Whatever is raised besides RemoteProtocolError fails the test."""
    try:
        return decode(body)
    except RemoteProtocolError as error:
        return error


def check_accepted_or_refused(body: bytes) -> None:
    """Check that what was accepted can be said again and is then the same, so that no field is out of its bounds."""
    outcome = decoded(body)
    if isinstance(outcome, RemoteProtocolError):
        assert outcome.code is Code.PROTOCOL
        assert "\n" not in str(outcome)
        assert len(str(outcome)) < 200
    else:
        assert type(outcome) in MESSAGES.values()
        assert same(decode(encode(outcome)), outcome)


@given(st.binary(max_size=400))
@settings(max_examples=500)
def test_any_bytes_are_accepted_or_refused(body: bytes) -> None:
    check_accepted_or_refused(body)


GOLDEN_BODIES = [bytes.fromhex(vector["body"]) for vector in load("messages.json")["vectors"]]
REFUSED_BODIES = [unpacked(vector["body"]) for vector in load("refused.json")["bodies"]]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Draw a body that was good, or nearly: cut, extended, with bytes changed or doubled."""
    body = bytearray(draw(messages.map(encode) | st.sampled_from(GOLDEN_BODIES + REFUSED_BODIES)))
    for _ in range(draw(st.integers(1, 4))):
        at, end = sorted([draw(integers(len(body))), draw(integers(len(body)))])
        match draw(st.sampled_from(["set", "cut", "insert", "double", "varint"])):
            case "set" if at < len(body):
                body[at] = draw(integers(255))
            case "cut":
                del body[at : min(end, at + 20)]
            case "insert":
                body[at:at] = draw(st.binary(max_size=8))
            case "double":
                body[at:at] = body[at : min(end, at + 200)]
            case "varint":
                body[at:at] = draw(st.sampled_from([b"\xff" * 9 + b"\x01", b"\x80" * 10, b"\xff\xff\xff\xff\x0f"]))
            case _:
                pass
    return bytes(body)


@given(mutated())
@settings(max_examples=1000)
def test_mutated_messages_are_accepted_or_refused(body: bytes) -> None:
    check_accepted_or_refused(body)


@given(st.text(max_size=2000), st.sampled_from(Code))
@example("\U0001f600" * 200, Code.SOURCE)
@example("\ud800\udcff", Code.SOURCE)
def test_any_reason_of_ours_can_be_said(reason: str, code: Code) -> None:
    abort = decode(encode(m.Abort(code, reason)))

    assert isinstance(abort, m.Abort)
    assert abort.reason.isprintable()
    assert len(abort.reason.encode()) <= limits.REASON_BYTES


NUMBERS = st.integers() | st.sampled_from([-1, 0, U32, U32 + 1, U63, U63 + 1, U64, U64 + 1])


@given(NUMBERS, NUMBERS, NUMBERS)
def test_numbers_that_do_not_fit_are_our_error(one: int, two: int, three: int) -> None:
    """Any number at all: encoded, or LocalProtocolError."""
    for message in (
        m.ChunkHeader(one, (m.Segment(two, three, one),)),
        m.Progress(m.Phase.MOVING, one, two, passed_over=three),
        m.ManifestPart(one, (m.Entry(b"f", m.EntryType.FILE, two, 0, three),), True),
        m.Needed((m.FileRange(one, two),), (m.SegmentRange(one, two, three),)),
    ):
        try:
            body = encode(message)
        except LocalProtocolError:
            continue
        outcome = decoded(body)
        assert isinstance(outcome, RemoteProtocolError) or outcome == message


# --- framing -----------------------------------------------------------------------------------------------------


class Pieces:
    """A byte stream that arrives in pieces, as a reader of exact counts."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def __call__(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise ConnectionLost("the end")
        self.at += count
        return self.data[self.at - count : self.at]


class Wire:
    """A socket of the test's own: what it receives comes in pieces of given sizes, then nothing."""

    def __init__(self, data: bytes, sizes: Iterator[int]) -> None:
        self._left = memoryview(data)
        self._sizes = sizes

    def getpeername(self) -> tuple[str, int]:
        return "192.0.2.1", 7800

    def recv_into(self, buffer: memoryview, _count: int, flags: int) -> int:
        assert len(buffer), "there is no room: a real socket would say that the stream has ended"
        size = min(next(self._sizes), len(self._left), len(buffer))
        if not size:
            assert flags & socket.MSG_DONTWAIT or not self._left, "a read waits for what has come already"
            raise BlockingIOError
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size


class Dry(Exception):
    """Nothing more comes."""


def dry() -> None:
    raise Dry


def channel_of(data: bytes, sizes: Iterator[int], *, payload_bytes: int = 0) -> Channel:
    return Channel(Wire(data, sizes), dry, payload_bytes=payload_bytes)  # type: ignore[arg-type]


splits = st.lists(st.integers(1, 100), min_size=1, max_size=20).map(itertools.cycle)
several = st.lists(messages, min_size=1, max_size=6)


@given(several)
def test_frames_back_to_back(said: list[m.Message]) -> None:
    read = Pieces(b"".join(map(frame, said)))

    assert [read_body(read, limits.FRAME_BYTES) for _ in said] == list(map(encode, said))
    assert read.at == len(read.data)


@given(several)
def test_frames_byte_by_byte(said: list[m.Message]) -> None:
    channel = channel_of(b"".join(map(frame, said)), itertools.repeat(1))

    assert [channel.read_body() for _ in said] == list(map(encode, said))


@given(several, splits)
def test_frames_in_any_pieces(said: list[m.Message], sizes: Iterator[int]) -> None:
    channel = channel_of(b"".join(map(frame, said)), sizes)

    assert [channel.read_body() for _ in said] == list(map(encode, said))
    with pytest.raises(Dry):
        channel.read_body()


@given(several, st.lists(st.integers(0, 60), min_size=1, max_size=20).filter(any).map(itertools.cycle))
def test_frames_polled_in_any_pieces(said: list[m.Message], sizes: Iterator[int]) -> None:
    """Nothing is here at times; what is here in part is not returned, and not lost."""
    whole = b"".join(map(frame, said))
    channel = channel_of(whole, sizes)
    polls = (channel.poll_body() for _ in itertools.count())
    bodies = [body for body in itertools.islice(polls, 25 * len(whole)) if body is not None]

    assert bodies == list(map(encode, said))


@given(
    st.lists(st.tuples(messages, st.binary(max_size=300)), min_size=1, max_size=5),
    splits,
    st.booleans(),
)
def test_payload_between_frames(chunks: list[tuple[m.Message, bytes]], sizes: Iterator[int], poll: bool) -> None:
    """Frames and raw bytes in turn: each is where the other ended, however they arrive."""
    whole = b"".join(frame(message) + payload for message, payload in chunks)
    channel = channel_of(whole, sizes, payload_bytes=limits.BLOCK_BYTES)
    for message, payload in chunks:
        body = channel.poll_body() if poll else None
        assert (body or channel.read_body()) == encode(message)
        assert b"".join(map(bytes, channel.payload(len(payload)))) == payload


@given(messages, st.integers(0, 7), st.data())
def test_a_flipped_bit_is_never_a_message(message: m.Message, bit: int, data: st.DataObject) -> None:
    damaged = bytearray(frame(message))
    damaged[data.draw(integers(len(damaged) - 1))] ^= 1 << bit

    with pytest.raises((RemoteProtocolError, ConnectionLost)):
        read_body(Pieces(bytes(damaged)), limits.FRAME_BYTES)


@given(st.binary(max_size=100), st.sampled_from([limits.OPENING_FRAME_BYTES, limits.FRAME_BYTES]))
def test_any_bytes_are_a_frame_or_refused(wire: bytes, limit: int) -> None:
    try:
        body = read_body(Pieces(wire), limit)
    except (RemoteProtocolError, ConnectionLost):
        return
    assert wire.startswith(frame_of(body))


# --- opening -----------------------------------------------------------------------------------------------------


JOINED = Joined(bytes(16), 0, 1)


@given(mutated() | messages.map(encode), st.sampled_from([None, b"sixteen bytes or more"]))
def test_any_body_in_an_opening_is_answered_or_refused(body: bytes, token: bytes | None) -> None:
    """At either end, at any step."""
    receiver, sender = ReceiverOpening(bytes(16), (token,) if token else None), SenderOpening(token)
    dialled = DialledSenderOpening(token, join=lambda _: JOINED)
    dialling = DiallingReceiverOpening(bytes(16), m.Role.DATA, token)
    transfer = m.Role.DATA, 0, 1
    steps: list[Callable[[], object]] = [
        lambda: receiver.receive(body),
        lambda: receiver.receive(sender.answer(receiver.greeting_body, bytes(16), *transfer)[0]),
        lambda: receiver.receive(body) if token else None,
        lambda: SenderOpening(token).answer(body, bytes(16), *transfer),
        lambda: sender.enter(body),
        lambda: DialledSenderOpening(token, join=lambda _: JOINED).take(body),
        lambda: dialled.take(dialling.greeting_body),
        lambda: dialled.take(body),
        lambda: DiallingReceiverOpening(bytes(16), m.Role.DATA, token).answer(body),
        lambda: dialling.answer(encode(dialled.hello)) if dialled.hello else None,
        lambda: dialling.enter(body) if token else None,
    ]
    for step in steps:
        with contextlib.suppress(RemoteProtocolError, Refused):
            step()


# --- digests -----------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=100), max_size=10))
def test_digests_do_not_depend_on_blocks(blocks: list[bytes]) -> None:
    hasher = segment_hasher()
    for block in blocks:
        hasher.update(memoryview(block))

    assert hasher.digest() == segment_digest(b"".join(blocks))


@given(st.lists(digests, max_size=10), st.integers(0, 10))
def test_the_root_digest_does_not_depend_on_grouping(listed: list[bytes], at: int) -> None:
    assert root_digest(listed) == root_digest([b"".join(listed[:at]), b"".join(listed[at:])])


# --- grid --------------------------------------------------------------------------------------------------------

small_grids = st.builds(Grid, st.integers(0, 300), st.integers(1, 40))
all_grids = st.builds(Grid, integers(limits.FILE_SIZE_MAX), integers(limits.CHUNK_SIZE_MAX, 1))


@given(small_grids)
def test_segments_cover_every_byte_exactly_once(grid: Grid) -> None:
    pieces = [range(grid.offset(i), grid.offset(i) + grid.length(i)) for i in range(grid.segments)]

    assert list(itertools.chain.from_iterable(pieces)) == list(range(grid.size))
    assert all(1 <= len(piece) <= grid.chunk_size for piece in pieces)


@given(small_grids, st.integers(-5, 310), st.integers(-5, 50))
def test_index_of_knows_segments_and_nothing_else(grid: Grid, offset: int, length: int) -> None:
    there = [i for i in range(grid.segments) if (grid.offset(i), grid.length(i)) == (offset, length)]

    assert grid.index_of(offset, length) == (there[0] if there else None)


@given(all_grids, st.data())
def test_index_of_inverts_at_any_size(grid: Grid, data: st.DataObject) -> None:
    if grid.segments:
        index = data.draw(integers(grid.segments - 1))
        assert grid.index_of(grid.offset(index), grid.length(index)) == index


@given(small_grids, st.data())
def test_bytes_between_is_the_sum_of_lengths(grid: Grid, data: st.DataObject) -> None:
    first, end = sorted(data.draw(st.tuples(integers(grid.segments), integers(grid.segments))))

    assert grid.bytes_between(first, end) == sum(map(grid.length, range(first, end)))


@given(integers(limits.FILE_SIZE_MAX))
def test_chunk_sizes_for_any_file(size: int) -> None:
    smallest, comfortable = smallest_chunk_size(size), comfortable_chunk_size(size)

    assert Grid(size, smallest).segments <= limits.CHUNKS_PER_FILE
    assert limits.CHUNK_SIZE_DEFAULT <= comfortable <= limits.CHUNK_SIZE_MAX
    assert (
        Grid(size, comfortable).segments <= limits.CHUNKS_PER_FILE_COMFORTABLE or comfortable == limits.CHUNK_SIZE_MAX
    )


# --- sessions ----------------------------------------------------------------------------------------------------

# Written from proto/README.md, not from the code. Every step that is not here is illegal.
#
#   connection  state      who       message        next state
STEPS = """
    CONTROL     offer      sender    Offer          manifest
    CONTROL     offer      sender    Progress       offer
    CONTROL     offer      receiver  Progress       offer

    CONTROL     manifest   sender    ManifestPart   manifest
    CONTROL     manifest   sender    LastPart       moving
    CONTROL     manifest   sender    Withdrawn      manifest
    CONTROL     manifest   sender    Zeros          manifest
    CONTROL     manifest   sender    Progress       manifest
    CONTROL     manifest   receiver  Needed         manifest
    CONTROL     manifest   receiver  Held           manifest
    CONTROL     manifest   receiver  Declined       manifest
    CONTROL     manifest   receiver  Notice         manifest
    CONTROL     manifest   receiver  Verdicts       manifest
    CONTROL     manifest   receiver  Zeros          manifest
    CONTROL     manifest   receiver  Progress       manifest

    CONTROL     moving     sender    Finish         finishing
    CONTROL     moving     sender    Withdrawn      moving
    CONTROL     moving     sender    Zeros          moving
    CONTROL     moving     sender    Progress       moving
    CONTROL     moving     receiver  Needed         moving
    CONTROL     moving     receiver  Held           moving
    CONTROL     moving     receiver  Declined       moving
    CONTROL     moving     receiver  Notice         moving
    CONTROL     moving     receiver  Verdicts       moving
    CONTROL     moving     receiver  Zeros          moving
    CONTROL     moving     receiver  Progress       moving
    CONTROL     moving     receiver  Complete       complete

    CONTROL     finishing  sender    Finish         finishing
    CONTROL     finishing  sender    Progress       finishing
    CONTROL     finishing  receiver  Needed         moving
    CONTROL     finishing  receiver  Held           finishing
    CONTROL     finishing  receiver  Declined       finishing
    CONTROL     finishing  receiver  Notice         finishing
    CONTROL     finishing  receiver  Verdicts       finishing
    CONTROL     finishing  receiver  Zeros          finishing
    CONTROL     finishing  receiver  Progress       finishing
    CONTROL     finishing  receiver  Complete       complete

    CONTROL     complete   sender    Finish         complete
    CONTROL     complete   sender    Progress       complete

    DATA        moving     sender    ChunkHeader    moving
    DATA        moving     receiver  ChunkAck       moving
"""
STATES = {m.Role.CONTROL: ["offer", "manifest", "moving", "finishing", "complete"], m.Role.DATA: ["moving"]}
EXPECTED = {tuple(step[:4]): step[4] for line in STEPS.splitlines() if (step := line.split())}
for _role, _states in STATES.items():
    for _state, _who in itertools.product(_states, ["sender", "receiver"]):
        EXPECTED[_role.name, _state, _who, "Abort"] = "aborted"

SAMPLES: dict[str, m.Message] = {
    **{v["message"]: message_of(v["message"], v["fields"]) for v in load("messages.json")["vectors"]},
    "ManifestPart": m.ManifestPart(0, (m.Entry(b"f", m.EntryType.FILE, 1, 0, 0),), False),
    "LastPart": m.ManifestPart(1, (), True),
}
INPUTS = [
    (role, state, who, name)
    for role, states in STATES.items()
    for state, who, name in itertools.product([*states, "aborted"], get_args(Side), SAMPLES)
]


def session_in(me: Side, role: m.Role, state: State) -> Session:
    session = Session(me, role)
    session.state = state
    return session


@pytest.mark.parametrize(("role", "state", "who", "name"), INPUTS)
def test_every_message_in_every_state(role: m.Role, state: State, who: Side, name: str) -> None:
    """The end that sends a message and the end that receives it agree, and reach the state that is written above."""
    expected = EXPECTED.get((role.name, state, who, name))
    speaker = session_in(who, role, state)
    listener = session_in("receiver" if who == "sender" else "sender", role, state)

    if expected is None:
        with pytest.raises(LocalProtocolError):
            speaker.sending(SAMPLES[name])
        with pytest.raises(RemoteProtocolError):
            listener.received(SAMPLES[name])
    else:
        speaker.sending(SAMPLES[name])
        listener.received(SAMPLES[name])
    assert (speaker.state, listener.state) == (expected or state, expected or state)


def test_sessions_begin_where_they_begin() -> None:
    for me, (role, states) in itertools.product(get_args(Side), STATES.items()):
        assert Session(me, role).state == states[0]


@given(st.sampled_from(m.Role), st.lists(st.tuples(st.sampled_from(get_args(Side)), messages), max_size=30))
def test_both_ends_agree_on_any_conversation(role: m.Role, said: list[tuple[Side, m.Message]]) -> None:
    """What one end may send, the other accepts; what it may not send, the other refuses. Fields make no difference."""
    ends = {side: Session(side, role) for side in get_args(Side)}
    for who, message in said:
        other = ends[ends[who].peer]
        try:
            ends[who].sending(message)
        except LocalProtocolError:
            with pytest.raises(RemoteProtocolError):
                other.received(message)
        else:
            other.received(message)
        assert ends["sender"].state == ends["receiver"].state

"""Peers that speak the protocol frame by frame, and say what no decent one would.

`RawSender` opens connections to a real receiver, `RawReceiver` takes those of a real sender. Each step is the test's
own: nothing is checked and nothing answered by itself. Every wait ends after a few UNIT seconds.
"""

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, Self, TypeVar

from filestreamer.settings.own_token import read as read_own_token
from filestreamer.wire import features, limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode
from filestreamer.wire.digests import root_digest, segment_digest
from filestreamer.wire.errors import Code, Refused
from filestreamer.wire.framing import frame, frame_of, read_body
from filestreamer.wire.grid import Grid
from filestreamer.wire.opening import ReceiverOpening, SenderOpening, random_id
from tests.support.services import HANG, PRIVATE, Service

M = TypeVar("M", bound=tuple[object, ...])


class Ended(Exception):
    """The other end closed or reset the connection."""


class Link:
    """One connection, frame by frame."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(HANG)

    def read_exact(self, count: int) -> bytes:
        """Read so many bytes. Raises Ended where the stream ends first."""
        received = bytearray()
        while len(received) < count:
            try:
                some = self.socket.recv(count - len(received))
            except ConnectionError as error:
                raise Ended(str(error)) from None
            if not some:
                raise Ended(f"after {len(received)} of {count} bytes")
            received += some
        return bytes(received)

    def read(self) -> m.Message:
        """Read the next message. Raises Ended."""
        return decode(read_body(self.read_exact, limits.FRAME_BYTES))

    def expect(self, kind: type[M]) -> M:
        """Read the next message, which is of this kind; heartbeats are passed over."""
        message = self.read()
        while isinstance(message, m.Progress) and kind is not m.Progress:
            message = self.read()
        assert isinstance(message, kind), f"{kind.__name__} was expected, and this came: {message}"
        return message

    def finish(self) -> m.Finish:
        """Read the last part of a tree, which is empty when nothing of it is tried again, and Finish."""
        assert self.expect(m.ManifestPart)[1:3] == ((), True)
        return self.expect(m.Finish)

    def rest(self) -> list[m.Message]:
        """Read to the end of the stream; return the messages without heartbeats."""
        messages = []
        with contextlib.suppress(Ended):
            while True:
                messages.append(self.read())
        return [message for message in messages if not isinstance(message, m.Progress)]

    def ends(self) -> None:
        """Assert that the other end closes without another word."""
        assert self.rest() == []

    def send(self, *messages: m.Message) -> None:
        """Send frames."""
        self.send_raw(b"".join(map(frame, messages)))

    def send_raw(self, data: bytes) -> None:
        """Send bytes that need not be frames. A peer that is gone by now is for the next read to find out."""
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(data)

    def end_writing(self) -> None:
        """Say that nothing follows. A peer that is gone by now is for the next read to find out."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with a reset, as a crash would."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self.socket.close()


class Sample(NamedTuple):
    """A file as the protocol sees it. `name` as on the wire."""

    name: bytes
    content: bytes
    chunk_size: int

    @classmethod
    def random(cls, seed: int, size: int, chunk_size: int, name: bytes = b"sample.bin") -> Self:
        """Make `size` random bytes."""
        return cls(name, random.Random(seed).randbytes(size), chunk_size)

    @property
    def grid(self) -> Grid:
        return Grid(len(self.content), self.chunk_size)

    @property
    def entry(self) -> m.Entry:
        return m.Entry(self.name, m.EntryType.FILE, len(self.content), 0o644, 1_700_000_000_000_000_000)

    @property
    def offer(self) -> m.Offer:
        return m.Offer(self.chunk_size, None, False, len(self.content))

    def segment(self, index: int) -> m.Segment:
        return m.Segment(0, self.grid.offset(index), self.grid.length(index))

    def payload(self, index: int) -> bytes:
        offset = self.grid.offset(index)
        return self.content[offset : offset + self.grid.length(index)]

    def digest(self, index: int) -> bytes:
        return segment_digest(self.payload(index))

    def chunk(self, index: int, *, digest: bytes | None = None) -> bytes:
        """One chunk as it is on the wire: header, payload, digest."""
        header = frame(m.ChunkHeader(index, (self.segment(index),)))
        return header + self.payload(index) + (digest or self.digest(index))

    @property
    def finish(self) -> m.Finish:
        return m.Finish(self.grid.segments, root_digest(map(self.digest, range(self.grid.segments))))


class TreeSample:
    """A tree as the protocol sees it: entries, what is in the files, and how that is cut into parts and chunks."""

    def __init__(self, chunk_size: int, *, part_entries: int = limits.ENTRIES_PER_PART, checksum: bool = False) -> None:
        self.chunk_size = chunk_size
        self.part_entries = part_entries
        self.checksum = checksum
        self.entries: list[m.Entry] = []
        self.contents: list[bytes] = []
        self.withdrawn: set[int] = set()
        self.unchecked: set[int] = set()
        self.holes: dict[int, tuple[tuple[int, int], ...]] = {}
        """The holes (offset, length) of each file, in order."""

    def add(
        self,
        path: bytes,
        content: bytes = b"",
        type: m.EntryType = m.EntryType.FILE,
        holes: tuple[tuple[int, int], ...] = (),
        **more: Any,
    ) -> int:
        """List another entry, with these holes (offset, length); return its file_id."""
        if holes:
            more = {"data_bytes": len(content) - sum(length for _, length in holes), **more}
            self.holes[len(self.entries)] = holes
        entry = m.Entry(path, type, len(content), 0o644, 1_700_000_000_000_000_000)._replace(**more)
        self.entries.append(entry)
        self.contents.append(content)
        return len(self.entries) - 1

    def directory(self, path: bytes, **more: Any) -> int:
        """List a directory."""
        return self.add(path, type=m.EntryType.DIRECTORY, **{"mode": 0o755, **more})

    def symlink(self, path: bytes, target: bytes) -> int:
        """List a symlink."""
        return self.add(path, type=m.EntryType.SYMLINK, mode=0o777, link_target=target)

    @property
    def offer(self) -> m.Offer:
        return m.Offer(self.chunk_size, None, self.checksum, 0)

    @property
    def parts(self) -> list[m.ManifestPart]:
        step = self.part_entries
        firsts = range(0, len(self.entries), step)
        return [m.ManifestPart(at, tuple(self.entries[at : at + step]), at == firsts[-1]) for at in firsts]

    def segments(self) -> Iterator[list[m.Segment]]:
        """Yield what each chunk carries when everything is sent, holes included."""
        groups: set[int] = set()
        for part in self.parts:
            bundle: list[m.Segment] = []
            for file_id, entry in enumerate(part.entries, part.first_file_id):
                is_follower = entry.hard_link_group in groups
                groups |= {entry.hard_link_group} - {0}
                grid = Grid(entry.size, self.chunk_size)
                if is_follower or not grid.segments:
                    continue
                full = sum(segment.length for segment in bundle) + entry.size > self.chunk_size
                if bundle and (full or len(bundle) == limits.SEGMENTS_PER_CHUNK):
                    yield bundle
                    bundle = []
                if grid.segments == 1:
                    bundle.append(self._segment(file_id, 0, entry.size))
                else:
                    for index in range(grid.segments):
                        yield [self._segment(file_id, grid.offset(index), grid.length(index))]
            if bundle:
                yield bundle

    @property
    def with_segments(self) -> set[int]:
        """The files of which something is sent, unless it is withdrawn or accepted unread."""
        return {segment.file_id for chunk in self.segments() for segment in chunk if not self.is_hole(segment)}

    def _segment(self, file_id: int, offset: int, length: int) -> m.Segment:
        runs, at, end = [], offset, offset + length
        for hole, hole_length in self.holes.get(file_id, ()):
            first, stop = max(hole, at), min(hole + hole_length, end)
            if first < stop:
                runs += [first - at, stop - first]
                at = stop
        return m.Segment(file_id, offset, length, tuple([*runs, end - at] if runs and at < end else runs))

    @property
    def zeros(self) -> m.Zeros:
        """The segments of large files that lie in holes entirely: told, not sent, unless the file is not needed."""
        needless = self.withdrawn | self.unchecked
        told = [
            segment
            for chunk in self.segments()
            for segment in chunk
            if self.is_hole(segment) and segment.file_id not in needless
        ]
        return m.Zeros(tuple(m.SegmentRange(each.file_id, each.offset // self.chunk_size, 1) for each in told))

    def is_sent(self, segment: m.Segment) -> bool:
        """Whether this segment has a digest: it is neither in holes nor withdrawn nor accepted unread."""
        return not self.is_hole(segment) and segment.file_id not in self.withdrawn | self.unchecked

    def is_hole(self, segment: m.Segment) -> bool:
        """Whether this segment of a large file lies in one of its holes entirely."""
        is_large = self.entries[segment.file_id].size > self.chunk_size
        return is_large and segment.runs == (0, segment.length)

    def payload(self, segment: m.Segment) -> bytes:
        return self.contents[segment.file_id][segment.offset : segment.offset + segment.length]

    def chunks(self) -> dict[int, list[m.Segment]]:
        """Return the chunks that are sent, by their numbers, with what they carry."""
        cut = ([segment for segment in chunk if self.is_sent(segment)] for chunk in self.segments())
        return {chunk_id: chunk for chunk_id, chunk in enumerate(cut) if chunk}

    def chunk(self, chunk_id: int, segments: list[m.Segment]) -> bytes:
        """One chunk as it is on the wire."""
        header = frame(m.ChunkHeader(chunk_id, tuple(segments)))
        payload = [
            self.contents[segment.file_id][start:end]
            for segment in segments
            for start, end, is_data in segment.pieces()
            if is_data
        ]
        return b"".join([header, *payload, *(segment_digest(self.payload(segment)) for segment in segments)])

    @property
    def finish(self) -> m.Finish:
        chunks = list(self.segments())
        sent = [segment for chunk in chunks for segment in chunk if self.is_sent(segment)]
        sent.sort(key=lambda segment: (segment.file_id, segment.offset))
        return m.Finish(len(chunks), root_digest(segment_digest(self.payload(segment)) for segment in sent))


def own_token() -> bytes | None:
    """Read the token that both sides of the tests have where they are given none."""
    own = read_own_token({"XDG_RUNTIME_DIR": str(PRIVATE)})
    return own.token.encode() if own is not None else None


class RawSender:
    """Opens connections of one transfer to a receiver; closes them all with the block."""

    def __init__(
        self,
        address: str,
        *,
        connections: int = 4,
        token: str | None = None,
        named: tuple[str, ...] = features.KNOWN,
        job: str = "",
    ) -> None:
        """`named` are the features that its Hello names, `job` is its job, if it has one."""
        self.named = named
        self.job = job
        self.can_prove = token is not None
        host, _, port = address.rpartition(":")
        self._address = (host.strip("[]"), int(port))
        self._token = token.encode() if token else None
        self.transfer_id = random_id()
        self.connections = connections
        self._links: list[Link] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for link in self._links:
            link.close()

    def connect(self) -> Link:
        """Connect, and no more."""
        link = Link(socket.create_connection(self._address, timeout=HANG))
        self._links.append(link)
        return link

    def hello(self, role: m.Role, connection_id: int = 0) -> m.Hello:
        """Make a Hello of this transfer."""
        nonce = random_id()
        versions = (limits.VERSION, limits.VERSION)
        return m.Hello(
            *versions,
            self.transfer_id,
            role,
            connection_id,
            self.connections,
            nonce,
            self.can_prove,
            self.named,
            job=self.job,
        )

    def open(self, role: m.Role, connection_id: int = 0) -> Link:
        """Open a connection up to Welcome. Raises Refused."""
        link = self.connect()
        token = self._token or own_token()
        opening = SenderOpening(token, is_own=self._token is None, features=self.named, job=self.job)
        greeting = read_body(link.read_exact, limits.OPENING_FRAME_BYTES)
        bodies = opening.answer(greeting, self.transfer_id, role, connection_id, self.connections)
        link.send_raw(b"".join(map(frame_of, bodies)))
        opening.enter(read_body(link.read_exact, limits.OPENING_FRAME_BYTES))
        return link

    def refused(self, role: m.Role, connection_id: int = 0) -> Refused:
        """Open a connection that the receiver refuses; return how."""
        try:
            self.open(role, connection_id)
        except Refused as refusal:
            return refusal
        raise AssertionError(f"the receiver let {role.name} {connection_id} in")

    def control(self) -> Link:
        """Open the control connection; again, as a sender does, while the end of one that was refused is under way."""
        end = time.monotonic() + HANG
        while True:
            try:
                return self.open(m.Role.CONTROL)
            except Ended:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)

    def data(self, connection_id: int = 0) -> Link:
        """Open a data connection."""
        return self.open(m.Role.DATA, connection_id)

    def offer(self, sample: Sample) -> Link:
        """Open control and offer a file; the answer is still to be read."""
        control = self.control()
        control.send(sample.offer, m.ManifestPart(0, (sample.entry,), True))
        return control

    def offers(self, *messages: m.Message) -> m.Abort:
        """Open control and say something that ends the transfer; return how."""
        control = self.control()
        control.send(*messages)
        answer = control.read()
        while isinstance(answer, (m.Progress, m.Needed, m.Verdicts)):  # to what came before the nonsense
            answer = control.read()
        assert isinstance(answer, m.Abort), answer
        control.end_writing()
        control.ends()
        return answer


def ack(link: Link) -> m.ChunkAck:
    """Read one acknowledgement."""
    return link.expect(m.ChunkAck)


def acknowledged(link: Link, count: int) -> list[int]:
    """Read OK acknowledgements until `count` chunks are."""
    chunk_ids: list[int] = []
    while len(chunk_ids) < count:
        message = ack(link)
        assert message.verdict is m.Verdict.OK
        chunk_ids += message.chunk_ids
    return chunk_ids


NO_RUNS = tuple(name for name in features.KNOWN if name != features.CHUNK_RUNS)
"""The features of a receiver that takes each chunk by itself."""


class RawReceiver:
    """Takes the connections of a sender; closes them all with the block."""

    def __init__(self, token: str | None = None, *, named: tuple[str, ...] = NO_RUNS) -> None:
        """`named` are the features that its Greeting names. By default it takes chunks one by one, no runs of them."""
        self._named = named
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(HANG)
        self._token = token.encode() if token else None
        self.incarnation = random_id()
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._links: list[Link] = []
        self._ahead: list[tuple[Link, m.Hello, m.Welcome]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.hang_up()

    def hang_up(self) -> None:
        """Close every connection."""
        for link in self._links:
            link.close()

    def patience(self, seconds: float) -> None:
        """Wait no longer than this for connections from now on: `accept` raises TimeoutError."""
        self._listener.settimeout(seconds)

    def accept(self) -> Link:
        """Accept a connection, and no more. Raises TimeoutError."""
        link = Link(self._listener.accept()[0])
        self._links.append(link)
        return link

    def hello(self) -> tuple[Link, m.Hello, m.Welcome]:
        """Accept a connection up to its Hello; return it, and the Welcome that would be right."""
        link = self.accept()
        opening = ReceiverOpening(self.incarnation, (self._token,) if self._token else None, features=self._named)
        link.send_raw(frame_of(opening.greeting_body))
        hello = None
        while hello is None:
            hello = opening.receive(read_body(link.read_exact, limits.OPENING_FRAME_BYTES))
        return link, hello, opening.welcome()

    def welcome(self, role: m.Role) -> tuple[Link, m.Hello]:
        """Accept a connection of this role and let it in; others wait, and those that were opened in vain are gone."""
        while True:
            at = next((at for at, (_, hello, _) in enumerate(self._ahead) if hello.role is role), None)
            if at is not None:
                link, hello, welcome = self._ahead.pop(at)
                link.send(welcome)
                return link, hello
            with contextlib.suppress(Ended):
                self._ahead.append(self.hello())

    def tree(self) -> tuple[Link, tuple[m.Entry, ...]]:
        """Let the control connection in, and take what it offers: a tree that fits one part."""
        link, _ = self.welcome(m.Role.CONTROL)
        link.expect(m.Offer)
        return link, link.expect(m.ManifestPart).entries

    def control(self) -> tuple[Link, m.Offer, m.Entry]:
        """Let the control connection in, and take what it offers."""
        link, _ = self.welcome(m.Role.CONTROL)
        offer = link.expect(m.Offer)
        (entry,) = link.expect(m.ManifestPart).entries
        return link, offer, entry

    def needs(self, segments: int) -> tuple[Link, Link]:
        """Let control in, need everything, let the first data connection in: (control, data)."""
        control, _, _ = self.control()
        control.send(m.Needed((), (m.SegmentRange(0, 0, segments),)))
        data, _ = self.welcome(m.Role.DATA)
        return control, data


class Received(NamedTuple):
    """A chunk that came over a data connection."""

    chunk_id: int
    segments: tuple[m.Segment, ...]
    payload: bytes
    digests: bytes


def read_chunk(link: Link) -> Received:
    """Read one whole chunk. Raises Ended."""
    header = link.expect(m.ChunkHeader)
    payload = link.read_exact(sum(segment.length for segment in header.segments))
    return Received(header.chunk_id, header.segments, payload, link.read_exact(16 * len(header.segments)))


def receive_all(receiver: RawReceiver, connections: int, segments: int) -> dict[int, list[Received]]:
    """Receive a whole file from a sender as a decent receiver would; return what came over which connection.

    The sender opens as many as `connections` data connections, each of which gets a thread here.
    """
    control, _, _ = receiver.control()
    control.send(m.Needed((), (m.SegmentRange(0, 0, segments),)))
    received: dict[int, list[Received]] = {}
    threads = []
    for _ in range(min(connections, segments)):
        data, hello = receiver.welcome(m.Role.DATA)
        chunks: list[Received] = []
        received[hello.connection_id] = chunks
        threads.append(threading.Thread(target=_acknowledge_all, args=(data, chunks)))
        threads[-1].start()
    finish = control.expect(m.Finish)
    assert segments == finish.chunks
    control.send(m.Complete(True))
    for thread in threads:
        thread.join(HANG)
    return received


def _acknowledge_all(link: Link, received: list[Received]) -> None:
    with contextlib.suppress(Ended):
        while True:
            received.append(chunk := read_chunk(link))
            link.send(m.ChunkAck(m.Verdict.OK, (chunk.chunk_id,)))
    link.close()


def refuses(sender: Service, control: Link, answer: m.Message) -> bool:
    """Answer an offer with nonsense: whether the sender says PROTOCOL, once, and ends with exit 3 for that reason."""
    control.send(answer)
    said = [message.code for message in control.rest() if isinstance(message, m.Abort)]
    control.close()
    sender.fails(3, "protocol", status="refused")
    return said == [Code.PROTOCOL]

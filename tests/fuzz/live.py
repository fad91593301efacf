"""Live fuzz: real services and hostile peers. Peers are threads here, each conversation made by its number.

`against_receiver` runs a receiver process with real transfers, and thousands of connections that open wrongly, offer
wrongly, and send chunks wrongly. `against_senders` runs real senders in this process against a receiver that answers
wrongly. What comes of a conversation depends on how threads interleave; what is said in it does not.
"""

import contextlib
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Final

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode, encode
from filestreamer.wire.errors import Aborted, Code, FilestreamerError, Refused
from filestreamer.wire.framing import frame, frame_of, read_body
from filestreamer.wire.opening import ReceiverOpening, SenderOpening, random_id
from sender.coordinator import Transfer
from sender.settings import parse as parse_sender
from tests.fuzz.corpus import corpus, wire
from tests.fuzz.mutate import changed, damaged
from tests.fuzz.targets import Ended as StreamEnded
from tests.fuzz.targets import Reading, mutated_body, mutated_stream
from tests.support.peer import Ended, Link, RawSender, Sample
from tests.support.processes import Watch, descriptors, resident_bytes, thread_count
from tests.support.services import HANG, UNIT, Pair, Service, make_file, pair, same

TOKEN: Final = "correct horse battery staple"
PEERS: Final = 6
SENDERS: Final = 24
PEAK_BYTES: Final = 640 << 20
"""How far a receiver may ever grow: two or three offers of as many segments as there may be, at once."""
LEFT_BYTES: Final = 96 << 20
"""How far it may have grown when everybody is gone."""
BUGS: Final = (Code.INTERNAL, Code.SHUTTING_DOWN)
"""What a receiver that is not ending says only by mistake."""


def random_of(seed: int, *numbers: int) -> Random:
    """Make the generator of one conversation."""
    return Random(":".join(map(str, (seed, *numbers))))


# ------------------------------------------------------------------------------------------------- against a receiver


def against_receiver(
    directory: Path, seed: int, first: int, conversations: int, *, token: str | None = None, kept: int = 0
) -> str:
    """Attack a receiver process; return a line about it. Raises AssertionError for what must not be.

    It waits until the receiver has no more than `kept` threads more than at the beginning: a minute, for none.
    """
    env = {"FILESTREAMER_TOKEN": token} if token else {}
    root = directory / f"receiver-{seed}-{first}"
    root.mkdir()
    with pair(root) as services:
        receiver = services.receiver("--give-up-after", 2, *(() if token else ("--anonymous",)), env=env)
        address = services.address(receiver)
        warm_up(services, address, env)
        before = sockets(receiver), thread_count(receiver.process.pid)
        attack = Attack(services, address, seed, token)
        with Watch(receiver.process.pid) as watch, Transfers(services, address, env) as transfers:
            attack.run(first, conversations)
        check_receiver(receiver, watch, before, attack, kept)
        assert transfers.done, "no real transfer was made"
        return (
            f"{attack.connections} connections in {conversations} conversations, {transfers.done} real transfers"
            f" identical, {attack.ends['Complete']} hostile ones complete; the receiver grew by"
            f" {watch.grown_bytes >> 20} MiB at most; ends: {dict(sorted(attack.ends.items()))}"
        )


def warm_up(services: Pair, address: str, env: dict[str, str]) -> None:
    """Move one file, so that what is loaded once does not count."""
    services.sender(services.file("warm", 1 << 20), address, env=env).succeeds()


def sockets(receiver: Service) -> int:
    return sum(each.startswith("socket:") for each in descriptors(receiver.process.pid))


def check_receiver(receiver: Service, watch: Watch, before: tuple[int, int], attack: "Attack", kept: int) -> None:
    """Check that the receiver lives, told of no bug, and has given everything back but `kept` threads.

    For a minute it keeps a committed transfer whose sender has not received Complete.
    """
    assert receiver.process.poll() is None, receiver.stderr[-4000:]
    for line in receiver.stderr.splitlines():
        of_its_own = '"internal"' in line and "the other side ended" not in line
        told = of_its_own or "Traceback" in line or "please report" in line
        assert not told, f"the receiver logged: {line}"
    assert not attack.findings, attack.findings
    assert watch.grown_bytes < PEAK_BYTES, f"the receiver grew by {watch.grown_bytes >> 20} MiB"

    def is_over() -> bool:
        return sockets(receiver) <= before[0] and thread_count(receiver.process.pid) <= before[1] + kept

    end = time.monotonic() + (3 * UNIT if kept else 9 * UNIT)
    while not is_over():
        left = sockets(receiver), thread_count(receiver.process.pid)
        assert time.monotonic() < end, f"sockets and threads: {left} are left of {before} at the beginning"
        time.sleep(0.1)
    grown = resident_bytes(receiver.process.pid) - watch.resident_bytes
    assert grown < LEFT_BYTES, f"the receiver kept {grown >> 20} MiB"


class Transfers:
    """Real transfers, one after the other, while the block lasts: each arrives identical."""

    def __init__(self, services: Pair, address: str, env: dict[str, str]) -> None:
        self._services = services
        self._address = address
        self._env = env
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._failure: BaseException | None = None
        self.done = 0

    def __enter__(self) -> "Transfers":
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._over.set()
        self._thread.join(12 * UNIT)
        if kind is None and self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                self._move(self.done % 3)
                self.done += 1
        except BaseException as error:  # noqa: BLE001 - the test has to report it
            self._failure = error

    def _move(self, number: int) -> None:
        file = make_file(self._services.source / f"real-{number}", (8 << 20) + number, seed=number + self.done)
        flags = ("--rate-limit", "6MiB/s", "--chunk-size", "64KiB", "--connections", 3)
        self._services.sender(file, self._address, *flags, env=self._env).succeeds()
        assert same(file, self._services.destination / file.name), f"{file.name} is not what was sent"


class Attack:
    """Conversations of a few hostile peers at once."""

    def __init__(self, services: Pair, address: str, seed: int, token: str | None) -> None:
        self._services = services
        self._address = address
        self._seed = seed
        self._token = token
        self._mutex = threading.Lock()  # protects what is counted
        self._next = 0
        self._end = 0
        self.ends: Counter[str] = Counter()
        self.connections = 0
        self.findings: list[str] = []

    def run(self, first: int, conversations: int) -> None:
        """Hold the conversations [first, first + conversations)."""
        self._next, self._end = first, first + conversations
        threads = [threading.Thread(target=self._talk, args=(peer,), daemon=True) for peer in range(PEERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _talk(self, peer: int) -> None:
        while (number := self._take()) is not None:
            rng = random_of(self._seed, number)
            talk = rng.choices((self._opening, self._control, self._data), (50, 25, 25))[0]
            try:
                with Hostile(self._address, self._token) as hostile:
                    end = talk(rng, hostile, peer)
                    count = hostile.connected
            except (AssertionError, OSError) as error:
                self._find(f"conversation {number} (seed {self._seed}, {talk.__name__}): {error!r}")
                return
            with self._mutex:
                self.ends[end] += 1
                self.connections += count

    def _take(self) -> int | None:
        with self._mutex:
            if self._next >= self._end or self.findings:
                return None
            self._next += 1
            return self._next - 1

    def _find(self, what: str) -> None:
        with self._mutex:
            self.findings.append(what)

    # --- conversations; each returns how it ended

    def _opening(self, rng: Random, hostile: "Hostile", _peer: int) -> str:
        """Open wrongly, and leave in one way or another."""
        link = hostile.connect()
        bodies: list[bytes] = []
        if rng.random() < 0.7:
            bodies = list(hostile.bodies(link, rng.choice((m.Role.CONTROL, m.Role.DATA, m.Role.DATA))))
        if rng.random() < 0.2:
            rng.shuffle(bodies)
        stream = mutated_stream(rng, bodies, corpus())
        if stream == wire(bodies):
            stream = damaged(rng, stream, b"")
        link.send_raw(stream[: rng.choice((len(stream), 100_000))])
        match rng.randrange(4):
            case 0:
                link.reset()
                return "left"
            case 1:
                link.close()
                return "left"
            case _:
                link.end_quietly()
                return said_last(link)

    def _control(self, rng: Random, hostile: "Hostile", peer: int) -> str:
        """Come in, and offer wrongly."""
        sample = some_sample(rng, peer)
        link = hostile.control()
        said: list[m.Message] = [sample.offer, m.ManifestPart(0, (sample.entry,), True), sample.finish]
        stream = mutated_stream(rng, [encode(message) for message in said], corpus())
        if rng.random() < 0.3:
            stream = damaged(rng, stream, wire([rng.choice(corpus().bodies)]))
        link.send_raw(stream)
        if rng.random() < 0.7:
            link.send_raw(frame(m.Abort(Code.SOURCE, "enough")))
        if rng.random() < 0.1:
            link.reset()
            return "left"
        link.end_quietly()
        return said_last(link)

    def _data(self, rng: Random, hostile: "Hostile", peer: int) -> str:
        """Offer rightly, send chunks wrongly, then rightly: what is committed in the end is what was offered."""
        sample = some_sample(rng, peer)
        control = hostile.control()
        control.send(sample.offer, m.ManifestPart(0, (sample.entry,), True))
        if rng.random() < 0.8:
            early = answered(control, sample.grid.segments)
            if early is not None:
                return early
        for _ in range(rng.choice((1, 1, 2))):
            send_wrongly(rng, hostile, sample)
        needed = set(range(sample.grid.segments)) if rng.random() < 0.8 else set()
        for _ in range(6):
            with contextlib.suppress(Ended, Refused):
                send_rightly(hostile, sample, sorted(needed))
            control.send(sample.finish)
            answer, needed = answer_to_finish(control)
            if isinstance(answer, m.Complete):
                path = self._services.destination / os.fsdecode(sample.name)
                assert path.read_bytes() == sample.content, f"{path.name} was committed and is not what was offered"
                control.end_quietly()
                control.ends()
                return "Complete"
            if not isinstance(answer, m.Needed):
                return how_it_ended(answer)
        return "never complete"


def how_it_ended(last: m.Message | None) -> str:
    """Name the last word of a connection. Raises AssertionError where it tells of a bug."""
    if isinstance(last, m.Refusal | m.Abort):
        assert last.code not in BUGS, f"{last.code.name}: {last.reason}"
        return last.code.name
    return "closed" if last is None else type(last).__name__


def answered(control: Link, segments: int) -> str | None:
    """Read until every segment was answered, as a sender has to; how it ended where that comes first."""
    open_segments = segments
    try:
        while open_segments > 0:
            message = control.read()
            if isinstance(message, m.Needed):
                open_segments -= sum(each.segments for each in message.segments)
            elif isinstance(message, m.Held):
                open_segments -= len(message.digests) // limits.DIGEST_BYTES
            elif isinstance(message, m.Abort):
                return how_it_ended(message)
    except Ended:
        return "closed"
    return None


def some_sample(rng: Random, peer: int) -> Sample:
    """Make a small file; names are few, so that some find what others left staged. Each peer has names of its own."""
    name = f"fuzz-{peer}-{rng.randrange(6)}".encode()
    return Sample.random(rng.randrange(4), rng.choice((0, 1, 50, 1000, 1000, 20_000)), rng.choice((10, 64, 1000)), name)


class HostileLink(Link):
    """A connection of somebody who does not care how it ends."""

    def end_quietly(self) -> None:
        """Say that nothing follows; who has reset the connection knows."""
        with contextlib.suppress(OSError):
            self.end_writing()


class Hostile(RawSender):
    """A peer with a transfer of its own; counts what it opens."""

    def __init__(self, address: str, token: str | None) -> None:
        super().__init__(address, token=token)
        self._secret = token
        self.connected = 0

    def connect(self) -> HostileLink:
        """Connect, and no more."""
        link = HostileLink(socket.create_connection(self._address, timeout=HANG))
        self._links.append(link)
        self.connected += 1
        return link

    def bodies(self, link: Link, role: m.Role) -> tuple[bytes, ...]:
        """Read the Greeting; return what answers it rightly."""
        greeting = read_body(link.read_exact, limits.OPENING_FRAME_BYTES)
        token = self._secret.encode() if self._secret else None
        return SenderOpening(token).answer(greeting, self.transfer_id, role, 0, self.connections)

    def control(self) -> HostileLink:
        """Open the control connection, as soon as there is room for another transfer."""
        end = time.monotonic() + HANG
        while True:
            try:
                link = self.open(m.Role.CONTROL)
            except Refused as refusal:
                if refusal.code is not Code.LIMIT or time.monotonic() > end:
                    raise AssertionError(f"refused with {refusal.code.name}: {refusal.reason}") from refusal
                time.sleep(0.05)
                continue
            assert isinstance(link, HostileLink)
            return link


def said_last(link: Link) -> str:
    """Read to the end; say how the receiver took leave."""
    try:
        messages = link.rest()
    except FilestreamerError as error:
        raise AssertionError(f"the receiver said what is no frame: {error}") from error
    return how_it_ended(messages[-1] if messages else None)


def send_wrongly(rng: Random, hostile: Hostile, sample: Sample) -> None:
    """Open a data connection, if it is let in, and send a mutated stream of chunks."""
    try:
        link = hostile.data(rng.randrange(hostile.connections))
    except (Refused, Ended):
        return
    link.send_raw(mutated_chunks(rng, sample))
    if rng.random() < 0.3:
        link.reset()
        return
    assert isinstance(link, HostileLink)
    link.end_quietly()
    said_last(link)


def mutated_chunks(rng: Random, sample: Sample) -> bytes:
    """Make chunks of which some are changed, damaged, doubled, left out, or somewhere else."""
    segments = sample.grid.segments
    order = [rng.randrange(segments) for _ in range(rng.choice((1, 3, 10, 30)))] if segments else []
    out = []
    for index in order:
        header = encode(m.ChunkHeader(index, (sample.segment(index),)))
        payload, digest = sample.payload(index), sample.digest(index)
        match rng.randrange(11):
            case 10:
                run = some_run(rng, sample, index)
                header = encode(run)
                payload = b"".join(sample.payload(each) for each in run.chunk_ids)
                digest = b"".join(sample.digest(each) for each in run.chunk_ids)
                if rng.random() < 0.5:
                    payload = damaged(rng, payload, payload)[: len(payload)].ljust(len(payload), b"\0")
            case 0:
                header = changed(rng, header, rng.choice(corpus().bodies))
            case 1:
                header = mutated_body(rng, corpus())
            case 2:
                payload = damaged(rng, payload, payload)
            case 3:
                digest = damaged(rng, digest, digest)[:16].ljust(16, b"\0")
            case 4:
                other = rng.randrange(segments)  # good bytes, and a good digest, for the wrong place
                header = encode(m.ChunkHeader(index, (sample.segment(other),)))
            case _:
                pass
        out.append(frame_of(header) + payload + digest)
    stream = b"".join(out)
    return damaged(rng, stream, stream) if rng.random() < 0.2 else stream


def some_run(rng: Random, sample: Sample, first: int) -> m.ChunkHeader:
    """Announce a run of chunks that are in the file, some of which may have come before, or twice at once."""
    stride = rng.choice((1, 1, 2, 5))
    chunks = min(
        rng.randrange(1, limits.CHUNKS_PER_RUN + 1), len(range(first, len(sample.content) // sample.chunk_size, stride))
    )
    return m.ChunkHeader(first, (sample.segment(first),), max(1, chunks), stride)


def send_rightly(hostile: Hostile, sample: Sample, indices: list[int]) -> None:
    """Send chunks over a new data connection, and wait until each is acknowledged, or the connection ends."""
    if not indices:
        return
    link = hostile.data(0)
    for start in range(0, len(indices), 500):
        some = indices[start : start + 500]
        link.send_raw(b"".join(map(sample.chunk, some)))
        acknowledged = 0
        while acknowledged < len(some):
            message = link.read()
            if not isinstance(message, m.ChunkAck):
                how_it_ended(message)
                return
            acknowledged += len(message.chunk_ids)
    link.close()


def answer_to_finish(control: Link) -> tuple[m.Message | None, set[int]]:
    """Read until Complete, Abort, or a Needed that answers Finish; None where the receiver closed."""
    needed: set[int] = set()
    try:
        while True:
            message = control.read()
            if isinstance(message, m.Needed):
                for each in message.segments:
                    needed |= set(range(each.first_segment, each.first_segment + each.segments))
                return message, needed
            if isinstance(message, m.Complete | m.Abort):
                return message, needed
    except Ended:
        return None, needed


# ---------------------------------------------------------------------------------------------------- against senders


def against_senders(directory: Path, seed: int, first: int, runs: int) -> str:
    """Run senders in this process against hostile receivers; return a line. Raises AssertionError as the other one."""
    file = make_file(directory / f"source-{seed}-{first}", 10_000, seed)
    ends: Counter[str] = Counter()
    findings: list[str] = []
    mutex = threading.Lock()
    numbers = iter(range(first, first + runs))

    def work() -> None:
        while True:
            with mutex:
                number = next(numbers, None)
            if number is None or findings:
                return
            try:
                end = one_sender(file, seed, number)
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is a finding
                with mutex:
                    findings.append(f"run {number} of seed {seed}: {error!r}")
                return
            with mutex:
                ends[end] += 1

    before = set(threading.enumerate())
    with Watch(os.getpid()) as watch:
        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(SENDERS, runs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        grown = watch.grown_bytes
    assert findings == [], findings
    assert grown < 256 << 20, f"{SENDERS} senders at once grew by {grown >> 20} MiB"
    until_threads_end(before)
    return f"{runs} senders against hostile receivers, grown by {grown >> 20} MiB; ends: {dict(sorted(ends.items()))}"


def until_threads_end(before: set[threading.Thread]) -> None:
    """Wait until no thread of a sender is left."""
    end = time.monotonic() + HANG
    while left := [thread.name for thread in set(threading.enumerate()) - before]:
        assert time.monotonic() < end, f"threads of senders that ended are left: {left}"
        time.sleep(0.05)


class Quiet:
    """A log that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, event: str, **fields: object) -> None:
        """Remember a line."""
        self.lines.append(f"{event} {fields}")

    debug = info = warning = error = say


def one_sender(file: Path, seed: int, number: int) -> str:
    """Run one sender against one hostile receiver; return how it ended."""
    rng = random_of(seed, number)
    token = TOKEN if rng.random() < 0.3 else None
    with Impostor(seed, number, token if rng.random() < 0.9 else TOKEN[::-1]) as impostor:
        flags = ["--to", impostor.address, "--give-up-after", "0.3", "--connections", "3", "--chunk-size", "1000"]
        settings, _ = parse_sender([str(file), *flags], {"FILESTREAMER_TOKEN": token} if token else {})
        log = Quiet()
        try:
            committed = Transfer(settings, log).run()
        except (Aborted, Refused) as error:
            return f"told {error.name}"
        except FilestreamerError as error:
            if error.name == "internal":
                raise AssertionError(f"{error} (log: {log.lines})") from error
            return error.name
    assert committed, "it ended well, and nothing is committed"
    assert impostor.said_complete, "it ended well, and nobody said Complete"
    assert not any("please report" in line for line in log.lines), log.lines
    return "complete"


class Impostor:
    """A receiver that answers wrongly, on every connection in another way."""

    def __init__(self, seed: int, number: int, token: str | None) -> None:
        self._seed = seed
        self._number = number
        self._token = token
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._incarnation = random_id()
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._over = threading.Event()
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.said_complete = False

    def __enter__(self) -> "Impostor":
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(HANG)
        for sock in self._sockets:
            sock.close()

    def _start(self, body: Callable[..., None], *args: Any) -> None:
        self._threads.append(threading.Thread(target=body, args=args, name="impostor", daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        for count in range(1000):
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(sock)
            self._start(self._serve, sock, random_of(self._seed, self._number, count))

    def _serve(self, sock: socket.socket, rng: Random) -> None:
        link = Link(sock)
        try:
            hello = self._open(rng, link)
            if hello is not None and hello.role is m.Role.CONTROL:
                self._control(rng, link)
            elif hello is not None:
                self._data(rng, link)
        except (Ended, OSError, FilestreamerError, StreamEnded):
            pass
        finally:
            if rng.random() < 0.3:
                with contextlib.suppress(OSError):
                    link.reset()
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _open(self, rng: Random, link: Link) -> m.Hello | None:
        """Open, mostly rightly."""
        incarnation = self._incarnation if rng.random() < 0.9 else random_id()
        opening = ReceiverOpening(incarnation, (self._token.encode(),) if self._token else None)
        wrongly = rng.random()
        if wrongly < 0.04:
            greeting = changed(rng, opening.greeting_body, rng.choice(corpus().bodies))
            link.send_raw(damaged(rng, frame_of(greeting), b"") if wrongly < 0.02 else frame_of(greeting))
        else:
            link.send_raw(frame_of(opening.greeting_body))
        hello = None
        while hello is None:
            hello = opening.receive(read_body(link.read_exact, limits.OPENING_FRAME_BYTES))
        welcome = encode(opening.welcome())
        if rng.random() < 0.04:
            link.send_raw(mutated_stream(rng, [welcome], corpus()))
            return None
        link.send_raw(frame_of(welcome))
        return hello

    def _control(self, rng: Random, link: Link) -> None:
        """Take the offer, then answer: whatever comes to mind, or rightly until the sender says Finish."""
        if not isinstance(link.read(), m.Offer) or not isinstance(part := link.read(), m.ManifestPart):
            return
        segments = -(-part.entries[0].size // 1000)
        if rng.random() < 0.5:
            self._say(link, frame(m.Needed((), (m.SegmentRange(0, 0, segments),))))
            while not isinstance(message := link.read(), m.Finish):
                if isinstance(message, m.Abort):
                    return
            if rng.random() < 0.4:
                self._say(link, frame(m.Complete(True)))
        for _ in range(rng.choice((1, 2, 4))):
            answers = [encode(message) for message in some_answers(rng, segments)]
            self._say(link, mutated_stream(rng, answers, corpus()) if rng.random() < 0.4 else wire(answers))
            if rng.random() < 0.3:
                link.socket.settimeout(0.2)
                with contextlib.suppress(TimeoutError):
                    link.read()
        self._over.wait(rng.choice((0.0, 0.05, 0.4)))

    def _say(self, link: Link, stream: bytes) -> None:
        """Send a stream; note whether Complete is in it, as the sender reads it."""
        read = Reading(stream)
        with contextlib.suppress(StreamEnded, FilestreamerError):
            while True:
                message = decode(read_body(read, limits.FRAME_BYTES))
                self.said_complete |= isinstance(message, m.Complete) and message.committed
        link.send_raw(stream)

    def _data(self, rng: Random, link: Link) -> None:
        """Take chunks; acknowledge them, or others, or something else."""
        for _ in range(rng.choice((0, 5, 100, 100, 100))):
            header = link.read()
            if not isinstance(header, m.ChunkHeader):
                return
            link.read_exact(header.length + 16 * header.chunks * len(header.segments))
            verdict = m.Verdict.OK if rng.random() < 0.9 else m.Verdict.DIGEST_MISMATCH
            answer = encode(m.ChunkAck.of(verdict, [header.chunk_ids]))
            link.send_raw(mutated_stream(rng, [answer], corpus()) if rng.random() < 0.02 else frame_of(answer))


def some_answers(rng: Random, segments: int) -> Iterator[m.Message]:
    """Yield answers of a receiver, each right by itself, or nearly so."""
    for _ in range(rng.choice((1, 2, 5))):
        first = rng.randrange(segments + 1)
        count = rng.randrange(1, segments + 2)
        match rng.randrange(8):
            case 0 | 1 | 2:
                yield m.Needed((), (m.SegmentRange(0, 0, segments),))
            case 3:
                yield m.Needed((), (m.SegmentRange(0, first, count),))
            case 4:
                yield m.Held(0, first, rng.randbytes(16 * count))
            case 5:
                starved = tuple(rng.sample(range(8), rng.randrange(3)))
                phase, numbers = rng.choice(list(m.Phase)), (rng.getrandbits(63), 0)
                yield m.Progress(phase, *numbers, starved=starved, passed_over=rng.getrandbits(64))
            case 6:
                yield m.Complete(rng.random() < 0.8)
            case _:
                yield m.Abort(rng.choice(list(Code)), "enough")

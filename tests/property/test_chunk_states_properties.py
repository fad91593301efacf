"""The states of chunks, as a machine: whatever connections do, no write ever lands on a VERIFIED chunk.

The model is a disk: connections that were told to WRITE put bytes there, piece by piece, until they deliver or leave.
"""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from filestreamer.wire.errors import RemoteProtocolError
from filestreamer.wire.grid import Grid
from receiver.disk.staging.ledger import UNKNOWN_DIGEST, Claims
from receiver.file.chunk_states import ChunkStates, Delivery
from receiver.file.states import CLAIMED, FREE, HELD, VERIFIED, WRITING

SEGMENTS = 5
INDICES = st.integers(0, SEGMENTS - 1)
CONNECTIONS = st.integers(0, 2)
DIGESTS = st.sampled_from([b"a" * 16, b"b" * 16])


class Connection:
    """A writer, compared by identity."""

    def __init__(self) -> None:
        self.turns: dict[int, Delivery] = {}

    def stop(self, seconds: float) -> bool:
        return seconds >= 0


class Receiving(RuleBasedStateMachine):
    """Three connections bring chunks, right and damaged ones, and end; the ledger's claims are re-hashed meanwhile."""

    @initialize(claims=st.dictionaries(INDICES, DIGESTS | st.just(UNKNOWN_DIGEST)))
    def begin_transfer(self, claims: dict[int, bytes]) -> None:
        self.grid = Grid(SEGMENTS * 10 - 3, 10)
        self.chunk_states = ChunkStates(self.grid, Claims.of(self.grid, claims.items()))
        self.unhashed = dict(claims)
        self.disk: dict[int, bytes] = dict.fromkeys(claims, b"claimed")
        self.verified: dict[int, bytes] = {}
        self.connections = [Connection() for _ in range(3)]

    # --- what the model says of the states

    def writer(self, index: int) -> Connection | None:
        writers = [each for each in self.connections if each.turns.get(index) is Delivery.WRITE]
        assert len(writers) <= 1, "two connections write one chunk"
        return writers[0] if writers else None

    def write(self, index: int, content: bytes) -> None:
        assert index not in self.verified, "a write landed on a VERIFIED chunk"
        self.disk[index] = content

    # --- rules

    @rule(index=INDICES, which=CONNECTIONS)
    def begin(self, index: int, which: int) -> None:
        connection = self.connections[which]
        writer = self.writer(index)
        if writer is connection:
            try:
                self.chunk_states.begin(index, connection)
            except RemoteProtocolError:
                return
            raise AssertionError("a chunk has a segment twice, and no error was raised")
        if index in connection.turns:
            return  # it compares it already: this connection is not done with that chunk
        turn = self.chunk_states.begin(index, connection)
        expected = (
            Delivery.COMPARE if index in self.verified else Delivery.WAIT if writer is not None else Delivery.WRITE
        )
        assert turn is expected
        if turn is not Delivery.WAIT:
            connection.turns[index] = turn

    @rule(index=INDICES, which=CONNECTIONS, content=DIGESTS)
    def write_some(self, index: int, which: int, content: bytes) -> None:
        """Write over a connection whose turn it is, any time."""
        if self.connections[which].turns.get(index) is Delivery.WRITE:
            self.write(index, content + b" in part")

    @rule(index=INDICES, which=CONNECTIONS, told=DIGESTS, computed=DIGESTS)
    def deliver(self, index: int, which: int, told: bytes, computed: bytes) -> None:
        connection = self.connections[which]
        turn = connection.turns.pop(index, None)
        if turn is None:
            return
        if turn is Delivery.COMPARE:
            assert self.chunk_states.deliver(index, connection, told, computed) == (
                told == computed == self.verified[index]
            )
            return
        self.write(index, computed)
        good = self.chunk_states.deliver(index, connection, told, computed)
        assert good == (told == computed)
        if good:
            self.verified[index] = told

    @rule(first=INDICES, stride=st.integers(1, 3), which=CONNECTIONS, told=st.lists(DIGESTS, min_size=5, max_size=5))
    def bring_run(self, first: int, stride: int, which: int, told: list[bytes]) -> None:
        """Bring a run, if none of its chunks is here or under way; while it is, another connection has to wait."""
        connection, run = self.connections[which], range(first, SEGMENTS, stride)
        is_missing = all(self.chunk_states.state(index) in (FREE, CLAIMED) for index in run)
        assert self.chunk_states.begin_run(run, connection) == is_missing
        if not is_missing:
            return
        for index in run:
            assert self.chunk_states.begin(index, self.connections[which - 1]) is Delivery.WAIT
            self.write(index, told[index])
        assert not self.chunk_states.verify_run(run, self.connections[which - 1], told[first::stride])
        assert self.chunk_states.verify_run(run, connection, told[first::stride])
        self.verified.update({index: told[index] for index in run})

    @rule(which=CONNECTIONS)
    def leave(self, which: int) -> None:
        """End a connection: it was lost, superseded, or shut for another one."""
        self.chunk_states.detach(self.connections[which])
        self.connections[which] = Connection()

    @rule(index=INDICES)
    def take_over(self, index: int) -> None:
        """Who waits shuts the writer, and may write once that has left."""
        writer = self.writer(index)
        if writer is None:
            return
        waiting = next(each for each in self.connections if each is not writer)
        if index in waiting.turns:
            return
        assert self.chunk_states.begin(index, waiting) is Delivery.WAIT
        assert self.chunk_states.writer(index) is writer
        self.leave(self.connections.index(writer))
        assert self.chunk_states.begin(index, waiting) is Delivery.WRITE
        waiting.turns[index] = Delivery.WRITE

    @rule(index=INDICES, digest=DIGESTS)
    def rehash(self, index: int, digest: bytes) -> None:
        """Re-hash what was claimed, once; it may have been sent meanwhile."""
        if index not in self.unhashed:
            return
        claimed, before = self.unhashed.pop(index), self.chunk_states.state(index)
        self.chunk_states.rehashed(index, digest)
        if before == CLAIMED:
            assert self.chunk_states.state(index) == (HELD if claimed in (digest, UNKNOWN_DIGEST) else FREE)

    # --- invariants

    @invariant()
    def states_are_what_happened(self) -> None:
        for index in range(SEGMENTS):
            state = self.chunk_states.state(index)
            assert (state == VERIFIED) == (index in self.verified)
            assert (state == WRITING) == (self.writer(index) is not None)
            assert self.chunk_states.writer(index) is self.writer(index)
            if state == CLAIMED:
                assert index in self.unhashed
            if state == HELD:
                assert self.disk[index] == b"claimed", "it was written to, and still counts as held"
            if state == VERIFIED:
                assert self.disk[index] == self.verified[index] == self.chunk_states.digest(index)

    @invariant()
    def counts_are_right(self) -> None:
        states = [self.chunk_states.state(index) for index in range(SEGMENTS)]
        assert self.chunk_states.has_writers == (WRITING in states)
        held = sum(self.grid.length(index) for index, state in enumerate(states) if state == HELD)
        assert held == self.chunk_states.held_bytes()

    @invariant()
    def runs_are_the_states(self) -> None:
        for wanted in ((FREE,), (FREE, WRITING), (HELD, VERIFIED), (CLAIMED,), (FREE, CLAIMED, WRITING)):
            runs = list(self.chunk_states.runs(*wanted))
            covered = [index for first, end in runs for index in range(first, end)]
            assert covered == [index for index in range(SEGMENTS) if self.chunk_states.state(index) in wanted]
            assert all(first < end for first, end in runs)
            assert all(runs[at][1] < runs[at + 1][0] for at in range(len(runs) - 1)), "runs that touch are one"


TestReceiving = Receiving.TestCase

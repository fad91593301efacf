"""Each chunk is taken exactly once, chunk k to k mod N where that is strict, whatever is put back and stolen.

N is that of the moment when it is taken: it doubles and halves on the way.
"""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sender.dispatch.schedule import Schedule


@given(
    connections=st.integers(1, 9),
    shard_count=st.integers(1, 4),
    strict=st.booleans(),
    chunks=st.integers(0, 200),
    data=st.data(),
)
def test_each_chunk_once(connections: int, shard_count: int, strict: bool, chunks: int, data: st.DataObject) -> None:
    """All connections take until there is nothing left, in any order."""
    shard = data.draw(st.integers(0, shard_count - 1))
    schedule = Schedule(connections, shard_count=shard_count, strict_modulo=strict)
    schedule.add(shard, chunks, shard_count)
    expected = set(range(shard, chunks, shard_count))
    taken: dict[int, list[int]] = {connection_id: [] for connection_id in range(connections)}
    idle: set[int] = set()
    while len(idle) < connections:
        connection_id = data.draw(st.sampled_from(sorted(taken.keys() - idle)))
        chunk_id = schedule.take(connection_id)
        if chunk_id is None:
            idle.add(connection_id)
        else:
            taken[connection_id].append(chunk_id)
    everything = [chunk_id for chunk_ids in taken.values() for chunk_id in chunk_ids]
    assert len(everything) == len(expected)
    assert set(everything) == expected
    assert schedule.remaining == 0
    if strict:
        for connection_id, chunk_ids in taken.items():
            assert chunk_ids == sorted(chunk_ids)
            assert all((chunk_id // shard_count) % connections == connection_id for chunk_id in chunk_ids)


class Taking(RuleBasedStateMachine):
    """Ranges are added as they are answered, connections take, deliver and lose chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.left: set[int] = set()  # added or put back, and not taken
        self.held: dict[int, set[int]] = {}  # taken and not delivered, by connection
        self.delivered: set[int] = set()
        self.next_chunk = 0

    @initialize(connections=st.integers(1, 6), shard_count=st.integers(1, 3), strict=st.booleans())
    def begin(self, connections: int, shard_count: int, strict: bool) -> None:
        self.connections, self.shard_count, self.strict = connections, shard_count, strict
        self.schedule = Schedule(connections, shard_count=shard_count, strict_modulo=strict)
        self.held = {connection_id: set() for connection_id in range(connections)}
        self.next_chunk = shard_count - 1  # the first one of the last shard

    def home(self, chunk_id: int) -> int:
        return (chunk_id // self.shard_count) % self.connections

    @rule(gap=st.integers(0, 5), count=st.integers(0, 30))
    def add(self, gap: int, count: int) -> None:
        """Answer `count` chunks of the shard, behind a gap that is not answered yet."""
        step = self.shard_count
        first = self.next_chunk + gap * step
        self.next_chunk = first + count * step
        self.schedule.add(first, self.next_chunk, step)
        self.left.update(range(first, self.next_chunk, step))

    @rule(connection=st.integers(0, 47))
    def take(self, connection: int) -> None:
        connection_id = connection % self.connections
        before = [self.schedule.remaining_of(each) for each in range(self.connections)]
        chunk_id = self.schedule.take(connection_id)
        if chunk_id is None:
            assert not before[connection_id]
            assert self.strict or not self.left
            return
        assert chunk_id in self.left
        home = self.home(chunk_id)
        if before[connection_id] or self.strict:
            assert home == connection_id
        else:
            assert before[home] == max(before)
        self.left.remove(chunk_id)
        self.held[connection_id].add(chunk_id)

    @rule(connection=st.integers(0, 47), count=st.integers(1, 5))
    def deliver(self, connection: int, count: int) -> None:
        held = self.held[connection % len(self.held)]
        for chunk_id in sorted(held)[:count]:
            held.remove(chunk_id)
            self.delivered.add(chunk_id)

    @precondition(lambda self: any(self.held.values()))
    @rule(connection=st.integers(0, 47))
    def lose(self, connection: int) -> None:
        """End a connection: what it had goes back, and comes first at home, lowest first."""
        held = self.held[connection % len(self.held)]
        lost = sorted(held)
        self.schedule.put_back(list(reversed(lost)))
        self.left |= held
        held.clear()
        if self.strict and lost:
            home = self.home(lost[0])
            first = [chunk_id for chunk_id in lost if self.home(chunk_id) == home]
            taken = [self.schedule.take(home) for _ in first]
            assert taken == first
            self.schedule.put_back(first)

    @rule(doubles=st.booleans())
    def resize(self, doubles: bool) -> None:
        """Double or halve the connections; who is not one of them any more keeps what it has, and gets no more."""
        if doubles and self.connections <= 24:
            self.connections *= 2
        elif not doubles and self.connections % 2 == 0:
            self.connections //= 2
        self.schedule.resize(self.connections)
        for connection_id in range(self.connections):
            self.held.setdefault(connection_id, set())
        for leaving in range(self.connections, len(self.held)):
            assert self.schedule.take(leaving) is None

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        if hasattr(self, "schedule"):
            assert self.schedule.remaining == len(self.left)
            for connection_id in range(self.connections):
                mine = sum(self.home(chunk_id) == connection_id for chunk_id in self.left)
                assert mine == self.schedule.remaining_of(connection_id)

    def teardown(self) -> None:
        """In the end everything is taken, each chunk by a connection that may have it."""
        if not hasattr(self, "schedule"):
            return
        for connection_id in range(self.connections):
            while (chunk_id := self.schedule.take(connection_id)) is not None:
                assert chunk_id in self.left
                self.left.remove(chunk_id)
        assert not self.left


TestTaking = Taking.TestCase

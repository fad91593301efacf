"""How far ahead a tree is dealt: by example, and that everything is dealt, whoever is slow."""

from hypothesis import given
from hypothesis import strategies as st

from filestreamer.wire import limits
from sender.dispatch.ahead import Ahead
from sender.dispatch.schedule import Schedule


class Dealing:
    """Connections that take, and deliver what they have in order."""

    def __init__(self, connections: int, chunks: int, ahead: int, *, strict_modulo: bool = False) -> None:
        self.schedule = Schedule(connections, strict_modulo=strict_modulo)
        self.schedule.add(0, chunks)
        self.ahead = Ahead(ahead)
        self.on_its_way: list[list[int]] = [[] for _ in range(connections)]
        self.arrived: set[int] = set()

    def take(self, connection_id: int) -> int | None:
        if not (self.schedule.strict_modulo or self.ahead.may_take(connection_id)):
            return None
        chunk_id = self.schedule.deal(connection_id, self.ahead.below(self.schedule.lowest))
        if chunk_id is not None:
            self.ahead.dealt(chunk_id, connection_id)
            self.on_its_way[connection_id].append(chunk_id)
        elif self.schedule.remaining:
            self.ahead.hold_back()
        return chunk_id

    def deliver(self, connection_id: int) -> None:
        if self.on_its_way[connection_id]:
            chunk_id = self.on_its_way[connection_id].pop(0)
            self.ahead.arrived(chunk_id)
            self.arrived.add(chunk_id)

    def lose(self, connection_id: int) -> None:
        lost, self.on_its_way[connection_id] = self.on_its_way[connection_id], []
        self.schedule.put_back(lost)
        for chunk_id in lost:
            self.ahead.returned(chunk_id)


def test_nothing_is_dealt_far_beyond_what_has_not_arrived() -> None:
    dealing = Dealing(2, 1000, 10)
    assert dealing.take(1) == 1
    taken = []
    while (chunk_id := dealing.take(0)) is not None:
        taken.append(chunk_id)
        dealing.deliver(0)
    assert taken == [0, 2, 4, 6, 8, 10, 3, 5, 7, 9], "its own before chunk 11, then what is left there"
    dealing.deliver(1)
    assert dealing.take(0) == 12


def test_who_keeps_the_others_waiting_gets_less() -> None:
    """One chunk of connection 1 arrives for a hundred of connection 0: it ends up with few on its way."""
    dealing = Dealing(2, 20_000, 100)
    for _ in range(20_000):
        while len(dealing.on_its_way[1]) < 50 and dealing.take(1) is not None:
            pass
        for _ in range(100):
            if dealing.take(0) is not None:
                dealing.deliver(0)
        dealing.deliver(1)
        if len(dealing.arrived) > 15_000:
            assert len(dealing.on_its_way[1]) <= 2 * limits.WINDOW_CHUNKS_MIN + 2
            return
    raise AssertionError("connection 0 was held back by the slow one all the time")


def test_strict_modulo_takes_over_nothing() -> None:
    dealing = Dealing(2, 100, 10, strict_modulo=True)
    assert dealing.take(1) == 1
    taken = []
    while (chunk_id := dealing.take(0)) is not None:
        taken.append(chunk_id)
        dealing.deliver(0)
    assert taken == [0, 2, 4, 6, 8, 10]


@given(
    connections=st.integers(1, 5),
    chunks=st.integers(0, 120),
    ahead=st.integers(1, 40),
    strict=st.booleans(),
    steps=st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["take", "take", "deliver", "lose"])), max_size=300),
)
def test_each_chunk_arrives_and_none_lies_far_ahead(
    connections: int, chunks: int, ahead: int, strict: bool, steps: list[tuple[int, str]]
) -> None:
    dealing = Dealing(connections, chunks, ahead, strict_modulo=strict)

    def check() -> None:
        dealt = [chunk_id for each in dealing.on_its_way for chunk_id in each]
        if dealt:
            not_arrived = min(set(range(chunks)) - dealing.arrived)
            assert max(dealt) < not_arrived + ahead

    for connection, step in steps:
        getattr(dealing, step)(connection % connections)
        check()
    for _ in range(chunks * connections + 1):  # whoever is left goes on in turns
        for connection_id in range(connections):
            dealing.take(connection_id)
            dealing.deliver(connection_id)
    assert dealing.arrived == set(range(chunks))

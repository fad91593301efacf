"""How far ahead a tree is sent: by example, and that everything is sent, whichever connection is slow."""

from hypothesis import given
from hypothesis import strategies as st

from filestreamer.wire import limits
from sender.dispatch.ahead_limit import AheadLimit
from sender.dispatch.schedule import Schedule


class Sending:
    """Connections that take, and deliver what they have in order."""

    def __init__(self, connections: int, chunks: int, ahead: int, *, strict_modulo: bool = False) -> None:
        self.schedule = Schedule(connections, strict_modulo=strict_modulo)
        self.schedule.add(0, chunks)
        self.ahead = AheadLimit(ahead)
        self.on_its_way: list[list[int]] = [[] for _ in range(connections)]
        self.arrived: set[int] = set()

    def take(self, connection_id: int) -> int | None:
        if not (self.schedule.strict_modulo or self.ahead.may_take(connection_id)):
            return None
        chunk_id = self.schedule.take(connection_id, self.ahead.end(self.schedule.lowest))
        if chunk_id is not None:
            self.ahead.sent(chunk_id, connection_id)
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


def test_nothing_is_sent_far_beyond_what_has_not_arrived() -> None:
    sending = Sending(2, 1000, 10)
    assert sending.take(1) == 1
    taken = []
    while (chunk_id := sending.take(0)) is not None:
        taken.append(chunk_id)
        sending.deliver(0)
    assert taken == [0, 2, 4, 6, 8, 10, 3, 5, 7, 9], "its own before chunk 11, then what is left there"
    sending.deliver(1)
    assert sending.take(0) == 12


def test_who_keeps_the_others_waiting_gets_less() -> None:
    """One chunk of connection 1 arrives for a hundred of connection 0: it ends up with few on its way."""
    sending = Sending(2, 20_000, 100)
    for _ in range(20_000):
        while len(sending.on_its_way[1]) < 50 and sending.take(1) is not None:
            pass
        for _ in range(100):
            if sending.take(0) is not None:
                sending.deliver(0)
        sending.deliver(1)
        if len(sending.arrived) > 15_000:
            assert len(sending.on_its_way[1]) <= 2 * limits.WINDOW_CHUNKS_MIN + 2
            return
    raise AssertionError("connection 0 was held back by the slow one all the time")


def test_strict_modulo_takes_over_nothing() -> None:
    sending = Sending(2, 100, 10, strict_modulo=True)
    assert sending.take(1) == 1
    taken = []
    while (chunk_id := sending.take(0)) is not None:
        taken.append(chunk_id)
        sending.deliver(0)
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
    sending = Sending(connections, chunks, ahead, strict_modulo=strict)

    def check() -> None:
        sent = [chunk_id for each in sending.on_its_way for chunk_id in each]
        if sent:
            not_arrived = min(set(range(chunks)) - sending.arrived)
            assert max(sent) < not_arrived + ahead

    for connection, step in steps:
        getattr(sending, step)(connection % connections)
        check()
    for _ in range(chunks * connections + 1):  # whoever is left goes on in turns
        for connection_id in range(connections):
            sending.take(connection_id)
            sending.deliver(connection_id)
    assert sending.arrived == set(range(chunks))

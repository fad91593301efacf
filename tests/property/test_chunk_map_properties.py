"""The map of the chunks: its cells are all the chunks, whatever their number and whatever happens to them."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from filestreamer.telemetry.chunk_map import CELLS, ChunkMap
from filestreamer.wire.limits import CHUNKS_PER_FILE
from sender.dispatch.schedule import Schedule
from sender.dispatch.send_queue import SendQueue
from sender.mailbox import Mailbox
from tests.support.manifests import manifest_of


@given(st.integers(0, CHUNKS_PER_FILE))
def test_few_cells_hold_all_chunks(chunks: int) -> None:
    """At most CELLS, none of them empty, each as large as the others but the last."""
    chunk_map = ChunkMap(chunks)
    cells = len(chunk_map.by)
    assert cells == len(chunk_map.brought) == len(chunk_map.held) <= CELLS
    assert (cells - 1) * chunk_map.chunks_per_cell < chunks <= cells * chunk_map.chunks_per_cell or chunks == cells == 0


@given(st.integers(1, 5000), st.integers(1, 64))
def test_cells_sum_up_to_the_chunks(chunks: int, connections: int) -> None:
    chunk_map = ChunkMap(chunks)
    for chunk_id in range(chunks):
        chunk_map.add(chunk_id, None if chunk_id % 3 == 0 else chunk_id % connections)
    sizes = [min(chunk_map.chunks_per_cell, chunks - at) for at in range(0, chunks, chunk_map.chunks_per_cell)]
    assert [brought + held for brought, held in zip(chunk_map.brought, chunk_map.held, strict=True)] == sizes
    assert sum(chunk_map.held) == -(-chunks // 3)


@given(st.integers(1, 5000), st.integers(0, 4999), st.integers(1, 300), st.integers(1, 256))
def test_a_run_is_its_chunks(chunks: int, first: int, stride: int, count: int) -> None:
    run = range(first, chunks, stride)[:count]
    at_once, one_by_one = ChunkMap(chunks), ChunkMap(chunks)
    if run:
        at_once.add_run(run, 3)
    for chunk_id in run:
        one_by_one.add(chunk_id, 3)
    assert (at_once.brought, at_once.by) == (one_by_one.brought, one_by_one.by)


Step = tuple[str, int, int]


STEPS = ["acknowledged", "held", "reopen", "acknowledged", "held", "reopen", "start over"]


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 3), st.integers(0, 7)), max_size=30),
)
def test_the_map_of_a_queue_is_what_is_done(chunks: int, steps: list[Step]) -> None:
    """Done twice, missing at the end, a restarted receiver: the map shows what is done, and who brought it."""
    queue = SendQueue(manifest_of(chunks), Schedule(8), Mailbox())
    done: dict[int, int | None] = {}
    for step, at, connection in steps:
        chunk_id = at % chunks
        match step:
            case "acknowledged":
                queue.mark_done((chunk_id,), queue.epoch, connection)
                done.setdefault(chunk_id, connection)
            case "held":
                queue.mark_done((chunk_id,), queue.epoch)
                done.setdefault(chunk_id, None)
            case "reopen":
                queue.reopen(chunk_id, chunk_id + 1)
                done.pop(chunk_id, None)
            case _:
                queue.start_over()
                done.clear()
    there = [(int(done.get(c) is not None), int(c in done and done[c] is None)) for c in range(chunks)]
    assert list(zip(queue.states.chunk_map.brought, queue.states.chunk_map.held, strict=True)) == there
    assert all(queue.states.chunk_map.by[c] == connection for c, connection in done.items() if connection is not None)


@given(st.integers(1, CHUNKS_PER_FILE), st.integers(0, 8))
def test_connections_that_take_turns_are_all_seen(chunks: int, power: int) -> None:
    """As many as are usual, powers of two: no cell size hides some of them behind the others."""
    connections = 1 << power
    chunk_map = ChunkMap(chunks)
    per_cell = chunk_map.chunks_per_cell
    last = {((cell + 1) * per_cell - 1) % connections for cell in range(chunks // per_cell)}
    assert len(last) == min(connections, chunks // per_cell)


@given(
    st.lists(st.one_of(st.integers(0, 3), st.integers(0, 3000), st.integers(0, 100_000)), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
def test_growing_keeps_what_was_counted(growth: list[int], random: Random) -> None:
    """A tree is found on the way: cells become larger, and hold what they held."""
    chunk_map = ChunkMap()
    kinds: dict[int, int | None] = {}
    chunks = 0
    for more in growth:
        chunks += more
        chunk_map.extend(chunks)
        for _ in range(min(more, 20)):
            chunk_id = random.randrange(chunks)
            if chunk_id in kinds:
                chunk_map.remove(chunk_id, was_held=kinds.pop(chunk_id) is None)
            else:
                kinds[chunk_id] = random.choice([None, 0, 1, 63])
                chunk_map.add(chunk_id, kinds[chunk_id])
    per_cell = chunk_map.chunks_per_cell
    cells = len(chunk_map.by)
    assert cells == len(chunk_map.brought) == len(chunk_map.held) == -(-chunks // per_cell) <= CELLS
    held, brought = [0] * cells, [0] * cells
    for chunk_id, by in kinds.items():
        (held if by is None else brought)[chunk_id // per_cell] += 1
    assert (held, brought) == (chunk_map.held, chunk_map.brought)
    assert per_cell % 2 == 1
    for cell, number in enumerate(brought):
        assert not number or chunk_map.by[cell] >= 0

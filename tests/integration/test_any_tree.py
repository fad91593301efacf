"""Any tree, cut anyhow, sent over any number of connections and ended anywhere: identical after the rerun.

So is a tree that several senders share, one of which is ended anywhere and run again. The senders are in the test's own
process, the receiver is a real one. `TREES=full` looks at many more.
"""

import itertools
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from filestreamer.wire.errors import Interrupted
from filestreamer.wire.limits import KIB, MIB
from sender.coordinator import Transfer
from sender.mailbox import Signalled
from sender.source.item import Item
from sender.source.reader import Reader
from tests.support import sending, trees
from tests.support.services import Pair, pair

FULL = os.environ.get("TREES") == "full"
EXAMPLES = 1000 if FULL else 60
IN_SHARDS = EXAMPLES // 2
PHASES = set(Phase) if FULL else {Phase.explicit, Phase.reuse, Phase.generate}
"""A failure is not made smaller in a plain run: that takes minutes, and the test would be ended before it is shown."""
LEFT = b"lost+found"  # at the top; anywhere else it is a name like others
pytestmark = pytest.mark.timeout(max(300, EXAMPLES))

names = st.binary(min_size=1, max_size=12).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..", trees.STAGING)
)
files = st.tuples(st.just("file"), st.one_of(st.integers(0, 300), st.integers(0, 200 * KIB)), st.integers(0, 0o777))
hollows = st.tuples(st.just("hollow"), st.integers(1, 2 * MIB), st.lists(st.integers(0, 2 * MIB), max_size=3))
symlinks = st.tuples(st.just("symlink"), st.binary(min_size=1, max_size=30).filter(lambda to: b"\0" not in to))
links = st.tuples(st.just("link"), st.integers(0, 100))
Node = tuple[object, ...] | dict[bytes, "Node"]
nodes: st.SearchStrategy[Node] = st.recursive(
    st.one_of(files, files, hollows, symlinks, links),
    lambda below: st.dictionaries(names, below, max_size=8),
    max_leaves=30,
)
chunk_sizes = st.one_of(st.integers(1, 64), st.integers(64, 64 * KIB), st.integers(64 * KIB, MIB))


class Maker:
    """Makes what was drawn."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._files: list[bytes] = []

    def make(self, path: bytes, node: Node) -> None:
        """Make an entry, and everything below it."""
        mtime_ns = self._random.randrange(2 * 10**18)
        if isinstance(node, dict):
            os.mkdir(path)
            for name, below in node.items():
                self.make(os.path.join(path, name), below)
            os.chmod(path, self._random.randrange(0o1000) | (trees.READABLE and 0o700))
        elif node[0] == "symlink":
            os.symlink(node[1], path)  # type: ignore[arg-type]
        elif node[0] == "link" and self._files:
            os.link(self._files[int(str(node[1])) % len(self._files)], path)
            return
        else:
            self._file(path, node)
        os.utime(path, ns=(0, mtime_ns), follow_symlinks=False)

    def _file(self, path: bytes, node: tuple[object, ...]) -> None:
        size, more = node[1:] if len(node) == 3 else (0, 0o644)
        assert isinstance(size, int)
        with open(path, "wb") as file:
            if isinstance(more, list):
                for at in more:
                    os.pwrite(file.fileno(), b"island", at % size)
                file.truncate(size)
            elif isinstance(more, int):
                file.write(self._random.randbytes(size))
                os.fchmod(file.fileno(), more | trees.READABLE)
        self._files.append(path)


class Stage:
    """A receiver for all examples, and a source for one after another."""

    def __init__(self, services: Pair) -> None:
        self.services = services
        self.receiver = services.receiver()
        self.address = services.address(self.receiver)

    def empty(self) -> None:
        """Remove what the last example left."""
        for top in (self.services.source, self.services.destination):
            for path in top.iterdir():
                shutil.rmtree(path)

    def restart(self) -> None:
        """Kill the receiver, and start it again."""
        self.receiver.signal(signal.SIGKILL)
        self.receiver.wait()
        self.receiver = self.services.receiver(listen=self.address)
        self.services.address(self.receiver)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with pair(tmp_path_factory.mktemp("trees")) as services:
        yield Stage(services)


class EndedAfter:
    """Ends a transfer, as by SIGTERM, after so many reads of its source."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, reads: int) -> None:
        self._left = reads
        self._lock = threading.Lock()
        self._transfer: Transfer | None = None
        real_run, real_read = Transfer.run, Reader.read_into

        def run(transfer: Transfer) -> bool:
            self._transfer = transfer
            return real_run(transfer)

        def read_into(reader: Reader, item: Item, view: memoryview, offset: int) -> None:
            real_read(reader, item, view, offset)
            with self._lock:
                self._left -= 1
                is_it = self._left == 0
            if is_it and self._transfer is not None:
                self._transfer.mailbox.post(Signalled(signal.SIGTERM))

        monkeypatch.setattr(Transfer, "run", run)
        monkeypatch.setattr(Reader, "read_into", read_into)


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    tree=st.dictionaries(names, nodes, max_size=8),
    chunk_size=chunk_sizes,
    again=chunk_sizes,
    connections=st.sampled_from([1, 2, 5, 17]),
    reads=st.one_of(st.integers(0, 5), st.integers(5, 200)),
    is_restarted=st.integers(0, 7).map(lambda drawn: drawn == 7),
    is_checked=st.booleans(),
    seed=st.integers(0, 1 << 32),
)
@example(
    tree={LEFT: {b"below": ("file", 300, 0o600)}, b"other": {LEFT: {}}},
    chunk_size=64,
    again=100,
    connections=2,
    reads=0,
    is_restarted=False,
    is_checked=False,
    seed=0,
)
def test_any_tree_is_there_after_the_rerun(
    stage: Stage,
    *,
    tree: dict[bytes, Node],
    chunk_size: int,
    again: int,
    connections: int,
    reads: int,
    is_restarted: bool,
    is_checked: bool,
    seed: int,
) -> None:
    stage.empty()
    source = stage.services.source / "tree"
    Maker(seed).make(os.fsencode(source), tree)
    size = sum(each.size for each in trees.look(source).values())
    smallest = size // 3000 + 1  # chunks of a byte are for small trees
    args = (source, "--to", stage.address, "--connections", connections)
    with pytest.MonkeyPatch.context() as patched:
        EndedAfter(patched, reads)
        try:
            sending.send(*args, "--chunk-size", max(chunk_size, smallest))
        except Interrupted:
            pass
    if is_restarted:
        stage.restart()
    check = ["--checksum"] if is_checked else []
    sending.send(*args, "--chunk-size", max(again, smallest), *check)
    assert trees.differences(source, stage.services.destination / "tree", LEFT) == []
    moved_again = sending.send(*args, *check)
    assert moved_again.counters.moved_bytes == 0
    assert trees.differences(source, stage.services.destination / "tree", LEFT) == []
    left = [path for path in stage.services.destination.iterdir() if path.name not in ("tree", ".filestreamer")]
    assert left == []


# --------------------------------------------------------------------------------------------------------------- shards

AT_FINISH = 0
steps = st.one_of(st.integers(1, 8), st.integers(8, 40), st.just(AT_FINISH))
large = st.tuples(st.just("file"), st.integers(KIB, 200 * KIB), st.integers(0, 0o777))
shared_trees = st.dictionaries(
    names, st.one_of(nodes, large, hollows, st.dictionaries(names, st.one_of(nodes, large))), min_size=2, max_size=8
)


class Ending:
    """Ends the transfer of a shard after so many steps, or (AT_FINISH) right after it has said Finish.

    A step is an event of the coordinator, a chunk that a connection takes, or chunks that are done.
    """

    def __init__(self, patched: pytest.MonkeyPatch, after: int, *, is_killed: bool) -> None:
        """`is_killed`: its connections are lost without a word, as by SIGKILL; else it ends as by SIGTERM."""
        self._patched = patched
        self._after = after
        self._is_killed = is_killed
        self._steps = itertools.count(1)  # next() is atomic
        self.has_finished = False
        """Whether it has said Finish: then the receiver may count it as finished, although it was ended."""

    def watch(self, transfer: Transfer) -> None:
        """Count the steps of a transfer that begins."""
        say_finish, mark_done = transfer._say_finish, transfer._queue.mark_done

        def saying_finish(*, ahead: bool) -> None:
            say_finish(ahead=ahead)
            self.has_finished = True
            if self._after == AT_FINISH:
                self._end(transfer)

        def step() -> None:
            if next(self._steps) == self._after:
                self._end(transfer)

        def counted(take: Callable[..., Any]) -> Callable[..., Any]:
            def taking(*args: Any, **kwargs: Any) -> Any:
                taken = take(*args, **kwargs)
                if taken is not None:
                    step()
                return taken

            return taking

        def marking_done(*args: Any) -> None:
            mark_done(*args)
            step()

        self._patched.setattr(transfer, "_say_finish", saying_finish)
        self._patched.setattr(transfer.mailbox, "take", counted(transfer.mailbox.take))
        self._patched.setattr(transfer._queue, "next", counted(transfer._queue.next))
        self._patched.setattr(transfer._queue, "mark_done", marking_done)

    def _end(self, transfer: Transfer) -> None:
        if self._is_killed:
            self._patched.setattr(transfer, "_say_goodbye", lambda _: None)
            transfer._connector.shut_all()
        transfer.mailbox.post(Signalled(signal.SIGTERM))


class Job:
    """The senders of a tree, one of which is ended on its way and runs again."""

    def __init__(self, stage: Stage, *args: object, count: int, lost: int, ending: Ending) -> None:
        """`lost` is the shard that is ended."""
        self._args = (stage.services.source / "tree", "--to", stage.address, "--job", "any", *args)
        self._stage = stage
        self._count, self._lost, self._ending = count, lost, ending
        self.said: list[tuple[bool, int]] = []
        """What each has said that came to its end: whether all is committed, and how many shards are finished."""

    def send(self, index: int, watch: Callable[[Transfer], object] = lambda _: None) -> Transfer:
        """Run a shard. Raises Interrupted."""
        transfer, is_committed = sending.send_shard(*self._args, "--shard", f"{index}/{self._count}", watch=watch)
        job = transfer.counters.job
        self.said.append((is_committed, job.shards_finished if job is not None else 1))
        return transfer

    def comes(self, index: int) -> bool:
        """Run a shard; return whether it was ended."""
        try:
            self.send(index, self._ending.watch if index == self._lost else lambda _: None)
        except Interrupted:
            return True
        return False

    def side_by_side(self, order: list[int], again: Callable[[], object], *, comes_last: bool) -> None:
        """Run all shards at once, the ended one once more, before which `again` is called."""

        def comes(index: int) -> bool:
            is_ended = self.comes(index)
            if is_ended and not comes_last:
                again()
            return is_ended and comes_last

        with ThreadPoolExecutor(self._count) as pool:
            is_to_come = any(list(pool.map(comes, order)))
        if is_to_come:
            again()

    def one_by_one(self, order: list[int], again: Callable[[], object], *, comes_last: bool) -> None:
        """Run one shard after the other. Whatever is told of as committed is there."""
        is_to_come = False
        for index in order:
            if self.comes(index):
                if comes_last:
                    is_to_come = True
                    continue
                again()
            if self.said[-1][0]:
                self.check()
        if is_to_come:
            again()
        assert self.said[-1][0]

    def check(self) -> None:
        """Compare the tree, and look for what is left of staging but the record of which shards are finished."""
        destination = self._stage.services.destination
        assert trees.differences(self._stage.services.source / "tree", destination / "tree", LEFT) == []
        staging = destination / ".filestreamer"
        left = [path for path in destination.rglob(".filestreamer") if path != staging]
        left += [path for path in destination.iterdir() if path.name != "tree" and path != staging]
        left += [path for path in staging.rglob("*") if path.suffix != ".job"]
        assert left == []


@pytest.mark.timeout(max(600, 2 * EXAMPLES))
@settings(
    max_examples=IN_SHARDS,
    phases=PHASES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    tree=shared_trees,
    is_there=st.booleans(),
    chunk_size=st.one_of(st.integers(1, 4 * KIB), chunk_sizes),
    connections=st.sampled_from([1, 2, 5]),
    count=st.sampled_from([2, 3, 4, 1]),
    order=st.permutations(range(4)),
    is_at_once=st.booleans(),
    lost=st.integers(0, 3),
    after=steps,
    is_killed=st.booleans(),
    comes_last=st.booleans(),
    is_restarted=st.integers(0, 3).map(lambda drawn: drawn == 3),
    is_checked=st.integers(0, 3).map(lambda drawn: drawn == 3),
    seed=st.integers(0, 1 << 32),
)
def test_any_tree_in_shards_is_there_after_the_rerun_of_one(
    stage: Stage,
    *,
    tree: dict[bytes, Node],
    is_there: bool,
    chunk_size: int,
    connections: int,
    count: int,
    order: list[int],
    is_at_once: bool,
    lost: int,
    after: int,
    is_killed: bool,
    comes_last: bool,
    is_restarted: bool,
    is_checked: bool,
    seed: int,
) -> None:
    """In any order, or side by side; one is ended, and runs again at once, or when the others are finished.

    Where `is_there`, another version of the tree is at the destination.
    """
    stage.empty()
    source = stage.services.source / "tree"
    Maker(seed).make(os.fsencode(source), tree)
    if is_there:
        older = {name: node for name, node in tree.items() if name != LEFT}
        Maker(seed + 1).make(os.fsencode(stage.services.destination / "tree"), older)
    smallest = sum(each.size for each in trees.look(source).values()) // 3000 + 1
    args = ("--connections", connections, "--chunk-size", max(chunk_size, smallest), *["--checksum"] * is_checked)
    with pytest.MonkeyPatch.context() as patched:
        ending = Ending(patched, after, is_killed=is_killed)
        job = Job(stage, *args, count=count, lost=lost % count, ending=ending)

        def again() -> None:
            if is_restarted:
                stage.restart()
            job.send(lost % count)

        run = job.side_by_side if is_at_once else job.one_by_one
        run([index for index in order if index < count], again, comes_last=comes_last)
    job.check()
    assert len(job.said) == count
    finished = sorted(job.said)
    assert all(is_committed == (shards == count) for is_committed, shards in finished)
    assert finished[-1][0]
    # Whom the receiver could not tell that it is finished counts all the same: then two may come as the last.
    if not (ending.has_finished or (is_restarted and is_at_once)):
        assert [shards for _, shards in finished] == list(range(1, count + 1))
    assert job.send(lost % count).counters.moved_bytes == 0
    assert job.said[-1] == (True, count)
    job.check()

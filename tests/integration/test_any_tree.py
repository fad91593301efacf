"""Any tree, cut anyhow, sent over any number of connections and ended anywhere: identical after the rerun.

The sender is in the test's own process, the receiver is a real one. `TREES=full` looks at many more.
"""

import os
import random
import shutil
import signal
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from filestreamer.wire.errors import Interrupted
from filestreamer.wire.limits import KIB, MIB
from sender.coordinator import Transfer
from sender.mailbox import Signalled
from sender.source.item import Item
from sender.source.reader import Reader
from tests.support import sending, trees
from tests.support.services import Pair, pair

EXAMPLES = 1000 if os.environ.get("TREES") == "full" else 60
LEFT = b"lost+found"  # at the top; anywhere else it is a name like others
pytestmark = pytest.mark.timeout(EXAMPLES)

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

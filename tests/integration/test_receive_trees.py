"""A receiver of trees, and senders whose every step is the test's own."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.limits import KIB
from tests.support.peer import Link, RawSender, TreeSample, acknowledged
from tests.support.services import Pair, Service


@pytest.fixture
def receiver(pair: Pair) -> Service:
    return pair.receiver()


@pytest.fixture
def peer(receiver: Service) -> Iterator[RawSender]:
    with RawSender(Pair.address(receiver)) as sender:
        yield sender


def offer(peer: RawSender, tree: TreeSample) -> Link:
    """Open control and list a tree; the answers are still to be read."""
    control = peer.control()
    control.send(tree.offer, *tree.parts)
    return control


def answered(control: Link, tree: TreeSample) -> list[m.Message]:
    """Read answers until each file with a segment has one; return them."""
    open_ids = {segment.file_id for chunk in tree.segments() for segment in chunk}
    said: list[m.Message] = []
    while open_ids:
        message = control.read()
        if isinstance(message, m.Progress):
            continue
        assert isinstance(message, m.Needed | m.Held), message
        ranges = message.files if isinstance(message, m.Needed) else message.unchecked
        open_ids -= {each for first, count in ranges for each in range(first, first + count)}
        if isinstance(message, m.Needed):
            open_ids -= {run.file_id for run in message.segments}
        elif message.digests:
            open_ids.discard(message.file_id)
        said.append(message)
    return said


def send(peer: RawSender, tree: TreeSample) -> Link:
    """Send every chunk of a tree that is to be sent, and wait until all are acknowledged."""
    data = peer.data()
    chunks = tree.chunks()
    for chunk_id, segments in chunks.items():
        data.send_raw(tree.chunk(chunk_id, segments))
    acknowledged(data, len(chunks))
    return data


def finish(control: Link, tree: TreeSample) -> None:
    """Say Finish, and take Complete."""
    control.send(tree.finish)
    assert control.expect(m.Complete).committed
    control.end_writing()
    control.ends()


def move(receiver: Service, tree: TreeSample) -> list[m.Message]:
    """Move a tree, but for what is marked as accepted unread; return the answers."""
    with RawSender(Pair.address(receiver)) as peer:
        control = offer(peer, tree)
        answers = answered(control, tree)
        if tree.zeros.segments:
            control.send(tree.zeros)
            assert control.expect(m.Zeros) == tree.zeros
        send(peer, tree)
        finish(control, tree)
    return answers


def test_a_tree_of_everything(pair: Pair, receiver: Service, seed: int) -> None:
    tree = TreeSample(4 * KIB)
    tree.directory(b"t", mode=0o750, mtime_ns=1_600_000_000_123_456_789)
    tree.directory(b"t/empty", mode=0o500)
    tree.add(b"t/nothing", mode=0o600)
    tree.add(b"t/small", b"small", mode=0o755, mtime_ns=1_500_000_000_000_000_007, hard_link_group=1)
    tree.symlink(b"t/link", b"../../outside")
    large = os.urandom(10 * KIB)
    tree.add(b"t/large", large, hard_link_group=2)
    tree.directory(b"t/sub")
    tree.add(b"t/sub/again", b"small", hard_link_group=1)
    tree.add(b"t/sub/large too", large, hard_link_group=2)
    sparse = bytes(8 * KIB) + b"end"
    tree.add(b"t/sub/sparse", sparse, holes=((0, 8 * KIB),))
    tree.add(b"t/sub/hollow", bytes(3 * KIB), holes=((0, 3 * KIB),))
    move(receiver, tree)
    root = pair.destination / "t"
    assert large == (root / "large").read_bytes()
    assert (root / "small").read_bytes() == b"small"
    assert sparse == (root / "sub/sparse").read_bytes()
    assert bytes(3 * KIB) == (root / "sub/hollow").read_bytes()
    assert (root / "nothing").read_bytes() == b""
    assert os.readlink(root / "link") == "../../outside"
    assert (root / "small").samefile(root / "sub/again")
    assert (root / "large").samefile(root / "sub/large too")
    for entry in tree.entries:
        there = os.lstat(os.fsencode(pair.destination) + b"/" + entry.path)
        if entry.hard_link_group == 0 or b"sub" not in entry.path:
            assert entry.mtime_ns == there.st_mtime_ns, entry.path
            assert entry.mode == stat.S_IMODE(there.st_mode), entry.path
    assert sorted(os.listdir(pair.destination)) == ["t"]


def test_a_tree_again_moves_nothing(pair: Pair, receiver: Service, seed: int) -> None:
    tree = TreeSample(4 * KIB)
    tree.directory(b"t")
    ids = {tree.add(b"t/%d" % at, os.urandom(at * KIB)) for at in range(1, 8)}
    move(receiver, tree)
    tree.unchecked = ids
    answers = move(receiver, tree)
    assert [m.Held(1, 0, b"", (m.FileRange(1, 7),))] == answers
    inode = Path(pair.destination / "t/7").stat().st_ino
    tree.entries[7] = tree.entries[7]._replace(mtime_ns=5)
    tree.unchecked = ids - {7}
    answers = move(receiver, tree)
    assert m.Needed((m.FileRange(7, 1),), ()) in answers
    assert inode != Path(pair.destination / "t/7").stat().st_ino

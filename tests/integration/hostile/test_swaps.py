"""Another user who can write in the source swaps listed files for others, and a receiver asks for all of them."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.limits import KIB
from tests.support import trees
from tests.support.peer import Ended, Link, RawReceiver, read_chunk
from tests.support.services import HANG, Pair

SECRET = b"TOP SECRET " * 400
SIZE = len(SECRET)
PUBLIC = b"p" * SIZE


@pytest.fixture
def tree(pair: Pair) -> Path:
    """Return a tree with a file of five segments in a directory, and a small one; a secret lies beside it."""
    tree = pair.source / "tree"
    trees.write(tree / "in" / "file", PUBLIC)
    trees.write(tree / "small", b"small")
    trees.write(pair.source / "secret" / "file", SECRET)
    return tree


def by_symlink(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.parents[2] / "secret" / "file")


def by_another_name_of_it(file: Path) -> None:
    file.unlink()
    os.link(file.parents[2] / "secret" / "file", file)


def by_another_file(file: Path) -> None:
    times = file.stat()
    file.with_name("new").write_bytes(SECRET)
    os.utime(file.with_name("new"), ns=(times.st_atime_ns, times.st_mtime_ns))
    file.with_name("new").rename(file)


def by_a_symlink_of_its_directory(file: Path) -> None:
    file.parent.rename(file.parents[2] / "away")
    file.parent.symlink_to(file.parents[2] / "secret")


def by_another_directory(file: Path) -> None:
    file.parent.rename(file.parents[2] / "away")
    (file.parents[2] / "secret").rename(file.parent)


def by_a_symlink_of_the_tree(file: Path) -> None:
    """Of what the user named: it was followed once, and what was found then is read."""
    tree, other = file.parents[1], file.parents[2] / "other"
    trees.write(other / "in" / "file", SECRET)
    trees.write(other / "small", b"SECRE")
    tree.rename(tree.with_name("away"))
    tree.symlink_to(other)


def by_a_device(file: Path) -> None:
    file.unlink()
    try:
        os.mknod(file, 0o20666, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("devices can't be made here")


def by_a_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


# A regular file in a directory is tried again, as an entry of its own, which the receiver declines.
SWAPS: dict[str, tuple[Callable[[Path], object], str]] = {
    "symlink": (by_symlink, "changed"),
    "hard link": (by_another_name_of_it, "declined"),
    "another file": (by_another_file, "declined"),
    "symlink of its directory": (by_a_symlink_of_its_directory, "changed"),
    "another directory": (by_another_directory, "declined"),
    "device": (by_a_device, "changed"),
    "nothing": (Path.unlink, "vanished"),
    "directory": (by_a_directory, "changed"),
}


class Greedy:
    """A receiver that keeps all that comes over a data connection, and acknowledges what is what its digest says."""

    def __init__(self, receiver: RawReceiver) -> None:
        self.payload = bytearray()
        self._receiver = receiver

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Take one data connection in a thread, to its end."""
        thread = threading.Thread(target=self._read, daemon=True)
        thread.start()
        yield
        thread.join(HANG)
        assert not thread.is_alive()

    def _read(self) -> None:
        link, _ = self._receiver.welcome(m.Role.DATA)
        with contextlib.suppress(Ended):
            while True:
                self._take(link)
        link.close()

    def _take(self, link: Link) -> None:
        chunk = read_chunk(link)
        self.payload += chunk.payload
        at, good = 0, True
        for index, segment in enumerate(chunk.segments):
            piece = chunk.payload[at : at + segment.length]
            good = good and segment_digest(piece) == chunk.digests[16 * index : 16 * index + 16]
            at += segment.length
        link.send(m.ChunkAck(m.Verdict.OK if good else m.Verdict.DIGEST_MISMATCH, (chunk.chunk_id,)))


@pytest.mark.parametrize("answer", ["needed", "held"])
@pytest.mark.parametrize("swap", SWAPS)
def test_nothing_of_what_took_a_files_place_leaves(pair: Pair, tree: Path, swap: str, answer: str) -> None:
    """Nor does whether it is what the receiver guesses. Everything else is sent."""
    change, kind = SWAPS[swap]
    with RawReceiver() as receiver:
        sender = pair.start("sender", tree, "--to", receiver.address, "--chunk-size", KIB, "--connections", 1)
        control, entries = receiver.tree()
        file_id = [entry.path for entry in entries].index(b"tree/in/file")
        change(tree / "in" / "file")
        greedy = Greedy(receiver)
        with greedy.reading():
            small = m.FileRange(len(entries) - 1, 1)
            if answer == "held":
                pieces = [SECRET[at : at + KIB] for at in range(0, SIZE, KIB)]
                control.send(m.Held(file_id, 0, b"".join(map(segment_digest, pieces))), m.Needed((small,), ()))
            else:
                control.send(m.Needed((m.FileRange(file_id, 1), small), ()))
            assert control.expect(m.Withdrawn).file_ids == (file_id,)
            if kind == "declined":
                again = control.expect(m.ManifestPart)
                assert ([entry.path for entry in again.entries], again.last) == ([b"tree/in/file"], False)
                file_id = again.first_file_id
                why = m.DeclinedEntry(file_id, m.SkipKind.DECLINED, "why", b"tree/in/file")
                control.send(m.Declined((why,)))
                assert control.expect(m.Withdrawn).file_ids == (file_id,)
            finish = control.finish()
            control.send(m.Complete(True))
        result = sender.falls_short()
    assert b"SECRET" not in greedy.payload
    assert greedy.payload.endswith(b"small")
    assert set(greedy.payload.removesuffix(b"small")) <= {0}
    assert [(each["path"], each["kind"]) for each in result["skipped"]] == [(str(tree / "in" / "file"), kind)]
    told = [] if kind == "declined" else [(b"tree/in/file", kind)]  # what the receiver has told it knows
    assert [(each.path, each.kind.name.lower()) for each in finish.left_out] == told
    assert [(each.kind.name.lower(), each.entries) for each in finish.left_out_counts] == [(k, 1) for _, k in told]


def test_what_the_user_named_is_followed_once(pair: Pair, tree: Path) -> None:
    with RawReceiver() as receiver:
        sender = pair.start("sender", tree, "--to", receiver.address, "--chunk-size", KIB, "--connections", 1)
        control, entries = receiver.tree()
        by_a_symlink_of_the_tree(tree / "in" / "file")
        greedy = Greedy(receiver)
        with greedy.reading():
            control.send(m.Needed((m.FileRange(0, len(entries)),), ()))
            control.finish()
            control.send(m.Complete(True))
        sender.succeeds()
    assert greedy.payload == PUBLIC + b"small"


def test_a_fifo_in_a_files_place_is_not_drained_and_nobody_waits_for_it(pair: Pair, tree: Path) -> None:
    file = tree / "in" / "file"
    with RawReceiver() as receiver:
        sender = pair.start("sender", tree, "--to", receiver.address, "--chunk-size", KIB, "--connections", 1)
        control, entries = receiver.tree()
        file.unlink()
        os.mkfifo(file)
        fifo = os.open(file, os.O_RDWR | os.O_NONBLOCK)
        os.write(fifo, SECRET)
        greedy = Greedy(receiver)
        with greedy.reading():
            control.send(m.Needed((m.FileRange(0, len(entries)),), ()))
            control.expect(m.Withdrawn)
            control.finish()
            control.send(m.Complete(True))
        sender.falls_short()
        assert os.read(fifo, 2 * SIZE) == SECRET
        os.close(fifo)
    assert b"SECRET" not in greedy.payload


@pytest.mark.parametrize("swap", ["symlink", "hard link", "another file", "symlink of its directory", "device"])
def test_a_single_file_that_was_swapped_ends_with_exit_4(pair: Pair, tree: Path, swap: str) -> None:
    """The user named it, so a symbolic link is followed: to another file than was listed, of which nothing is read."""
    with RawReceiver() as receiver:
        sender = pair.start(
            "sender", tree / "in" / "file", "--to", receiver.address, "--chunk-size", KIB, "--connections", 1
        )
        control, _ = receiver.tree()
        SWAPS[swap][0](tree / "in" / "file")
        greedy = Greedy(receiver)
        with greedy.reading():
            control.send(m.Needed((m.FileRange(0, 1),), ()))
            sender.fails(4, "source_changed")
    assert not set(greedy.payload) - {0}


def test_a_link_that_the_user_names_is_followed(pair: Pair, tree: Path) -> None:
    (pair.source / "link").symlink_to("tree")
    (pair.source / "file link").symlink_to("tree/in/file")
    receiver = pair.receiver()
    address = pair.address(receiver)
    pair.start("sender", pair.source / "link", pair.source / "file link", "--to", address).succeeds()
    pair.start("sender", pair.source / "file link", "--as", "alone", "--to", address).succeeds()
    assert trees.differences(tree, pair.destination / "link") == []
    assert (pair.destination / "file link").read_bytes() == (pair.destination / "alone").read_bytes() == PUBLIC

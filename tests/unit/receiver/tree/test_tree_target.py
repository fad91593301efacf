"""A tree at the receiver, without sockets: what is listed, what is answered, what lies there afterwards."""

import errno
import fcntl
import itertools
import os
import queue
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from filestreamer.process import log
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import messages as m
from filestreamer.wire.codec import encode
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import Code, FilestreamerError, RemoteProtocolError, TransferFailed
from receiver.disk import exclusive
from receiver.disk.descriptors import PLACES, DescriptorPool
from receiver.disk.store import Destination, Staging
from receiver.file import shared_file
from receiver.file.rehash import FinalsRehashed, Rehashed, Rehasher
from receiver.file.shared_file import File
from receiver.memory.budget import Budget
from receiver.tree import cache, spool
from receiver.tree import committer as place
from receiver.tree import tree_target as tree
from receiver.tree.entry_preparer import EntryPreparer
from receiver.tree.top_level_names import TopLevelNames
from receiver.tree.tree_target import TreeTarget
from tests.support.peer import TreeSample
from tests.support.services import UNIT

C = 64
MTIME = 1_700_000_000_000_000_000


class Connection:
    """A data connection, as far as a tree knows it."""

    connection_id = 0

    def __init__(self, moving: "Moving") -> None:
        self._moving = moving
        self.was_ended = self.is_ended = False

    def acknowledge(self) -> None:
        """Nothing is gathered."""

    def stop(self, seconds: float) -> bool:
        """Leave everything, as a connection that is shut does."""
        assert seconds > 0
        self.was_ended = True
        self._moving.tree.detach(self)
        return True


class Moving:
    """A transfer of a tree: the sender's steps are the test's own."""

    def __init__(self, path: Path, sample: TreeSample, *, replace: bool = True, memory_bytes: int = 1 << 30) -> None:
        self.sample = sample
        self.counters = TransferCounters(bytes(16), "", m.RECEIVER_STAGES)
        self.failures: list[FilestreamerError] = []
        self.claimed: list[bytes] = []
        self.nudges = 0
        self._rehashed: queue.Queue[Rehashed | FinalsRehashed] = queue.Queue()
        self._rehasher = Rehasher(self._rehashed.put, self.failures.append)
        self.destination = Destination(str(path), replace=replace)
        self.roots = TopLevelNames(self.destination, self._claim)
        self._account = Budget(memory_bytes).admit("somebody", 1 << 20)
        self.tree = self.another(sample)
        self.connection = Connection(self)

    def another(self, sample: TreeSample) -> TreeTarget:
        """Make a tree in this destination."""
        return TreeTarget(
            sample.offer,
            self.roots,
            root=sample.entries[0].path.split(b"/")[0],
            account=self._account,
            counters=self.counters,
            rehasher=self._rehasher,
            failed=self.failures.append,
            nudge=self._nudge,
            log=log.configure("receiver"),
        )

    def _claim(self, name: bytes) -> None:
        self.claimed.append(name)
        self.roots.take(name)

    def _nudge(self) -> None:
        self.nudges += 1

    def offer(self, *parts: m.ManifestPart) -> list[m.Message]:
        """List parts, all of them where none is given; return the answers."""
        return [answer for part in parts or self.sample.parts for answer in self.tree.take_part(part, encode(part))]

    def rehashed(self) -> list[m.Message]:
        """Wait for a batch that was re-hashed; return the answers."""
        return list(self.tree.take_rehashed(self._rehashed.get(timeout=UNIT)))

    def begin(self, *segments: m.Segment, connection: Connection | None = None) -> list[Any]:
        """Announce a chunk."""
        return self.tree.begin_chunk(connection or self.connection, m.ChunkHeader(0, segments))

    def send(
        self,
        *segments: m.Segment,
        connection: Connection | None = None,
        change: Callable[[bytes], bytes] = bytes,
        digest: bytes | None = None,
    ) -> bool:
        """Send a chunk, in blocks of half a segment; whether it is acknowledged with OK."""
        parts = self.begin(*segments, connection=connection)
        payloads = [change(self.sample.payload(segment)) for segment in segments]
        for part, payload in zip(parts, payloads, strict=True):
            half = -(-len(payload) // 2)
            for at in range(0, len(payload), half):
                if part.write:
                    part.sink.write(memoryview(payload)[at : at + half], part.segment.offset + at)
        told = [digest or segment_digest(self.sample.payload(segment)) for segment in segments]
        computed = [segment_digest(payload) for payload in payloads]
        good = self.tree.end_chunk(connection or self.connection, parts, told, computed)
        for part, each in zip(parts, told, strict=True):
            if good and part.write and part.ledger is not None:
                part.ledger.record([(part.position, each)])
        return good

    def send_all(self) -> None:
        """Send every chunk that is to be sent."""
        for segments in self.sample.chunks().values():
            assert self.send(*segments)

    def finish(self) -> None:
        """Say Finish, and have everything committed."""
        assert list(self.tree.missing()) == []
        self.tree.finish(self.sample.finish)
        step = self.tree.next_step()
        assert callable(step)
        step()
        assert m.Complete(True) == self.tree.next_step()

    def leave(self) -> None:
        """End, however far it came."""
        self.tree.stop_writes()
        assert self._rehasher.stop(UNIT)
        self.tree.close(cleanly=True)
        os.close(self.destination.fd)

    def move(self) -> list[m.Message]:
        """Move all of it, in order; return the answers."""
        answers = self.offer()
        self.send_all()
        self.finish()
        return answers


@pytest.fixture
def moving(tmp_path: Path) -> Iterator[Callable[..., Moving]]:
    """Make transfers of trees, which end with the test."""
    made: list[Moving] = []
    before = set(os.listdir("/proc/self/fd"))

    def make(sample: TreeSample, **more: Any) -> Moving:
        for earlier in made:
            earlier.leave()
        made[:] = [Moving(tmp_path, sample, **more)]
        return made[0]

    yield make
    for last in made:
        last.leave()
    assert before >= set(os.listdir("/proc/self/fd"))


Make = Callable[..., Moving]


def sample(**more: Any) -> TreeSample:
    """Return a tree with nothing but its root yet."""
    made = TreeSample(C, **more)
    made.directory(b"t", mtime_ns=MTIME)
    return made


def failure(code: Code, run: Callable[..., object], *args: Any) -> str:
    """Return the reason with which this fails, with this code."""
    with pytest.raises((TransferFailed, RemoteProtocolError)) as caught:
        run(*args)
    assert code is caught.value.code, caught.value.reason
    return caught.value.reason


def needed(*file_ids: int) -> m.Needed:
    """Say that files are needed that follow each other."""
    return m.Needed((m.FileRange(file_ids[0], len(file_ids)),), ())


def staged(path: Path) -> list[str]:
    """List the files that lie in staging."""
    return sorted(str(each.relative_to(path)) for each in (path / ".filestreamer").rglob("*") if each.is_file())


# ------------------------------------------------------------------------------------------------- what is put in place


def test_files_without_segments_may_lie_in_a_range(tmp_path: Path, moving: Make) -> None:
    tree = sample()
    tree.add(b"t/a", b"a")
    tree.add(b"t/b")
    tree.directory(b"t/c")
    tree.add(b"t/c/d", bytes(200))
    assert [needed(1, 2, 3, 4)] == moving(tree).offer()
    assert (tmp_path / "t/b").read_bytes() == b""
    assert not (tmp_path / "t/a").exists()


def test_counts(moving: Make) -> None:
    tree = sample(part_entries=2)
    for at in range(5):
        tree.add(b"t/%d" % at, b"x" * (30 * at))
    it = moving(tree)
    it.move()
    assert (
        it.counters.files,
        it.counters.size_bytes,
        it.counters.held_bytes,
        it.counters.unchecked_bytes,
    ) == (5, 300, 0, 0)
    assert it.counters.chunks == len(list(tree.segments()))


def test_a_file_replaces_a_file_and_a_symlink(tmp_path: Path, moving: Make) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "outside").write_bytes(b"outside")
    (tmp_path / "t/file").write_bytes(b"before")
    (tmp_path / "t/link").symlink_to(tmp_path / "outside")
    (tmp_path / "t/empty").symlink_to(tmp_path / "outside")
    (tmp_path / "t/target").write_bytes(b"before")
    tree = sample()
    tree.add(b"t/file", b"after")
    tree.add(b"t/link", b"link")
    tree.add(b"t/empty")
    tree.symlink(b"t/target", b"../outside")
    moving(tree).move()
    assert (tmp_path / "t/file").read_bytes() == b"after"
    assert not (tmp_path / "t/link").is_symlink()
    assert ((tmp_path / "t/empty").read_bytes(), (tmp_path / "t/empty").is_symlink()) == (b"", False)
    assert os.readlink(tmp_path / "t/target") == "../outside"
    assert (tmp_path / "outside").read_bytes() == b"outside"


def test_an_existing_file_stays_until_all_is_there(tmp_path: Path, moving: Make) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t/f").write_bytes(b"before")
    tree = sample()
    tree.add(b"t/f", b"x" * 100)
    it = moving(tree)
    it.offer()
    assert it.send(m.Segment(1, 0, 64))
    assert (tmp_path / "t/f").read_bytes() == b"before"
    assert it.send(m.Segment(1, 64, 36))
    it.finish()
    assert (tmp_path / "t/f").read_bytes() == b"x" * 100


@pytest.mark.parametrize("umask", [0o077, 0o022, 0])
def test_modes_whatever_the_umask(tmp_path: Path, moving: Make, umask: int) -> None:
    tree = sample()
    modes = (0o777, 0o666, 0o640, 0o444, 0o000)
    for mode in modes:
        tree.directory(b"t/d%o" % mode, mode=mode)
        tree.add(b"t/d%o/f" % mode, b"content", mode=mode)
        tree.add(b"t/d%o/empty" % mode, mode=mode)
        tree.add(b"t/d%o/large" % mode, bytes(100), mode=mode)
    before = os.umask(umask)
    try:
        moving(tree).move()
    finally:
        os.umask(before)
    for mode in modes:
        there = tmp_path / f"t/d{mode:o}"
        found = [stat.S_IMODE(path.stat().st_mode) for path in (there, *(there / n for n in ("f", "empty", "large")))]
        assert [mode] * 4 == found


def test_owner_is_kept_where_it_is_told(tmp_path: Path, moving: Make) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")
    tree = sample()
    tree.directory(b"t/d", uid=1234, gid=2345)
    tree.add(b"t/d/f", b"f", uid=1234, gid=2345, mode=0o640)
    tree.add(b"t/d/large", bytes(100), gid=2345)
    tree.add(b"t/d/empty", uid=7)
    tree.entries.append(m.Entry(b"t/d/link", m.EntryType.SYMLINK, 0, 0o777, MTIME, 1, 2, b"x"))
    tree.contents.append(b"")
    moving(tree).move()
    owners = {
        name: (path.lstat().st_uid, path.lstat().st_gid)
        for name in os.listdir(tmp_path / "t/d")
        for path in [tmp_path / "t/d" / name]
    }
    assert owners == {"f": (1234, 2345), "large": (0, 2345), "empty": (7, 0), "link": (1, 2)}
    assert stat.S_IMODE((tmp_path / "t/d/f").stat().st_mode) == 0o640
    tree.entries[2] = tree.entries[2]._replace(uid=99)  # else as it is: it is corrected where it lies
    tree.unchecked = {2, 3}
    moving(tree).move()
    assert (tmp_path / "t/d/f").stat().st_uid == 99


def test_owner_that_may_not_be_given(moving: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    tree = sample()
    tree.add(b"t/f", b"f", uid=1234)
    it = moving(tree)
    it.offer()
    assert "not permitted" in failure(Code.DESTINATION, it.send, m.Segment(1, 0, 1))
    it.tree.detach(it.connection)


# ------------------------------------------------------------------------------------------------ what is there already


def test_a_file_of_equal_size_and_mtime_is_accepted_unread(tmp_path: Path, moving: Make) -> None:
    tree = sample()
    tree.add(b"t/same", b"same")
    tree.add(b"t/hole", bytes(64), holes=(m.Hole(0, 64),))
    tree.add(b"t/large", bytes(200))
    tree.add(b"t/other", b"other")
    moving(tree).move()
    (tmp_path / "t/other").write_bytes(b"stale")
    (tmp_path / "t/same").chmod(0o600)
    tree.unchecked = {1, 3}
    it = moving(tree)
    answers = it.move()
    assert [needed(4), m.Held(1, 0, b"", (m.FileRange(1, 1), m.FileRange(3, 1)))] == answers
    assert it.counters.unchecked_bytes == 204
    assert stat.S_IMODE((tmp_path / "t/same").stat().st_mode) == 0o644


def test_checksum_compares_what_is_there(tmp_path: Path, moving: Make) -> None:
    tree = sample(checksum=True)
    tree.add(b"t/same", b"same")
    tree.add(b"t/rotten", b"rotten")
    tree.add(b"t/large", bytes(range(200)))
    tree.add(b"t/rotten large", b"x" * 200)
    moving(tree).move()
    for name, content in {"rotten": b"ROTTEN", "rotten large": b"x" * 199 + b"X"}.items():
        (tmp_path / "t" / name).write_bytes(content)
        os.utime(tmp_path / "t" / name, ns=(MTIME, MTIME))
    it = moving(tree)
    assert it.offer() == []
    answers = it.rehashed()
    held = {answer.file_id: answer.digests for answer in answers if isinstance(answer, m.Held) and answer.final}
    assert len(answers) == 4
    assert held[1] == segment_digest(b"same")
    assert held[2] == segment_digest(b"ROTTEN")
    assert held[3] == b"".join(segment_digest(bytes(range(200))[at : at + C]) for at in range(0, 200, C))
    assert it.send(m.Segment(2, 0, 6))
    for at in (3, 0, 2, 1):  # one segment differs, all are sent
        assert (tmp_path / "t/rotten large").read_bytes() == b"x" * 199 + b"X"
        assert it.send(m.Segment(4, at * C, min(C, 200 - at * C)))
    it.finish()
    assert (tmp_path / "t/rotten").read_bytes() == b"rotten"
    assert (tmp_path / "t/rotten large").read_bytes() == b"x" * 200
    assert it.counters.held_bytes == 204


def test_a_file_that_goes_while_it_is_compared_is_needed(tmp_path: Path, moving: Make) -> None:
    tree = sample(checksum=True)
    tree.add(b"t/f", b"content")
    moving(tree).move()
    it = moving(tree)
    take, it.tree._rehash = it.tree._rehash, lambda *_: None  # type: ignore[method-assign]
    it.offer()
    (tmp_path / "t/f").unlink()
    take(it.tree._tree_writer.part_state(0), [1])
    assert [needed(1)] == it.rehashed()
    it.send_all()
    it.finish()
    assert (tmp_path / "t/f").read_bytes() == b"content"


def test_no_replace(tmp_path: Path, moving: Make) -> None:
    tree = sample()
    tree.add(b"t/f", b"content")
    tree.add(b"t/empty")
    tree.symlink(b"t/link", b"target")
    tree.add(b"t/g", b"content", hard_link_group=1)
    tree.add(b"t/h", b"content", hard_link_group=1)
    moving(tree, replace=False).move()
    tree.unchecked = {1, 4}
    moving(tree, replace=False).move()
    for name in ("f", "empty", "link"):
        path = tmp_path / "t" / name
        before = path.lstat()
        path.unlink()
        path.write_bytes(b"another")
        assert "--no-replace" in failure(Code.EXISTS, moving(tree, replace=False).offer)
        assert path.read_bytes() == b"another"
        path.unlink()
        tree.unchecked -= {1} if name == "f" else set()
        moving(tree, replace=False).move()
        tree.unchecked = {1, 4}
        assert before.st_size == path.lstat().st_size


def test_no_replace_and_a_file_that_appears_meanwhile(tmp_path: Path, moving: Make) -> None:
    tree = sample()
    tree.add(b"t/f", b"content")
    it = moving(tree, replace=False)
    it.offer()
    it.send_all()
    (tmp_path / "t/f").write_bytes(b"another")
    it.tree.finish(tree.finish)
    step = it.tree.next_step()
    assert callable(step)
    failure(Code.EXISTS, step)
    assert (tmp_path / "t/f").read_bytes() == b"another"


@pytest.fixture
def rival(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have somebody put a file under a name, once, right after it was seen that nothing is there."""

    def put(name: str) -> None:
        real = EntryPreparer._check_replace

        def check(self: EntryPreparer, entry: m.Entry, there: os.stat_result | None) -> None:
            real(self, entry, there)
            if entry.path == name.encode() and there is None:
                monkeypatch.setattr(EntryPreparer, "_check_replace", real)
                (tmp_path / name).write_bytes(b"another")

        monkeypatch.setattr(EntryPreparer, "_check_replace", check)

    return put


def without(monkeypatch: pytest.MonkeyPatch, *calls: str) -> None:
    """Have a file system that can't do this."""

    def fail(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    if "link" in calls:
        monkeypatch.setattr(os, "link", fail)
    if "renameat2" in calls:
        monkeypatch.setattr(exclusive, "_renameat2", None)


@pytest.mark.parametrize("unable", [(), ("link",), ("link", "renameat2")], ids=["able", "no links", "no renameat2"])
def test_no_replace_and_something_that_appears_where_a_symlink_goes(
    tmp_path: Path, moving: Make, rival: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, unable: tuple[str, ...]
) -> None:
    without(monkeypatch, *unable)
    tree = sample()
    tree.symlink(b"t/link", b"target")
    tree.symlink(b"t/other", b"target")
    rival("t/link")
    assert "--no-replace" in failure(Code.EXISTS, moving(tree, replace=False).offer)
    assert (tmp_path / "t/link").read_bytes() == b"another"
    (tmp_path / "t/link").unlink()
    moving(tree, replace=False).move()
    for name in ("link", "other"):
        path = tmp_path / "t" / name
        assert (os.readlink(path), path.lstat().st_mtime_ns) == ("target", tree.entries[1].mtime_ns)


def test_no_replace_and_something_that_appears_where_a_hard_link_goes(
    tmp_path: Path, moving: Make, rival: Callable[[str], None]
) -> None:
    tree = sample()
    tree.add(b"t/a", b"content", hard_link_group=1)
    tree.add(b"t/b", b"content", hard_link_group=1)
    rival("t/b")
    it = moving(tree, replace=False)
    it.offer()
    it.send_all()
    it.tree.finish(tree.finish)
    step = it.tree.next_step()
    assert callable(step)
    assert "--no-replace" in failure(Code.EXISTS, step)
    assert (tmp_path / "t/b").read_bytes() == b"another"


@pytest.mark.parametrize("size", [0, 3])
@pytest.mark.parametrize("replace", [True, False])
def test_a_small_file_whose_staging_is_changed(tmp_path: Path, moving: Make, size: int, *, replace: bool) -> None:
    """It is not put in place; others are. The next run sends it."""
    tree = sample()
    tree.add(b"t/f", b"content")
    tree.add(b"t/g", b"another")
    it = moving(tree, replace=replace)
    it.offer()
    it.send_all()
    (staged,) = (tmp_path / ".filestreamer").glob("*.tree/*/1")
    os.truncate(staged, size)
    it.tree.finish(tree.finish)
    step = it.tree.next_step()
    assert callable(step)
    assert "changed" in failure(Code.DESTINATION, step)
    assert sorted(os.listdir(tmp_path / "t")) == ["g"]
    tree.unchecked = {2}
    moving(tree, replace=replace).move()
    assert (tmp_path / "t/f").read_bytes() == b"content"


def test_a_large_file_whose_staging_is_changed(tmp_path: Path, moving: Make) -> None:
    tree = sample()
    tree.add(b"t/f", b"content")
    tree.add(b"t/large", bytes(range(200)))
    it = moving(tree)
    it.offer()
    it.send_all()
    (data,) = (tmp_path / ".filestreamer").glob("*.data")
    os.truncate(data, 150)
    it.tree.finish(tree.finish)
    step = it.tree.next_step()
    assert callable(step)
    assert "changed" in failure(Code.DESTINATION, step)
    assert os.listdir(tmp_path / "t") == ["f"]


def test_a_large_file_that_can_not_be_finished_behind_a_connection_that_leaves(tmp_path: Path, moving: Make) -> None:
    """It counts as received: the transfer ends, as it would be committed without that file."""
    tree = sample()
    tree.add(b"t/large", bytes(range(200)))
    it = moving(tree)
    it.offer()
    assert it.send(m.Segment(1, 0, C))
    other = Connection(it)
    it.begin(m.Segment(1, 0, C), connection=other)  # it compares while the rest comes
    it.send_all()
    (data,) = (tmp_path / ".filestreamer").glob("*.data")
    os.truncate(data, 150)
    failure(Code.DESTINATION, it.tree.detach, other)
    assert [error.code for error in it.failures if isinstance(error, TransferFailed)] == [Code.DESTINATION]


def test_a_large_file_that_another_process_takes_up_before_it_is_in_place(tmp_path: Path, moving: Make) -> None:
    """What that one writes must not go into the file under its final name."""
    tree = sample()
    tree.add(b"t/large", bytes(range(200)))
    it = moving(tree)
    it.offer()
    it.send_all()
    (noted,) = (tmp_path / ".filestreamer").glob("*.ledger")
    with noted.open("rb") as ledger:
        fcntl.flock(ledger, fcntl.LOCK_EX | fcntl.LOCK_NB)
        it.tree.finish(tree.finish)
        step = it.tree.next_step()
        assert callable(step)
        assert "another process" in failure(Code.DESTINATION, step)
    assert not (tmp_path / "t/large").exists()
    assert len(staged(tmp_path)) == 2


def test_a_second_process_is_refused_and_changes_nothing(tmp_path: Path, moving: Make) -> None:
    """What the first has staged of its tree is put in place."""
    tree = sample()
    tree.add(b"t/f", b"content")
    tree.add(b"t/large", bytes(range(200)))
    it = moving(tree)
    it.offer()
    it.send_all()
    before = sorted((tmp_path / ".filestreamer").rglob("*"))
    other = Destination(str(tmp_path))
    assert "another process" in failure(Code.BUSY, place.TreeStaging, other, b"t")
    os.close(other.fd)
    assert before == sorted((tmp_path / ".filestreamer").rglob("*"))
    it.finish()
    assert (tmp_path / "t/f").read_bytes() == b"content"
    assert (tmp_path / "t/large").read_bytes() == bytes(range(200))


def test_the_staging_of_a_tree_belongs_to_nobody_else(tmp_path: Path, moving: Make) -> None:
    """Who made it could change in it what is staged there: a directory of another user is not taken."""
    staging = tmp_path / ".filestreamer"
    staging.mkdir(mode=0o700)
    there = staging / f"{segment_digest(b't').hex()}.tree"
    there.mkdir()
    there.chmod(0o777)
    tree = sample()
    tree.add(b"t/f", b"content")
    moving(tree).move()
    there.mkdir(parents=True)
    there.chmod(0o777)
    destination = Destination(str(tmp_path))
    made = place.TreeStaging(destination, b"t")
    assert stat.S_IMODE(there.stat().st_mode) == 0o700
    made.close()
    if os.geteuid() == 0:
        there.mkdir(parents=True)
        os.chown(there, 12345, 12345)
        assert "somebody else" in failure(Code.DESTINATION, place.TreeStaging, destination, b"t")
        assert there.exists()
    os.close(destination.fd)


def test_hard_links_that_are_there_stay(tmp_path: Path, moving: Make) -> None:
    tree = sample()
    tree.add(b"t/a", b"content", hard_link_group=1)
    tree.add(b"t/b", b"content", hard_link_group=1)
    tree.add(b"t/c", b"content", hard_link_group=1)
    moving(tree).move()
    inode = (tmp_path / "t/a").stat().st_ino
    (tmp_path / "t/c").unlink()
    (tmp_path / "t/c").write_bytes(b"content")
    tree.unchecked = {1}
    moving(tree).move()
    assert [inode] * 3 == [(tmp_path / "t" / name).stat().st_ino for name in "abc"]
    tree.entries[1] = tree.entries[1]._replace(mtime_ns=MTIME + 1)
    tree.unchecked = set()
    moving(tree).move()
    (new,) = {(tmp_path / "t" / name).stat().st_ino for name in "abc"}
    assert inode != new


# ---------------------------------------------------------------------------------------------------------- large files


def test_a_large_file_is_resumed(tmp_path: Path, moving: Make) -> None:
    tree = sample()
    tree.add(b"t/large", bytes(range(200)))
    first = moving(tree)
    first.offer()
    assert first.send(m.Segment(1, 0, C))
    assert first.send(m.Segment(1, 2 * C, C))
    it = moving(tree)
    segments = (m.SegmentRange(1, 1, 1), m.SegmentRange(1, 3, 1))
    assert [m.Needed((), segments)] == it.offer()
    assert {0, 2} == {answer.first_segment for _ in range(2) for answer in it.rehashed() if isinstance(answer, m.Held)}
    assert it.send(m.Segment(1, C, C))
    assert it.send(m.Segment(1, 3 * C, 8))
    assert not (tmp_path / "t/large").exists()  # the sender may find that it has another chunk
    it.finish()
    assert bytes(range(200)) == (tmp_path / "t/large").read_bytes()
    assert it.counters.held_bytes == 128
    assert not (tmp_path / ".filestreamer").exists()


def test_a_large_file_is_closed_when_complete(tmp_path: Path, moving: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand of them need no more descriptors than those that are under way."""
    monkeypatch.setattr(place, "BATCH_FILES", 1)
    tree = sample()
    for at in range(100):
        tree.add(b"t/%d" % at, bytes(100))
    it = moving(tree)
    it.offer()
    before = len(os.listdir("/proc/self/fd"))
    it.send_all()
    it.tree._committer.flush()
    assert before + 4 >= len(os.listdir("/proc/self/fd"))
    assert len(os.listdir(tmp_path / "t")) == 100
    it.finish()


def test_a_chunk_of_a_file_that_is_complete_is_compared(moving: Make) -> None:
    """The acknowledgement was lost: the same bytes are acknowledged again, others are not."""
    tree = sample()
    tree.add(b"t/large", bytes(range(200)))
    tree.add(b"t/small", b"small")
    it = moving(tree)
    it.offer()
    it.send_all()
    for segment in (m.Segment(1, C, C), m.Segment(2, 0, 5)):
        assert it.send(segment)
        assert not it.send(segment, change=lambda payload: payload[::-1])
        assert not it.send(segment, digest=bytes(16))
        other = segment_digest(tree.payload(segment)[::-1])
        assert not it.send(segment, change=lambda payload: payload[::-1], digest=other)
    it.finish()


def test_a_ledger_is_left_alone_when_its_file_is_complete(moving: Make) -> None:
    """A connection acknowledges later than it delivers: the file may be closed by then."""
    tree = sample()
    tree.add(b"t/large", bytes(100))
    it = moving(tree)
    it.offer()
    (part,) = it.begin(m.Segment(1, 0, C))
    part.sink.write(memoryview(bytes(C)), 0)
    assert it.tree.end_chunk(it.connection, [part], [segment_digest(bytes(C))], [segment_digest(bytes(C))])
    assert it.send(m.Segment(1, C, 36))
    it.tree._committer.flush()
    part.sink.record([(0, segment_digest(bytes(C)))])
    it.finish()


# ---------------------------------------------------------------------------------------------------------------- holes


def test_holes_take_no_space_and_have_no_digest(tmp_path: Path, moving: Make) -> None:
    block = 4096
    tree = TreeSample(4 * block)
    tree.directory(b"t")
    content = bytearray(40 * block)
    content[5 * block : 6 * block] = b"x" * block
    content[39 * block :] = b"y" * block
    holes = (m.Hole(0, 5 * block), m.Hole(6 * block, 10 * block), m.Hole(16 * block, 23 * block))
    tree.add(b"t/sparse", bytes(content), holes=holes)
    tree.add(b"t/small", bytes(2 * block) + b"z", holes=(m.Hole(block, block),))
    it = moving(tree)
    assert [needed(1, 2)] == it.offer()
    it.send_all()
    it.finish()
    assert content == (tmp_path / "t/sparse").read_bytes()
    assert 2 * block == (tmp_path / "t/sparse").stat().st_blocks * 512
    assert 2 * block == (tmp_path / "t/small").stat().st_blocks * 512
    assert 8 * block + 2 * block + 1 == it.counters.size_bytes


def test_what_an_earlier_run_left_in_a_hole_goes(tmp_path: Path, moving: Make) -> None:
    tree = sample()
    tree.add(b"t/f", b"x" * 200)
    first = moving(tree)
    first.offer()
    assert first.send(m.Segment(1, 0, C))
    assert first.send(m.Segment(1, C, C))
    content = b"x" * 16 + bytes(144) + b"x" * 40
    tree.contents[1] = content
    tree.entries[1] = tree.entries[1]._replace(holes=(m.Hole(16, 144),))
    it = moving(tree)
    it.offer()
    assert it.send(m.Segment(1, 0, C))
    assert it.send(m.Segment(1, 2 * C, C))
    assert it.send(m.Segment(1, 3 * C, 8))
    it.finish()
    assert content == (tmp_path / "t/f").read_bytes()


def test_a_chunk_in_a_hole_is_refused(moving: Make) -> None:
    tree = sample()
    tree.add(b"t/f", bytes(200), holes=(m.Hole(0, C),))
    tree.add(b"t/g", bytes(C), holes=(m.Hole(0, C),))
    it = moving(tree)
    it.offer()
    failure(Code.PROTOCOL, it.begin, m.Segment(1, 0, C))
    failure(Code.PROTOCOL, it.begin, m.Segment(2, 0, C))


# ------------------------------------------------------------------------------------------------------------ withdrawn


def test_what_is_withdrawn_is_not_put_in_place(tmp_path: Path, moving: Make) -> None:
    tree = sample()
    for name in (b"a", b"b", b"c"):
        tree.add(b"t/" + name, name * 3)
    tree.add(b"t/large", bytes(range(200)))
    tree.add(b"t/f", b"f", hard_link_group=1)
    tree.add(b"t/g", b"f", hard_link_group=1)
    it = moving(tree)
    it.offer()
    assert it.send(m.Segment(4, 0, C))
    changed = (m.Segment(1, 0, 3), m.Segment(2, 0, 3), m.Segment(3, 0, 3))
    assert not it.send(*changed, change=lambda payload: payload.replace(b"bbb", b"b\0\0"))
    it.tree.withdraw([2, 4, 5])
    it.tree.withdraw([2])
    tree.withdrawn = {2, 4, 5}
    assert not it.send(*changed, change=lambda payload: payload.replace(b"bbb", b"b\0\0"))
    it.send_all()
    it.finish()
    assert {"a", "c"} == set(os.listdir(tmp_path / "t"))
    assert (it.counters.files, it.counters.size_bytes) == (2 + 1, 6)
    assert not (tmp_path / ".filestreamer").exists()


def test_withdrawn_while_it_is_written(tmp_path: Path, moving: Make) -> None:
    tree = sample()
    tree.add(b"t/small", b"small")
    tree.add(b"t/large", bytes(range(200)))
    it = moving(tree)
    it.offer()
    small = it.begin(m.Segment(1, 0, 5))
    large = it.begin(m.Segment(2, 0, C), connection=Connection(it))
    small[0].sink.write(memoryview(b"sm"), 0)
    it.tree.withdraw([1, 2])
    tree.withdrawn = {1, 2}
    small[0].sink.write(memoryview(b"all"), 2)
    large[0].sink.write(memoryview(bytes(C)), 0)
    assert not it.tree.end_chunk(it.connection, small, [bytes(16)], [segment_digest(b"small")])
    it.tree.detach(Connection(it))
    it.tree.detach(next(iter([large[0].sink.file.chunk_states.writer(0)])))
    it.finish()
    assert os.listdir(tmp_path / "t") == []
    assert not (tmp_path / ".filestreamer").exists()


def test_a_final_file_that_is_withdrawn_stays(tmp_path: Path, moving: Make) -> None:
    """The sender can't read what it would have to compare."""
    tree = sample(checksum=True)
    tree.add(b"t/f", b"content")
    moving(tree).move()
    it = moving(tree)
    it.offer()
    it.rehashed()
    it.tree.withdraw([1])
    tree.withdrawn = {1}
    it.finish()
    assert (tmp_path / "t/f").read_bytes() == b"content"


def test_withdrawing_what_is_not_to_be_sent_is_refused(moving: Make) -> None:
    tree = sample()
    tree.add(b"t/empty")
    it = moving(tree)
    it.offer()
    it.send_all()
    for file_id in (0, 1, 2, 1 << 60):
        failure(Code.PROTOCOL, it.tree.withdraw, [file_id])


def test_what_is_withdrawn_when_it_is_complete_stays(tmp_path: Path, moving: Make) -> None:
    """Its sender did not hear that it was, and has read another one since: that has no digest."""
    tree = sample()
    small, large = tree.add(b"t/small", b"complete"), tree.add(b"t/large", bytes(range(200)))
    tree.add(b"t/other", b"other")
    it = moving(tree)
    it.offer()
    it.send_all()
    it.tree.withdraw([small, large])
    tree.withdrawn = {small, large}
    it.finish()
    assert (tmp_path / "t/small").read_bytes() == b"complete"
    assert (tmp_path / "t/large").read_bytes() == bytes(range(200))
    assert (it.counters.files, it.counters.size_bytes) == (1, 5)


# ------------------------------------------------------------------------------------------------------------ rejoining


def test_parts_are_repeated(moving: Make) -> None:
    tree = sample(part_entries=3)
    for at in range(6):
        tree.add(b"t/%d" % at, b"%d" % at)
    tree.add(b"t/large", bytes(200))
    it = moving(tree)
    it.offer()
    assert it.send(m.Segment(1, 0, 1))
    assert it.send(m.Segment(7, C, C))
    it.tree.rejoin()
    answers = it.offer()
    assert m.Held(1, 0, segment_digest(b"0")) in answers
    assert m.Held(7, 1, segment_digest(bytes(C))) in answers
    assert m.Needed((m.FileRange(3, 3),), ()) in answers
    assert m.Needed((), (m.SegmentRange(7, 0, 1), m.SegmentRange(7, 2, 2))) in answers
    it.send_all()
    it.tree.rejoin()
    assert set(range(1, 8)) == {answer.file_id for answer in it.offer() if isinstance(answer, m.Held)}
    it.finish()


def test_first_parts_may_be_left_out(moving: Make) -> None:
    tree = sample(part_entries=3)
    for at in range(8):
        tree.add(b"t/%d" % at, b"%d" % at)
    it = moving(tree)
    first, second, third = tree.parts
    it.offer(first, second)
    it.tree.rejoin()
    assert [needed(3, 4, 5)] == it.offer(second)
    it.offer(third)
    it.send_all()
    it.finish()


def test_parts_that_are_not_known(moving: Make) -> None:
    tree = sample(part_entries=3)
    for at in range(8):
        tree.add(b"t/%d" % at, b"%d" % at)
    first, second, third = tree.parts
    it = moving(tree)
    it.offer(first)
    failure(Code.PROTOCOL, it.offer, third)
    it.tree.rejoin()
    failure(Code.UNKNOWN_TRANSFER, it.offer, third)
    for other in (
        first._replace(entries=first.entries[:2]),
        first._replace(last=True),
        first._replace(entries=(*first.entries[:2], first.entries[2]._replace(mtime_ns=0))),
        first._replace(first_file_id=1),
    ):
        it.tree.rejoin()
        failure(Code.PROTOCOL, it.offer, other)
    it.tree.rejoin()
    it.offer(first, second, third)
    it.tree.rejoin()
    failure(Code.PROTOCOL, it.offer, m.ManifestPart(9, tree.parts[0].entries[1:], True))


def test_an_empty_last_part(moving: Make) -> None:
    tree = sample()
    tree.add(b"t/f", b"f")
    (part,) = tree.parts
    it = moving(tree)
    it.offer(part._replace(last=False), m.ManifestPart(2, (), True))
    it.tree.rejoin()
    it.offer(m.ManifestPart(2, (), True))
    it.send_all()
    it.finish()


# ------------------------------------------------------------------------------------------------------ what is bounded


def test_parts_wait_unanswered_while_many_are_open(moving: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """That holds the sender back, which may have four unanswered."""
    monkeypatch.setattr(tree, "PARTS_OPEN", 2)
    parts = sample(part_entries=1)
    for at in range(5):
        parts.add(b"t/%d" % at, b"%d" % at)
    it = moving(parts)
    assert [needed(1), needed(2)] == it.offer()
    assert list(it.tree.more()) == []
    it.tree.withdraw([4])
    assert it.send(m.Segment(1, 0, 1))
    assert it.nudges == 1
    assert [needed(3)] == list(it.tree.more())
    assert it.send(m.Segment(2, 0, 1))
    assert [needed(5)] == list(it.tree.more())
    parts.withdrawn = {4}
    assert it.send(m.Segment(3, 0, 1))
    assert it.send(m.Segment(5, 0, 1))
    it.finish()


def test_parts_that_wait_are_listed_again(moving: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "PARTS_OPEN", 1)
    parts = sample(part_entries=2)
    parts.add(b"t/0", b"0")
    parts.add(b"t/1", b"1")
    parts.directory(b"t/d")
    it = moving(parts)
    assert [needed(1)] == it.offer()
    it.tree.rejoin()
    assert [needed(1)] == it.offer()
    assert it.send(m.Segment(1, 0, 1))
    assert [needed(2, 3)] == list(it.tree.more())
    it.send_all()
    it.finish()


def test_a_few_large_files_are_open_at_once(tmp_path: Path, moving: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are set aside between their chunks, and none of them is sent again."""
    monkeypatch.setattr(cache, "PLACES", DescriptorPool(2))
    large = sample()
    for at in range(20):
        large.add(b"t/%d" % at, os.urandom(200))
    it = moving(large)
    it.offer()
    before = len(os.listdir("/proc/self/fd"))
    for segment in (0, 2, 1, 3):
        for at in range(20):
            assert it.send(m.Segment(1 + at, segment * C, min(C, 200 - segment * C)))
            assert len(os.listdir("/proc/self/fd")) <= before + 2 * 4 + 8, "descriptors follow the number of files"
    it.finish()
    assert (it.counters.held_bytes, it.counters.size_bytes) == (0, 4000)
    for at in range(20):
        assert (tmp_path / f"t/{at}").read_bytes() == large.contents[1 + at]


def test_a_large_file_is_set_aside_with_what_no_ledger_notes_yet(
    tmp_path: Path, moving: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "PLACES", DescriptorPool(1))
    large = sample()
    large.add(b"t/a", b"a" * 100)
    large.add(b"t/b", b"b" * 100)
    it = moving(large)
    it.offer()
    (part,) = it.begin(m.Segment(1, 0, C))
    part.sink.write(memoryview(b"a" * C), 0)
    digest = segment_digest(b"a" * C)
    assert it.tree.end_chunk(it.connection, [part], [digest], [digest])
    assert it.send(m.Segment(2, 0, C))
    part.ledger.record([(0, digest)])
    monkeypatch.setattr(cache, "PLACES", DescriptorPool(8))
    again = moving(sample_of(large))
    again.offer()
    told = again.rehashed() + again.rehashed()
    assert sorted(each.file_id for each in told if isinstance(each, m.Held)) == [1, 2]


def sample_of(other: TreeSample) -> TreeSample:
    """Return the same tree once more."""
    again = TreeSample(C)
    again.entries, again.contents = list(other.entries), list(other.contents)
    return again


def test_a_large_file_that_another_process_wrote_meanwhile(
    tmp_path: Path, moving: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "PLACES", DescriptorPool(1))
    large = sample()
    large.add(b"t/a", b"a" * 100)
    large.add(b"t/b", b"b" * 100)
    it = moving(large)
    it.offer()
    assert it.send(m.Segment(1, 0, C))
    assert it.send(m.Segment(2, 0, C))
    (noted,) = [path for path in (tmp_path / ".filestreamer").glob("*.ledger") if path.stem == Staging.key(b"t/a")]
    with noted.open("ab") as ledger:
        ledger.write(b"x")
    failure(Code.BUSY, it.begin, m.Segment(1, C, 100 - C))


def test_a_file_that_is_all_here_and_that_another_process_wrote_before_finish(tmp_path: Path, moving: Make) -> None:
    """Its part of the manifest is in the archive by then: what tells the staging apart is there, too."""
    large = sample()
    large.add(b"t/large", bytes(range(200)))
    first = moving(large)
    first.offer()
    for at in (0, C, 2 * C):
        assert first.send(m.Segment(1, at, C))
    it = moving(sample_of(large))
    it.offer()
    while len(it.tree._tree_writer.files) and not it.tree.has_more:
        it.rehashed()
        it.send(m.Segment(1, 3 * C, 8))
    assert list(it.tree.more()) == []
    assert not it.tree._tree_writer.under_way
    (data,) = (tmp_path / ".filestreamer").glob("*.data")
    (noted,) = (tmp_path / ".filestreamer").glob("*.ledger")
    data.write_bytes(b"x" * 200)
    with noted.open("ab") as ledger:
        ledger.write(b"x")
    assert "another process" in failure(Code.BUSY, it.tree.finish, large.finish)
    assert not (tmp_path / "t/large").exists()


def test_a_file_with_more_segments_than_the_memory_for_all(moving: Make) -> None:
    huge = sample()
    huge.entries.append(m.Entry(b"t/huge", m.EntryType.FILE, C * (1 << 23), 0o644, MTIME))
    it = moving(huge, memory_bytes=64 << 20)
    failure(Code.TOO_LARGE, it.offer, m.ManifestPart(0, tuple(huge.entries), True))


def test_a_segment_of_a_large_file_is_alone_in_its_chunk(moving: Make) -> None:
    """Else one chunk could have a thousand files open."""
    large = sample()
    large.add(b"t/a", b"a" * 70)
    large.add(b"t/b", b"b" * 70)
    it = moving(large)
    it.offer()
    failure(Code.PROTOCOL, it.begin, m.Segment(1, C, 6), m.Segment(2, C, 6))


def test_hard_link_groups_are_numbered_as_they_come(moving: Make) -> None:
    tree = sample()
    tree.add(b"t/a", b"a", hard_link_group=2)
    failure(Code.PROTOCOL, moving(tree).offer)


def test_a_name_at_the_top_is_held_until_it_is_in_place(
    tmp_path: Path, moving: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "BATCH_FILES", 1)
    tree = TreeSample(C)
    tree.directory(b"directory")
    tree.add(b"file", b"file")
    tree.add(b"large", b"large" * 100)
    tree.add(b"empty")
    tree.symlink(b"link", b"file")
    tree.add(b"first", b"first", hard_link_group=1)
    tree.add(b"second", b"first", hard_link_group=1)
    it = moving(tree)
    it.offer()
    names = [entry.path for entry in tree.entries]
    assert {b"directory", b"file", b"large", b"first", b"second"} <= {name for name in names if name in it.roots}
    assert b"link" not in it.roots
    it.send_all()
    it.finish()
    assert [name for name in names if name in it.roots] == [b"directory", b"first", b"second"]
    assert sorted(os.fsencode(name) for name in os.listdir(tmp_path) if name != ".filestreamer") == sorted(names)


def test_finish_answers_parts_that_wait(moving: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What lies there is told, too, not only what is missing."""
    parts = sample(part_entries=2)
    parts.add(b"t/0", b"0")
    parts.add(b"t/1", b"1")
    parts.directory(b"t/d")
    moving(parts).move()
    monkeypatch.setattr(tree, "PARTS_OPEN", 0)
    it = moving(parts)
    assert it.offer() == []
    monkeypatch.setattr(tree, "PARTS_OPEN", 64)
    told = list(it.tree.missing())
    assert told == [m.Held(1, 0, b"", (m.FileRange(1, 1),)), m.Held(2, 0, b"", (m.FileRange(2, 1),))]


def test_who_takes_parts_never_waits_for_a_sync(tmp_path: Path, moving: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts stay where they are while the placer is far behind, and are taken when it is not."""
    synced = threading.Event()
    monkeypatch.setattr(place, "sync_file_system", lambda _: synced.wait(UNIT))
    monkeypatch.setattr(place, "BACKLOG_BATCHES", 0)
    monkeypatch.setattr(place, "BATCH_FILES", 1)
    (tmp_path / "t").mkdir()
    tree = sample(part_entries=2)
    for at in range(5):
        (tmp_path / f"t/{at}").write_bytes(b"another")
        tree.add(b"t/%d" % at)
    tree.add(b"t/full", b"full")
    it = moving(tree)
    assert it.offer() == []
    assert (tmp_path / "t/4").read_bytes() == b"another"
    synced.set()
    told = list(it.tree.missing())
    assert told == [needed(6)]
    it.send_all()
    it.finish()
    assert [(tmp_path / f"t/{at}").read_bytes() for at in range(5)] == [b""] * 5


def test_a_second_delivery_of_what_is_archived(moving: Make) -> None:
    tree = sample(part_entries=3)
    tree.add(b"t/small", b"small")
    tree.add(b"t/large", bytes(range(100)))
    it = moving(tree)
    it.offer()
    it.send_all()
    list(it.tree.more())
    assert it.tree._tree_writer.open == {}
    for segment in (m.Segment(1, 0, 5), m.Segment(2, C, 36), m.Segment(2, 0, C)):
        assert it.send(segment)
        assert not it.send(segment, change=lambda payload: bytes(len(payload)), digest=segment_digest(b"other"))
    it.tree.rejoin()
    assert [m.Held] * 2 == [type(each) for each in it.offer()]
    it.finish()


def test_a_file_that_was_held_where_it_lies_is_sent_after_all(tmp_path: Path, moving: Make) -> None:
    """The sender found that it differs; its part was archived by then."""
    tree = sample(checksum=True)
    tree.add(b"t/small", b"small")
    tree.add(b"t/large", bytes(range(100)))
    moving(tree).move()
    it = moving(tree)
    it.offer()
    assert {1, 2} == {each.file_id for each in it.rehashed() if isinstance(each, m.Held)}
    list(it.tree.more())
    assert it.tree._tree_writer.open == {}
    tree.contents[1], tree.contents[2] = b"SMALL", bytes(reversed(range(100)))
    it.send_all()
    it.finish()
    assert (tmp_path / "t/small").read_bytes() == b"SMALL"
    assert (tmp_path / "t/large").read_bytes() == bytes(reversed(range(100)))


def test_no_space_is_told_before_the_first_byte(moving: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Destination, "free_bytes", lambda _: 150)
    parts = sample(part_entries=2)
    parts.add(b"t/0", bytes(100))
    parts.add(b"t/sparse", bytes(1000), holes=(m.Hole(0, 960),))
    parts.add(b"t/1", bytes(100))
    it = moving(parts)
    first, second = parts.parts
    it.offer(first)
    assert "150 bytes" in failure(Code.NO_SPACE, it.offer, second).replace("50 are", "150 bytes")


# ------------------------------------------------------------------------------------------------------ what goes wrong


def names_there(path: Path) -> set[str]:
    return {str(each.relative_to(path)) for each in path.rglob("*")}


@pytest.mark.parametrize(
    "path",
    [b"/t", b"t/../x", b"t/./x", b"t//x", b"t/", b"..", b".", b"t/.filestreamer/x", b"t/\0", b"t/" + b"x" * 256],
)
def test_paths_that_may_not_be_written(tmp_path: Path, moving: Make, path: bytes) -> None:
    tree = sample()
    tree.add(path, b"x")
    failure(Code.PATH, moving(tree).offer)
    assert {".filestreamer"} >= names_there(tmp_path) - {each for each in names_there(tmp_path) if "tree" in each}


def test_no_symlink_is_followed(tmp_path: Path, moving: Make) -> None:
    """Neither one that lies there, nor one of the same manifest, nor one that appears meanwhile."""
    outside = tmp_path / "outside"
    outside.mkdir()
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "t").symlink_to(outside)

    def refused(code: Code, *paths: bytes) -> None:
        tree = TreeSample(C)
        for path in paths:
            if path.endswith(b">"):
                tree.symlink(path[:-1], os.fsencode(outside))
            elif path.endswith(b"/"):
                tree.directory(path[:-1])
            else:
                tree.add(path, b"evil")
        it = Moving(inside, tree)
        try:
            failure(code, it.offer)
        finally:
            it.leave()

    refused(Code.DESTINATION, b"t/")
    refused(Code.PATH, b"t/f")
    refused(Code.PATH, b"t/d/f")
    refused(Code.PATH, b"u/", b"u/link>", b"u/link/f")
    refused(Code.DESTINATION, b"u/", b"u/link>", b"u/link/")
    refused(Code.PATH, b"v/", b"v/empty>", b"v/empty/a/b/")
    assert os.listdir(outside) == []


def test_a_directory_that_becomes_a_symlink_is_not_followed(tmp_path: Path, moving: Make) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    tree = sample()
    tree.directory(b"t/d")
    tree.add(b"t/d/f", b"content")
    it = moving(tree)
    it.offer()
    (tmp_path / "t/d").rename(tmp_path / "t/moved")
    (tmp_path / "t/d").symlink_to(outside)
    it.send_all()
    it.tree.finish(tree.finish)
    step = it.tree.next_step()
    assert callable(step)
    failure(Code.PATH, step)
    assert os.listdir(outside) == []


def test_things_that_are_in_the_way(tmp_path: Path, moving: Make) -> None:
    """A directory is never removed for a file; a file is never removed for a directory."""
    (tmp_path / "t/dir").mkdir(parents=True)
    (tmp_path / "t/file").write_bytes(b"file")
    for path, entry_type, code in (
        (b"t/dir", m.EntryType.FILE, Code.DESTINATION),
        (b"t/dir", m.EntryType.SYMLINK, Code.DESTINATION),
        (b"t/file", m.EntryType.DIRECTORY, Code.DESTINATION),
        (b"t/file/x", m.EntryType.FILE, Code.PATH),
        (b"t/file/x/y", m.EntryType.DIRECTORY, Code.PATH),
    ):
        tree = sample()
        tree.add(
            path, b"x" if entry_type is m.EntryType.FILE else b"", entry_type, link_target=b"x" * (entry_type == 3)
        )
        failure(code, moving(tree).offer)
    assert (tmp_path / "t/dir").is_dir()
    assert (tmp_path / "t/file").read_bytes() == b"file"


def test_a_directory_appears_where_a_file_shall_go(tmp_path: Path, moving: Make) -> None:
    tree = sample()
    tree.add(b"t/a", b"a")
    tree.add(b"t/b", b"b")
    it = moving(tree)
    it.offer()
    it.send_all()
    (tmp_path / "t/a").mkdir()
    it.tree.finish(tree.finish)
    step = it.tree.next_step()
    assert callable(step)
    assert "t/a" in failure(Code.DESTINATION, step)
    assert (tmp_path / "t/b").read_bytes() == b"b"  # the others are put in place all the same


def test_a_sync_that_fails_puts_nothing_in_place(tmp_path: Path, moving: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(place, "sync_file_system", fail)
    tree = sample()
    tree.add(b"t/small", b"small")
    tree.add(b"t/large", bytes(200))
    it = moving(tree)
    it.offer()
    it.send_all()
    it.tree.finish(tree.finish)
    step = it.tree.next_step()
    assert callable(step)
    assert "Input/output error" in failure(Code.DESTINATION, step)
    assert [error.code for error in it.failures if isinstance(error, TransferFailed)] == [Code.DESTINATION]
    assert os.listdir(tmp_path / "t") == []
    assert staged(tmp_path) == []  # what was written can't be trusted


def test_a_file_that_can_not_be_finished_takes_no_other_with_it(
    tmp_path: Path, moving: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is anything done to it after it was closed: its descriptor may be another file's by then."""
    monkeypatch.setattr(shared_file, "WRITE_BACK_BYTES", 100)
    finished: list[tuple[str, bool]] = []
    finish = Staging.prepare

    def prepare(staged: Staging) -> None:
        finished.append((os.path.basename(staged.path), staged.fd >= 0))
        if staged.entry.uid is not None:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        finish(staged)

    monkeypatch.setattr(Staging, "prepare", prepare)
    tree = sample()
    tree.add(b"t/small", b"small")
    tree.add(b"t/another's", bytes(200), uid=1234)
    tree.add(b"t/large", bytes(range(200)))
    it = moving(tree)
    it.offer()
    it.send_all()
    it.tree.finish(tree.finish)
    step = it.tree.next_step()
    assert callable(step)
    assert "not permitted" in failure(Code.DESTINATION, step)
    assert (tmp_path / "t/large").read_bytes() == bytes(range(200))
    assert sorted(os.listdir(tmp_path / "t")) == ["large", "small"]
    assert sorted(finished) == [("another's", True), ("large", True)]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_tree_that_finds_no_descriptor_leaves_none(
    tmp_path: Path, moving: Make, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    tree = sample()
    tree.add(b"t/f", b"f")
    it = moving(tree)
    before = len(os.listdir("/proc/self/fd"))
    opened = itertools.count()
    open_spool, start = spool._open_unnamed, threading.Thread.start

    def open_unnamed(directory_fd: int) -> int:
        if next(opened) == which:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return open_spool(directory_fd)

    def start_thread(thread: threading.Thread) -> None:
        if thread.name == "place":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(spool, "_open_unnamed", open_unnamed)
    monkeypatch.setattr(threading.Thread, "start", start_thread)
    other = sample_of(tree)
    other.entries = [entry._replace(path=b"other" + entry.path[1:]) for entry in other.entries]
    for _ in range(5):
        opened = itertools.count()
        failure(Code.LIMIT, it.another, other)
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(os.listdir(tmp_path / ".filestreamer")) == 1


def test_whatever_fails_at_the_end_the_other_descriptors_are_closed(
    moving: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system tells in close(2) that what was written is lost."""
    tree = sample()
    for at in range(3):
        tree.add(b"t/%d" % at, bytes(200))
    before = len(os.listdir("/proc/self/fd"))
    it = moving(tree)
    it.offer()
    for at in range(3):
        assert it.send(m.Segment(1 + at, 0, C))
    close = File.close

    def fail(file: File) -> None:
        close(file)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(File, "close", fail)
    with pytest.raises(OSError, match="quota"):
        it.tree.close(cleanly=True)
    assert len(os.listdir("/proc/self/fd")) == before + 1  # the destination's
    assert it.tree._tree_writer.files not in PLACES._held


def test_what_is_complete_is_put_in_place_however_it_ends(tmp_path: Path, moving: Make) -> None:
    tree = sample()
    tree.add(b"t/a", b"a")
    tree.add(b"t/b", b"b" * 65)
    tree.add(b"t/c", b"c")
    tree.add(b"t/d", b"d" * 65)
    it = moving(tree)
    it.offer()
    for segment in (m.Segment(1, 0, 1), m.Segment(2, 0, C), m.Segment(2, C, 1), m.Segment(4, 0, C)):
        assert it.send(segment)
    it.begin(m.Segment(3, 0, 1))[0].sink.write(memoryview(b"c"), 0)
    it.connection.stop(1)
    moving(sample())  # the next transfer
    assert {"a", "b"} == set(os.listdir(tmp_path / "t"))
    assert [os.path.splitext(name)[1] for name in staged(tmp_path)] == [".data", ".ledger"]  # for the next run


def test_a_finish_that_is_wrong(moving: Make) -> None:
    tree = sample()
    tree.add(b"t/f", b"f")
    for wrong in (m.Finish(2, tree.finish.root_digest), m.Finish(1, bytes(16))):
        it = moving(tree)
        it.offer()
        if not tree.unchecked:
            it.send_all()
            tree.unchecked = {1}
        failure(Code.DIGEST, it.tree.finish, wrong)


def test_finish_says_what_is_missing(moving: Make) -> None:
    tree = sample()
    tree.add(b"t/a", b"a")
    tree.add(b"t/b", bytes(200))
    tree.add(b"t/c", b"c")
    it = moving(tree)
    it.offer()
    assert it.send(m.Segment(2, C, C))
    (part,) = it.begin(m.Segment(3, 0, 1))
    missing = list(it.tree.missing())
    assert m.Needed((m.FileRange(1, 1), m.FileRange(3, 1)), ()) in missing
    assert m.Needed((), (m.SegmentRange(2, 0, 1), m.SegmentRange(2, 2, 2))) in missing
    it.tree.detach(it.connection)
    assert part.write
    it.send_all()
    it.finish()


def test_what_comes_after_finish_is_refused(moving: Make) -> None:
    tree = sample(checksum=True)
    tree.add(b"t/f", b"f")
    moving(tree).move()
    it = moving(tree)
    it.offer()
    it.rehashed()
    it.finish()
    failure(Code.PROTOCOL, it.begin, m.Segment(1, 0, 1))


def test_segments_that_are_none(moving: Make) -> None:
    tree = sample(part_entries=4)
    tree.add(b"t/small", b"small")
    tree.add(b"t/large", bytes(200))
    tree.add(b"t/empty")
    tree.add(b"t/other part", b"x")
    it = moving(tree)
    it.offer()
    for segments in (
        (m.Segment(0, 0, 1),),
        (m.Segment(1, 0, 4),),
        (m.Segment(1, 1, 5),),
        (m.Segment(2, 1, C),),
        (m.Segment(2, 0, 200),),
        (m.Segment(3, 0, 1),),
        (m.Segment(9, 0, 1),),
        (m.Segment(1, 0, 5), m.Segment(4, 0, 1)),
        (m.Segment(1, 0, 5), m.Segment(1, 0, 5)),
        (m.Segment(2, 0, C), m.Segment(2, 0, C)),
    ):
        failure(Code.PROTOCOL, it.begin, *segments)
        it.tree.detach(it.connection)
    it.send_all()
    it.finish()


def test_a_file_that_another_connection_writes(moving: Make) -> None:
    """The older one has left it before the newer one writes."""
    tree = sample()
    tree.add(b"t/small", b"small")
    tree.add(b"t/large", bytes(200))
    it = moving(tree)
    it.offer()
    for segment in (m.Segment(1, 0, 5), m.Segment(2, 0, C)):
        older = Connection(it)
        it.begin(segment, connection=older)
        assert it.send(segment)
        assert older.was_ended
    it.send_all()
    it.finish()


def test_two_processes_do_not_receive_one_tree(tmp_path: Path, moving: Make) -> None:
    destination = moving(sample()).destination
    assert "another process" in failure(Code.BUSY, place.TreeStaging, destination, b"t")


def test_what_a_process_left_that_was_killed_goes(tmp_path: Path, moving: Make) -> None:
    tree = sample()
    tree.add(b"t/f", b"f")
    it = moving(tree)
    it.offer()
    (path,) = (tmp_path / ".filestreamer").glob("*.tree")
    (path / "half").write_bytes(b"half")
    it.send_all()
    copied = path.with_name(segment_digest(b"another").hex() + ".tree")
    copied.mkdir()
    (copied / "7").write_bytes(b"left")
    (copied / "3").mkdir()
    (copied / "3/8").write_bytes(b"left")
    other = Destination(str(tmp_path))
    assert other.discard_older_than(None, 0) == (0, 0)
    os.close(other.fd)
    assert path.exists()  # in use
    assert not copied.exists()
    it.finish()

"""One obstacle costs one entry: what is declined, what it costs others, and what is sent of it all the same."""

import errno
import os
import resource
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, TransferFailed
from filestreamer.wire.messages import SkipKind
from receiver.disk.final_name import put_in_place
from receiver.disk.obstacles import Obstacle, failure, write_failure
from receiver.disk.paths import staging_key
from receiver.disk.space import write_at
from receiver.disk.staging import closed_staging, staging
from receiver.tree.commit import committer, small_file, tree_staging
from receiver.tree.commit.traits import Traits
from receiver.tree.manifest.large_file import Spooled
from tests.support.peer import TreeSample
from tests.support.tree_receiver import MTIME, C, TransferOf, held, sample, staged

KINDS = {SkipKind.DECLINED, SkipKind.EXISTING}
LARGE = bytes(range(200))


def kinds(told: dict[str, tuple[SkipKind, str]]) -> dict[str, SkipKind]:
    return {path: kind for path, (kind, _) in told.items()}


def declined(*paths: str) -> dict[str, SkipKind]:
    return dict.fromkeys(paths, SkipKind.DECLINED)


@contextmanager
def largest(size: int) -> Iterator[None]:
    """Let this process write no larger files, but spools are small."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# ---------------------------------------------------------------------------------------------------- which errors


@pytest.mark.parametrize(
    "number", [errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EFBIG]
)
def test_what_concerns_one_entry(number: int) -> None:
    failed = failure(OSError(number, os.strerror(number)), "can't write t/f")
    assert isinstance(failed, Obstacle)
    assert failed.why == os.strerror(number)
    assert "t/f" in failed.reason


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, Code.NO_SPACE),
        (errno.EDQUOT, Code.NO_SPACE),
        (errno.EROFS, Code.DESTINATION),
        (errno.EIO, Code.DESTINATION),
        (errno.ESTALE, Code.DESTINATION),
        (errno.ENOTCONN, Code.DESTINATION),
        (errno.EMFILE, Code.LIMIT),
        (errno.ENOMEM, Code.LIMIT),
    ],
)
def test_what_concerns_all_entries(number: int, code: Code) -> None:
    for of in (failure, write_failure):
        failed = of(OSError(number, os.strerror(number)), "can't write t/f")
        assert not isinstance(failed, Obstacle)
        assert failed.code is code


def test_in_staging_only_a_file_that_is_too_large_is_an_obstacle() -> None:
    assert isinstance(write_failure(OSError(errno.EFBIG, "x"), "f"), Obstacle)
    assert not isinstance(write_failure(PermissionError(errno.EACCES, "x"), "f"), Obstacle)


# ------------------------------------------------------------------------------------------- before a byte is sent


def test_everything_else_arrives(tmp_path: Path, transfer_of: TransferOf) -> None:
    """And directories get their times, hard links are made; of what is in the way nothing changes."""
    (tmp_path / "t/b/inside").mkdir(parents=True)
    (tmp_path / "t/d").write_bytes(b"a file")
    (tmp_path / "t/l").mkdir()
    tree = sample()
    tree.add(b"t/a", b"a", hard_link_group=1)
    tree.add(b"t/b", b"b")
    tree.add(b"t/big", LARGE)
    tree.directory(b"t/d")
    tree.directory(b"t/d/deep", mtime_ns=5)
    tree.add(b"t/d/deep/f", b"f")
    tree.add(b"t/d/empty")
    tree.directory(b"t/e", mtime_ns=10**18)
    tree.add(b"t/e/f", b"f")
    tree.symlink(b"t/l", b"target")
    tree.add(b"t/z", b"a", hard_link_group=1)
    transfer = transfer_of(tree)
    transfer.offer()
    told = transfer.withdraw_declined()
    assert kinds(told) == declined("t/b", "t/d", "t/d/deep", "t/d/deep/f", "t/d/empty", "t/l")
    assert told["t/d/deep/f"][1] == "it lies below t/d, which can't be made or entered"
    assert (told["t/b"][1], told["t/d"][1]) == ("it is a directory", "something that is no directory has this name")
    transfer.send_all()
    transfer.finish()
    assert transfer.declined() == {}
    assert (tmp_path / "t/a").samefile(tmp_path / "t/z")
    assert ((tmp_path / "t/big").read_bytes(), (tmp_path / "t/e/f").read_bytes()) == (LARGE, b"f")
    assert (tmp_path / "t/e").stat().st_mtime_ns == 10**18
    assert ((tmp_path / "t/d").read_bytes(), (tmp_path / "t/b/inside").is_dir()) == (b"a file", True)
    assert transfer.failures == []


@pytest.mark.parametrize(
    "make",
    [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("elsewhere")],
    ids=["directory", "fifo", "symlink"],
)
@pytest.mark.parametrize("suffix", [".data", ".ledger"])
def test_what_is_no_file_in_staging_costs_the_file_that_it_is_in_the_way_of(
    tmp_path: Path, transfer_of: TransferOf, make: Callable[[Path], object], suffix: str
) -> None:
    transfer = transfer_of(tree := sample())
    tree.add(b"t/big", LARGE)
    tree.add(b"t/other", LARGE)
    name = staging_key(b"t/big") + suffix
    make(tmp_path / ".filestreamer" / name)
    transfer.move()
    told = transfer.declined()
    assert kinds(told) == declined("t/big")
    assert f".filestreamer/{name}" in told["t/big"][1], "its user has to remove it"
    assert (tmp_path / "t/other").read_bytes() == LARGE
    assert transfer.failures == []


def test_a_second_run_says_the_same_and_moves_nothing(tmp_path: Path, transfer_of: TransferOf) -> None:
    (tmp_path / "t/b").mkdir(parents=True)
    tree = sample()
    tree.add(b"t/a", b"a")
    tree.add(b"t/b", LARGE)
    for _ in range(2):
        transfer = transfer_of(tree)
        transfer.offer()
        assert kinds(transfer.withdraw_declined()) == declined("t/b")
        transfer.send_all()
        transfer.finish()
        tree.unchecked = {1}
        assert staged(tmp_path) == []


def test_what_lies_below_costs_no_call(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t/d").write_bytes(b"a file")
    tree = sample()
    tree.directory(b"t/d")
    for number in range(500):
        tree.add(b"t/d/%03d" % number, b"x")
    transfer = transfer_of(tree)
    calls: list[str] = []
    for name in ("open", "stat", "mkdir", "rename", "access", "rmdir"):
        call: Callable[..., object] = getattr(os, name)

        def counted(*args: object, name: str = name, call: Callable[..., object] = call, **more: object) -> object:
            calls.append(name)
            return call(*args, **more)

        monkeypatch.setattr(os, name, counted)
    transfer.offer()
    assert len(calls) < 30
    assert len(transfer.withdraw_declined()) == 501
    transfer.finish()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize(
    "made", ["sticky", "read-only directory", "somebody else's directory", "immutable", "append only"]
)
def test_what_may_not_be_replaced_is_not_sent(tmp_path: Path, transfer_of: TransferOf, made: str) -> None:
    """Neither is what may not be made. The receiver is another user for this."""
    there, inside = tmp_path / "t", tmp_path / "t/d"
    inside.mkdir(parents=True)
    for name in ("f", "large", "link"):
        (inside / name).write_bytes(b"somebody else's")
    for parent in tmp_path.parents[: len(tmp_path.relative_to(tempfile.gettempdir()).parts) - 1]:
        parent.chmod(0o711)
    os.chown(tmp_path, 65534, 65534)
    os.chown(there, 65534, 65534)
    os.chmod(inside, {"sticky": 0o1777, "read-only directory": 0o555}.get(made, 0o755))
    tree = sample()
    tree.directory(b"t/d")
    tree.add(b"t/d/f", b"f")
    tree.add(b"t/d/large", LARGE)
    tree.symlink(b"t/d/link", b"target")
    tree.add(b"t/g", b"g")
    flag = {"immutable": "+i", "append only": "+a"}.get(made)
    names = [str(inside / name) for name in ("f", "large", "link")]
    if flag is not None:
        os.chown(inside, 65534, 65534)
        if subprocess.run(["chattr", flag, *names], check=False).returncode:
            pytest.fail("the file system of the tests has no attributes: set TMPDIR to one that has")
    os.seteuid(65534)
    try:
        transfer = transfer_of(tree)
        transfer.offer()
        assert kinds(transfer.withdraw_declined()) == declined("t/d/f", "t/d/large", "t/d/link")
        transfer.send_all()
        transfer.finish()
        transfer.tree.close(cleanly=True)
    finally:
        os.seteuid(0)
        if flag is not None:
            subprocess.run(["chattr", flag.replace("+", "-"), *names], check=True)
    assert (there / "g").read_bytes() == b"g"
    assert {(inside / name).read_bytes() for name in ("f", "large", "link")} == {b"somebody else's"}


def test_a_file_larger_than_this_process_may_write(tmp_path: Path, transfer_of: TransferOf) -> None:
    tree = sample()
    tree.add(b"t/large", bytes(1 << 20))
    tree.add(b"t/small", b"small")
    with largest(1 << 19):
        transfer = transfer_of(tree)
        transfer.offer()
        assert transfer.withdraw_declined() == {"t/large": (SkipKind.DECLINED, "File too large")}
        transfer.send_all()
        transfer.finish()
    assert os.listdir(tmp_path / "t") == ["small"]


# ---------------------------------------------------------------------------------------------- while bytes are sent


class TooLarge:
    """Declares files to be too large when they are written, or when they are opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, after_bytes: int | None) -> None:

        real_write, real_open = write_at, staging.Staging.open

        def write(fd: int, view: memoryview, offset: int) -> None:
            if after_bytes is not None and offset >= after_bytes:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            real_write(fd, view, offset)

        def open_staging(*args: object, **more: object) -> object:
            if after_bytes is None:
                raise write_failure(OSError(errno.EFBIG, os.strerror(errno.EFBIG)), "can't open")
            return real_open(*args, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(staging, "write_at", write)
        monkeypatch.setattr(staging.Staging, "open", open_staging)


@pytest.mark.parametrize("after_bytes", [None, 0, 100, 192])
@pytest.mark.parametrize("withdraws", ["at once", "late", "not"])
def test_a_large_file_that_can_not_be_written(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch, after_bytes: int | None, withdraws: str
) -> None:
    """Whether or not the sender has sent all of it before it knows, both ends agree on the root digest."""
    TooLarge(monkeypatch, after_bytes=after_bytes)
    tree = sample()
    tree.add(b"t/large", LARGE)
    tree.add(b"t/small", b"small")
    transfer = transfer_of(tree)
    transfer.offer()
    chunks = list(tree.chunks().values())
    for segments in chunks[:-2]:
        assert transfer.send(*segments)
    if withdraws == "at once" and after_bytes != 192:
        assert kinds(transfer.withdraw_declined()) == declined("t/large")
        assert transfer.send(*chunks[-2])  # it was under way
    else:
        assert transfer.send(*chunks[-2])
        assert kinds(transfer.declined()) == declined("t/large")
        if withdraws == "late":
            tree.withdrawn = {1}
            transfer.tree.withdraw([1])
    assert transfer.send(*chunks[-1])
    assert all(".tree" in name for name in staged(tmp_path))
    transfer.finish()
    assert os.listdir(tmp_path / "t") == ["small"]
    assert transfer.failures == []


def test_a_declined_large_file_is_verified_all_the_same(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged segment is asked for again; one that came twice must be the same; nothing is open meanwhile."""
    TooLarge(monkeypatch, after_bytes=None)
    tree = sample()
    tree.add(b"t/large", LARGE)
    transfer = transfer_of(tree)
    transfer.offer()
    first, second, *rest = list(tree.chunks().values())
    assert transfer.send(*first)
    assert not transfer.send(*second, change=lambda payload: payload[::-1])
    assert not transfer.send(*first, change=lambda payload: payload[::-1])
    assert not transfer.send(*first, change=lambda _: bytes(64), digest=None)
    for segments in (second, *rest):
        assert transfer.send(*segments)
    assert len(transfer.tree._large_files.open_files) == 0
    part = transfer.tree._parts.get(0)
    assert part.large[1].spooled is Spooled.DECLINED
    transfer.finish()
    assert kinds(transfer.declined()) == declined("t/large")


def test_a_declined_large_file_whose_connection_ends(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    TooLarge(monkeypatch, after_bytes=100)
    tree = sample()
    tree.add(b"t/large", LARGE)
    transfer = transfer_of(tree)
    transfer.offer()
    chunks = list(tree.chunks().values())
    assert transfer.send(*chunks[0])
    (begun,) = transfer.begin(*chunks[2])
    begun.sink.write(memoryview(tree.payload(chunks[2][0])), chunks[2][0].offset)
    transfer.tree.chunks.detach(transfer.connection)
    assert staged(tmp_path) == []
    for segments in chunks[1:]:
        assert transfer.send(*segments)
    transfer.finish()
    assert kinds(transfer.declined()) == declined("t/large")


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_small_file_that_can_not_be_written(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch, *, is_damaged: bool
) -> None:
    real = write_at

    def write(fd: int, view: memoryview, offset: int) -> None:
        if offset and view.nbytes == 8:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        real(fd, view, offset)

    monkeypatch.setattr(small_file, "write_at", write)
    tree = sample()
    tree.add(b"t/f", b"content of sixty")
    tree.add(b"t/g", b"g", hard_link_group=1)
    transfer = transfer_of(tree)
    transfer.offer()
    (segments,) = tree.chunks().values()
    if is_damaged:
        assert not transfer.send(*segments, change=lambda payload: payload[::-1], digest=bytes(16))
        assert kinds(transfer.declined()) == declined("t/f")
    assert transfer.send(*segments)
    assert kinds(transfer.declined()) == ({} if is_damaged else declined("t/f"))
    transfer.finish()
    assert os.listdir(tmp_path / "t") == ["g"]


# ------------------------------------------------------------------------------------------- when it is put in place


def test_one_file_of_a_batch(tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its further names are declined with it; what had the first name before is not linked to."""
    (tmp_path / "t").mkdir()
    (tmp_path / "t/b").write_bytes(b"before")
    tree = sample()
    for name in (b"a", b"c"):
        tree.add(b"t/" + name, name)
    tree.add(b"t/b", b"b", hard_link_group=1)
    tree.add(b"t/large", LARGE)
    tree.add(b"t/z", b"b", hard_link_group=1)
    real = put_in_place

    def put(source: str, final: bytes, source_fd: int, directory_fd: int, *, replace: bool) -> None:
        if final == b"b":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        real(source, final, source_fd, directory_fd, replace=replace)

    monkeypatch.setattr(committer, "put_in_place", put)
    transfer = transfer_of(tree)
    transfer.offer()
    transfer.send_all()
    transfer.finish()
    told = transfer.declined()
    assert kinds(told) == declined("t/b", "t/z")
    assert told["t/z"][1] == "it is another name of a file that could not be put in place"
    assert sorted(os.listdir(tmp_path / "t")) == ["a", "b", "c", "large"]
    assert (tmp_path / "t/b").read_bytes() == b"before"
    assert staged(tmp_path) == []


@pytest.mark.parametrize("withdraws", [False, True])
def test_an_entry_is_told_and_counted_once(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch, *, withdraws: bool
) -> None:
    """One that lacks an attribute, and is declined then, is declined; the result counts no file that is."""

    def put(source: str, final: bytes, source_fd: int, directory_fd: int, *, replace: bool) -> None:
        if final in (b"small", b"large", b"full"):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        put_in_place(source, final, source_fd, directory_fd, replace=replace)

    (tmp_path / "t").mkdir()
    (tmp_path / "t/full").write_bytes(b"x")
    (tmp_path / "t/link").write_bytes(b"x")
    (tmp_path / "t/way/x").mkdir(parents=True)
    monkeypatch.setattr(committer, "put_in_place", put)
    monkeypatch.setattr(closed_staging, "put_in_place", put)
    tree = sample()
    for name in (b"small", b"large", b"full", b"way", b"other"):
        tree.add(b"t/" + name, {b"large": LARGE, b"full": b""}.get(name, name), uid=4711, gid=4711)
    tree.symlink(b"t/link", b"a")
    transfer = transfer_of(tree)
    transfer.offer()
    if withdraws:
        transfer.withdraw_declined()
    transfer.send_all()
    transfer.tree._committer.flush()
    told = transfer.declined()
    if withdraws:  # as a sender that does not know yet that all of it came in
        transfer.tree.withdraw([2])
        tree.withdrawn.add(2)
    transfer.finish()
    told |= transfer.declined()
    expected = declined("t/small", "t/large", "t/full", *(() if withdraws else ["t/way"]))
    assert kinds(told) == {**expected, "t/other": SkipKind.ATTRIBUTE}
    assert transfer.counters.files == 1


def test_zeros_of_a_file_that_is_too_large(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is declined; what comes of it later is taken all the same."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(staging, "make_zeros", refuse)
    tree = sample()
    tree.add(b"t/sparse", LARGE[:64] + bytes(128) + LARGE, holes=((64, 128),))
    tree.add(b"t/small", b"small")
    transfer = transfer_of(tree)
    transfer.move()
    assert kinds(transfer.declined()) == declined("t/sparse")
    assert (os.listdir(tmp_path / "t"), staged(tmp_path)) == (["small"], [])
    assert (transfer.failures, transfer.counters.zero_bytes, transfer.counters.files) == ([], 128, 1)


def test_a_full_disk_is_one_error(tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch) -> None:
    def put(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(committer, "put_in_place", put)
    tree = sample()
    for name in range(10):
        tree.add(b"t/%d" % name, b"x")
    transfer = transfer_of(tree)
    transfer.offer()
    transfer.send_all()
    transfer.fail_to_commit(Code.NO_SPACE)
    assert transfer.declined() == {}
    assert {error.code for error in transfer.failures if isinstance(error, TransferFailed)} == {Code.NO_SPACE}


# ------------------------------------------------------------------------------------------- what a file system lacks


def having(monkeypatch: pytest.MonkeyPatch, **traits: object) -> None:
    monkeypatch.setattr(tree_staging, "find_traits", lambda _: Traits(**traits))  # type: ignore[arg-type]


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize(
    "number", [errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EINVAL, errno.EACCES, errno.EXDEV]
)
def test_copies_instead_of_hard_links(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch, number: int, *, replace: bool
) -> None:
    """In place and durable like any file; a second run leaves them."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    tree = sample()
    content = bytes(64) + LARGE + bytes(64)
    tree.add(b"t/a", content, hard_link_group=1, holes=((0, 64),), mode=0o640)
    tree.add(b"t/b", content, hard_link_group=1, mode=0o640)
    tree.add(b"t/c", content, hard_link_group=1, mode=0o640)
    inodes: list[set[int]] = []
    for _ in range(2):
        transfer = transfer_of(tree, replace=replace)
        transfer.offer()
        transfer.send_all()
        transfer.finish()
        assert transfer.declined() == {}
        assert [warning for warning in transfer.warnings if "copies" in warning] == transfer.warnings[:1]
        there = {name: (tmp_path / "t" / name).stat() for name in "abc"}
        assert {(tmp_path / "t" / name).read_bytes() for name in "abc"} == {content}
        assert {(each.st_mtime_ns, stat.S_IMODE(each.st_mode)) for each in there.values()} == {
            (tree.entries[1].mtime_ns, 0o640)
        }
        assert len({each.st_ino for each in there.values()}) == 3
        inodes.append({each.st_ino for each in there.values()})
        tree.unchecked = {1}
    assert inodes[0] == inodes[1]


def copies(monkeypatch: pytest.MonkeyPatch, **more: bool) -> TreeSample:
    """Return a tree with a file of two names, for a destination without hard links."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    tree = sample(**more)
    for name in (b"t/a", b"t/b"):
        tree.add(name, LARGE, hard_link_group=1, mode=0o644)
    return tree


@pytest.mark.parametrize("is_changed", [True, False])
@pytest.mark.parametrize("how", ["times in steps", "no times", "--checksum"])
def test_copies_that_are_there(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch, how: str, *, is_changed: bool
) -> None:
    """They are known again, also where nothing may be replaced; bytes are compared where times say nothing."""
    utime = os.utime

    def rounded(path: int | str, *, ns: tuple[int, int]) -> None:
        if how != "no times":
            step_ns = 2_000_000_000 if how == "times in steps" else 1
            utime(path, ns=(ns[0] // step_ns * step_ns, ns[1] // step_ns * step_ns))

    monkeypatch.setattr(os, "utime", rounded)
    having(monkeypatch, keeps_times=how != "no times")
    tree = copies(monkeypatch, checksum=how == "--checksum")
    tree.entries = [entry._replace(mtime_ns=MTIME + 1_234_567_890) for entry in tree.entries]
    transfer_of(tree).move()
    copy = tmp_path / "t/b"
    before = copy.stat()
    if is_changed:
        copy.write_bytes(LARGE[::-1])
        utime(copy, ns=(before.st_mtime_ns, before.st_mtime_ns + (how == "times in steps")))
    transfer = transfer_of(tree, replace=is_changed)
    transfer.offer()
    if how == "times in steps":
        tree.unchecked = {1}
    else:
        assert held(transfer.rehashed()).keys() == {1}
    transfer.finish()
    assert transfer.declined() == {}
    assert copy.read_bytes() == LARGE
    assert is_changed or copy.stat().st_ino == before.st_ino


def test_the_attributes_of_a_copy_that_is_there(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = copies(monkeypatch)
    transfer_of(tree).move()
    tree.entries = [entry._replace(mode=0o600) if entry.hard_link_group else entry for entry in tree.entries]
    tree.unchecked = {1}
    transfer = transfer_of(tree)
    transfer.move()
    assert transfer.declined() == {}
    assert [stat.S_IMODE((tmp_path / "t" / name).stat().st_mode) for name in "ab"] == [0o600, 0o600]


def test_no_symlinks(tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "symlink", refuse)
    tree = sample()
    tree.symlink(b"t/link", b"a")
    tree.add(b"t/a", b"a")
    transfer = transfer_of(tree)
    transfer.move()
    assert transfer.declined() == {"t/link": (SkipKind.DECLINED, "the destination has no symlinks")}
    assert os.listdir(tmp_path / "t") == ["a"]


def test_a_destination_without_times(tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of equal size are compared by their digests, not sent again."""
    having(monkeypatch, keeps_times=False)
    tree = sample()
    tree.add(b"t/same", b"same")
    tree.add(b"t/large", LARGE)
    tree.add(b"t/longer", b"longer")
    transfer_of(tree).move()
    for path in (tmp_path / "t").iterdir():
        os.utime(path, ns=(7, 7))
    (tmp_path / "t/longer").write_bytes(b"short")
    transfer = transfer_of(tree)
    answers = [*transfer.offer(), *transfer.rehashed()]
    assert held(answers).keys() == {1, 2}
    assert [answer.files for answer in answers if isinstance(answer, m.Needed)] == [(m.FileRange(3, 1),)]
    assert transfer.send(m.Segment(3, 0, 6))
    transfer.finish()
    assert transfer.declined() == {}
    assert transfer.warnings == ["the destination keeps no times: files of equal size are compared by their digests"]


@pytest.mark.parametrize("at", ["small", "there"])
@pytest.mark.parametrize(("mode", "is_declined"), [(0o644, False), (0o755, False), (0o600, True), (0o640, True)])
def test_a_destination_without_modes(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch, at: str, mode: int, *, is_declined: bool
) -> None:
    """All files have mode 0755 there: whoever may not read a file at the source must not be able to do so here."""
    change_mode, create = os.chmod, tree_staging.TreeStaging.create

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def create_wide(staging: tree_staging.TreeStaging, name: str, entry: m.Entry) -> int:
        fd = create(staging, name, entry)
        change_mode(fd, 0o755)
        return fd

    tree = sample()
    tree.add(b"t/f", b"content", mode=mode)
    tree.add(b"t/other", b"other", mode=0o755)
    if at == "there":
        transfer_of(tree).move()
        (tmp_path / "t/other").unlink()
        (tmp_path / "t/f").chmod(0o755)
        tree.unchecked = set() if is_declined else {1}
    having(monkeypatch, added_bits=0o755)
    monkeypatch.setattr(os, "chmod", refuse)
    monkeypatch.setattr(tree_staging.TreeStaging, "create", create_wide)
    transfer = transfer_of(tree)
    transfer.offer()
    told = transfer.withdraw_declined()
    transfer.send_all()
    transfer.finish()
    told |= transfer.declined()
    assert kinds(told) == (declined("t/f") if is_declined else {})
    assert (tmp_path / "t/other").read_bytes() == b"other"
    assert (tmp_path / "t/f").exists() == (not is_declined or at == "there")
    assert ["modes" in warning for warning in transfer.warnings] == ([True] if mode == 0o644 else [])


# ------------------------------------------------------------------------------------------- names that are one there


class Folding:
    """Has a destination that takes two names for one, in the calls of this process that matter."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, one: bytes, other: bytes) -> None:
        def fold(name: object) -> object:
            return one if name == other else name

        def wrap(name: str, *which: int) -> None:
            call: Callable[..., object] = getattr(os, name)

            def folding(*args: object, **more: object) -> object:
                return call(*[fold(arg) if at in which else arg for at, arg in enumerate(args)], **more)

            monkeypatch.setattr(os, name, folding)

        for name in ("stat", "open", "mkdir", "unlink", "rmdir", "readlink"):
            wrap(name, 0)
        for name in ("rename", "link"):
            wrap(name, 1)


ALIKE = [
    (b"Readme", b"README"),
    (b"name", b"name."),
    ("\N{LATIN SMALL LETTER E WITH ACUTE}".encode(), "e\N{COMBINING ACUTE ACCENT}".encode()),
]


@pytest.mark.parametrize(("one", "other"), ALIKE)
@pytest.mark.parametrize("is_known", [False, True], ids=["found out", "known"])
def test_the_second_of_two_names_that_are_one(
    tmp_path: Path,
    transfer_of: TransferOf,
    monkeypatch: pytest.MonkeyPatch,
    one: bytes,
    other: bytes,
    *,
    is_known: bool,
) -> None:
    """Whether the first is under way, or in place from an earlier run; a link and a directory likewise."""
    Folding(monkeypatch, one, other)
    if is_known:
        having(monkeypatch, folds_names=True)
    for first, second in ((one, other), (other, one)):
        tree = sample()
        tree.add(b"t/" + first, b"first")
        tree.add(b"t/" + second, b"the second")
        tree.add(b"t/else", b"else")
        for run in range(2):
            transfer = transfer_of(tree)
            transfer.offer()
            told = transfer.withdraw_declined()
            transfer.send_all()
            transfer.finish()
            told |= transfer.declined()
            assert kinds(told) == declined("t/" + os.fsdecode(second)), run
            assert (tmp_path / "t" / os.fsdecode(one)).read_bytes() == b"first"
            tree.withdrawn, tree.unchecked = set(), {1, 3}
        tree_of = tmp_path / "t"
        for path in tree_of.iterdir():
            path.unlink()


@pytest.mark.parametrize("has_links", [True, False], ids=["links", "copies"])
@pytest.mark.parametrize(("one", "other"), ALIKE)
@pytest.mark.parametrize("is_link_first", [False, True], ids=["file first", "link first"])
def test_a_hard_link_whose_name_is_one_with_that_of_a_file(
    tmp_path: Path,
    transfer_of: TransferOf,
    monkeypatch: pytest.MonkeyPatch,
    one: bytes,
    other: bytes,
    *,
    is_link_first: bool,
    has_links: bool,
) -> None:
    """Where staging tells them apart: the file is in place when links are made, and must not be lost."""
    Folding(monkeypatch, one, other)
    having(monkeypatch, folds_names=False)
    tree, group = (sample(), 1) if has_links else (copies(monkeypatch), 2)
    tree.add(b"t/0", b"linked", hard_link_group=group)
    rest = [(other, b"linked", group), (one, b"a file", 0)]
    for name, content, of_group in rest if is_link_first else rest[::-1]:
        tree.add(b"t/" + name, content, hard_link_group=of_group)
    transfer = transfer_of(tree)
    transfer.move()
    assert kinds(transfer.declined()) == declined("t/" + os.fsdecode(other))
    assert (tmp_path / "t" / os.fsdecode(one)).read_bytes() == b"a file"


@pytest.mark.parametrize("kind", ["file", "symlink"])
def test_a_name_that_is_one_with_that_of_a_file_with_hard_links(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The file is in place from an earlier run: that it has other names does not mean that this is one of them."""
    one, other = ALIKE[0]
    Folding(monkeypatch, one, other)
    tree = sample()
    tree.add(b"t/0", b"linked", hard_link_group=1)
    tree.add(b"t/" + one, b"linked", hard_link_group=1)
    transfer_of(tree).move()
    tree.unchecked = {1}
    if kind == "file":
        tree.add(b"t/" + other, b"another one")
    else:
        tree.symlink(b"t/" + other, b"target")
    transfer = transfer_of(tree)
    transfer.offer()
    told = transfer.withdraw_declined()
    transfer.finish()
    assert kinds(told | transfer.declined()) == declined("t/" + os.fsdecode(other))
    assert (tmp_path / "t" / os.fsdecode(one)).read_bytes() == b"linked"


def test_hard_links_that_are_told_apart(tmp_path: Path, transfer_of: TransferOf) -> None:
    """Names that are alike, of one file, where case counts: both get the next file."""
    tree = sample()
    for name in (b"t/0", b"t/README", b"t/Readme", b"t/readme"):
        tree.add(name, b"linked", hard_link_group=1)
    transfer_of(tree).move()
    for at in range(1, 5):
        tree.entries[at] = tree.entries[at]._replace(mtime_ns=MTIME + 1)
    transfer = transfer_of(tree)
    transfer.move()
    assert transfer.declined() == {}
    assert len({path.stat().st_ino for path in (tmp_path / "t").iterdir()}) == 1


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_two_directories_that_are_one(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch, one: bytes, other: bytes
) -> None:
    Folding(monkeypatch, one, other)
    tree = sample()
    tree.directory(b"t/" + one)
    tree.add(b"t/" + one + b"/f", b"first")
    tree.directory(b"t/" + other)
    tree.add(b"t/" + other + b"/f", b"the second")
    for _ in range(2):
        transfer = transfer_of(tree)
        transfer.offer()
        told = transfer.withdraw_declined()
        name = os.fsdecode(other)
        assert kinds(told) == declined(f"t/{name}", f"t/{name}/f")
        transfer.send_all()
        transfer.finish()
        assert (tmp_path / "t" / os.fsdecode(one) / "f").read_bytes() == b"first"
        tree.withdrawn, tree.unchecked = set(), {2}


def test_names_that_are_told_apart(tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where some names are one, others that look alike may not be."""
    having(monkeypatch, folds_names=True)
    tree = sample()
    for number, (one, other) in enumerate(ALIKE):
        tree.add(b"t/" + one, b"%d" % number)
        tree.add(b"t/" + other, b"%d" % number)
    transfer = transfer_of(tree)
    transfer.move()
    assert transfer.declined() == {}
    assert len(os.listdir(tmp_path / "t")) == 6


def test_another_process_makes_a_file_of_the_same_name_meanwhile(tmp_path: Path, transfer_of: TransferOf) -> None:
    """It is replaced, as it would be had it been there before."""
    tree = sample()
    tree.add(b"t/f", b"content")
    transfer = transfer_of(tree)
    transfer.offer()
    (tmp_path / "t/f").write_bytes(b"another")
    transfer.send_all()
    transfer.finish()
    assert transfer.declined() == {}
    assert (tmp_path / "t/f").read_bytes() == b"content"


def test_memory_of_what_is_declined_is_borrowed(tmp_path: Path, transfer_of: TransferOf) -> None:
    """A receiver without memory takes the next part later, and not more of it than it has."""
    (tmp_path / "t").mkdir()
    tree = TreeSample(C)
    tree.directory(b"t")
    for number in range(300):
        (tmp_path / f"t/{number}").write_bytes(b"")
        tree.directory(b"t/%d" % number)
    transfer = transfer_of(tree)
    transfer.offer()
    assert len(transfer.withdraw_declined()) == 300
    assert transfer.tree._declines.table_bytes(0) >= 8 * 300
    transfer.finish()

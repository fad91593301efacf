"""Trees from a real sender to a real receiver: what is moved arrives as it is, what is not is told."""

import itertools
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from filestreamer.wire.errors import Code, TransferFailed
from filestreamer.wire.limits import KIB, MIB
from sender.coordinator import Transfer
from sender.listing.walk import Walk
from sender.second_tries import TRIES_MAX
from sender.source.item import Item
from tests.support import sending, trees
from tests.support.proxy import OPENED_BYTES, Cut, Fault, FlipPayload, Proxy, Reset
from tests.support.services import HANG, Pair, Service
from tests.support.staging import statuses
from tests.support.waiting import gives_up_busy, until


def send(pair: Pair, *args: object, receiver: tuple[object, ...] = ()) -> dict[str, Any]:
    """Send what is named to a receiver of its own, to the end; return the sender's result."""
    there = pair.receiver("--once", *receiver)
    sent = pair.start("sender", *args, "--to", pair.address(there)).succeeds()
    received = there.succeeds()
    for key in ("bytes", "files", "chunks", "root_digest", "unchecked_bytes", "held_bytes"):
        assert sent[key] == received[key], key
    return sent


def falls_short(sender: Service, *paths: Path) -> list[str]:
    """Wait for the end of a sender that could not read these: exit 5, everything else is there. Return the reasons."""
    result = sender.falls_short()
    assert {str(path) for path in paths} == {entry["path"] for entry in result["skipped"]}
    assert len(paths) == result["skipped_files"]
    assert str(paths[0]).isprintable() is False or str(paths[0]) in result["error"]["message"]
    return [entry["reason"] for entry in result["skipped"]]


# ----------------------------------------------------------------------------------------------------------- everything


@pytest.mark.parametrize("chunk_size", [None, "8KiB", "1000"])
def test_every_oddity(pair: Pair, chunk_size: str | None) -> None:
    tree = trees.every_oddity(pair.source / "tree")
    more = ["--chunk-size", chunk_size] if chunk_size else []
    sent = send(pair, tree, "--connections", 3, *more)
    assert trees.differences(tree, pair.destination / "tree") == []
    assert sent["skipped_files"] == 0
    again = send(pair, tree, "--connections", 3, *more)
    assert trees.differences(tree, pair.destination / "tree") == []
    assert (again["sent_bytes"], again["bytes"]) == (0, again["unchecked_bytes"])
    assert pair.received() == ["tree"]


def test_many_files_in_parts_and_over_connections(pair: Pair) -> None:
    tree = trees.many(pair.source / "tree", 3500, 300)
    sent = send(pair, tree, "--connections", 4, "--chunk-size", "4KiB")
    assert trees.differences(tree, pair.destination / "tree") == []
    assert (sent["files"], sent["bytes"]) == (3500, 3500 * 300)


# ------------------------------------------------------------------------------------------------------- what is named


def test_several_paths(pair: Pair) -> None:
    first = trees.write(pair.source / "one" / "a", b"a").parent
    second = trees.write(pair.source / "elsewhere" / "two" / "b" / "c", b"c").parents[1]
    file = trees.write(pair.source / "file", b"alone")
    os.link(file, first / "the same file")
    sent = send(pair, first, file, second)
    assert pair.received() == ["file", "one", "two"]
    assert trees.differences(first, pair.destination / "one") == []
    assert trees.differences(second, pair.destination / "two") == []
    assert (pair.destination / "file").samefile(pair.destination / "one/the same file")
    assert sent["files"] == 4


@pytest.mark.parametrize("how", ["missing", "a FIFO"])
def test_nothing_is_moved_where_a_path_is_not_there_or_no_file(pair: Pair, how: str) -> None:
    """A path that the user names and that is wrong is reported at once, not after an hour."""
    tree = trees.write(pair.source / "tree" / "a", b"a").parent
    if how == "a FIFO":
        os.mkfifo(pair.source / "other")
    receiver = pair.receiver()
    sender = pair.start("sender", tree, pair.source / "other", "--to", pair.address(receiver))
    assert str(pair.source / "other") in sender.fails(4, "source")
    assert sender.events("connected") == []
    assert pair.received() == []


def test_what_is_in_a_directory(pair: Pair) -> None:
    """`PATH/` puts it beside what is there, and leaves the destination itself as it is."""
    trees.write(pair.source / "a" / "b", b"b")
    trees.write(pair.destination / "mine", b"mine")
    pair.destination.chmod(0o700)
    os.utime(pair.destination, ns=(0, 5))
    send(pair, f"{pair.source}/")
    assert pair.received() == ["a", "mine"]
    assert trees.differences(pair.source / "a", pair.destination / "a") == []
    assert pair.destination.stat().st_mode == 0o40700


@pytest.mark.parametrize("end", ["", "/"])
def test_an_empty_directory(pair: Pair, end: str) -> None:
    (pair.source / "empty").mkdir(mode=0o700)
    sent = send(pair, f"{pair.source / 'empty'}{end}")
    assert pair.received() == ([] if end else ["empty"])
    assert (sent["files"], sent["bytes"]) == (0, 0)
    assert ["is empty" in text for text in sent["warnings"]] == [True]


def test_nothing_that_is_wanted(pair: Pair) -> None:
    trees.write(pair.source / "tree" / "a", b"a")
    assert send(pair, pair.source / "tree", "--include", "*.none")["files"] == 0
    assert pair.received() == []


def test_as_names_the_tree(pair: Pair) -> None:
    tree = trees.write(pair.source / "tree" / "a", b"a").parent
    send(pair, tree, "--as", "other")
    assert trees.differences(tree, pair.destination / "other") == []
    assert pair.received() == ["other"]


def test_patterns(pair: Pair) -> None:
    for name in ("a.txt", "a.log", "sub/b.txt", "sub/b.log", "cache/c.txt", "only/x.log"):
        trees.write(pair.source / "tree" / name, name.encode())
    send(pair, pair.source / "tree", "--include", "*.txt", "--exclude", "cache/")
    there = trees.look(pair.destination)
    assert sorted(there) == [b"", b"tree", b"tree/a.txt", b"tree/sub", b"tree/sub/b.txt"]
    assert trees.look(pair.source / "tree" / "sub")[b""] == there[b"tree/sub"]


def test_dry_run_lists_and_sends_nothing(pair: Pair) -> None:
    """Nobody is asked; what could not be read makes the exit code."""
    tree = trees.every_oddity(pair.source / "tree")
    os.mkfifo(tree / "fifo")
    sender = pair.start("sender", tree, "--dry-run")
    assert sender.wait() == 0
    lines = sender.stdout.splitlines()
    assert len(lines) == len(trees.look(tree)) - 1
    assert any(line.startswith("symlink") and "dangling" in line for line in lines)
    assert [line["path"] for line in sender.events("entry_skipped")] == [str(tree / "fifo")]


def test_dry_run_into_a_full_disk_fails(pair: Pair) -> None:
    tree = trees.write(pair.source / "tree" / "a", b"a").parent
    with open("/dev/full", "wb") as full:
        sender = pair.start("sender", tree, "--dry-run", stdout=full)
        assert sender.wait() == 1
    assert "No space left" in sender.events("dry_run_failed")[0]["reason"]


def test_two_paths_of_one_name_and_shards_of_a_tree_are_wrong_usage(pair: Pair) -> None:
    for name in ("a/x", "b/x"):
        trees.write(pair.source / name, b"x")
    for args in (
        (pair.source / "a/x", pair.source / "b/x"),
        (f"{pair.source / 'a'}/", pair.source / "b/x"),
        (f"{pair.source / 'a'}/", f"{pair.source / 'b'}/"),
        (pair.source / "a", "--shard", "0/2"),
        (pair.source / "a", pair.source / "b", "--as", "c"),
    ):
        pair.start("sender", *args, "--to", "127.0.0.1:1").fails(2, "usage")


def test_a_tree_into_one_output_file_is_refused(pair: Pair) -> None:
    trees.write(pair.source / "tree" / "a", b"a")
    out = pair.destination / "out"
    receiver = pair.start("receiver", "--listen", "127.0.0.1:0", "--output-file", out)
    message = pair.sender(pair.source / "tree", pair.address(receiver)).fails(3, "policy", status="refused")
    assert message
    assert not out.exists()


# ------------------------------------------------------------------------------------------- what is not moved as it is


def test_what_is_never_moved(pair: Pair) -> None:
    tree = trees.write(pair.source / "tree" / "a", b"a").parent
    for name in (".filestreamer/x", "sub/.filestreamer/x", "lost+found/x"):
        trees.write(tree / name, b"x")
    os.mkfifo(tree / "fifo")
    trees.make_socket(tree / "socket")
    sent = send(pair, tree)
    assert trees.differences(tree, pair.destination / "tree", b"fifo", b"socket", b"lost+found") == []
    expected = [(str(tree / "fifo"), "it is a FIFO"), (str(tree / "socket"), "it is a socket")]
    assert expected == [(entry["path"], entry["reason"]) for entry in sent["skipped"]]
    assert sent["skipped_files"] == 2
    assert sorted(os.listdir(pair.destination / "tree")) == ["a", "sub"]


@pytest.mark.skipif(os.geteuid() != 0, reason="owners are root's to give")
def test_owners(pair: Pair) -> None:
    tree = trees.every_oddity(pair.source / "tree")
    for number, path in enumerate(sorted(trees.look(tree))):
        if number % 3 == 0 and path.count(b"/") < 3:
            os.chown(os.fsencode(tree) + b"/" + path, 1000 + number, 70_000 + number, follow_symlinks=False)
    send(pair, tree)
    assert trees.look(pair.destination / "tree", owner=True)[b""].owner == (0, 0)
    sent = send(pair, tree, "--owner", receiver=("--allow-privileged",))
    assert trees.differences(tree, pair.destination / "tree", owner=True) == []
    assert sent["unchecked_bytes"] == sent["bytes"]


def unprivileged() -> tuple[str, ...]:
    """Return the command under which root may not read what it is not allowed to."""
    if os.geteuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv takes root's right to read everything: it is not there")
    return (
        "setpriv",
        "--bounding-set=-dac_override,-dac_read_search",
        "--inh-caps=-dac_override,-dac_read_search",
        "--",
    )


def test_what_can_not_be_read_is_told_and_everything_else_is_there(pair: Pair) -> None:
    tree = trees.many(pair.source / "tree", 300)
    secret = trees.write(tree / "secret\n", b"secret", mode=0)
    os.link(secret, tree / "zz another name")
    hollow = trees.sparse(tree / "hollow", 300 * KIB, (0, b"x"))
    os.link(hollow, tree / "hollow too")
    hollow.chmod(0)
    large = trees.write(tree / "large", os.urandom(200 * KIB), mode=0)
    closed = trees.write(tree / "closed" / "in it", b"x").parent
    listable = trees.write(tree / "listable" / "in it", b"x").parent
    closed.chmod(0o300)
    listable.chmod(0o444)
    try:
        receiver = pair.receiver("--once")
        sender = pair.start(
            "sender", tree, "--to", pair.address(receiver), "--chunk-size", "8KiB", under=unprivileged()
        )
        unread = (secret, tree / "zz another name", hollow, tree / "hollow too", large, closed, listable / "in it")
        reasons = falls_short(sender, *unread)
        assert all("ermission denied" in reason or "another name" in reason for reason in reasons)
        assert receiver.falls_short()["files"] == sender.result["files"] == 300
    finally:
        closed.chmod(0o755)
        listable.chmod(0o755)
    (pair.destination / "tree" / "listable").chmod(0o755)
    left_out = [os.fsencode(path.relative_to(tree)) for path in unread]
    assert trees.differences(tree, pair.destination / "tree", *left_out) == []


def test_more_special_files_than_are_listed_and_one_that_can_not_be_read(pair: Pair) -> None:
    tree = trees.write(pair.source / "tree" / "a", b"a").parent
    for number in range(120):
        os.mkfifo(tree / f"fifo {number}")
    secret = trees.write(tree / "secret", b"secret", mode=0)
    receiver = pair.receiver("--once")
    sender = pair.start("sender", tree, "--to", pair.address(receiver), under=unprivileged())
    sender.falls_short()
    assert str(secret) in sender.result["error"]["message"]
    assert sender.result["skipped_kinds"] == {"unreadable": 1, "special": 120}
    assert receiver.falls_short()["skipped_kinds"] == sender.result["skipped_kinds"]
    assert str(secret) in [entry["path"] for entry in sender.result["skipped"]]


def test_files_that_do_not_tell_their_size_are_skipped_and_never_empty(pair: Pair) -> None:
    tree = trees.write(pair.source / "tree" / "file", b"file").parent
    pseudo = Path("/proc/sys/kernel/random")
    left_out = sorted(pseudo.iterdir())
    receiver = pair.receiver("--once")
    sender = pair.start("sender", tree, pseudo, "--to", pair.address(receiver))
    for reason in falls_short(sender, *left_out):
        assert "its size is not known before it is read" in reason
        assert "sender -" in reason
    assert sender.result["skipped_kinds"] == receiver.falls_short()["skipped_kinds"] == {"unreadable": len(left_out)}
    assert pair.received() == ["random", "tree"]
    assert list((pair.destination / "random").iterdir()) == []


@pytest.mark.parametrize("path", ["/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled"])
def test_a_file_that_does_not_tell_its_size(pair: Pair, path: str) -> None:
    receiver = pair.receiver("--once")
    message = pair.sender(Path(path), pair.address(receiver)).fails(4, "source")
    assert path in message
    assert "sender -" in message
    assert pair.received() == []


# ---------------------------------------------------------------------------------------------- sources that change


@pytest.fixture
def living(pair: Pair) -> Path:
    """Return a tree of several parts, in which a small and a large file are going to change."""
    tree = trees.many(pair.source / "tree", 1500)
    trees.write(tree / "0000" / "small", b"small" * 100)
    trees.write(tree / "0000" / "large", os.urandom(400 * KIB))
    return tree


@pytest.fixture
def one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no file listed again: what was withdrawn stays so."""
    monkeypatch.setattr("sender.second_tries.TRIES_MAX", 0)


def left_behind(transfer: Transfer, *paths: Path) -> str:
    """Assert that these, and no others, were left out of what is there; return why the first was."""
    assert {str(path) for path in paths} == {each.path for each in transfer.counters.skipped}
    error = transfer.counters.shortfall()
    assert error is not None
    assert error.exit_code == 5
    return transfer.counters.skipped[0].reason


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.rename(path)


def become(path: Path, make: Callable[[Path], object]) -> None:
    path.rename(path.with_name("other"))
    make(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "grows": append,
    "shrinks": lambda path: os.truncate(path, 100),
    "is emptied": lambda path: os.truncate(path, 0),
    "is replaced": replace,
    "vanishes": os.unlink,
    "is touched": os.utime,
    "becomes a directory": lambda path: become(path, os.mkdir),
    "becomes a FIFO": lambda path: become(path, os.mkfifo),
    "becomes a symlink": lambda path: become(path, lambda path: path.symlink_to("other")),
}


@pytest.mark.usefixtures("one_try")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("name", ["small", "large"])
def test_a_file_that_changes_before_it_is_read(
    pair: Pair, living: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Path], object]
) -> None:
    receiver = pair.receiver("--once")
    path = living / "0000" / name
    expected = trees.look(living)
    with sending.once_listed(monkeypatch, lambda: change(path)):
        transfer = sending.send(living, "--to", pair.address(receiver), "--chunk-size", "8KiB", "--connections", 3)
    left_behind(transfer, path)
    received = receiver.falls_short()
    assert trees.compare(expected, trees.look(pair.destination / "tree"), b"0000/" + name.encode()) == []
    assert (received["files"], received["bytes"]) == (transfer.counters.files, transfer.counters.size_bytes)


@pytest.mark.usefixtures("one_try")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_file_that_changes_while_it_is_read(
    pair: Pair, living: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object]
) -> None:
    """What was there before stays; of the new one, nothing is."""
    receiver = pair.receiver("--once")
    path = living / "0000" / "large"
    there = trees.write(pair.destination / "tree" / "0000" / "large", b"old", mtime_ns=7)
    expected = trees.look(living)
    with sending.once_read(monkeypatch, b"large", 10, lambda: change(path)):
        transfer = sending.send(living, "--to", pair.address(receiver), "--chunk-size", "8KiB", "--connections", 3)
    left_behind(transfer, path)
    assert there.read_bytes() == b"old"
    found = trees.look(pair.destination / "tree")
    del found[b"0000/large"]
    assert trees.compare(expected, found, b"0000/large") == []
    assert receiver.falls_short()["root_digest"] == (transfer.root_digest or b"").hex()


@pytest.mark.usefixtures("one_try")
def test_the_other_names_of_a_file_that_changes_are_left_out_with_it(
    pair: Pair, living: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever part they are in."""
    path = living / "0000" / "large"
    others = [living / "0000" / "later", living / "0014" / "in another part"]
    for other in others:
        os.link(path, other)
    receiver = pair.receiver("--once")
    expected = trees.look(living)
    walked = sending.walk_ended(monkeypatch)

    def append_when_listed() -> None:
        """Change the file when every name was seen as it was before."""
        assert walked.wait(HANG)
        append(path)

    with sending.once_read(monkeypatch, b"large", 10, append_when_listed):
        transfer = sending.send(living, "--to", pair.address(receiver), "--chunk-size", "8KiB", "--connections", 3)
    left_behind(transfer, path, *others)
    left_out = [os.fsencode(each.relative_to(living)) for each in (path, *others)]
    assert trees.compare(expected, trees.look(pair.destination / "tree"), *left_out) == []
    assert receiver.falls_short()["files"] == transfer.counters.files == 1501


@pytest.mark.usefixtures("one_try")
def test_a_sparse_file_that_changes_takes_only_its_own_bytes_back(
    pair: Pair, living: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = trees.sparse(living / "hollow", 2 * MIB, (MIB, b"x" * 5000))
    receiver = pair.receiver("--once")
    with sending.once_listed(monkeypatch, lambda: append(path)):
        transfer = sending.send(living, "--to", pair.address(receiver), "--chunk-size", "8KiB")
    left_behind(transfer, path)
    assert transfer.counters.size_bytes == receiver.falls_short()["bytes"] == 1500 * 100 + 500 + 400 * KIB


@pytest.mark.usefixtures("one_try")
@pytest.mark.parametrize("size", [5000, 100 * KIB], ids=["small", "as large as a chunk"])
def test_a_file_that_changes_after_it_has_arrived_unheard(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """The connection was lost before the acknowledgement came, and what is read again is another file."""
    receiver = pair.receiver("--once", "--anonymous")
    file = trees.write(pair.source / "tree" / "file", os.urandom(size))
    content = file.read_bytes()
    trees.write(pair.source / "tree" / "other", b"other")
    with (
        Proxy(pair.address(receiver), [Cut(on="data 0", direction="down", at=OPENED_BYTES + 4)]) as proxy,
        sending.once_read(monkeypatch, b"file", 2, lambda: append(file), before=True),
    ):
        transfer = sending.send(file.parent, "--to", proxy.address, "--chunk-size", "128KiB", "--connections", 1)
    left_behind(transfer, file)
    assert receiver.falls_short()["root_digest"] == (transfer.root_digest or b"").hex()
    assert (pair.destination / "tree" / "file").read_bytes() == content
    assert (pair.destination / "tree" / "other").read_bytes() == b"other"


@pytest.mark.usefixtures("one_try")
@pytest.mark.parametrize("name", ["small", "large"])
def test_a_held_file_that_changes_while_it_is_compared(
    pair: Pair, living: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    send(pair, living)
    expected = trees.look(pair.destination / "tree")
    receiver = pair.receiver("--once")
    path = living / "0000" / name
    with sending.once_read(monkeypatch, name.encode(), 1, lambda: append(path)):
        transfer = sending.send(living, "--to", pair.address(receiver), "--checksum", "--chunk-size", "8KiB")
    left_behind(transfer, path)
    receiver.falls_short()
    assert trees.compare(expected, trees.look(pair.destination / "tree")) == []


QUIET_AGAIN = ("grows", "shrinks", "is emptied", "is replaced", "is touched")


def differences_of_files(tree: Path, destination: Path) -> list[str]:
    """Return how they differ, but for a directory whose mtime changed with its files, after it was listed."""
    return [each for each in trees.differences(tree, destination) if not each.startswith("b'0000' is ")]


def all_there(transfer: Transfer, received: dict[str, Any], tree: Path, destination: Path) -> None:
    """Assert that all of a tree arrived as it is now, and that both ends say so."""
    assert transfer.counters.skipped == []
    assert transfer.counters.shortfall() is None
    assert differences_of_files(tree, destination) == []
    assert received["files"] == transfer.counters.files
    assert received["bytes"] == transfer.counters.size_bytes
    assert received["root_digest"] == (transfer.root_digest or b"").hex()


@pytest.mark.parametrize("change", QUIET_AGAIN)
@pytest.mark.parametrize("name", ["small", "large"])
def test_a_file_that_changed_before_it_was_read_arrives_in_the_same_run(
    pair: Pair, living: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: str
) -> None:
    receiver = pair.receiver("--once")
    with sending.once_listed(monkeypatch, lambda: CHANGES[change](living / "0000" / name)):
        transfer = sending.send(living, "--to", pair.address(receiver), "--chunk-size", "8KiB", "--connections", 3)
    all_there(transfer, receiver.succeeds(), living, pair.destination / "tree")


@pytest.mark.parametrize("change", QUIET_AGAIN)
def test_a_file_that_changed_while_it_was_read_arrives_in_the_same_run(
    pair: Pair, living: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    receiver = pair.receiver("--once")
    trees.write(pair.destination / "tree" / "0000" / "large", b"old", mtime_ns=7)
    with sending.once_read(monkeypatch, b"large", 10, lambda: CHANGES[change](living / "0000" / "large")):
        transfer = sending.send(living, "--to", pair.address(receiver), "--chunk-size", "8KiB", "--connections", 3)
    all_there(transfer, receiver.succeeds(), living, pair.destination / "tree")


def test_all_names_of_a_file_that_changed_arrive_in_the_same_run(
    pair: Pair, living: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are one file at the destination, too, beside another one that has several names."""
    path = living / "0000" / "large"
    others = [living / "0000" / "later", living / "0014" / "in another part"]
    for other in others:
        os.link(path, other)
    os.link(living / "0003" / "303", living / "0004" / "303 too")
    receiver = pair.receiver("--once")
    with sending.once_read(monkeypatch, b"large", 10, lambda: append(path)):
        transfer = sending.send(living, "--to", pair.address(receiver), "--chunk-size", "8KiB", "--connections", 3)
    all_there(transfer, receiver.succeeds(), living, pair.destination / "tree")


def test_the_other_names_of_a_file_whose_first_name_vanishes_arrive_in_the_same_run(
    pair: Pair, living: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = living / "0000" / "large"
    for other in ("later", "latest"):
        os.link(path, living / "0000" / other)
    receiver = pair.receiver("--once")
    with sending.once_listed(monkeypatch, path.unlink):
        transfer = sending.send(living, "--to", pair.address(receiver), "--chunk-size", "8KiB")
    assert "vanished" in left_behind(transfer, path)
    receiver.falls_short()
    assert differences_of_files(living, pair.destination / "tree") == []


@pytest.mark.parametrize("name", ["small", "large"])
def test_a_file_that_changes_each_time_that_it_is_read_is_skipped_once(
    pair: Pair, living: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("sender.listing.changed_files.QUIET_SECONDS", 0.01)
    path, reads = living / "0000" / name, itertools.count()

    def change(below: bytes) -> None:
        if os.path.basename(below) == name.encode():
            append(path)
            next(reads)

    receiver = pair.receiver("--once")
    expected = trees.look(living)
    with sending.before_reads(monkeypatch, os.fsencode(living), change):
        transfer = sending.send(living, "--to", pair.address(receiver), "--chunk-size", "8KiB", "--connections", 1)
    assert "changed while it was sent" in left_behind(transfer, path)
    assert next(reads) >= 1 + TRIES_MAX
    assert receiver.falls_short()["files"] == transfer.counters.files == 1501
    assert trees.compare(expected, trees.look(pair.destination / "tree"), b"0000/" + name.encode()) == []


def test_a_file_that_never_is_quiet_is_skipped_once(pair: Pair, living: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log: it is not read again while somebody writes to it."""
    monkeypatch.setattr("sender.listing.changed_files.QUIET_SECONDS", 0.01)
    path = living / "0000" / "large"
    real = Walk.look_again

    def look_again(self: Walk, item: Item) -> os.stat_result | None:
        append(path)
        return real(self, item)

    monkeypatch.setattr(Walk, "look_again", look_again)
    receiver = pair.receiver("--once")
    with sending.once_read(monkeypatch, b"large", 10, lambda: append(path)):
        transfer = sending.send(living, "--to", pair.address(receiver), "--chunk-size", "8KiB", "--connections", 3)
    left_behind(transfer, path)
    assert receiver.falls_short()["skipped_kinds"] == {"changed": 1}


@pytest.mark.parametrize("way", ["chmod", "link", "setxattr", "rename"])
def test_a_file_of_which_only_ctime_moves_while_it_is_read_arrives(
    pair: Pair, living: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """At once: what was sent is read again, and is the same."""
    path, other = living / "0000" / "large", living / "other"
    ways: dict[str, Callable[[], object]] = {
        "chmod": lambda: path.chmod(0o600),
        "link": lambda: os.link(path, other),
        "setxattr": lambda: os.setxattr(path, "user.x", b"1"),
        "rename": lambda: (path.rename(other), other.rename(path)),
    }
    content = path.read_bytes()
    receiver = pair.receiver("--once")
    monkeypatch.setattr("sender.second_tries.TRIES_MAX", 0)
    connections = 1 if way == "rename" else 3  # another connection could open the file while it has the other name
    with sending.once_read(monkeypatch, b"large", 10, ways[way]):
        transfer = sending.send(
            living, "--to", pair.address(receiver), "--chunk-size", "8KiB", "--connections", connections
        )
    assert transfer.counters.skipped == []
    assert receiver.succeeds()["root_digest"] == (transfer.root_digest or b"").hex()
    assert (pair.destination / "tree" / "0000" / "large").read_bytes() == content


@pytest.mark.parametrize("way", ["tree", "single"])
def test_a_version_with_the_same_size_and_mtime_is_never_mixed_with_the_one_before(
    pair: Pair, living: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The mtime is set back: only ctime tells, and reading again finds it."""
    path = living / "0000" / "large"

    def rewrite() -> None:
        status = path.stat()
        with path.open("r+b") as file:
            file.write(os.urandom(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    receiver = pair.receiver("--once")
    # One connection: otherwise another one may see the file before its mtime is set back.
    args = ("--to", pair.address(receiver), "--chunk-size", "8KiB", "--connections", 1)
    with sending.once_read(monkeypatch, b"large", 10, rewrite):
        if way == "single":
            with pytest.raises(TransferFailed, match="its bytes are not the same") as caught:
                sending.send(path, *args)
            assert caught.value.code is Code.SOURCE_CHANGED
            assert not (pair.destination / "large").exists()
            return
        transfer = sending.send(living, *args)
    all_there(transfer, receiver.succeeds(), living, pair.destination / "tree")


def test_one_file_in_a_directory(pair: Pair) -> None:
    """`PATH/` with a single file in it is what the protocol calls no tree, and moves like any other."""
    file = trees.write(pair.source / "top" / "file", os.urandom(100 * KIB))
    os.link(file, pair.source / "another name of it")
    send(pair, f"{file.parent}/", "--chunk-size", "8KiB")
    assert trees.look(file.parent)[b"file"] == trees.look(pair.destination)[b"file"]
    for args in ((), ("--checksum",)):
        assert send(pair, f"{file.parent}/", "--chunk-size", "8KiB", *args)["sent_bytes"] in (0, 100 * KIB)
    assert trees.look(file.parent)[b"file"] == trees.look(pair.destination)[b"file"]


def test_one_file_in_a_directory_that_changes(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    file = trees.write(pair.source / "top" / "file", os.urandom(100 * KIB))
    receiver = pair.receiver()
    with sending.once_read(monkeypatch, b"file", 2, lambda: append(file)), pytest.raises(TransferFailed) as caught:
        sending.send(f"{file.parent}/", "--to", pair.address(receiver), "--chunk-size", "8KiB")
    assert caught.value.code is Code.SOURCE_CHANGED
    assert not (pair.destination / "file").exists()


# ----------------------------------------------------------------------------------------------------- sending it again


@pytest.fixture
def known(pair: Pair) -> Path:
    """Return a tree that was sent: small files and large ones, a sparse one, links."""
    tree = trees.many(pair.source / "tree", 30)
    for number in range(4):
        trees.write(tree / f"large {number}", os.urandom(100 * KIB + number))
    hollow = trees.sparse(tree / "hollow", MIB, *[(at, b"island") for at in (0, 500 * KIB, 600 * KIB)])
    os.link(hollow, tree / "hollow too")
    os.link(tree / "large 1", tree / "large 1 too")
    (tree / "link").symlink_to("large 0")
    send(pair, tree, "--chunk-size", "8KiB")
    return tree


def test_one_changed_file_moves_alone(pair: Pair, known: Path) -> None:
    (known / "0000" / "7").write_bytes(b"changed")
    sent = send(pair, known, "--chunk-size", "8KiB")
    assert (sent["sent_bytes"], sent["bytes"] - sent["unchecked_bytes"]) == (7, 7)
    (known / "large 2").write_bytes(b"c" * 50_000)
    sent = send(pair, known, "--chunk-size", "8KiB")
    assert sent["sent_bytes"] == 50_000
    assert trees.differences(known, pair.destination / "tree") == []


def corrupt(path: Path, at: int) -> None:
    """Change a byte, and neither size nor mtime."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("end", ["source", "destination"])
def test_checksum_finds_what_size_and_mtime_do_not_tell(pair: Pair, known: Path, end: str) -> None:
    top = known if end == "source" else pair.destination / "tree"
    changed = [("0000/3", 0), ("large 0", 50_000), ("large 3", 0), ("hollow", 500 * KIB + 2)]
    for name, at in changed:
        corrupt(top / name, at)
    sent = send(pair, known, "--chunk-size", "8KiB")
    assert sent["sent_bytes"] == 0
    assert len(trees.differences(known, pair.destination / "tree")) == len(changed) + 1  # one has two names
    sent = send(pair, known, "--chunk-size", "8KiB", "--checksum")
    assert trees.differences(known, pair.destination / "tree") == []
    assert sent["unchecked_bytes"] == 0
    assert 100 + 200 * KIB < sent["sent_bytes"] < 300 * KIB
    sent = send(pair, known, "--chunk-size", "8KiB", "--checksum")
    assert (sent["sent_bytes"], sent["held_bytes"]) == (0, sent["bytes"])


def test_what_is_there_gets_modes_and_times_again(pair: Pair, known: Path) -> None:
    for name in ("0000", "0000/3", "large 0", "link"):
        path = pair.destination / "tree" / name
        os.chmod(path, 0o400) if name != "link" else None
        os.utime(path, ns=(0, path.lstat().st_mtime_ns + (name == "0000")), follow_symlinks=False)
    sent = send(pair, known)
    assert sent["sent_bytes"] == 0
    assert trees.differences(known, pair.destination / "tree") == []


@pytest.mark.parametrize("unprivileged_receiver", [False, True])
def test_what_is_read_only_or_of_another_type_is_replaced(
    pair: Pair, known: Path, *, unprivileged_receiver: bool
) -> None:
    there = pair.destination / "tree"
    (there / "0000" / "3").unlink()
    (there / "0000" / "3").symlink_to("/etc/passwd")
    (there / "large 0").unlink()
    os.mkfifo(there / "large 0")
    (there / "link").unlink()
    (there / "link").write_bytes(b"a file")
    (there / "large 2").write_bytes(b"other")
    (there / "large 2").chmod(0)
    (there / "0000").chmod(0o500)
    before = Path("/etc/passwd").read_bytes()
    under = unprivileged() if unprivileged_receiver else ()
    receiver = pair.start("receiver", "--listen", "127.0.0.1:0", "--directory", pair.destination, under=under)
    pair.start("sender", known, "--to", pair.address(receiver)).succeeds()
    assert trees.differences(known, there) == []
    assert Path("/etc/passwd").read_bytes() == before


@pytest.mark.parametrize(("name", "is_directory_there"), [("large 0", True), ("0000", False)])
def test_a_directory_is_not_replaced_by_a_file_nor_the_other_way(
    pair: Pair, known: Path, name: str, *, is_directory_there: bool
) -> None:
    """Nothing is removed that holds more than was asked for."""
    there = pair.destination / "tree" / name
    if is_directory_there:
        there.unlink()
        trees.write(there / "mine", b"mine")
    else:
        shutil.rmtree(there)
        there.write_bytes(b"mine")
    trees.write(known / "a new one", b"new")
    receiver = pair.receiver("--once")
    result = pair.sender(known, pair.address(receiver)).falls_short()
    below = [] if is_directory_there else os.listdir(known / name)
    for each in (result, receiver.falls_short()):
        assert each["skipped_kinds"] == {"declined": 1 + len(below)}
        assert name in each["skipped"][0]["path"]
    assert (pair.destination / "tree/a new one").read_bytes() == b"new"
    assert (there / "mine" if is_directory_there else there).read_bytes() == b"mine"


def test_no_replace(pair: Pair, known: Path) -> None:
    """What is there stays, whatever else is new; what is the same is no obstacle."""
    send(pair, known, receiver=("--no-replace",))
    trees.write(known / "a new one", b"new")
    send(pair, known, receiver=("--no-replace",))
    assert trees.differences(known, pair.destination / "tree") == []
    (known / "0000" / "3").write_bytes(b"changed")
    before = trees.look(pair.destination / "tree")
    receiver = pair.receiver("--no-replace")
    trees.write(known / "another new one", b"new")
    result = pair.sender(known, pair.address(receiver)).falls_short()
    assert result["skipped_kinds"] == {"existing": 1}
    assert "0000/3" in result["error"]["message"]
    assert (pair.destination / "tree/another new one").read_bytes() == b"new"
    del before[b""], before[b"0000"]
    assert not {path for path, each in before.items() if trees.look(pair.destination / "tree")[path] != each}


# -------------------------------------------------------------------------------------------------------- interruptions


@pytest.fixture
def long(pair: Pair) -> Path:
    """Return a tree that takes two seconds at SLOW."""
    tree = trees.many(pair.source / "tree", 1200, 500)
    for number in range(4):
        trees.write(tree / f"large {number}", os.urandom(300 * KIB))
    return tree


SLOW = ("--rate-limit", "1MiB/s", "--connections", 3, "--chunk-size", "16KiB")


def test_a_killed_sender_goes_on_where_it_was(pair: Pair, long: Path) -> None:
    receiver = pair.receiver()
    sender = pair.sender(long, pair.address(receiver), *SLOW)
    until(lambda: list(pair.destination.glob(".filestreamer/*.tree")), "a tree is staged")
    until(
        lambda: sum(each.st_size for each in statuses(pair.destination / ".filestreamer")) > 100 * KIB,
        "100 KiB are staged",
    )
    sender.end()
    sent = pair.sender(long, pair.address(receiver), *SLOW[2:]).succeeds()
    assert 0 < sent["sent_bytes"] < sent["bytes"]
    assert sent["sent_bytes"] + sent["held_bytes"] + sent["unchecked_bytes"] == sent["bytes"]
    assert trees.differences(long, pair.destination / "tree") == []
    assert [path for path in staged(pair) if path.name != "token"] == []


def staged(pair: Pair) -> list[Path]:
    """Return the files in staging; what goes while this looks is none."""
    walked = os.walk(pair.destination / ".filestreamer")
    return [Path(top, name) for top, _, names in walked for name in names]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_receiver_that_is_started_anew_gets_the_rest(pair: Pair, long: Path, number: signal.Signals) -> None:
    receiver = pair.receiver()
    address = pair.address(receiver)
    sender = pair.sender(long, address, *SLOW)
    until(lambda: len(staged(pair)) > 50, "50 files are staged")
    receiver.signal(number)
    receiver.wait()
    again = pair.receiver("--once", listen=address)
    sender.succeeds()
    again.succeeds()
    assert sender.events("transfer_begins_again")
    assert trees.differences(long, pair.destination / "tree") == []


@pytest.mark.parametrize(
    "plan",
    [
        [Reset(on="control", at=3000, nth=None)],
        [Cut(on="control", at=40_000)],
        # Before Complete: an end of the stream behind that says that the sender has it. Where control is lost before
        # data connection 1 has moved anything, the sender opens that one anew: its second one is reset as well.
        [
            Cut(on="control", direction="down", at=OPENED_BYTES + 90),
            *(Reset(on="data 1", at=50_000, nth=nth) for nth in (0, 1)),
        ],
        [Reset(on="data *", at=30_000, nth=0), Reset(on="data 0", at=90_000, nth=1)],
        [Cut(on="data 0", direction="down", at=OPENED_BYTES + 54), Reset(on="control", at=60_000)],
        [FlipPayload(on="data *", chunk=1, at=20), FlipPayload(on="data *", chunk=9, at=300)],
    ],
    ids=["control again and again", "control", "both", "data", "acknowledgements", "damage"],
)
def test_connections_that_are_cut(pair: Pair, long: Path, plan: list[Fault]) -> None:
    """Even where control never lasts: each time it gets further."""
    receiver = pair.receiver("--once")
    with Proxy(pair.address(receiver), plan) as proxy:
        if plan[0].nth is None:
            pair.sender(long, proxy.address, *SLOW, "--give-up-after", 3).fails(1, "timeout")
            pair.sender(long, pair.address(receiver), *SLOW[2:]).succeeds()
        else:
            sent = pair.sender(long, proxy.address, *SLOW).succeeds()
            assert sent["reconnects"] or sent["resent_chunks"] or len(plan) == 1
    assert receiver.wait(HANG) == 0
    assert receiver.results[-1]["status"] == "complete"  # a sender that gave up may have come as far as to offer
    assert trees.differences(long, pair.destination / "tree") == []


def test_busy(pair: Pair, long: Path) -> None:
    """Two senders of one tree: the second waits for the first, and then moves nothing; or gives up."""
    receiver = pair.receiver()
    first = pair.sender(long, pair.address(receiver), *SLOW)
    receiver.wait_for("transfer_started")
    first.process.send_signal(signal.SIGSTOP)
    try:
        patient = pair.sender(long, pair.address(receiver))
        gives_up_busy(lambda seconds: pair.sender(long, pair.address(receiver), "--give-up-after", seconds))
    finally:
        first.process.send_signal(signal.SIGCONT)
    first.succeeds()
    assert patient.succeeds()["sent_bytes"] == 0
    assert trees.differences(long, pair.destination / "tree") == []


@pytest.mark.parametrize("tries", [0, TRIES_MAX], ids=["once", "again"])
@pytest.mark.parametrize("is_restarted", [False, True], ids=["connections are lost", "the receiver is killed"])
def test_a_living_tree_over_a_bad_network(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, seed: int, *, is_restarted: bool, tries: int
) -> None:
    """Files change while they are read, connections are lost: each file arrives as it was, or is told.

    Each changes once: where they are tried again, all arrive.
    """
    monkeypatch.setattr("sender.second_tries.TRIES_MAX", tries)
    rng = random.Random(seed)
    tree = trees.many(pair.source / "tree", 2500, 200)
    for number in range(8):
        trees.write(tree / f"{number:04}" / "large", rng.randbytes(200 * KIB))
        os.link(tree / f"{number:04}" / "large", tree / f"{number:04}" / "too")
    expected = trees.look(tree)
    changing = set(rng.sample([path for path, each in expected.items() if each.kind == "file"], 60))
    left = {path: rng.randrange(1, 4) for path in changing}
    lock = threading.Lock()
    top = os.fsencode(tree) + b"/"
    reads = 0

    def about_to_read(path: bytes) -> None:
        nonlocal reads
        with lock:
            reads += 1
            left[path] = left.get(path, 0) - 1
            if left[path] == 0 and path in changing:
                append(Path(os.fsdecode(top + path)))
            is_kill = is_restarted and reads == 700
        if is_kill:
            receivers[-1].signal(signal.SIGKILL)
            receivers[-1].wait()
            receivers.append(pair.receiver("--anonymous", listen=address))

    receivers = [pair.receiver("--anonymous")]
    address = pair.address(receivers[-1])
    plan: list[Fault] = [
        Reset(on="control", at=30_000),
        Reset(on="control", direction="down", at=200, nth=1),
        Reset(on="data 0", at=40_000),
        Cut(on="data 1", direction="down", at=OPENED_BYTES + 20),
        Reset(on="data 2", at=100_000, nth=1),
    ]
    with Proxy(address, plan) as proxy, sending.before_reads(monkeypatch, top, about_to_read):
        transfer = sending.send(tree, "--to", proxy.address, "--chunk-size", "8KiB", "--connections", 3)
    monkeypatch.undo()
    receivers[-1].wait_for_results()
    missing = {os.fsencode(each.path)[len(top) :] for each in transfer.counters.skipped}
    found = trees.look(pair.destination / "tree")
    assert missing <= changing | {path[:-5] + b"too" for path in changing if path.endswith(b"/large")}
    # A file that changed after it had arrived is there as it was then; one that was listed anew, as it is now.
    now = trees.look(tree)
    stays = {path for path in missing if path in found}
    assert (
        trees.compare(
            {path: now[path] if found.get(path) == now[path] else each for path, each in expected.items()},
            {path: each for path, each in found.items() if path not in missing},
            *missing,
        )
        == []
    )
    assert all(found[path]._replace(names=()) == expected[path]._replace(names=()) for path in stays)
    assert not missing if tries else missing or is_restarted

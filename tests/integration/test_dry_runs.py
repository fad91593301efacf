"""`sender --dry-run --to`: the receiver says how each entry stands there, and nothing at all is written."""

import json
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.digests import root_digest, segment_hasher, update_with_zeros
from filestreamer.wire.errors import Code
from receiver.disk.paths import staging_key
from tests.support import disks, trees
from tests.support.peer import RawReceiver, RawSender, Sample
from tests.support.services import Pair, Service
from tests.support.waiting import until


class Answer(NamedTuple):
    """What a dry run printed."""

    lines: dict[str, str]
    """How each entry stands, by its path (and reason)."""
    result: dict[str, Any]

    @property
    def exit_code(self) -> int:
        return int(self.result["exit_code"])


def ask(pair: Pair, receiver: Service, *args: object) -> Answer:
    """Ask a receiver, which must not change anything in its directory meanwhile."""
    before = state(pair.destination)
    sender = pair.start("sender", *args, "--to", pair.address(receiver), "--dry-run")
    code = sender.wait()
    assert "Traceback" not in sender.stderr + receiver.stderr
    assert state(pair.destination) == before
    *lines, last = sender.stdout.splitlines()
    result = json.loads(last)
    assert result["exit_code"] == code
    assert (result["dry_run"], result["committed"], result["sent_bytes"]) == (True, False, 0)
    return Answer({line[36:]: line[:9].rstrip() for line in lines}, result)


def state(root: Path) -> dict[str, Any]:
    """Everything that a write below a directory would change, the directory included."""
    found = {}
    for directory, names, files in os.walk(root):
        for path in [Path(directory), *(Path(directory, name) for name in [*names, *files])]:
            status = path.lstat()
            found[str(path)] = (status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return found


@pytest.fixture
def tree(pair: Pair) -> Path:
    """Make a tree, of which something lies at the destination: the same, another one, an obstacle, more."""
    tree = pair.source / "tree"
    for name in ("same", "other", "blocked", "sub/new", "below/file"):
        trees.write(tree / name, name.encode() * 3000)
    (tree / "link").symlink_to("same")
    os.link(tree / "same", tree / "twin")
    there = pair.destination / "tree"
    trees.write(there / "same", b"same" * 3000)
    os.utime(there / "same", ns=(0, (tree / "same").stat().st_mtime_ns))
    os.link(there / "same", there / "twin")
    trees.write(there / "other", b"older")
    (there / "blocked").mkdir()
    trees.write(there / "below", b"no directory")
    trees.write(there / "extra/one", b"1")
    return tree


STANDING = {
    "tree": "same",
    "tree/same": "same",
    "tree/twin": "same",
    "tree/other": "differs",
    "tree/blocked: a directory has its name": "declined",
    "tree/sub": "new",
    "tree/sub/new": "new",
    "tree/below: something else has its name": "declined",
    "tree/below/file: something that is no directory leads there": "declined",
    "tree/link": "new",
}


def test_each_entry_stands_as_it_does(pair: Pair, tree: Path) -> None:
    receiver = pair.receiver()
    answer = ask(pair, receiver, tree)
    assert answer.lines == STANDING
    assert answer.exit_code == 5
    assert answer.result["error"]["code"] == "partial"
    assert answer.result["verdicts"] == {"new": 3, "differs": 1, "same": 3, "declined": 3}
    assert {entry["path"] for entry in answer.result["skipped"]} == {
        str(tree / name) for name in ("blocked", "below", "below/file")
    }
    (received,) = receiver.wait_for_results()
    assert (received["dry_run"], received["committed"]) == (True, False)


def test_what_would_succeed_is_exit_0_and_a_dry_run_is_not_the_once_of_a_receiver(pair: Pair, tree: Path) -> None:
    (pair.destination / "tree" / "blocked").rmdir()
    (pair.destination / "tree" / "below").unlink()
    receiver = pair.receiver("--once")
    answer = ask(pair, receiver, tree)
    assert (answer.exit_code, answer.result["verdicts"]) == (0, {"new": 6, "differs": 1, "same": 3})
    pair.sender(tree, pair.address(receiver)).succeeds()
    assert receiver.wait() == 0
    again = pair.receiver()
    assert set(ask(pair, again, tree).lines.values()) == {"same"}


@pytest.mark.parametrize("policy", ["--no-replace", "refuse", "skip", "newer"])
def test_what_may_not_be_replaced(pair: Pair, tree: Path, policy: str) -> None:
    receiver = pair.receiver(*(["--no-replace"] if policy == "--no-replace" else []))
    args = [] if policy == "--no-replace" else ["--existing", policy]
    answer = ask(pair, receiver, tree, *args)
    why = {"--no-replace": ": --no-replace forbids replacing it", "refuse": ": --existing refuse keeps it"}
    standing = {"skip": "left", "newer": "left"}.get(policy, "existing")
    expected = {**STANDING, "tree/other" + why.get(policy, ""): standing}
    if policy in why:
        del expected["tree/other"]
    assert answer.lines == expected
    assert answer.result["verdicts"][standing] == 1


def test_further_names_of_a_file_that_is_left_can_not_be_made(pair: Pair) -> None:
    tree = pair.source / "tree"
    trees.write(tree / "a", b"content")
    os.link(tree / "a", tree / "b")
    trees.write(pair.destination / "tree" / "a", b"older")
    receiver = pair.receiver()
    answer = ask(pair, receiver, tree, "--existing", "skip")
    why = "it is another name of a file that was left as it is (--existing)"
    assert answer.lines == {"tree": "same", "tree/a": "left", f"tree/b: {why}": "declined"}
    sent = pair.sender(tree, pair.address(receiver), "--existing", "skip").falls_short()
    assert (answer.exit_code, answer.result["skipped_kinds"]) == (5, sent["skipped_kinds"])
    assert receiver.wait_for_results(1)[0]["bytes"] == answer.result["bytes"]


@pytest.mark.parametrize("existing", ["skip", "newer", "refuse"])
def test_names_of_one_file_that_are_equal_files_there(pair: Pair, existing: str) -> None:
    """As `cp` and `rsync -a` leave them: where nothing is replaced, they are what they should be."""
    tree, there = pair.source / "tree", pair.destination / "tree"
    trees.write(tree / "a", b"content")
    os.link(tree / "a", tree / "b")
    there.mkdir()
    for name in "ab":
        shutil.copy2(tree / name, there / name)
    receiver = pair.receiver()
    answer = ask(pair, receiver, tree, "--existing", existing)
    assert answer.lines == {"tree": "same", "tree/a": "same", "tree/b": "same"}
    sent = pair.sender(tree, pair.address(receiver), "--existing", existing).succeeds()
    assert (sent["left_files"], sent["sent_bytes"]) == (0, 0)
    assert not (there / "a").samefile(there / "b")


def test_checksum_verifies_two_sides(pair: Pair) -> None:
    """Only bytes count: a file of another time is the same, one of the same size and time is not."""
    tree = pair.source / "tree"
    for name, size in {"small": 5, "large": 100_000, "touched": 70_000, "empty": 0}.items():
        trees.write(tree / name, os.urandom(size))
    receiver = pair.receiver()
    pair.sender(tree, pair.address(receiver)).succeeds()
    args = (tree, "--checksum", "--chunk-size", "8KiB")
    there = pair.destination / "tree"
    os.utime(there / "touched", ns=(0, 0))
    same = ask(pair, receiver, *args)
    assert (same.exit_code, same.result["verdicts"]) == (0, {"same": 5})
    for name in ("small", "large"):
        before = (there / name).stat()
        with (there / name).open("r+b") as file:
            file.seek(before.st_size - 1)
            last = file.read(1)
            file.seek(before.st_size - 1)
            file.write(bytes([last[0] ^ 1]))
        os.utime(there / name, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ask(pair, receiver, tree).exit_code == 0
    differs = ask(pair, receiver, *args)
    assert (differs.exit_code, differs.result["error"]["code"]) == (5, "different")
    assert differs.lines["tree/small"] == differs.lines["tree/large"] == "differs"
    assert differs.result["verdicts"] == {"differs": 2, "same": 3}
    single = ask(pair, receiver, tree / "small", "--checksum")
    assert (single.exit_code, single.lines) == (5, {"small": "new"})


def test_what_would_be_removed(pair: Pair, tree: Path) -> None:
    for obstacle in ("blocked", "extra/kept.tmp"):
        (pair.destination / "tree" / obstacle).mkdir(exist_ok=True)
    (pair.destination / "tree" / "blocked").rmdir()
    (pair.destination / "tree" / "below").unlink()
    receiver = pair.receiver("--allow-delete")
    answer = ask(pair, receiver, tree, "--delete", "--exclude", "*.tmp")
    assert {path: how for path, how in answer.lines.items() if "extra" in path} == {"tree/extra/one": "extra"}
    assert answer.exit_code == 0
    assert ask(pair, receiver, tree, "--delete").result["verdicts"]["extra"] == 3
    assert ask(pair, receiver, tree, "--delete", "--checksum").exit_code == 5
    (pair.destination / "tree" / "sub").symlink_to("extra")
    in_the_way = ask(pair, receiver, tree, "--delete")
    assert in_the_way.exit_code == 5
    assert in_the_way.result["warnings"] == ["nothing would be removed (--delete), as not everything could be moved"]
    refused = ask(pair, pair.receiver(), tree, "--delete")
    assert (refused.exit_code, refused.result["error"]["code"], refused.lines) == (3, "policy", {})


def test_one_file(pair: Pair) -> None:
    file = pair.file("file", 1000)
    receiver, keeper = pair.receiver(), pair.receiver("--no-replace")
    assert ask(pair, receiver, file).lines == {"file": "new"}
    pair.sender(file, pair.address(receiver)).succeeds()
    assert ask(pair, keeper, file).lines == {"file": "same"}
    for existing in ("newer", "skip", "refuse"):
        assert ask(pair, receiver, file, "--existing", existing).lines == {"file": "same"}
        sent = pair.sender(file, pair.address(receiver), "--existing", existing).succeeds()
        assert (sent["unchecked_bytes"], sent["left_files"]) == (1000, 0)
    os.utime(file, ns=(0, 0))
    assert ask(pair, receiver, file).lines == {"file": "differs"}
    answer = ask(pair, keeper, file)
    assert (answer.exit_code, answer.result["error"]["code"]) == (3, "exists")
    (pair.destination / "dir").mkdir()
    answer = ask(pair, receiver, file, "--as", "dir")
    assert (answer.exit_code, answer.result["error"]["code"]) == (4, "destination")


@pytest.fixture
def small(pair: Pair) -> Iterator[Path]:
    with disks.disk(pair.destination, 1 << 20) as mounted:
        yield mounted


def test_no_space(pair: Pair, small: Path) -> None:
    trees.write(pair.source / "tree" / "a", b"")
    with (pair.source / "tree" / "b").open("wb") as file:
        file.write(bytes(2 << 20))
    answer = ask(pair, pair.receiver(), pair.source / "tree")
    assert (answer.exit_code, answer.result["error"]["code"]) == (4, "no_space")
    assert set(answer.lines.values()) == {"new"}


def test_what_is_replaced_makes_room(pair: Pair, small: Path) -> None:
    """The files of a tree are put in place one by one, and each frees what it replaces: the transfer succeeds."""
    tree = pair.source / "tree"
    for name in "abcd":
        trees.write(small / "tree" / name, bytes(200 << 10))
        trees.write(tree / name, bytes(180 << 10))
    receiver = pair.receiver()
    answer = ask(pair, receiver, tree)
    assert (answer.exit_code, answer.result["verdicts"]) == (0, {"same": 1, "differs": 4})
    trees.write(tree / "e", bytes(400 << 10))
    answer = ask(pair, receiver, tree)
    assert (answer.exit_code, answer.result["error"]["code"]) == (4, "no_space")


def test_what_an_interrupted_run_left_is_not_needed_again(pair: Pair, small: Path) -> None:
    file = pair.file("file", 800 << 10)
    receiver = pair.receiver()
    sender = pair.sender(file, pair.address(receiver), "--chunk-size", "64KiB", "--rate-limit", "400KiB/s")
    ledger = small / ".filestreamer" / f"{staging_key(b'file')}.ledger"
    until(lambda: ledger.exists() and ledger.stat().st_size > 400, "some chunks")
    sender.signal(signal.SIGTERM)
    sender.wait()
    receiver.wait_for_results()
    assert shutil.disk_usage(small).free < 800 << 10
    answer = ask(pair, receiver, file)
    assert (answer.exit_code, answer.lines) == (0, {"file": "new"})


@pytest.fixture
def whole_seconds(pair: Pair) -> Iterator[Path]:
    with disks.ext4_of_whole_seconds(pair.destination) as mounted:
        yield mounted


def test_times_are_compared_as_the_destination_keeps_them(pair: Pair, whole_seconds: Path) -> None:
    tree = pair.source / "tree"
    trees.write(tree / "file", b"content", mtime_ns=1_700_000_001_123_456_789)
    receiver = pair.receiver("--once")
    pair.sender(tree, pair.address(receiver)).succeeds()
    assert (whole_seconds / "tree" / "file").stat().st_mtime_ns == 1_700_000_001_000_000_000
    again = pair.receiver()
    assert set(ask(pair, again, tree).lines.values()) == {"same"}


def test_bytes_are_compared_where_no_file_can_tell_what_becomes_of_times(pair: Pair, whole_seconds: Path) -> None:
    """As on a destination that keeps no times. A dry run makes no file there that has a name."""
    tree, there = pair.source / "tree", whole_seconds / "tree"
    for name, content in (("equal", b"content"), ("other", b"another")):
        trees.write(tree / name, content)
        trees.write(there / name, b"content", mtime_ns=1_600_000_000_000_000_000)
    receiver = pair.receiver()
    receiver.wait_for("listening")
    subprocess.run(["chattr", "+i", str(there)], check=True)  # nor one that has none
    answer = ask(pair, receiver, tree)
    reason = "its directory can't be written"
    assert answer.lines == {"tree": "same", "tree/equal": "same", f"tree/other: {reason}": "declined"}
    assert answer.exit_code == 5


def test_a_read_only_destination_is_named_as_that(pair: Pair, small: Path) -> None:
    tree = pair.source / "tree"
    trees.write(tree / "file", b"content")
    trees.write(small / "tree" / "file", b"older")
    receiver = pair.receiver()
    receiver.wait_for("listening")
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    answer = ask(pair, receiver, tree)
    assert (answer.exit_code, answer.result["error"]["code"]) == (4, "destination")
    assert "ead-only" in answer.result["error"]["message"]


def test_many_parts(pair: Pair) -> None:
    tree = trees.many(pair.source / "tree", 5000)
    receiver = pair.receiver()
    assert ask(pair, receiver, tree).result["verdicts"] == {"new": len(trees.look(tree))}
    pair.sender(tree, pair.address(receiver)).succeeds()
    assert ask(pair, receiver, tree, "--checksum").result["verdicts"] == {"same": len(trees.look(tree))}


def test_a_receiver_in_which_nobody_is_to_be_asked(pair: Pair) -> None:
    file = pair.file("file", 1000)
    receiver = pair.start("receiver", "--listen", "127.0.0.1:0", "--output-file", "/dev/null")
    answer = ask(pair, receiver, file)
    assert (answer.exit_code, answer.result["error"]["code"]) == (3, "policy")


def test_the_receiver_cannot_be_reached(pair: Pair) -> None:
    file = pair.file("file", 1000)
    sender = pair.start("sender", file, "--to", "127.0.0.1:1", "--dry-run", "--give-up-after", "0.5")
    assert sender.fails(1, "timeout")


def test_a_peer_that_sends_a_chunk_or_comes_again_is_refused(pair: Pair) -> None:
    sample = Sample.random(1, 100, 1000)
    receiver = pair.receiver()
    asked = sample.offer._replace(dry_run=True)
    with RawSender(pair.address(receiver)) as peer:
        control = peer.control()
        control.send(asked, m.ManifestPart(0, (sample.entry,), True))
        assert control.expect(m.Verdicts).entries == (m.EntryVerdict(m.Standing.NEW, 0),)
        data = peer.data()
        data.send_raw(sample.chunk(0))
        (abort,) = data.rest()
        assert isinstance(abort, m.Abort)
        assert abort.code is Code.PROTOCOL
    with RawSender(pair.address(receiver)) as peer:
        control = peer.control()
        control.send(asked, m.ManifestPart(0, (sample.entry,), True))
        control.expect(m.Verdicts)
        control.send(m.Finish(0, root_digest([])))
        assert control.expect(m.Complete) == m.Complete(False)
    assert pair.received() == []


@pytest.mark.parametrize("end", ["a signal", "the receiver"])
def test_what_ends_the_comparison_of_a_large_file(pair: Pair, end: str) -> None:
    """The digests of 1 TiB come in one message, and it takes minutes to compare them: nobody has to wait for that."""
    file = pair.file("large", 0)
    os.truncate(file, limits.DIGESTS_PER_HELD * limits.GIB // 2)
    with RawReceiver() as receiver:
        to = ("--to", receiver.address, "--chunk-size", limits.GIB // 2)
        sender = pair.start("sender", file, *to, "--dry-run", "--checksum")
        control, _, _ = receiver.control()
        hole = segment_hasher()
        update_with_zeros(hole, limits.GIB // 2)
        control.send(m.Held(0, 0, hole.digest() * limits.DIGESTS_PER_HELD, final=True))
        while not control.expect(m.Progress).rehashed_bytes:
            pass
        if end == "a signal":
            sender.signal(signal.SIGTERM)
            assert control.expect(m.Abort).code is Code.SHUTTING_DOWN
            assert sender.wait() == 128 + signal.SIGTERM
        else:
            control.send(m.Abort(Code.DESTINATION, "the disk does not answer"))
            control.end_writing()
            assert sender.fails(4, "destination").endswith("the disk does not answer")


# --- wherever the list goes


@pytest.fixture(params=["a receiver", "nobody"])
def asked(request: pytest.FixtureRequest, pair: Pair) -> tuple[str, ...]:
    """Return the arguments of a dry run that asks a receiver, or nobody."""
    return ("--to", pair.address(pair.receiver()), "--dry-run") if request.param == "a receiver" else ("--dry-run",)


def test_a_list_goes_to_a_pipe_that_does_not_block_as_a_whole(pair: Pair, asked: tuple[str, ...]) -> None:
    """Another program that has the pipe open can make it so; this one reads nothing until the pipe is full."""
    for number in range(2000):
        trees.write(pair.source / "tree" / f"{number:040}", b"")
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with open(reader, "rb") as reads, open(writer, "wb") as writes:
        sender = pair.start("sender", pair.source / "tree", *asked, stdout=writes)
        until(lambda: sender.poll() is not None or not select.select([], [writer], [], 0)[1], "the pipe is full")
        writes.close()
        listed = [line for line in reads if not line.startswith(b"{")]
    assert sender.wait() == 0
    assert [line[-41:] for line in listed[1:]] == [b"%040d\n" % number for number in range(2000)]


def test_a_list_that_nobody_can_get(pair: Pair, asked: tuple[str, ...]) -> None:
    under = ("sh", "-c", 'exec "$0" "$@" >&-')
    sender = pair.start("sender", pair.file("f", 10), *asked, under=under)
    assert sender.wait() == 0
    assert "Traceback" not in sender.stderr


def test_a_list_with_names_that_the_encoding_has_not(pair: Pair, asked: tuple[str, ...]) -> None:
    sender = pair.start("sender", pair.file("\u754c", 10), *asked, env={"PYTHONIOENCODING": "latin-1"})
    assert sender.wait() == 0
    assert sender.stdout.splitlines()[0].endswith(" \\u754c")

"""Shards of a tree: several senders walk one source, and each moves its own entries, and its own chunks of large files.

What a user is promised: whatever order they run in, whichever is lost and run again, and whoever is restarted in
between, the tree is there once all have finished, and only the last one says `committed`; and if the source changes
between their walks, one of them says so.
"""

import itertools
import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from filestreamer.wire.limits import KIB
from tests.integration.test_trees import unprivileged
from tests.support import trees
from tests.support.services import Pair, Service, inject
from tests.support.waiting import until

CHUNK_SIZE = 8 * KIB
JOB = "move-1"


def write_tree(top: Path, seed: int = 7) -> Path:
    """Make a tree with files of no, one, and many segments, links of both kinds, holes, and a closed directory."""
    chance = random.Random(seed)
    for number in range(40):
        trees.write(top / f"d{number % 5}" / f"small-{number}", chance.randbytes(chance.randrange(3 * KIB)))
    for number in range(6):
        trees.write(top / "large" / f"{number}", chance.randbytes(chance.randrange(CHUNK_SIZE, 12 * CHUNK_SIZE)))
    trees.sparse(top / "holes", 30 * CHUNK_SIZE, (9 * CHUNK_SIZE, b"here"), (29 * CHUNK_SIZE, b"there"))
    trees.write(top / "d0" / "empty", b"")
    (top / "d0" / "nothing").mkdir()
    (top / "d1" / "link").symlink_to("../d0/empty")
    os.link(top / "large" / "0", top / "d2" / "another name of a large file")
    os.link(top / "d3" / "small-3", top / "d3" / "another name")
    for directory in ("d4", "large"):
        (top / directory).chmod(0o555)
    for path in sorted(top.rglob("*"), reverse=True):
        if path.is_dir():
            os.utime(path, ns=(10**18, 10**18 + len(path.name)))
    return top


@pytest.fixture
def tree(pair: Pair) -> Path:
    return write_tree(pair.source / "tree")


def shard(pair: Pair, to: str, index: int, count: int, *args: object, job: str = JOB) -> Service:
    """Start the sender of one shard."""
    path = pair.source / "tree"
    size = ("--chunk-size", CHUNK_SIZE, "--connections", 2)
    return pair.sender(path, to, "--shard", f"{index}/{count}", "--job", job, *size, *args)


def done(sender: Service, code: int = 0) -> dict[str, Any]:
    """Wait for the end of a shard with this exit code; return its result."""
    assert sender.wait() == code, sender.stderr
    assert "Traceback" not in sender.stderr
    return sender.result


def ends_well(sender: Service, *, committed: bool) -> dict[str, Any]:
    """Wait for exit 0; return the result."""
    result = done(sender)
    assert (result["status"], result["committed"]) == ("complete", committed)
    return result


def has_begun(pair: Pair) -> None:
    """Wait until a shard has part of a large file in staging."""
    until(lambda: any((pair.destination / ".filestreamer").glob("*.shared")), "a share is in staging")


def size_of(tree: Path) -> tuple[int, int]:
    """Return how many files a tree has, each name of a file counted, and the bytes of all but further names."""
    files = [path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
    return len(files), sum({path.stat().st_ino: path.stat().st_size for path in files}.values())


def check_arrived(pair: Pair) -> None:
    assert trees.differences(pair.source / "tree", pair.destination / "tree") == []
    staged = [path.name for path in (pair.destination / ".filestreamer").iterdir()]
    assert [name for name in staged if not name.endswith((".job", ".pending"))] == []


# ---------------------------------------------------------------------------------------------------------- all is well


@pytest.mark.parametrize("order", list(itertools.permutations(range(3)))[:4])
def test_one_after_the_other(pair: Pair, tree: Path, order: tuple[int, ...]) -> None:
    """Each but the last says that others are missing; the last one says how much all of them moved."""
    receiver = pair.receiver()
    to = pair.address(receiver)
    results = []
    for index in order:
        results.append(ends_well(shard(pair, to, index, 3), committed=index == order[-1]))
        receiver.wait_for_results(len(results))
    check_arrived(pair)
    assert [result["job"]["shards_finished"] for result in results] == [1, 2, 3]
    files, size = size_of(tree)
    whole = results[-1]["job"]
    assert (whole["name"], whole["shard"], whole["files"]) == (JOB, f"{order[-1]}/3", files)
    assert whole["bytes"] == sum(result["bytes"] for result in results)
    assert whole["bytes"] <= size  # chunks of holes are not counted
    assert [result["job"] for result in receiver.results] == [result["job"] for result in results]


@pytest.mark.parametrize("count", [2, 13])
def test_side_by_side(pair: Pair, tree: Path, count: int) -> None:
    """More shards than connections, than most large files have chunks, and than most directories have files."""
    to = pair.address(pair.receiver())
    running = [shard(pair, to, index, count) for index in range(count)]
    results = [done(sender) for sender in running]
    assert sum(result["committed"] for result in results) == 1
    check_arrived(pair)


def test_every_oddity(pair: Pair) -> None:
    trees.every_oddity(pair.source / "tree")
    to = pair.address(pair.receiver())
    running = [shard(pair, to, index, 3) for index in range(3)]
    assert sorted(done(sender)["committed"] for sender in running) == [False, False, True]
    check_arrived(pair)


def test_many_large_files_at_a_receiver_with_little_memory(pair: Pair, tree: Path) -> None:
    """The later shards find what the first one has left of each, although most of the memory is in use."""
    for number in range(100):
        trees.write(tree / "more" / f"{number}", random.Random(number).randbytes(3 * CHUNK_SIZE))
    to = pair.address(pair.receiver("--memory-limit", "64MiB"))
    for index in range(2):
        ends_well(shard(pair, to, index, 2), committed=index == 1)
    check_arrived(pair)


@pytest.mark.parametrize("mode", [0o300, 0o600, 0o000])
def test_a_directory_that_its_mode_closes_to_the_receiver(pair: Pair, mode: int) -> None:
    """It gets that mode when all is in place."""
    closed = trees.write(pair.source / "tree" / "closed" / "large", random.Random(3).randbytes(9 * CHUNK_SIZE)).parent
    closed.chmod(mode)
    receiver = pair.start("receiver", "--listen", "127.0.0.1:0", "--directory", pair.destination, under=unprivileged())
    to = pair.address(receiver)
    for index in range(2):
        ends_well(shard(pair, to, index, 2), committed=index == 1)
    check_arrived(pair)


def test_more_shards_than_files_and_a_tree_of_nothing(pair: Pair) -> None:
    trees.write(pair.source / "tree" / "one", b"file")
    to = pair.address(pair.receiver())
    results = [done(shard(pair, to, index, 4)) for index in range(4)]
    assert [result["committed"] for result in results] == [False, False, False, True]
    assert sorted(result["files"] for result in results) == [0, 0, 0, 1]
    check_arrived(pair)


def test_several_paths(pair: Pair) -> None:
    """Files that the user names lie at the top of the destination: a shard of one of them is a tree, too."""
    files = [trees.write(pair.source / f"file-{number}", b"x" * 20_000 * number) for number in range(5)]
    to = pair.address(pair.receiver())
    args = (*files, "--to", to, "--job", JOB, "--chunk-size", CHUNK_SIZE)
    results = [done(pair.start("sender", *args, "--shard", f"{index}/3")) for index in range(3)]
    assert [result["committed"] for result in results] == [False, False, True]
    for file in files:
        assert (pair.destination / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("how", ["a list", "patterns"])
def test_a_choice_of_files(pair: Pair, tree: Path, how: str) -> None:
    (pair.source / "list").write_text("large\nd3/small-3\nd3/small-8\n")
    chosen = (
        ("--files-from", pair.source / "list") if how == "a list" else ("--include", "/large/*", "--include", "*-[38]")
    )
    to = pair.address(pair.receiver())
    results = [done(shard(pair, to, index, 3, *chosen)) for index in range(3)]
    assert [result["committed"] for result in results] == [False, False, True]
    there = {
        str(path.relative_to(pair.destination)) for path in (pair.destination / "tree").rglob("*") if path.is_file()
    }
    assert there == {*(f"tree/large/{number}" for number in range(6)), "tree/d3/small-3", "tree/d3/small-8"}
    for path in there:
        assert (pair.destination / path).read_bytes() == (pair.source / path).read_bytes()


def test_a_second_time_nothing_is_sent(pair: Pair, tree: Path) -> None:
    to = pair.address(pair.receiver())
    for index in range(3):
        done(shard(pair, to, index, 3))
    again = [ends_well(shard(pair, to, index, 3), committed=True) for index in range(3)]
    assert [result["sent_bytes"] for result in again] == [0, 0, 0]
    check_arrived(pair)


def test_checksum_compares_each_file_as_a_whole(pair: Pair, tree: Path) -> None:
    """A file that differs at one place, with the same size and mtime, is replaced whole."""
    to = pair.address(pair.receiver())
    for index in range(2):
        done(shard(pair, to, index, 2))
    spoiled = pair.destination / "tree" / "large" / "3"
    status = spoiled.stat()
    with spoiled.open("r+b") as file:
        file.write(b"????")
    os.utime(spoiled, ns=(status.st_mtime_ns, status.st_mtime_ns))
    results = [done(shard(pair, to, index, 2, "--checksum", job="compare")) for index in range(2)]
    assert sum(result["sent_bytes"] for result in results) == status.st_size
    check_arrived(pair)


@pytest.mark.parametrize("at_once", [True, False])
def test_directories_that_nobody_may_write_into(pair: Pair, tree: Path, at_once: bool) -> None:
    """Who ends while others run leaves them a way in; who comes after opens what was closed; the last closes all."""
    (tree / "d4" / "deeper").mkdir()
    for number in range(200):
        trees.write(tree / "d4" / "deeper" / f"{number}", b"%d" % number * 300)
    for directory in ("d4/deeper", "d0", "large", "."):
        (tree / directory).chmod(0o555)
    args = ("--listen", "127.0.0.1:0", "--directory", pair.destination)
    to = pair.address(pair.start("receiver", *args, under=unprivileged()))
    if at_once:
        running = [shard(pair, to, index, 4) for index in range(4)]
        assert sorted(done(sender)["committed"] for sender in running) == [False, False, False, True]
    else:
        for index in range(4):
            ends_well(shard(pair, to, index, 4), committed=index == 3)
            assert (pair.destination / "tree" / "d4" / "deeper").stat().st_mode & 0o777 == 0o555
    check_arrived(pair)


# ------------------------------------------------------------------------------------------------- shards that are lost


def test_a_shard_that_is_killed_is_run_again_alone(pair: Pair, tree: Path) -> None:
    """The others have ended before, and the receiver was restarted since: it still knows what they moved."""
    trees.write(tree / "most", random.Random(1).randbytes(300 * CHUNK_SIZE))
    receiver = pair.receiver()
    to = pair.address(receiver)
    lost = shard(pair, to, 1, 3, "--rate-limit", "100KiB/s")
    lost.wait_for("connected")
    for index in (0, 2):
        ends_well(shard(pair, to, index, 3), committed=False)
    lost.signal(signal.SIGKILL)
    lost.wait()
    receiver.signal(signal.SIGKILL)
    receiver.wait()
    assert not (pair.destination / "tree" / "most").exists()
    receiver = pair.receiver()
    last = ends_well(shard(pair, pair.address(receiver), 1, 3), committed=True)
    assert last["job"]["shards_finished"] == 3
    check_arrived(pair)


def test_a_shared_file_that_denies_its_owner_is_put_in_place_by_the_next_run(pair: Pair, tree: Path) -> None:
    """It had its mode when the receiver of the last shard was killed just before the rename."""
    for file in (tree / "holes", *(tree / "large").iterdir()):
        file.chmod(0)
    args = ("--listen", "127.0.0.1:0", "--directory", pair.destination)
    killed = pair.start("receiver", *args, under=unprivileged(), env=inject("rename", "before", path=".shared"))
    to = pair.address(killed)
    ends_well(shard(pair, to, 0, 2), committed=False)
    last = shard(pair, to, 1, 2)
    assert killed.wait() == 128 + signal.SIGKILL
    last.end()
    to = pair.address(pair.start("receiver", *args, under=unprivileged()))
    ends_well(shard(pair, to, 1, 2), committed=True)
    check_arrived(pair)


@pytest.fixture
def owned(tree: Path) -> Path:
    """Give each large file of the tree an owner of its own."""
    for number, file in enumerate((tree / "holes", *(tree / "large").iterdir())):
        os.chown(file, 1000 + number, 2000 + number)
    return tree


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_shared_file_that_was_given_away_is_put_in_place_by_the_next_run(pair: Pair, owned: Path) -> None:
    """It had its owner when the receiver of the last shard was killed just before the rename."""
    killed = pair.receiver("--allow-privileged", env=inject("rename", "before", path=".shared"))
    to = pair.address(killed)
    ends_well(shard(pair, to, 0, 2, "--owner"), committed=False)
    last = shard(pair, to, 1, 2, "--owner")
    assert killed.wait() == 128 + signal.SIGKILL
    last.end()
    to = pair.address(pair.receiver("--allow-privileged"))
    ends_well(shard(pair, to, 1, 2, "--owner"), committed=True)
    assert trees.differences(owned, pair.destination / "tree", owner=True) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize("existing", ["newer", "replace"])
def test_a_shared_file_that_was_given_away_takes_another_attempt(pair: Pair, owned: Path, existing: str) -> None:
    """To replace a file that is older, or to be copied over a boundary that only its rename shows."""
    env = inject("rename", "EXDEV", path=".shared") if existing == "replace" else {}
    old = trees.write(pair.destination / "tree" / "holes", b"old", mtime_ns=1)
    to = pair.address(pair.receiver("--allow-privileged", env=env))
    for index in range(2):
        ends_well(shard(pair, to, index, 2, "--owner", "--existing", existing), committed=index == 1)
    assert trees.differences(owned, pair.destination / "tree", owner=True) == []
    assert old.stat().st_uid >= 1000


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_shared_file_of_which_the_rename_failed_is_no_other_users(pair: Pair, owned: Path) -> None:
    """Until it is in place it is the receiver's own, and the next run puts it there."""
    receiver = pair.receiver("--allow-privileged", env=inject("rename", "EIO", path=".shared"))
    to = pair.address(receiver)
    ends_well(shard(pair, to, 0, 2, "--owner"), committed=False)
    shard(pair, to, 1, 2, "--owner").fails(4, "destination")
    assert {file.stat().st_uid for file in (pair.destination / ".filestreamer").glob("*.shared")} == {0}
    ends_well(shard(pair, to, 1, 2, "--owner"), committed=True)
    assert trees.differences(owned, pair.destination / "tree", owner=True) == []


def test_a_share_that_was_spoiled_while_nobody_ran(pair: Pair, tree: Path) -> None:
    """A restarted receiver re-hashes what others have moved: the last shard fails, as the job is not complete."""
    receiver = pair.receiver()
    ends_well(shard(pair, pair.address(receiver), 0, 2), committed=False)
    receiver.signal(signal.SIGKILL)
    receiver.wait()
    shared = max((pair.destination / ".filestreamer").glob("*.shared"), key=lambda path: path.stat().st_blocks)
    with shared.open("r+b") as file:
        start = os.lseek(file.fileno(), 0, os.SEEK_DATA)
        os.pwrite(file.fileno(), b"spoiled", start)
    to = pair.address(pair.receiver())
    assert "Run all of them again" in shard(pair, to, 1, 2).fails(4, "destination")
    ends_well(shard(pair, to, 0, 2), committed=True)
    check_arrived(pair)


def test_the_same_shard_twice(pair: Pair, tree: Path) -> None:
    """The second one waits until the first one has ended; both have moved the same."""
    trees.write(tree / "most", random.Random(1).randbytes(60 * CHUNK_SIZE))
    to = pair.address(pair.receiver())
    first = shard(pair, to, 0, 2, "--rate-limit", "200KiB/s")
    first.wait_for("connected")
    has_begun(pair)
    second = shard(pair, to, 0, 2)
    ends_well(first, committed=False)
    ends_well(second, committed=False)
    ends_well(shard(pair, to, 1, 2), committed=True)
    check_arrived(pair)


def test_a_receiver_that_takes_one_job_ends_with_the_last_shard(pair: Pair, tree: Path) -> None:
    receiver = pair.receiver("--once")
    to = pair.address(receiver)
    running = [shard(pair, to, index, 3) for index in range(3)]
    assert sorted(done(sender)["committed"] for sender in running) == [False, False, True]
    assert receiver.wait() == 0
    check_arrived(pair)


def test_what_an_earlier_shard_has_skipped_is_told_of_the_whole(pair: Pair, tree: Path) -> None:
    """The receiver that takes one job ends with exit code 5, although the last shard has skipped nothing."""
    (pair.destination / "tree" / "linked").mkdir(parents=True)
    trees.write(tree / "linked", b"in shard 0")
    os.link(tree / "linked", tree / "twin")
    receiver = pair.receiver("--once", "--job", JOB)
    to = pair.address(receiver)
    assert done(shard(pair, to, 0, 2), 5)["skipped_kinds"] == {"declined": 2}
    assert done(shard(pair, to, 1, 2))["committed"]
    assert receiver.wait() == 5
    result = receiver.results[-1]
    assert (result["exit_code"], result["skipped_files"]) == (5, 0)
    assert "2 entries were skipped by other shards" in result["error"]["message"]


# ------------------------------------------------------------------------------------------------ a source that changes


def test_a_file_that_came_between_two_walks(pair: Pair, tree: Path) -> None:
    """It may belong to the shard that has ended, and to nobody. Run again, all is right."""
    to = pair.address(pair.receiver())
    ends_well(shard(pair, to, 0, 2), committed=False)
    trees.write(tree / "late", b"late")
    refused = shard(pair, to, 1, 2)
    assert refused.wait() == 4
    assert refused.result["error"]["code"] == "source_changed"
    assert "with another --job" in refused.result["error"]["message"]
    again = shard(pair, to, 1, 2)
    assert again.wait() == 4
    ends_well(shard(pair, to, 0, 2), committed=True)
    check_arrived(pair)


def test_a_large_file_that_changed_between_two_walks(pair: Pair, tree: Path) -> None:
    """Parts of two versions are never one file."""
    to = pair.address(pair.receiver())
    ends_well(shard(pair, to, 0, 2), committed=False)
    changed = tree / "large" / "2"
    trees.write(changed, random.Random(5).randbytes(changed.stat().st_size), mtime_ns=1_700_000_000_000_000_000)
    assert shard(pair, to, 1, 2).wait() == 4
    assert not (pair.destination / "tree" / "large" / "2").exists()
    for index in range(2):
        ends_well(shard(pair, to, index, 2, job="another"), committed=index == 1)
    check_arrived(pair)


def test_a_job_that_is_complete_begins_anew(pair: Pair, tree: Path) -> None:
    to = pair.address(pair.receiver())
    for index in range(2):
        done(shard(pair, to, index, 2))
    trees.write(tree / "new", b"new")
    for index in range(2):
        ends_well(shard(pair, to, index, 2), committed=index == 1)
    check_arrived(pair)


def test_another_number_of_shards(pair: Pair, tree: Path) -> None:
    """What three shards had begun, two complete: what is in place is not sent again."""
    to = pair.address(pair.receiver())
    done(shard(pair, to, 0, 3))
    for index in range(2):
        ends_well(shard(pair, to, index, 2), committed=index == 1)
    check_arrived(pair)


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("where", [("--to", "127.0.0.1:1"), ("--listen", "127.0.0.1:0")])
def test_what_needs_a_name(pair: Pair, tree: Path, where: tuple[str, ...]) -> None:
    sender = pair.start("sender", tree, *where, "--shard", "0/2")
    assert sender.wait() == 2
    assert "--job NAME" in sender.result["error"]["message"]


@pytest.mark.parametrize(
    ("args", "says"), [(("--delete",), "run one sender without --shard"), (("--dry-run",), "--dry-run")]
)
def test_what_shards_do_not_do(pair: Pair, tree: Path, args: tuple[str, ...], says: str) -> None:
    sender = shard(pair, "127.0.0.1:1", 0, 2, *args)
    assert sender.wait() == 2
    assert says in sender.result["error"]["message"]


def test_shards_of_different_chunk_sizes(pair: Pair, tree: Path) -> None:
    trees.write(tree / "most", random.Random(1).randbytes(200 * CHUNK_SIZE))
    to = pair.address(pair.receiver())
    first = shard(pair, to, 0, 2, "--rate-limit", "200KiB/s")
    first.wait_for("connected")
    has_begun(pair)
    other = shard(pair, to, 1, 2, "--chunk-size", "16KiB")
    assert other.wait() == 3
    assert "--chunk-size" in other.result["error"]["message"]


def test_existing_files_may_stay(pair: Pair, tree: Path) -> None:
    """What differs and is left counts in each shard that has a part of it, and keeps nothing from being complete."""
    shutil.copytree(tree / "large", pair.destination / "tree" / "large")
    kept = pair.destination / "tree" / "large" / "4"
    kept.parent.chmod(0o755)
    kept.write_bytes(b"mine")
    to = pair.address(pair.receiver())
    results = [done(shard(pair, to, index, 2, "--existing", "skip")) for index in range(2)]
    assert [result["committed"] for result in results] == [False, True]
    assert kept.read_bytes() == b"mine"


def test_a_directory_in_the_way_of_a_large_file(pair: Pair, tree: Path) -> None:
    """Each shard that has a part of it says so, and everything else is there; the job is as complete as it can be."""
    (pair.destination / "tree" / "large" / "1").mkdir(parents=True)
    to = pair.address(pair.receiver())
    results = [done(shard(pair, to, index, 2), 5) for index in range(2)]
    assert [result["committed"] for result in results] == [False, True]
    assert trees.differences(tree, pair.destination / "tree", b"large/1") == ["too much: b'large/1'"]

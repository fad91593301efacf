"""What unfinished transfers left: found at start and told, discarded by age on request, never from under somebody."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import Code
from tests.integration.test_trees import unprivileged
from tests.support import trees
from tests.support.exchange import deliver
from tests.support.peer import Link, RawSender, Sample, TreeSample, acknowledged
from tests.support.services import UNIT, Pair, Service, inject, same, tree
from tests.support.staging import Staging, statuses
from tests.support.waiting import gives_up_busy, until

CHUNK = 10_000
DAY = 86_400.0
DISCARD = ("--discard-staging-after", DAY)


def left(pair: Pair, name: str, *, days_old: float, seed: int = 0) -> tuple[Path, Staging]:
    """Leave half of a file in staging, as a transfer that ended so many days ago would; return the file, too."""
    file = pair.file(name, 10 * CHUNK, seed)
    staging = Staging(pair.destination, name)
    staging.make(file, CHUNK, range(5))
    age(days_old, staging.data, staging.ledger)
    return file, staging


def age(days: float, *paths: Path) -> None:
    """Make files look as if nothing was added to them for so many days."""
    then = time.time() - days * DAY  # noqa: TID251 - file times
    for path in paths:
        os.utime(path, (then, then), follow_symlinks=False)


def there(staging: Staging) -> list[bool]:
    return [staging.data.exists(), staging.ledger.exists()]


def started(pair: Pair, *flags: object) -> Service:
    """Start a receiver; what it has to say of staging is said when it listens."""
    receiver = pair.receiver(*flags)
    receiver.wait_for("listening")
    assert "Traceback" not in receiver.stderr
    return receiver


def told(receiver: Service) -> dict[str, int]:
    """Return how many staged files it said that it found, and that it discarded."""
    events = ("staging_found", "staging_discarded")
    return {event: line["files"] for event in events for line in receiver.events(event)}


# -------------------------------------------------------------------------------------------------------------- found


def test_found_and_told(pair: Pair) -> None:
    """Without the flag nothing is removed, however old; the log says how many there are, and what to do."""
    stagings = [left(pair, f"f{days}", days_old=days)[1] for days in (0, 2, 400)]
    receiver = started(pair)
    assert told(receiver) == {"staging_found": 3}
    assert "--discard-staging-after" in receiver.events("staging_found")[0]["hint"]
    assert [there(staging) for staging in stagings] == [[True, True]] * 3


def test_what_is_found_is_resumed(pair: Pair) -> None:
    """A kept one is what it was: its half is not sent again."""
    file, _ = left(pair, "f", days_old=0.5)
    receiver = started(pair, *DISCARD, "--once")
    result = pair.sender(file, pair.address(receiver), "--chunk-size", CHUNK).succeeds()
    assert (result["held_bytes"], result["sent_bytes"]) == (5 * CHUNK, 5 * CHUNK)
    assert same(file, pair.destination / "f")


@pytest.mark.parametrize("flags", [(), DISCARD], ids=["plain", "discarding"])
def test_nothing_is_told_where_nothing_is_left(pair: Pair, flags: tuple[object, ...]) -> None:
    """A directory without staging stays as it is, to its very times."""
    (pair.destination / "mine").write_text("not yours")
    age(3, pair.destination / "mine", pair.destination)
    before = pair.destination.stat()
    receiver = started(pair, *flags)
    receiver.signal(signal.SIGTERM)
    assert receiver.wait() == 143
    assert told(receiver) == {}
    assert pair.received() == ["mine"]
    after = pair.destination.stat()
    assert (before.st_mtime_ns, before.st_mode) == (after.st_mtime_ns, after.st_mode)


# ---------------------------------------------------------------------------------------------------------- discarded


def test_discarded_by_age(pair: Pair) -> None:
    """The old go, the young stay; who was discarded sends everything, and arrives."""
    old_file, old = left(pair, "old", days_old=2)
    _, older = left(pair, "older", days_old=400)
    young_file, young = left(pair, "young", days_old=0.5)
    receiver = started(pair, *DISCARD)
    assert told(receiver) == {"staging_found": 1, "staging_discarded": 2}
    assert [there(each) for each in (old, older, young)] == [[False, False], [False, False], [True, True]]
    address = pair.address(receiver)
    assert pair.sender(old_file, address, "--chunk-size", CHUNK).succeeds()["held_bytes"] == 0
    assert pair.sender(young_file, address, "--chunk-size", CHUNK).succeeds()["held_bytes"] == 5 * CHUNK
    assert same(old_file, pair.destination / "old")
    assert pair.received() == ["old", "young"]


def test_nothing_is_left_where_everything_was_old(pair: Pair) -> None:
    for number in range(20):
        left(pair, f"f{number}", days_old=2, seed=number)
    receiver = started(pair, *DISCARD)
    assert told(receiver) == {"staging_discarded": 20}
    assert pair.received() == []


@pytest.mark.parametrize("young", ["data", "ledger"])
def test_the_younger_of_the_two_counts(pair: Pair, young: str) -> None:
    """The bytes are written before they are noted: either may be what was touched last."""
    _, staging = left(pair, "f", days_old=30)
    age(0.5, staging.data if young == "data" else staging.ledger)
    assert told(started(pair, *DISCARD)) == {"staging_found": 1}
    assert there(staging) == [True, True]


@pytest.mark.parametrize("missing", ["data", "ledger"])
def test_half_a_staging(pair: Pair, missing: str) -> None:
    """A crash may leave one without the other: it goes by the age of what there is, and leaves nothing else behind."""
    _, old = left(pair, "old", days_old=2)
    _, young = left(pair, "young", days_old=0.5)
    for staging in (old, young):
        (staging.data if missing == "data" else staging.ledger).unlink()
    receiver = started(pair, *DISCARD)
    assert told(receiver) == {"staging_found": 1, "staging_discarded": 1}
    assert there(old) == [False, False]
    assert [missing != "data", missing != "ledger"] == there(young)


def test_the_flag_in_its_other_forms(pair: Pair) -> None:
    _, staging = left(pair, "f", days_old=2)
    env = {"FILESTREAMER_RECEIVER_DISCARD_STAGING_AFTER": str(DAY)}
    pair.address(pair.receiver(env=env))
    assert there(staging) == [False, False]


@pytest.mark.parametrize("age_given", ["0", "-1", "a day", "nan", "inf"])
def test_no_age(pair: Pair, age_given: str) -> None:
    """Exit 2; nothing is removed for a slip of the pen."""
    _, staging = left(pair, "f", days_old=400)
    assert "--discard-staging-after" in pair.receiver(f"--discard-staging-after={age_given}").fails(2, "usage")
    assert there(staging) == [True, True]


def test_staging_beside_an_output_file(pair: Pair) -> None:
    """With --output-file staging is in that file's directory."""
    _, staging = left(pair, "out", days_old=2)
    flags = ("--listen", "127.0.0.1:0", "--output-file", pair.destination / "out")
    receiver = pair.start("receiver", *flags, *DISCARD)
    receiver.wait_for("listening")
    assert told(receiver) == {"staging_discarded": 1}
    assert there(staging) == [False, False]


# --------------------------------------------------------------------------------------------------- what must not go


def test_not_what_another_process_is_receiving(pair: Pair) -> None:
    """Its files look old, as on a machine whose clock was set; the lock says otherwise, and the transfer completes."""
    first = started(pair)
    sample = Sample.random(1, 10 * CHUNK, CHUNK)
    staging = Staging(pair.destination, os.fsdecode(sample.name))
    with RawSender(pair.address(first)) as peer:
        control = peer.offer(sample)
        control.expect(m.Needed)
        data = peer.data()
        deliver(data, sample, range(5))
        age(400, staging.data, staging.ledger)
        _, stale = left(pair, "stale", days_old=400)
        second = started(pair, *DISCARD)
        assert told(second) == {"staging_found": 1, "staging_discarded": 1}
        assert (there(staging), there(stale)) == ([True, True], [False, False])
        deliver(data, sample, range(5, 10))
        control.send(sample.finish)
        control.expect(m.Complete)
    assert (pair.destination / "sample.bin").read_bytes() == sample.content


def test_the_token_survives(pair: Pair) -> None:
    """It is as old as the first start; without it every sender would be locked out."""
    _, staging = left(pair, "f", days_old=400)
    token = staging.directory / "token"
    token.write_text("a token that is long enough\n")
    token.chmod(0o600)
    age(400, token)
    assert told(started(pair, *DISCARD)) == {"staging_discarded": 1}
    assert there(staging) == [False, False]
    assert token.read_text() == "a token that is long enough\n"


def test_what_is_not_ours_survives(pair: Pair) -> None:
    """Other files in the staging directory, and everything beside it."""
    _, staging = left(pair, "f", days_old=400)
    others = [staging.directory / name for name in ("notes.txt", ".data", "data", "README")]
    others += [pair.destination / name for name in ("f.data", "f.ledger", staging.data.name)]
    for path in others:
        path.write_text("mine")
        age(400, path)
    assert told(started(pair, *DISCARD)) == {"staging_discarded": 1}
    assert ["mine"] * len(others) == [path.read_text() for path in others]


TRAPS: dict[str, Callable[[Path, Path], None]] = {
    "symlink": lambda trap, outside: trap.symlink_to(outside / "precious"),
    "dangling symlink": lambda trap, outside: trap.symlink_to(outside / "missing"),
    "hard link": lambda trap, outside: os.link(outside / "precious", trap),
    "fifo": lambda trap, _: os.mkfifo(trap),
    "directory": lambda trap, _: trap.mkdir(),
    "full directory": lambda trap, _: (trap / "inside").mkdir(parents=True),
}


@pytest.mark.parametrize("which", ["data", "ledger"])
@pytest.mark.parametrize("trap", TRAPS)
def test_traps(pair: Pair, tmp_path: Path, trap: str, which: str) -> None:
    """What lies there in a staged file's place never keeps the receiver from starting, nor leads it elsewhere."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"precious content")
    _, trapped = left(pair, "trapped", days_old=400)
    place = trapped.data if which == "data" else trapped.ledger
    place.unlink()
    TRAPS[trap](place, outside)
    age(400, place)
    file, stale = left(pair, "stale", days_old=400)
    receiver = started(pair, *DISCARD)
    assert there(stale) == [False, False], "one trap keeps others from being discarded"
    assert tree(outside) == {"precious": 16}
    assert (outside / "precious").read_bytes() == b"precious content"
    pair.sender(file, pair.address(receiver)).succeeds()


@pytest.mark.parametrize("kind", ["file", "symlink"])
def test_staging_that_is_no_directory(pair: Pair, tmp_path: Path, kind: str) -> None:
    """A symlink to a directory full of what looks stale: nothing in it is looked at, and nothing removed."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    staging = pair.destination / ".filestreamer"
    key = Staging(pair.destination, "f").data.name
    (elsewhere / key).write_bytes(b"precious content")
    age(400, elsewhere / key)
    if kind == "file":
        staging.write_bytes(b"mine")
    else:
        staging.symlink_to(elsewhere)
    receiver = started(pair, *DISCARD)
    assert told(receiver) == {}
    assert tree(elsewhere) == {key: 16}
    assert pair.received() == [".filestreamer"]


# ---------------------------------------------------------------------------------------------------------------- space

MIB = 1 << 20
OFFERED = 4096 * MIB
SPACE = 64 * MIB
"""What counts as nothing beside what was offered."""


def space(pair: Pair) -> int:
    """Count the bytes that everything in the destination takes on the disk."""
    return sum(each.st_blocks * 512 for each in statuses(pair.destination))


def offer(peer: RawSender, *, type: m.EntryType = m.EntryType.FILE, shard: m.Shard | None = None) -> Link:
    """Offer far more than what follows."""
    entry = m.Entry(b"large", type, OFFERED if type is m.EntryType.FILE else 0, 0o644, 0)
    control = peer.control()
    control.send(m.Offer(MIB, shard, False, entry.size), m.ManifestPart(0, (entry,), True))
    control.expect(m.Needed)
    return control


def one_chunk(peer: RawSender, at: int = 0) -> None:
    """Send one chunk, until it is acknowledged."""
    payload = bytes([7]) * MIB
    data = peer.data()
    data.send(m.ChunkHeader(at, (m.Segment(0, at * MIB, MIB),)))
    data.send_raw(payload + segment_digest(payload))
    acknowledged(data, 1)


def tree_offer(peer: RawSender) -> Link:
    """Offer a tree with a large file."""
    control = peer.control()
    entries = (m.Entry(b"t", m.EntryType.DIRECTORY, 0, 0o755, 0), m.Entry(b"t/f", m.EntryType.FILE, OFFERED, 0o644, 0))
    control.send(m.Offer(MIB, None, False, 0), m.ManifestPart(0, entries, True))
    control.expect(m.Needed)
    return control


ENDS: dict[str, Callable[[Service, Link], None]] = {
    "the sender aborts": lambda _, control: control.send(m.Abort(Code.SHUTTING_DOWN, "enough")),
    "the receiver is ended": lambda receiver, _: receiver.signal(signal.SIGTERM),
    "the sender is gone": lambda _, control: control.reset(),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("what", ["file", "shard", "tree"])
def test_what_a_few_bytes_take(pair: Pair, what: str, end: str) -> None:
    """A part of what was offered, while the transfer is under way; and what was written, when it is not."""
    receiver = pair.receiver("--give-up-after", 0.5 * UNIT)
    with RawSender(pair.address(receiver)) as peer:
        match what:
            case "tree":
                control = tree_offer(peer)
                payload = bytes([7]) * MIB
                data = peer.data()
                data.send(m.ChunkHeader(0, (m.Segment(1, 0, MIB),)))
                data.send_raw(payload + segment_digest(payload))
                acknowledged(data, 1)
            case "shard":
                control = offer(peer, shard=m.Shard(0, 2))
                one_chunk(peer)
            case _:
                control = offer(peer)
                one_chunk(peer)
        until(lambda: space(pair) > SPACE, "more is taken than was sent")
        assert space(pair) < OFFERED // 2
        ENDS[end](receiver, control)
    receiver.wait_for("transfer_failed")
    assert MIB <= space(pair) < SPACE


def test_a_stream_that_ends_early_leaves_nothing(pair: Pair) -> None:
    receiver = pair.receiver()
    with RawSender(pair.address(receiver)) as peer:
        control = offer(peer, type=m.EntryType.STREAM)
        one_chunk(peer)
        control.send(m.Abort(Code.SHUTTING_DOWN, "enough"))
        control.end_writing()
        receiver.wait_for("transfer_failed")
    until(lambda: pair.received() == [], "nothing is left")


@pytest.mark.parametrize("mode", [0o444, 0o200, 0])
@pytest.mark.parametrize("is_tree", [False, True])
def test_a_file_that_denies_its_owner_is_put_in_place_by_the_next_run(pair: Pair, mode: int, is_tree: bool) -> None:
    """It was complete, and had its mode, when the receiver was killed just before the rename."""
    source = trees.write(pair.source / "s" / "f", os.urandom(10 * CHUNK), mode=mode)
    sent, received = (source.parent, pair.destination / "s" / "f") if is_tree else (source, pair.destination / "f")
    args = ("--listen", "127.0.0.1:0", "--directory", pair.destination)
    killed = pair.start("receiver", *args, under=unprivileged(), env=inject("rename", "before", path=".data"))
    sender = pair.sender(sent, pair.address(killed), "--chunk-size", CHUNK)
    assert killed.wait() == 128 + signal.SIGKILL
    sender.end()
    again = pair.start("receiver", *args, under=unprivileged())
    result = pair.sender(sent, pair.address(again), "--chunk-size", CHUNK).succeeds()
    assert (result["held_bytes"], result["sent_bytes"]) == (10 * CHUNK, 0)
    assert received.read_bytes() == source.read_bytes()
    assert received.stat().st_mode & 0o777 == mode


def test_what_a_killed_receiver_had_taken(pair: Pair, tmp_path: Path) -> None:
    """The next one gives it back, says so, and goes on with what came."""
    receiver = pair.receiver()
    with RawSender(pair.address(receiver)) as peer:
        offer(peer)
        one_chunk(peer, 3)
        until(lambda: space(pair) > SPACE, "more is taken than was sent")
        receiver.signal(signal.SIGKILL)
        receiver.wait()
    assert space(pair) > SPACE
    again = started(pair)
    assert MIB <= space(pair) < SPACE
    (told_of,) = again.events("space_given_back")
    assert told_of["bytes"] > SPACE
    source = tmp_path / "large"
    with source.open("wb") as file:
        os.pwrite(file.fileno(), bytes([7]) * MIB, 3 * MIB)
        os.ftruncate(file.fileno(), OFFERED)
    os.utime(source, ns=(0, 0))
    result = pair.sender(source, pair.address(again), "--chunk-size", "1MiB").succeeds()
    assert (result["held_bytes"], result["sent_bytes"]) == (MIB, 0)
    with (pair.destination / "large").open("rb") as received:
        assert os.pread(received.fileno(), MIB, 3 * MIB) == bytes([7]) * MIB


def test_many_files_at_once_take_no_more_than_one(pair: Pair) -> None:
    """What is lent is lent once, over all transfers: a few bytes of each change nothing about that."""
    receiver = pair.receiver()
    address = pair.address(receiver)
    peers = [RawSender(address) for _ in range(6)]
    with contextlib.ExitStack() as stack:
        for number, peer in enumerate(peers):
            stack.enter_context(peer)
            entry = m.Entry(f"f{number}".encode(), m.EntryType.FILE, 1024 * MIB, 0o644, 0)
            control = peer.control()
            control.send(m.Offer(MIB, None, False, entry.size), m.ManifestPart(0, (entry,), True))
            control.expect(m.Needed)
            one_chunk(peer)
        until(lambda: space(pair) > 512 * MIB, "half a GiB is taken")
        assert space(pair) < 2048 * MIB


def test_staging_that_is_shortened_meanwhile(pair: Pair) -> None:
    """Both sides report it, no wrong file gets the name, and the same command repairs it."""
    file = pair.file("f", 40 * CHUNK)
    (pair.destination / "f").write_bytes(b"old")
    receiver = pair.receiver()
    address = pair.address(receiver)
    staging = Staging(pair.destination, "f")
    sender = pair.sender(file, address, "--chunk-size", CHUNK, "--rate-limit", 20 * CHUNK)
    staging.wait_for_records(10)
    os.truncate(staging.data, 3 * CHUNK)
    assert "changed" in sender.fails(4, "destination")
    assert (pair.destination / "f").read_bytes() == b"old"
    pair.sender(file, address, "--chunk-size", CHUNK).succeeds()
    assert same(file, pair.destination / "f")


# ------------------------------------------------------------------------------------------------------- two processes


def refused_by_another(pair: Pair, source: Path) -> None:
    """Send the same to a second receiver into the destination, which can't take it; end that."""
    second = pair.receiver()
    flags = (source, pair.address(second), "--chunk-size", CHUNK, "--give-up-after")
    assert "another process" in gives_up_busy(lambda seconds: pair.sender(*flags, seconds))
    second.signal(signal.SIGTERM)
    assert second.wait() == 143


def test_a_second_receiver_of_a_file_is_refused_and_the_first_completes(pair: Pair) -> None:
    """Nothing that the first has staged is gone."""
    sample = Sample.random(1, 10 * CHUNK, CHUNK)
    (pair.source / "sample.bin").write_bytes(sample.content)
    first = started(pair)
    with RawSender(pair.address(first)) as peer:
        control = peer.offer(sample)
        control.expect(m.Needed)
        data = peer.data()
        deliver(data, sample, range(5))
        refused_by_another(pair, pair.source / "sample.bin")
        deliver(data, sample, range(5, 10))
        control.send(sample.finish)
        control.expect(m.Complete)
    assert (pair.destination / "sample.bin").read_bytes() == sample.content


def test_a_second_receiver_of_a_tree_is_refused_and_the_first_completes(pair: Pair) -> None:
    """Whether its files are staged, or are staged after that: they get their names, and are whole."""
    sample = TreeSample(CHUNK)
    sample.directory(b"t")
    (pair.source / "t").mkdir()
    for number in range(12):
        sample.add(b"t/%d" % number, os.urandom((CHUNK // 2 + 1) * (1 + 4 * (number % 2))))
        (pair.source / f"t/{number}").write_bytes(sample.contents[-1])
    first = started(pair)
    chunks = list(sample.chunks().items())
    with RawSender(pair.address(first)) as peer:
        control = peer.control()
        control.send(sample.offer, *sample.parts)
        control.expect(m.Needed)
        data = peer.data()
        for some in (chunks[: len(chunks) // 2], chunks[len(chunks) // 2 :]):
            data.send_raw(b"".join(sample.chunk(*chunk) for chunk in some))
            acknowledged(data, len(some))
            refused_by_another(pair, pair.source / "t")
        control.send(sample.finish)
        control.expect(m.Complete)
    for number, content in enumerate(sample.contents[1:]):
        assert (pair.destination / "t" / str(number)).read_bytes() == content

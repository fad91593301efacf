"""What unfinished transfers left: found at start and told, discarded by age on request, never from under somebody."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.peer import RawSender, Sample, acknowledged
from tests.support.services import Pair, Service, same, tree
from tests.support.staging import Staging
from wire import messages as m

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
        data.send_raw(b"".join(map(sample.chunk, range(5))))
        acknowledged(data, 5)
        age(400, staging.data, staging.ledger)
        _, stale = left(pair, "stale", days_old=400)
        second = started(pair, *DISCARD)
        assert told(second) == {"staging_found": 1, "staging_discarded": 1}
        assert (there(staging), there(stale)) == ([True, True], [False, False])
        data.send_raw(b"".join(map(sample.chunk, range(5, 10))))
        acknowledged(data, 5)
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

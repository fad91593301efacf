"""`receiver --from HOST:PATH` with a real sshd: the receiver starts its sender, and takes what it has asked for."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.behind_ssh import MIB, SLOW, Far, behind_ssh
from tests.support.services import Pair, make_file, same, tree
from tests.support.staging import statuses
from tests.support.waiting import until


def make_run(far: Far) -> Path:
    """Make the directory `data/run-17` at the far side; return it."""
    made = far.machine.home / "data" / "run-17"
    (made / "sub").mkdir(parents=True)
    for number in range(20):
        make_file(made / "sub" / f"{number}.bin", 1000 + number, number)
    make_file(made / "large", 5 * MIB + 1, 99)
    return made


def staged(pair: Pair) -> int:
    """Return how many bytes are in staging."""
    staging = pair.destination / ".filestreamer"
    return sum(each.st_blocks * 512 for each in statuses(staging))


# --- what is moved


@pytest.mark.parametrize("how", [(), ("--no-tls",), ("--via", "ssh"), ("--via", "direct", "--connections", "3")])
def test_a_file_and_a_tree(pair: Pair, tmp_path: Path, temporary: Path, how: tuple[str, ...]) -> None:
    with behind_ssh(pair, tmp_path, temporary) as far:
        run = make_run(far)
        file = make_file(far.machine.home / "big.iso", 20 * MIB + 17, 1)
        receiver = far.pull(*how, paths=("data/run-17", f":{file}"))
        assert receiver.succeeds()["files"] == 22
        assert tree(run) == tree(pair.destination / "run-17")
        assert same(file, pair.destination / "big.iso")
        (way,) = receiver.events("way")
        assert way["way"] == ("ssh" if "ssh" in how else "direct")
        # Again, and nothing is moved.
        assert far.pull(*how, paths=("data/run-17", f":{file}")).succeeds()["sent_bytes"] == 0


def test_a_slash_at_the_end_changes_nothing(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    """Unlike with a sender: names below the destination are those that the user has named."""
    with behind_ssh(pair, tmp_path, temporary) as far:
        run = make_run(far)
        far.pull(paths=("~/data/run-17/",)).succeeds()
        assert tree(run) == tree(pair.destination / "run-17")


def test_one_file_under_another_name_and_to_standard_output(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    with behind_ssh(pair, tmp_path, temporary) as far:
        file = make_file(far.machine.home / "a", 3 * MIB, 5)
        far.pull("--output-file", pair.destination / "b", paths=("a",)).succeeds()
        assert same(file, pair.destination / "b")


NAMES = [b"with space", b'it\'s "quoted" $HOME `x` *', b"new\nline", b"-rf", b"\xff\xfe", "äöü".encode(), b"a;b&c|d>e"]


def test_odd_names(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    with behind_ssh(pair, tmp_path, temporary) as far:
        files = [make_file(far.machine.home / os.fsdecode(name), 1000, 1) for name in NAMES]
        far.pull(paths=(f"./{files[0].name}", *[f":./{file.name}" for file in files[1:]])).succeeds()
        for file in files:
            assert same(file, pair.destination / file.name)


def test_what_is_kept_and_what_is_left_out(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    """The settings of a sender are those of a receiver that starts one."""
    with behind_ssh(pair, tmp_path, temporary) as far:
        run = make_run(far)
        (pair.destination / "run-17" / "sub").mkdir(parents=True)
        (pair.destination / "run-17" / "extra").write_text("extra")
        (pair.destination / "beside").write_text("beside")
        (pair.destination / "run-17" / "sub" / "0.bin").write_text("mine")
        far.pull("--exclude", "large", "--existing", "skip", "--delete", paths=("data/run-17",)).succeeds()
        got = pair.destination / "run-17"
        assert not (got / "large").exists()
        assert not (got / "extra").exists()
        assert (pair.destination / "beside").read_text() == "beside"
        assert (got / "sub" / "0.bin").read_text() == "mine"
        assert same(run / "sub" / "1.bin", got / "sub" / "1.bin")


# --- interrupted


@pytest.mark.parametrize("via", ["direct", "ssh"])
def test_ssh_or_the_sender_is_killed(pair: Pair, tmp_path: Path, temporary: Path, via: str) -> None:
    with behind_ssh(pair, tmp_path, temporary) as far:
        file = make_file(far.machine.home / "a", 24 * MIB, 1)
        receiver = far.pull("--via", via, "--chunk-size", "1MiB", *SLOW, paths=("a",))
        until(lambda: staged(pair), "it has begun")
        (login,) = far.clients("sender serve")
        login.signal()
        receiver.wait_for("ssh_back")
        for process in far.machine.remote("sender"):
            if process.argv[-1] == "serve":
                process.signal()
        receiver.wait_for("ssh_back", count=2)
        receiver.succeeds()
        assert same(file, pair.destination / "a")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGHUP])
def test_the_receiver_ends(pair: Pair, tmp_path: Path, temporary: Path, number: signal.Signals) -> None:
    """The sender ends with it, and the same command goes on."""
    with behind_ssh(pair, tmp_path, temporary) as far:
        file = make_file(far.machine.home / "a", 24 * MIB, 1)
        receiver = far.pull("--chunk-size", "1MiB", *SLOW, paths=("a",))
        until(lambda: staged(pair) > 8 * MIB, "some of it is there")
        receiver.signal(number)
        assert receiver.wait() == 128 + number
        far.ends()
        assert not (pair.destination / "a").exists()
        assert far.pull("--chunk-size", "1MiB", paths=("a",)).succeeds()["held_bytes"] > 0
        assert same(file, pair.destination / "a")


# --- what goes wrong


def test_there_is_no_such_path(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    with behind_ssh(pair, tmp_path, temporary) as far:
        receiver = far.pull(paths=("missing/x y",))
        assert receiver.wait() == 4
        error = receiver.result["error"]
        assert error["code"] == "source"
        assert error["message"].startswith(f"{far.machine.host}: ")
        assert "missing/x y" in error["message"]


def test_a_pattern_is_not_expanded(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    with behind_ssh(pair, tmp_path, temporary) as far:
        make_file(far.machine.home / "a.jpg", 1000, 1)
        message = far.pull(paths=("*.jpg",)).fails(4, "source")
        assert message.startswith(f"far: there is no {far.machine.home}/*.jpg, ")
        assert "--include" in message


def test_not_installed_there(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    with behind_ssh(pair, tmp_path, temporary, commands={}) as far:
        receiver = far.pull(paths=("a",))
        assert receiver.wait() == 2
        assert "--remote-command" in receiver.result["error"]["message"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--from", "far:"], "does not name what is to be fetched"),
        (["--from", "far:.."], "does not name what is to be fetched"),
        (["--from", "far:a/."], "does not name what is to be fetched"),
        (["--from", "far:~"], "does not name what is to be fetched"),
        (["--from", "far:/"], "does not name what is to be fetched"),
        (["--from", ":a"], "needs its host"),
        (["--from", "far:a", "near:b"], "all paths are of one host"),
        (["--from", "far:x/a", ":y/a"], "two of the paths end with 'a'"),
        (["--from", "far:a", ":b", "--output-file", "c"], "--output-file takes one file"),
        (["far:a"], "PATH goes with --from"),
        (["--from", "-oProxyCommand=x:a"], "does not begin with '-'"),
        (["--from", "far:a", "--listen", "127.0.0.1:0"], "--listen"),
        (["--from", "far:a", "--connect", "h:1"], "--connect"),
        (["--exclude", "x"], "--exclude goes with --from"),
        (["--via", "ssh"], "--via goes with --from"),
    ],
)
def test_wrong_usage(pair: Pair, args: list[str], said: str) -> None:
    receiver = pair.start("receiver", *args)
    assert receiver.wait() == 2
    assert said in receiver.result["error"]["message"]


# --- a sender that is no friend


def hostile(how: str) -> dict[str, Any]:
    """Return how a machine starts a sender that does this."""
    return {
        "commands": {"sender": (sys.executable, "-P", "-m", "tests.support.hostile_far")},
        "env": {"HOSTILE": how, "PYTHONPATH": str(Path(__file__).parents[2])},
    }


@pytest.mark.parametrize(
    "how",
    [
        "another name",
        "a name with escapes",
        "the contents",
        "one file more",
        "another rule",
        "to remove",
        "to remove all",
    ],
)
def test_only_what_was_asked_for_is_taken(pair: Pair, tmp_path: Path, temporary: Path, how: str) -> None:
    """As scp (CVE-2019-6111) and rsync (CVE-2022-29154) did not."""
    (pair.destination / "run-17").mkdir()
    (pair.destination / "run-17" / "mine").write_text("mine")
    (pair.destination / "mine").write_text("mine")
    before = tree(pair.destination)
    with behind_ssh(pair, tmp_path, temporary, **hostile(how)) as far:
        make_run(far)
        (far.machine.home / ".ssh").mkdir(exist_ok=True)
        (far.machine.home / ".ssh" / "authorized_keys").write_text("evil")
        receiver = far.pull("--existing", "skip", paths=("data/run-17",))
        assert receiver.wait() == 3
        assert "was not asked for" in receiver.result["error"]["message"]
        after = tree(pair.destination)
        allowed = {name for name in after if name.split("/")[0] in ("run-17", ".filestreamer")}
        assert {name: after[name] for name in after if name not in allowed} == {
            name: before[name] for name in before if name not in allowed
        }
        assert (pair.destination / "run-17" / "mine").read_text() == "mine"
        assert "\x1b" not in receiver.stderr
        assert "\x07" not in receiver.stderr


@pytest.mark.parametrize(
    ("how", "args"), [("what was left out", ()), ("to remove what is kept", ("--delete",))], ids=["sent", "removed"]
)
def test_what_is_excluded_stays(pair: Pair, tmp_path: Path, temporary: Path, how: str, args: tuple[str, ...]) -> None:
    """What the user has left out is neither replaced nor removed, whatever the far side makes of his patterns."""
    mine = pair.destination / "run-17" / "mine"
    mine.parent.mkdir()
    mine.write_text("mine")
    with behind_ssh(pair, tmp_path, temporary, **hostile(how)) as far:
        run = make_run(far)
        if not args:
            (run / "mine").write_text("theirs")
        receiver = far.pull("--exclude", "mine", *args, paths=("data/run-17",))
        assert receiver.wait() == 3
        assert "was not asked for" in receiver.result["error"]["message"]
    assert mine.read_text() == "mine"


def test_words_of_the_far_side_are_shown_escaped(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    with behind_ssh(pair, tmp_path, temporary, **hostile("words")) as far:
        run = make_run(far)
        receiver = far.pull(paths=("data/run-17",))
        receiver.succeeds()
        assert tree(run) == tree(pair.destination / "run-17")
        assert "\x1b" not in receiver.stderr
        assert "\x07" not in receiver.stderr
        assert max(map(len, receiver.stderr.splitlines())) < 10_000

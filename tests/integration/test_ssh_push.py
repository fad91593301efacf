"""`sender PATH... --to HOST:DIR` with a real sshd: the sender starts its receiver, and both end together."""

import contextlib
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.behind_ssh import MIB, SLOW, Far, behind_ssh, impatient
from tests.support.services import HANG, Pair, make_file, same, tree
from tests.support.waiting import until

# --- what is moved


@pytest.mark.parametrize("how", [(), ("--no-tls",), ("--via", "ssh"), ("--via", "direct", "--connections", "3")])
def test_files_and_a_tree(pair: Pair, tmp_path: Path, temporary: Path, how: tuple[str, ...]) -> None:
    file = pair.file("big.iso", 20 * MIB + 17)
    (pair.source / "photos" / "2026").mkdir(parents=True)
    for number in range(30):
        make_file(pair.source / "photos" / "2026" / f"{number}.jpg", 1000 + number, number)
    with behind_ssh(pair, tmp_path, temporary) as far:
        sender = far.push(file, pair.source / "photos", *how)
        result = sender.succeeds()
        assert result["files"] == 31
        assert same(file, far.incoming / "big.iso")
        assert tree(pair.source / "photos") == tree(far.incoming / "photos")
        (way,) = sender.events("way")
        assert way["way"] == ("ssh" if "ssh" in how else "direct")
        # Again, and nothing is moved.
        assert far.push(file, pair.source / "photos", *how).succeeds()["sent_bytes"] == 0


def test_a_url_an_absolute_path_and_home(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    file = pair.file("a", 100)
    with behind_ssh(pair, tmp_path, temporary) as far:
        machine = far.machine
        places = {
            "": machine.home,
            "~": machine.home,
            "~/x": machine.home / "x",
            "./7800": machine.home / "7800",
            str(tmp_path / "elsewhere"): tmp_path / "elsewhere",
        }
        for written, place in places.items():
            far.push(file, to=written).succeeds()
            assert (place / "a").exists()
        url = f"ssh://{machine.host}:{machine.port}{tmp_path}/by%20url"
        far.pair.start("sender", file, "--to", url, "--ssh", machine.ssh, env={"TMPDIR": str(temporary)}).succeeds()
        assert (tmp_path / "by url" / "a").exists()


NAMES = [b"with space", b'it\'s "quoted" $HOME `x`', b"new\nline", b"-rf", b"\xff\xfe", "äöü".encode(), b"a;b&c|d>e"]


def test_odd_names_on_both_sides(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    files = [pair.file(name, 1000) for name in NAMES]
    with behind_ssh(pair, tmp_path, temporary) as far:
        for name in map(os.fsdecode, (b" ".join(NAMES), NAMES[3])):
            far.push(*[f"{pair.source}/./{file.name}" for file in files], to=f"./{name}").succeeds()
            for file in files:
                assert same(file, far.machine.home / name / file.name)


@pytest.mark.parametrize("shell", ["/bin/sh"])
def test_a_login_shell_that_prints(pair: Pair, tmp_path: Path, temporary: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    banner = b'Welcome!\n{"filestreamer" is not this line}\n' + b"x" * 30_000 + b"\n\x1b[2J no end of line"
    with behind_ssh(pair, tmp_path, temporary, banner=banner, shell=shell, config={"AllowTcpForwarding": "no"}) as far:
        far.push(pair.file("a", MIB)).succeeds()
        far.push(pair.file("b", MIB), "--via", "ssh", "--connections", "2").succeeds()


def test_a_login_shell_that_prints_too_much(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    with behind_ssh(pair, tmp_path, temporary, banner=b"x" * 100_000) as far:
        message = far.push(pair.file("a", 10)).fails(1, "far_side")
        assert message.startswith("far: the login shell there prints more than 64 KiB")


def test_settings_of_the_other_machine_do_not_count(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    env = {"FILESTREAMER_NO_REPLACE": "1", "FILESTREAMER_OUTPUT_FILE": "/dev/null", "FILESTREAMER_CONFIG": "/none"}
    with behind_ssh(pair, tmp_path, temporary, env=env) as far:
        far.push(pair.file("a", 1000, 1)).succeeds()
        file = pair.file("a", 2000, 2)
        far.push(file).succeeds()
        assert same(file, far.incoming / "a")


def test_a_mirror_needs_no_permission_there(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    """Who logs in there may remove files anyway: --delete is the permission."""
    with behind_ssh(pair, tmp_path, temporary) as far:
        pair.file("a", 10)
        pair.file("b", 10)
        far.incoming.mkdir()
        (far.incoming / "old").write_text("old")
        far.push(f"{pair.source}/", "--delete").succeeds()
        assert sorted(os.listdir(far.incoming)) == ["a", "b"]


def test_standard_input(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    file = pair.file("a", 5 * MIB + 1)
    with behind_ssh(pair, tmp_path, temporary) as far, file.open("rb") as stdin:
        argv = ("-", "--as", "b", "--to", "far:incoming", "--ssh", far.machine.ssh)
        pair.start("sender", *argv, stdin=stdin, env={"TMPDIR": str(temporary)}).succeeds()
        assert same(file, far.incoming / "b")


def test_shards_from_several_senders(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    file = pair.file("a", 24 * MIB)
    with behind_ssh(pair, tmp_path, temporary) as far:
        senders = [far.push(file, "--shard", f"{index}/3") for index in range(3)]
        assert [sender.wait(HANG) for sender in senders] == [0, 0, 0]
        assert same(file, far.incoming / "a")


def test_what_is_declined_there(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    """The far side has done its work then, and is not started again."""
    with behind_ssh(pair, tmp_path, temporary) as far:
        (pair.source / "d").mkdir()
        (pair.source / "d" / "a").write_text("a")
        pair.file("b", 10)
        (far.incoming / "b").mkdir(parents=True)
        sender = far.push(f"{pair.source}/")
        assert sender.falls_short()["skipped_kinds"] == {"declined": 1}
        assert not sender.events("ssh_lost")
        assert (far.incoming / "d" / "a").exists()


def test_a_dry_run_changes_nothing(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    file = pair.file("a", 1000)
    with behind_ssh(pair, tmp_path, temporary) as far:
        asked = far.push(file, "--dry-run")
        assert asked.wait() == 0
        assert "new" in asked.stdout
        assert not far.incoming.exists()
        far.push(file).succeeds()
        asked = far.push(file, "--dry-run")
        assert asked.wait() == 0
        assert "same" in asked.stdout


# --- interrupted


@pytest.mark.parametrize("via", ["direct", "ssh"])
def test_ssh_is_killed(pair: Pair, tmp_path: Path, temporary: Path, via: str) -> None:
    with behind_ssh(pair, tmp_path, temporary) as far:
        file = pair.file("a", 24 * MIB)
        slowly = ("--rate-limit", "3MiB/s")  # a login takes a busy machine some seconds
        sender = far.push(file, "--via", via, "--chunk-size", "1MiB", "--connections", "8", *slowly)
        until((far.incoming / ".filestreamer").exists, "it has begun")
        (login,) = far.clients("receiver serve")
        login.signal()
        if via == "ssh":
            until(lambda: len(far.clients("-W")) == 9, "all tunnels are up")
            for tunnel in far.clients("-W")[:3]:
                tunnel.signal()
        assert sender.wait_for("ssh_back")
        result = sender.succeeds()
        assert same(file, far.incoming / "a")
        # One of the three may have been control, and one may not have been in use yet.
        assert (result["reconnects"] > 0) == (via == "ssh")
        assert len(sender.events("ssh_lost")) == 1


@pytest.mark.parametrize(
    ("via", "number"), [("direct", signal.SIGKILL), ("ssh", signal.SIGKILL), ("direct", signal.SIGTERM)]
)
def test_the_receiver_is_ended_there(
    pair: Pair, tmp_path: Path, temporary: Path, via: str, number: signal.Signals
) -> None:
    """It is started anew, and goes on with what is there."""
    with behind_ssh(pair, tmp_path, temporary) as far:
        file = pair.file("a", 24 * MIB)
        sender = far.push(file, "--via", via, "--chunk-size", "1MiB", *SLOW)
        until(lambda: list((far.incoming / ".filestreamer").glob("*")), "it has begun")
        for process in far.machine.remote("receiver"):
            if process.argv[-1] == "serve":
                process.signal(number)
        sender.wait_for("ssh_back")
        sender.succeeds()
        assert same(file, far.incoming / "a")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_the_sender_ends(pair: Pair, tmp_path: Path, temporary: Path, number: signal.Signals) -> None:
    """The receiver ends with it, and the same command goes on."""
    with behind_ssh(pair, tmp_path, temporary) as far:
        file = pair.file("a", 24 * MIB)
        sender = far.push(file, "--chunk-size", "1MiB", *SLOW)
        until(lambda: far.holds(8 * MIB), "some of it is there")
        sender.signal(number)
        assert sender.wait() == 128 + number
        if number != signal.SIGKILL:
            assert sender.result["status"] == "interrupted"
        far.ends()
        assert not (far.incoming / "a").exists()
        assert far.push(file, "--chunk-size", "1MiB").succeeds()["held_bytes"] > 0
        assert same(file, far.incoming / "a")


def test_sender_and_ssh_are_killed(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    """Nothing tells the receiver what has happened; it waits for another ssh, and ends."""
    with behind_ssh(pair, tmp_path, temporary, **impatient(**{"leases.WAIT_SECONDS": 1})) as far:
        sender = far.push(pair.file("a", 24 * MIB), *SLOW)
        until((far.incoming / ".filestreamer").exists, "it has begun")
        sender.end()
        for process in far.machine.clients():
            process.signal()
        far.ends()


def test_the_sender_is_killed_while_connections_are_shared(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    """Not even the directory of the socket of ssh is left."""
    config = {"PasswordAuthentication": "yes"}
    with behind_ssh(pair, tmp_path, temporary, accepts_once=True, config=config) as far:
        sender = far.push(pair.file("a", 24 * MIB), "--via", "ssh", *SLOW)
        until(lambda: far.holds(MIB), "some of it is there")
        assert far.is_left()
        sender.end()
        far.ends()


def test_the_end_of_the_terminal(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    """The kernel tells ssh, too: it ends after the two services have ended in order."""
    with behind_ssh(pair, tmp_path, temporary) as far:
        file = pair.file("a", 24 * MIB)
        argv = [
            sys.executable,
            "-P",
            "-m",
            "sender",
            str(file),
            "--to",
            "far:incoming",
            "--ssh",
            far.machine.ssh,
            *SLOW,
        ]
        pid, terminal = pty.fork()
        if not pid:
            os.environ["TMPDIR"] = str(temporary)
            os.environ["FILESTREAMER_METRICS"] = "off"
            os.environ["FILESTREAMER_RESULT_FILE"] = str(tmp_path / "result.json")
            os.execv(argv[0], argv)
        until((far.incoming / ".filestreamer").exists, "it has begun")
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
        assert '"status": "interrupted"' in (tmp_path / "result.json").read_text()
        far.ends()


def on_terminal(far: Far, file: Path, *flags: str, asks: bytes, answer: bytes) -> tuple[int, bytes]:
    """Push a file from a terminal on which ssh asks; return the exit code, and what was shown."""
    argv = [sys.executable, "-P", "-m", "sender", str(file), "--to", "far:incoming", "--ssh", far.machine.ssh]
    pid, terminal = pty.fork()
    if not pid:
        os.environ |= {"TMPDIR": str(far.temporary), "FILESTREAMER_METRICS": "off"}
        os.execv(argv[0], [*argv, *flags])
    seen = b""
    while asks not in seen:
        seen += os.read(terminal, 4096)
    os.write(terminal, answer)
    with contextlib.suppress(OSError):
        while more := os.read(terminal, 4096):
            seen += more
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), seen


def answered(far: Far, file: Path, asks: bytes, answer: bytes) -> bytes:
    """Push a file from a terminal on which ssh asks once; return what was shown."""
    code, seen = on_terminal(far, file, "--via", "ssh", asks=asks, answer=answer)
    assert code == 0, seen.decode(errors="replace")
    return seen


def test_ssh_asks_on_the_terminal(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    """A passphrase is typed once; whatever follows asks nothing."""
    with behind_ssh(pair, tmp_path, temporary, passphrase="open sesame") as far:
        file = pair.file("a", 4 * MIB)
        seen = answered(far, file, b"passphrase for key", b"open sesame\n")
        assert seen.count(b"passphrase") == 1
        assert same(file, far.incoming / "a")


def test_ssh_asks_whether_the_machine_is_the_right_one(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    with behind_ssh(pair, tmp_path, temporary, known=[]) as far:
        file = pair.file("a", MIB)
        seen = answered(far, file, b"continue connecting", b"yes\n")
        assert seen.count(b"continue connecting") == 1
        assert same(file, far.incoming / "a")


def test_no_answer_is_given(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    """Ctrl-C where ssh asks ends all of it."""
    with behind_ssh(pair, tmp_path, temporary, passphrase="open sesame") as far:
        code, seen = on_terminal(far, pair.file("a", 10), asks=b"passphrase for key", answer=b"\x03")
        assert code == 130, seen.decode(errors="replace")
        far.ends()


# --- what goes wrong


def test_no_ssh_here(pair: Pair) -> None:
    sender = pair.start("sender", pair.file("a", 10), "--to", "far:x", "--ssh", "/nowhere/ssh")
    assert "install OpenSSH's client" in sender.fails(2, "usage")


def test_the_file_is_missed_before_anybody_is_asked(pair: Pair) -> None:
    sender = pair.start("sender", pair.source / "none", "--to", "far:x", "--ssh", "/nowhere/ssh")
    assert "none" in sender.fails(4, "source")


def test_not_installed_there(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    with behind_ssh(pair, tmp_path, temporary, commands={}) as far:
        message = far.push(pair.file("a", 10)).fails(2, "not_installed")
        assert "install filestreamer on that machine" in message
        assert "--remote-command" in message
        message = far.push(pair.file("b", 10), "--remote-command", "~/.venv/bin/receiver").fails(2, "not_installed")
        assert message.startswith("far: ~/.venv/bin/receiver can't be run there")


def test_another_command_is_started(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    with behind_ssh(pair, tmp_path, temporary, commands={}) as far:
        command = f"env 'A=b  c' {sys.executable} -P -m receiver"
        file = pair.file("a", MIB)
        far.push(file, "--remote-command", command, "--via", "ssh", "--connections", "2").succeeds()
        assert same(file, far.incoming / "a")


def test_the_host_key_is_not_known(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    with behind_ssh(pair, tmp_path, temporary, known=[]) as far:
        message = far.push(pair.file("a", 10)).fails(3, "host_key", status="refused")
        assert "its key is not known here" in message


def test_the_host_key_has_changed(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    with behind_ssh(pair, tmp_path, temporary) as far:
        key = (far.machine.root / "key.pub").read_text()
        far.machine.known_hosts.write_text(f"[{far.machine.address}]:{far.machine.port} {key}")
        message = far.push(pair.file("a", 10)).fails(3, "host_key", status="refused")
        assert "another one than before" in message


def test_the_login_is_refused(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    with behind_ssh(pair, tmp_path, temporary) as far:
        far.machine.authorized_keys.write_text("")
        message = far.push(pair.file("a", 10)).fails(3, "login", status="refused")
        assert "Permission denied" in message


def test_nobody_listens_and_no_such_name(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    with behind_ssh(pair, tmp_path, temporary) as far:
        far.machine.write_config(far.machine.block(Port=1), far.machine.block("none", HostName="none.invalid"))
        assert "refused" in far.push(pair.file("a", 10)).fails(1, "connection_lost")
        sender = pair.start("sender", pair.file("b", 10), "--to", "none:x", "--ssh", far.machine.ssh)
        assert "could not resolve" in sender.fails(1, "connection_lost").lower()


def test_what_is_wrong_with_the_directory(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    with behind_ssh(pair, tmp_path, temporary) as far:
        file = pair.file("a", 10)
        message = far.push(file, to="no/such/place").fails(4, "destination")
        assert message == f"far: can't write into {far.machine.home}/no/such/place: there is no directory" + (
            f" {far.machine.home}/no/such: make it first"
        )
        (far.machine.home / "file").write_text("")
        assert "Not a directory" in far.push(file, to="file").fails(4, "destination")
        assert "no such user" in far.push(file, to="~nobody-here/x").fails(4, "far_side")
        assert "can't make the directory /proc/x" in far.push(file, to="/proc/x").fails(4, "destination")


@pytest.mark.parametrize(
    ("there", "error", "said"),
    [
        (
            "echo 'filestreamer needs Python 3.11 or newer; this is 3.6' >&2; exit 2",
            (2, "far_side"),
            "needs Python 3.11",
        ),
        ("echo 'Got unexpected extra argument (serve)' >&2; exit 2", (3, "version"), "too old"),
        ("kill -9 $$", (1, "far_side"), "signal 9"),
        ("echo This account is not available.; exit 1", (1, "far_side"), "This account is not available."),
        ('echo \'{"filestreamer":{"form":2,"version":"9.9","protocol":7}}\'', (3, "version"), "9.9 (protocol 7) there"),
        ("echo '{\"filestreamer\":nonsense'", (3, "version"), "another version"),
        ("printf '{\"filestreamer\":'; head -c 100000 /dev/zero", (1, "far_side"), "more than 64 KiB"),
        ("exit 0", (1, "far_side"), "has ended with exit code 0 before it was up"),
    ],
)
def test_what_is_there_is_no_receiver(
    pair: Pair, tmp_path: Path, temporary: Path, *, there: str, error: tuple[int, str], said: str
) -> None:
    with behind_ssh(pair, tmp_path, temporary, commands={"receiver": ("sh", "-c", there)}) as far:
        status = "refused" if error[0] == 3 else "failed"
        message = far.push(pair.file("a", 10)).fails(*error, status=status)
        assert said in message
        assert message.startswith("far: ")


def test_what_a_receiver_is_asked_by_another_version(tmp_path: Path) -> None:
    def ask(line: bytes) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "receiver", "serve"],
            input=line,
            capture_output=True,
            check=False,
            timeout=HANG,
        )
        assert done.returncode in (2, 3)
        return done.stdout.decode().strip()

    assert "another one" not in ask(b"")
    assert "no request" in ask(b"")
    assert "no request" in ask(b"hello\n")
    assert "9.9 (protocol 7) started" in ask(b'{"filestreamer":{"form":2,"version":"9.9","protocol":7}}\n')
    known = b'{"filestreamer":{"form":1,"version":"9.9","protocol":1,"task":"receiver","fast":true}}\n'
    assert "'fast' is not known here" in ask(known)


def test_errors_of_the_far_side_are_shown(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    """Whatever is printed there can't disturb the terminal here, and is bounded."""
    noise = 'printf \'%s\\n\' \'{"event":"odd_thing","level":"error","reason":"a\\u001b[2Jb"}\' >&2; '
    command = f'{noise} head -c 20000 /dev/zero >&2; echo >&2; exec {sys.executable} -P -m receiver "$@"'
    with behind_ssh(pair, tmp_path, temporary, commands={"receiver": ("sh", "-c", command, "sh")}) as far:
        sender = far.push(pair.file("a", 10))
        assert sender.wait() == 0
        (line,) = sender.events("far_side")
        assert (line["level"], line["host"], line["said"]) == ("error", "far", "odd_thing")
        assert "\x1b" not in line["reason"]
        assert all(len(each["text"]) < 500 and each["text"].isprintable() for each in sender.events("ssh_says"))


def test_the_log_of_the_far_side(pair: Pair, tmp_path: Path, temporary: Path) -> None:
    with behind_ssh(pair, tmp_path, temporary) as far:
        sender = far.push(pair.file("a", 10), "--log-level", "debug")
        sender.succeeds()
        assert {"certificate", "transfer_complete"} <= {line["said"] for line in sender.events("far_side")}
        assert time.monotonic() > 0

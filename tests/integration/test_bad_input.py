"""Bad input: one clear line, the documented exit code, no traceback, and nothing left behind."""

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestreamer.wire import messages as m
from tests.support.peer import RawSender, Sample
from tests.support.services import UNIT, Pair, Service, held_port, same
from tests.support.staging import Staging
from tests.support.waiting import with_patience

NOBODY = "127.0.0.1:1"
"""An address that these tests never come to: what is wrong is found before."""

PLAIN_ROOT = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
"""Runs a command as root that is bound by the modes of files, as everybody else is."""


@pytest.fixture
def obeying_modes() -> list[str]:
    """Return what to run a service under so that it obeys the modes of files: nothing, unless this is root."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None or subprocess.run([*PLAIN_ROOT, "true"], check=False).returncode != 0:
        pytest.skip("root here can't give up reading every file, so that none is unreadable")
    return PLAIN_ROOT


def check_untouched(pair: Pair, receiver: Service) -> None:
    """Check that the destination is as empty as before, and that the receiver still serves."""
    assert pair.received() == []
    assert receiver.process.poll() is None
    assert "Traceback" not in receiver.stderr


# ----------------------------------------------------------------------------------------------------------- the source


def test_missing_source(pair: Pair) -> None:
    file = pair.source / "missing"
    message = pair.sender(file, NOBODY).fails(4, "source")
    assert message == f"can't read {file}: No such file or directory"


@pytest.mark.parametrize("to", [NOBODY, "nowhere.invalid:dir"])
@pytest.mark.parametrize("path", ["nas:x", "alice@nas:photos/2024", "ssh://nas:2222/srv"])
def test_a_path_of_another_machine_is_for_the_receiver_to_fetch(pair: Pair, path: str, to: str) -> None:
    """As with scp, which takes such a path on either side."""
    message = pair.start("sender", path, "--to", to).fails(4, "source")
    assert message.startswith(f"can't read {path}: No such file or directory: ")
    assert message.endswith(f"filestreamer-receiver --from {path}")


def test_unreadable_source(pair: Pair, obeying_modes: list[str]) -> None:
    file = pair.file("f", 10)
    file.chmod(0)
    message = pair.start("sender", file, "--to", NOBODY, under=obeying_modes).fails(4, "source")
    assert message == f"can't read {file}: Permission denied"


def test_source_in_an_unreadable_directory(pair: Pair, obeying_modes: list[str]) -> None:
    file = pair.file("f", 10)
    pair.source.chmod(0)
    try:
        message = pair.start("sender", file, "--to", NOBODY, under=obeying_modes).fails(4, "source")
    finally:
        pair.source.chmod(0o700)
    assert message == f"can't read {file}: Permission denied"


@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
def test_source_is_no_file(pair: Pair, kind: str, tmp_path: Path) -> None:
    """Refused at once: opening a FIFO would wait for who writes to it."""
    path = pair.source / "f"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as sock:
            here = os.getcwd()
            os.chdir(pair.source)  # the paths of sockets are short
            try:
                sock.bind("f")
            finally:
                os.chdir(here)
    else:
        path = Path(os.devnull)
    assert str(path) in pair.start("sender", path, "--to", NOBODY).fails(4, "source")


@pytest.mark.parametrize("how", ["grows", "shrinks", "touched", "replaced", "removed"])
def test_source_changes_while_it_is_sent(pair: Pair, how: str) -> None:
    """Exit 4 at once or at the end, at both sides; nothing stands under the final name, never a mixture."""
    file = pair.file("f", 1 << 20)
    receiver = pair.receiver()
    sender = pair.sender(file, pair.address(receiver), "--rate-limit", "1MiB/s", "--chunk-size", "64KiB")
    receiver.wait_for("transfer_started")
    if how == "grows":
        with file.open("ab") as stream:
            stream.write(b"more")
    elif how == "shrinks":
        os.truncate(file, 1000)
    elif how == "touched":
        os.utime(file)
    elif how == "replaced":
        pair.file("other", 1 << 20, seed=1).rename(file)
    else:
        file.unlink()
    message = sender.fails(4, "source_changed")
    assert str(file) in message
    (result,) = receiver.wait_for_results()
    assert (result["exit_code"], result["error"]["code"]) == (4, "source_changed")
    assert pair.received() in ([], [".filestreamer"])


def test_source_is_a_dangling_symlink(pair: Pair) -> None:
    (pair.source / "f").symlink_to("nowhere")
    assert str(pair.source / "f") in pair.sender(pair.source / "f", NOBODY).fails(4, "source")


# ------------------------------------------------------------------------------------------------------ the destination


def fails_to_start(pair: Pair, *args: object, under: list[str] | None = None) -> str:
    """Start a receiver that can't serve; return the error. It must not have listened."""
    receiver = pair.start("receiver", "--listen", "127.0.0.1:0", *args, under=under or [])
    message = receiver.fails(4, "destination", seconds=UNIT)
    assert not receiver.events("listening")
    return message


def test_missing_destination(pair: Pair) -> None:
    missing = pair.destination / "missing"
    assert f"can't write into {missing}: No such file or directory" == fails_to_start(pair, "--directory", missing)
    assert pair.received() == []


def test_destination_is_a_file(pair: Pair) -> None:
    file = pair.file("f", 10)
    assert f"can't write into {file}: Not a directory" == fails_to_start(pair, "--directory", file)


def test_destination_is_not_writable(pair: Pair, obeying_modes: list[str]) -> None:
    pair.destination.chmod(0o555)
    message = fails_to_start(pair, "--directory", pair.destination, under=obeying_modes)
    assert message == f"can't write into {pair.destination}: Permission denied"


def test_output_file_in_a_missing_directory(pair: Pair) -> None:
    message = fails_to_start(pair, "--output-file", pair.destination / "missing" / "f")
    assert message == f"can't write into {pair.destination / 'missing'}: No such file or directory"


@pytest.mark.parametrize("written", ["there", "there/"])
def test_output_file_is_a_directory(pair: Pair, written: str) -> None:
    """It can never be written: that is told before anybody sends."""
    (pair.destination / "there").mkdir()
    message = fails_to_start(pair, "--output-file", f"{pair.destination}/{written}")
    assert str(pair.destination / "there") in message
    assert "directory" in message


def test_final_name_is_a_directory(pair: Pair) -> None:
    """Exit 4 at the sender too; the receiver stays."""
    file = pair.file("f", 1000)
    (pair.destination / "f").mkdir()
    receiver = pair.receiver()
    message = pair.sender(file, pair.address(receiver)).fails(4, "destination")
    assert str(pair.destination / "f") in message
    assert "it is a directory" in message
    assert pair.received() == ["f"]
    assert receiver.process.poll() is None


def test_staging_is_not_writable(pair: Pair, obeying_modes: list[str]) -> None:
    file = pair.file("f", 1000)
    staging = pair.destination / ".filestreamer"
    staging.mkdir(0o700)
    (staging / "other").touch()  # an empty one is removed, and made anew
    staging.chmod(0o500)
    receiver = pair.start("receiver", "--listen", "127.0.0.1:0", "--directory", pair.destination, under=obeying_modes)
    message = pair.sender(file, pair.address(receiver)).fails(4, "destination")
    assert str(pair.destination) in message
    assert "Permission denied" in message
    assert receiver.process.poll() is None


@pytest.mark.parametrize("kind", ["file", "symlink"])
def test_staging_is_no_directory(pair: Pair, kind: str) -> None:
    """A symlink is not followed, wherever it leads."""
    elsewhere = pair.source / "elsewhere"
    elsewhere.mkdir()
    staging = pair.destination / ".filestreamer"
    if kind == "file":
        staging.write_bytes(b"")
    else:
        staging.symlink_to(elsewhere)
    receiver = pair.receiver()
    pair.sender(pair.file("f", 1000), pair.address(receiver)).fails(4, "destination")
    assert list(elsewhere.iterdir()) == []
    assert pair.received() == [".filestreamer"]


@pytest.fixture
def small_disk(pair: Pair) -> Iterator[int]:
    """Mount a RAM disk of 64 MiB over the destination; return its size in bytes."""
    size = 64 << 20
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(pair.destination)], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("a small disk can't be mounted here")
    try:
        yield size
    finally:
        pair.end()
        subprocess.run(["umount", "--lazy", str(pair.destination)], check=True)


def test_no_space(pair: Pair, small_disk: int) -> None:
    """A file larger than the disk is refused before its first byte; both sides say no_space."""
    file = pair.file("f", small_disk + (1 << 20))
    receiver = pair.receiver()
    sender = pair.sender(file, pair.address(receiver))
    message = sender.fails(4, "no_space")
    assert "no space" in message
    assert str(pair.destination / "f") in message
    assert (sender.result["sent_bytes"], sender.result["connections"]) == (0, 0)
    (result,) = receiver.wait_for_results()
    assert (result["status"], result["exit_code"], result["error"]["code"]) == ("failed", 4, "no_space")


def test_no_space_on_a_small_disk(pair: Pair, small_disk: int) -> None:
    too_large, fits = pair.file("too large", small_disk + 1), pair.file("fits", 60 << 20)
    receiver = pair.receiver()
    address = pair.address(receiver)
    pair.sender(too_large, address).fails(4, "no_space")
    assert pair.received() == []
    pair.sender(fits, address).succeeds()
    assert pair.received() == ["fits"]


def test_two_that_do_not_fit_together(pair: Pair, small_disk: int) -> None:
    """Each would fit alone: space that is promised to one transfer is not promised to another."""
    chunk = 1 << 20
    first = Sample(b"first", bytes(40 << 20), chunk)
    receiver = pair.receiver()
    with RawSender(pair.address(receiver)) as peer:
        control = peer.offer(first)
        control.expect(m.Needed)
        pair.sender(pair.file("second", 40 << 20), pair.address(receiver)).fails(4, "no_space")


def test_space_that_is_used_is_not_counted_twice(pair: Pair, small_disk: int) -> None:
    """40 of 64 MiB are written by one transfer; another one of 16 MiB fits beside it."""
    chunk = 1 << 20
    first = Sample(b"first", bytes(40 << 20), chunk)
    receiver = pair.receiver()
    with RawSender(pair.address(receiver)) as peer:
        control = peer.offer(first)
        control.expect(m.Needed)
        data = peer.data()
        for index in range(40):
            data.send_raw(first.chunk(index))
            data.expect(m.ChunkAck)
        second = pair.file("second", 16 << 20)
        pair.sender(second, pair.address(receiver)).succeeds()


@pytest.mark.parametrize("is_tree", [False, True])
def test_what_is_staged_needs_no_space_again(pair: Pair, small_disk: int, *, is_tree: bool) -> None:
    """48 of 64 MiB, of which 20 are there when the sender dies: its rerun needs the rest, and no more."""
    (pair.source / "t").mkdir()
    file = pair.file("t/f", small_disk * 3 // 4)
    source, name = (file.parent, "t/f") if is_tree else (file, "f")
    address = pair.address(pair.receiver())
    sender = pair.sender(source, address, "--chunk-size", "1MiB", "--rate-limit", "40MiB/s")
    Staging(pair.destination, name).wait_for_records(20)
    sender.signal(signal.SIGKILL)
    assert sender.wait() == 128 + signal.SIGKILL
    result = pair.sender(source, address, "--chunk-size", "1MiB").succeeds()
    assert 20 << 20 <= result["held_bytes"] < result["bytes"]
    assert same(file, pair.destination / name)


# ---------------------------------------------------------------------------------------------------------- the network


def test_port_in_use(pair: Pair) -> None:
    first = pair.receiver()
    address = pair.address(first)
    second = pair.receiver(listen=address)
    message = second.fails(2, "usage")
    assert "--listen" in message
    assert address in message
    assert "in use" in message
    assert pair.received() == []
    pair.sender(pair.file("f", 10), address).succeeds()


def test_listening_where_this_machine_is_not(pair: Pair) -> None:
    """Exit 1, after some seconds: the machine may get that address later."""
    message = pair.receiver(listen="198.51.100.7:0").fails(1, "address_not_ready")
    assert message.startswith("--listen: 198.51.100.7: this machine does not have this address")


def test_listening_at_a_name_that_nobody_has(pair: Pair) -> None:
    """Exit 2, unless there is no name server that could say so."""
    with pytest.raises(socket.gaierror) as caught:
        socket.getaddrinfo("no.such.host.invalid", 0)
    expected = (1, "address_not_ready") if caught.value.errno == socket.EAI_AGAIN else (2, "usage")
    message = pair.receiver(listen="no.such.host.invalid:0").fails(*expected)
    assert message.startswith("--listen: no.such.host.invalid")


def test_receiver_not_there(pair: Pair) -> None:
    """Bounded: it tries again until --give-up-after, then exit 1, and the error names the address and the cause."""
    file = pair.file("f", 10)
    with held_port() as port:

        def is_refused(give_up_after: float) -> bool:
            sender = pair.sender(file, f"127.0.0.1:{port}", "--give-up-after", give_up_after)
            message = sender.fails(1, "timeout")
            assert f"127.0.0.1:{port}" in message
            assert sender.result["error"]["retryable"]
            assert sender.result["seconds"] >= give_up_after
            return "refused" in message

        with_patience(is_refused, "the cause is named")


def test_name_that_does_not_resolve(pair: Pair) -> None:
    file = pair.file("f", 10)
    message = pair.sender(file, "no.such.host.invalid:1", "--give-up-after", 1).fails(1, "timeout")
    assert "no.such.host.invalid" in message


@pytest.mark.parametrize("patience", ["60.5", "3000000", "1e9"])
@pytest.mark.parametrize("is_the_senders", [True, False], ids=["sender", "receiver"])
def test_patience_as_good_as_for_ever(pair: Pair, patience: str, is_the_senders: bool) -> None:
    file = pair.file("a.bin", 10_000)
    flags = ("--give-up-after", patience)
    receiver = pair.receiver("--once", *(() if is_the_senders else flags))
    pair.sender(file, pair.address(receiver), *(flags if is_the_senders else ())).succeeds()
    receiver.succeeds()


def test_idle_timeout(pair: Pair) -> None:
    message = pair.receiver("--idle-timeout", 0.2).fails(1, "timeout")
    assert "--idle-timeout" in message


# --------------------------------------------------------------------------------------------------------- the settings


def fails_usage(service: Service, *words: str) -> str:
    """Wait for exit 2; the one line names all of `words`."""
    message = service.fails(2, "usage")
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} is not named: {message}"
    return message


@pytest.mark.parametrize("size", ["0", "1025MiB", "1GB.", "-1", "many", "1073741825"])
def test_chunk_size(pair: Pair, size: str) -> None:
    fails_usage(pair.sender(pair.file("f", 10), NOBODY, f"--chunk-size={size}"), "--chunk-size", size)


@pytest.mark.parametrize("connections", ["0", "257", "-1", "1.5", "many"])
def test_connections(pair: Pair, connections: str) -> None:
    fails_usage(pair.sender(pair.file("f", 10), NOBODY, f"--connections={connections}"), "--connections", connections)


@pytest.mark.parametrize("key", ["chunk_size", "Chunk"])
@pytest.mark.parametrize("value", [0, (1 << 30) + 1, "2GiB", -5, "x", True], ids=repr)
def test_chunk_size_in_a_config(pair: Pair, tmp_path: Path, key: str, value: object) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({key: value}))
    fails_usage(pair.sender(pair.file("f", 10), NOBODY, "--config", config), str(config), key)


def test_too_many_chunks(pair: Pair) -> None:
    """The error says which chunk size fits, and that one does."""
    file = pair.source / "f"
    chunks = 2**23
    with file.open("wb") as stream:
        stream.truncate(chunks + 1)
    fails_usage(pair.sender(file, NOBODY, "--chunk-size", 1), str(file), "use at least 2", str(chunks))
    with held_port() as port:
        sender = pair.sender(file, f"127.0.0.1:{port}", "--chunk-size", 2, "--give-up-after", 0.5)
        sender.fails(1, "timeout")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ["line 1 column 2"]),
        ("", ["line 1 column 1"]),
        ("[]", ["object"]),
        ('{"connections": 8,}', ["line 1"]),
        ('{"conections": 8}', ["conections", "connections"]),
        ('{"connections": "eight"}', ["connections", "eight"]),
        ('{"connections": [8]}', ["connections"]),
        ('{"sender": {"conections": 8}}', ["sender.conections"]),
        ('{"sender": 8}', ["sender"]),
        ('{"receiver": {"to": "x:1"}}', ["receiver.to"]),
        ('{"listen": "x:99999"}', None),
        ('{"to": "x:99999"}', ["to", "65535"]),
        ('{"give_up_after": 0}', ["give_up_after"]),
        ('{"rate_limit": "fast"}', ["rate_limit", "fast"]),
        ('{"Chunk": 1024, "chunk_size": 4096}', ["Chunk", "chunk_size"]),
        ('{"ParallelPage": 0}', ["ParallelPage", "0"]),
        ('{"to": "\xff"}', ["not JSON"]),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_malformed_config(pair: Pair, tmp_path: Path, content: str, words: list[str] | None) -> None:
    """Which key, and what is wrong with it; what only the receiver reads is not the sender's affair."""
    config = tmp_path / "config.json"
    config.write_text(content, encoding="latin-1")
    flags = () if '"to"' in content else ("--to", NOBODY)
    sender = pair.start("sender", pair.source / "missing", *flags, "--config", config)
    if words is None:
        sender.fails(4, "source")
    else:
        fails_usage(sender, str(config), *words)


def test_missing_config(pair: Pair, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    fails_usage(pair.receiver("--config", config), str(config), "No such file")


@pytest.mark.parametrize("command", ["sender", "receiver"])
def test_unknown_flag(pair: Pair, command: str) -> None:
    fails_usage(pair.start(command, "--conections", "8"), "--conections")


def test_what_is_required(pair: Pair) -> None:
    fails_usage(pair.start("sender", "--to", NOBODY), "INPUT_FILE")
    fails_usage(pair.start("sender", pair.file("f", 1)), "--to")
    fails_usage(pair.start("sender", pair.source / "f", pair.source / "g", "--to", NOBODY, "--as", "h"), "--as")


def test_a_result_in_the_place_of_what_the_run_uses(pair: Pair, tmp_path: Path) -> None:
    file, link, token = pair.file("f", 1000), tmp_path / "link", tmp_path / "token"
    link.symlink_to(file)
    content = file.read_bytes()
    for sent, result_file in ((file, file), (file, link), (link, file)):
        fails_usage(pair.sender(sent, NOBODY, "--result-file", result_file), "--result-file", str(sent))
    assert file.read_bytes() == content

    token.write_text("a token of its own\n")
    fails_usage(pair.receiver("--token-file", token, "--result-file", token), "--result-file", str(token))
    assert token.read_text() == "a token of its own\n"
    output = pair.destination / "output"
    fails_usage(pair.start("receiver", "--output-file", output, "--result-file", output), "--result-file", str(output))


def test_a_result_file_that_was_meant_to_be_sent(pair: Pair) -> None:
    """`sender --result-file $RESULT FILE`, where the variable is not set."""
    file = pair.file("f", 1000)
    content = file.read_bytes()
    sender = pair.start("sender", "--to", NOBODY, "--result-file", file)
    fails_usage(sender, "INPUT_FILE")
    assert file.read_bytes() == content
    assert sender.events("result_not_written")[0]["to"] == str(file)


@pytest.mark.parametrize("name", ["..", ".", "a/b", "/etc/passwd", "x" * 256, ""])
def test_as_no_file_name(pair: Pair, name: str) -> None:
    fails_usage(pair.sender(pair.file("f", 10), NOBODY, "--as", name), "--as")


def test_short_token(pair: Pair) -> None:
    fails_usage(pair.receiver(env={"FILESTREAMER_TOKEN": "short"}), "FILESTREAMER_TOKEN")
    assert pair.received() == []


def test_unknown_variable_is_a_warning(pair: Pair) -> None:
    """Kubernetes injects variables of its own: FILESTREAMER_PORT is not a reason to end."""
    receiver = pair.receiver("--once", env={"FILESTREAMER_PORT": "tcp://10.0.0.1:7800"})
    pair.sender(pair.file("f", 10), pair.address(receiver)).succeeds()
    receiver.succeeds()
    assert "FILESTREAMER_PORT" in receiver.events("unknown_variable")[0]["reason"]

"""What the pair is for: a file arrives, identical, under its name, and both sides say so."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from tests.support.peer import RawReceiver, RawSender, Sample, receive_all
from tests.support.services import EACH_TICK, HANG, UNIT, Pair, Service, held_port, impatient, make_file, same
from tests.support.waiting import gives_up_busy, with_patience

TOKEN = "a token of the tests"
MIB = 1 << 20


def root_digest(file: Path, chunk_size: int) -> str:
    """Compute the root digest without the product's code."""
    root = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while chunk := stream.read(chunk_size):
            root.update(xxhash.xxh3_128_digest(chunk))
    return root.hexdigest()


def check_agreement(sent: dict[str, Any], received: dict[str, Any], file: Path, chunk_size: int) -> None:
    """Both results describe this file, and the same transfer."""
    size = file.stat().st_size
    chunks = -(-size // chunk_size)
    for result in (sent, received):
        assert tuple(result[key] for key in ("status", "exit_code", "committed", "error")) == (
            "complete",
            0,
            True,
            None,
        )
        assert (size, size, 0) == (result["bytes"], result["sent_bytes"], result["held_bytes"])
        assert (chunks, chunk_size, 1) == (result["chunks"], result["chunk_size"], result["files"])
        assert root_digest(file, chunk_size) == result["root_digest"]
        assert size == sum(connection["bytes"] for connection in result["per_connection"])
        assert chunks == sum(connection["chunks"] for connection in result["per_connection"])
        assert (result["resent_chunks"], result["reconnects"]) == (0, 0)
    assert sent["transfer_id"] == received["transfer_id"]
    assert len(sent["transfer_id"]) == 32


def moved(sender: Service, receiver: Service) -> tuple[dict[str, Any], dict[str, Any]]:
    """Wait for both to end well; return both results."""
    return sender.succeeds(), receiver.succeeds()


# ------------------------------------------------------------------------------------------------ sizes and connections


@pytest.mark.parametrize("connections", [1, 5, 64])
@pytest.mark.parametrize("chunk_size", [1000, limits.CHUNK_SIZE_DEFAULT], ids=["small", "default"])
def test_sizes(pair: Pair, seed: int, chunk_size: int, connections: int) -> None:
    """Files around the edges of the grid, one after another; most have fewer chunks than there are connections."""
    sizes = [0, 1, chunk_size - 1, chunk_size, chunk_size + 1, 2 * chunk_size]
    if chunk_size == 1000:
        sizes.append(333 * chunk_size + 7)
    receiver = pair.receiver()
    address = pair.address(receiver)
    files = [pair.file(f"{size} bytes", size, seed + size) for size in sizes]
    explicit = [] if chunk_size == limits.CHUNK_SIZE_DEFAULT else ["--chunk-size", chunk_size]
    sent = [pair.sender(file, address, "--connections", connections, *explicit).succeeds() for file in files]
    results = receiver.wait_for_results(len(files))
    assert sorted(file.name for file in files) == pair.received()
    for file, result, received in zip(files, sent, results, strict=True):
        assert same(file, pair.destination / file.name), file.name
        check_agreement(result, received, file, chunk_size)
        assert result["connections"] <= min(connections, result["chunks"])
        assert (result["connections"] > 0) == (result["bytes"] > 0)


@pytest.mark.parametrize(
    "name",
    [
        "two words.txt",
        " leading and trailing ",
        "Größe, 大きさ 🗄",
        b"not utf-8 \xff\xfe\x80",
        "-leading-dash",
        "a\nb\x1b[2J",
        "x" * 255,
    ],
    ids=["spaces", "edges", "non-ascii", "non-utf-8", "dash", "control", "longest"],
)
def test_names(pair: Pair, name: str | bytes) -> None:
    file = pair.file(name, 5000)
    receiver = pair.receiver("--once")
    moved(pair.sender(file, pair.address(receiver)), receiver)
    assert [os.fsdecode(name)] == pair.received()
    assert same(file, pair.destination / file.name)
    assert os.fsdecode(name) in receiver.events("transfer_complete")[0]["file"]


def test_relative_path_with_a_leading_dash(pair: Pair) -> None:
    pair.file("-x", 10)
    receiver = pair.receiver("--once")
    moved(pair.start("sender", "--to", pair.address(receiver), "--", "-x", cwd=pair.source), receiver)
    assert pair.received() == ["-x"]


def test_most_connections(pair: Pair) -> None:
    file = pair.file("f", 300 * 1000)
    receiver = pair.receiver("--once")
    sender = pair.sender(file, pair.address(receiver), "--connections", 256, "--chunk-size", 1000)
    sent, received = moved(sender, receiver)
    check_agreement(sent, received, file, 1000)
    assert same(file, pair.destination / "f")


def test_largest_chunk_size(pair: Pair) -> None:
    file = pair.file("f", 3 * MIB)
    receiver = pair.receiver("--once")
    sent, received = moved(pair.sender(file, pair.address(receiver), "--chunk-size", "1GiB"), receiver)
    check_agreement(sent, received, file, 1 << 30)
    assert same(file, pair.destination / "f")


GIB_5 = 5 << 30


@pytest.fixture
def roomy() -> Iterator[Path]:
    """Return a directory with room for what 5 GiB take, memory first; it is emptied at once."""
    for parent in ("/dev/shm", tempfile.gettempdir(), "."):
        if Path(parent).is_dir() and shutil.disk_usage(parent).free > GIB_5 + (2 << 30):
            with tempfile.TemporaryDirectory(prefix="filestreamer-test-", dir=parent) as directory:
                yield Path(directory)
            return
    pytest.skip("no directory has 7 GiB free: the file of 5 GiB was not moved")


@pytest.mark.timeout(60 * UNIT)
def test_five_gib(roomy: Path, tmp_path: Path, seed: int) -> None:
    """More than any 32-bit number of bytes; each chunk has an island of random bytes between holes, and is sent."""
    source, destination, logs = roomy / "source", roomy / "destination", tmp_path / "logs"
    destination.mkdir()
    logs.mkdir()
    island = make_file(tmp_path / "island", 70_001, seed).read_bytes()
    with source.open("wb") as file:
        file.truncate(GIB_5)
        for at in range(7, GIB_5, 4 * MIB):
            os.pwrite(file.fileno(), at.to_bytes(8, "big") + island, at)
    receiver = Service("receiver", "--listen", "127.0.0.1:0", "--directory", destination, "--once", directory=logs)
    try:
        sender = Service("sender", source, "--to", receiver.wait_for("listening")["address"], directory=logs)
        try:
            sent, received = sender.succeeds(20 * UNIT), receiver.succeeds()
        finally:
            sender.end()
    finally:
        receiver.end()
    assert sent["chunks"] == 1280
    assert (sent["root_digest"], sent["bytes"]) == (received["root_digest"], received["bytes"])
    assert same(source, destination / "source")
    assert (destination / "source").stat().st_blocks * 512 < GIB_5 // 2  # the largest of its holes are holes


def test_holes_are_not_sent(pair: Pair) -> None:
    """Neither at the start, nor in the middle, nor at the end, nor those inside a chunk that is sent."""
    file = pair.source / "f"
    contents = {5 * MIB: b"first", 30 * MIB: bytes(range(256)) * 1000, 44 * MIB - 3: b"last"}
    with file.open("wb") as stream:
        for at, content in contents.items():
            stream.seek(at)
            stream.write(content)
        stream.truncate(64 * MIB)
    receiver = pair.receiver("--once")
    sent, received = moved(pair.sender(file, pair.address(receiver), "--chunk-size", "1MiB"), receiver)
    assert same(file, pair.destination / "f")
    stored = file.stat().st_blocks * 512
    assert (pair.destination / "f").stat().st_blocks * 512 <= stored + limits.MIB // 16
    assert sent["sent_bytes"] == sent["bytes"] == received["bytes"] <= stored
    assert sent["chunks"] == received["chunks"] == 64


# ---------------------------------------------------------------------------------------------------- what else arrives


def test_mode_and_mtime_arrive(pair: Pair) -> None:
    file = pair.file("f", 3000)
    file.chmod(0o640)
    os.utime(file, ns=(0, 1_234_567_890_123_456_789))
    receiver = pair.receiver("--once")
    moved(pair.sender(file, pair.address(receiver)), receiver)
    status = (pair.destination / "f").stat()
    assert (status.st_mode, status.st_mtime_ns) == (0o100640, 1_234_567_890_123_456_789)


def test_setuid_does_not_arrive(pair: Pair) -> None:
    file = pair.file("f", 10)
    file.chmod(0o6755)
    receiver = pair.receiver("--once")
    moved(pair.sender(file, pair.address(receiver)), receiver)
    assert (pair.destination / "f").stat().st_mode == 0o100755


def test_a_file_that_may_not_be_read_by_its_owner_arrives_so(pair: Pair) -> None:
    """The mode is set last: staging is written, synced and renamed whatever it says."""
    file = pair.file("f", 10_000)
    receiver = pair.receiver("--once")
    file.chmod(0o400)
    moved(pair.sender(file, pair.address(receiver)), receiver)
    assert (pair.destination / "f").stat().st_mode == 0o100400


def test_an_existing_file_is_replaced_atomically(pair: Pair, seed: int) -> None:
    """While the new one comes, the old one is there, whole; who has it open keeps it."""
    sample = Sample.random(seed, 4_000, 1_000)
    final = pair.destination / os.fsdecode(sample.name)
    final.write_bytes(b"old")
    receiver = pair.receiver("--once")
    with RawSender(pair.address(receiver)) as peer, final.open("rb") as opened_before:
        control = peer.control()
        control.send(sample.offer, m.ManifestPart(0, (sample.entry,), True))
        control.expect(m.Needed)
        data = peer.data()
        for index in range(sample.grid.segments):
            data.send_raw(sample.chunk(index))
            assert data.read() == m.ChunkAck(m.Verdict.OK, (index,))
            assert final.read_bytes() == b"old"
        control.send(sample.finish)
        assert control.expect(m.Complete) == m.Complete(True)
        assert opened_before.read() == b"old"
        assert (final.read_bytes() == sample.content, pair.received()) == (True, [final.name])
        control.end_writing()
    receiver.succeeds()


def test_no_replace_refuses(pair: Pair) -> None:
    file, other = pair.file("f", 1000), pair.file("g", 1000)
    final = pair.destination / "f"
    final.write_bytes(b"old")
    receiver = pair.receiver("--no-replace")
    address = pair.address(receiver)
    message = pair.sender(file, address).fails(3, "exists", status="refused")
    assert str(final) in message
    assert "--no-replace" in message
    assert (final.read_bytes(), ["f"]) == (b"old", pair.received())
    pair.sender(other, address).succeeds()
    assert same(other, pair.destination / "g")


def test_as_names_the_file(pair: Pair) -> None:
    file = pair.file("f", 1000)
    receiver = pair.receiver("--once")
    moved(pair.sender(file, pair.address(receiver), "--as", "another name"), receiver)
    assert pair.received() == ["another name"]
    assert same(file, pair.destination / "another name")


def test_output_file_names_the_file_and_implies_once(pair: Pair) -> None:
    file = pair.file("f", 1000)
    out = pair.destination / "out.bin"
    receiver = pair.start("receiver", "--listen", "127.0.0.1:0", "--output-file", out)
    moved(pair.sender(file, pair.address(receiver), "--as", "ignored"), receiver)
    assert pair.received() == ["out.bin"]
    assert same(file, out)


def test_output_file_is_relative_to_the_working_directory(pair: Pair) -> None:
    file = pair.file("f", 1000)
    receiver = pair.start("receiver", "--listen", "127.0.0.1:0", "--output-file", "out.bin", cwd=pair.destination)
    moved(pair.sender(file, pair.address(receiver)), receiver)
    assert pair.received() == ["out.bin"]


def test_result_file(pair: Pair, tmp_path: Path) -> None:
    """It has what standard output has, on both sides."""
    file = pair.file("f", 1000)
    sent_file, received_file = tmp_path / "sent.json", tmp_path / "received.json"
    receiver = pair.receiver("--once", "--result-file", received_file)
    sent, received = moved(pair.sender(file, pair.address(receiver), "--result-file", sent_file), receiver)
    assert sent == json.loads(sent_file.read_text())
    assert received == json.loads(received_file.read_text())


def test_result_file_is_written_where_nothing_began(pair: Pair, tmp_path: Path) -> None:
    result_file = tmp_path / "result.json"
    sender = pair.sender(pair.source / "missing", "127.0.0.1:1", "--result-file", result_file)
    sender.fails(4, "source")
    assert sender.result == json.loads(result_file.read_text())


# ------------------------------------------------------------------------------------------ which connection moved what


def test_strict_modulo_counts(pair: Pair) -> None:
    """With --strict-modulo connection c moves the chunks k with k mod N = c, and both sides say so."""
    file = pair.file("f", 103 * 700 + 1)
    receiver = pair.receiver("--once")
    sender = pair.sender(
        file, pair.address(receiver), "--strict-modulo", "--connections", 7, "--chunk-size", 700, "--log-level", "debug"
    )
    sent, received = moved(sender, receiver)
    expected = {c: len(range(c, 104, 7)) for c in range(7)}
    assert expected == {item["connection_id"]: item["chunks"] for item in sent["per_connection"]}
    assert expected == {item["connection_id"]: item["chunks"] for item in received["per_connection"]}
    assert sent["stolen_chunks"] == 0
    check_agreement(sent, received, file, 700)


@pytest.mark.parametrize("connections", [1, 3, 64])
def test_strict_modulo_chunk_by_chunk(pair: Pair, connections: int) -> None:
    """Seen from the wire: chunk k goes over connection k mod N, once, in order, and says where it belongs."""
    size, chunk_size = 50 * 1024 + 5, 1024
    file = pair.file("f", size)
    content = file.read_bytes()
    with RawReceiver() as receiver:
        sender = pair.sender(
            file, receiver.address, "--strict-modulo", "--connections", connections, "--chunk-size", chunk_size
        )
        received = receive_all(receiver, connections, 51)
        sender.succeeds()
    for connection_id, chunks in received.items():
        assert list(range(connection_id, 51, connections)) == [chunk.chunk_id for chunk in chunks]
        for chunk in chunks:
            (segment,) = chunk.segments
            offset = chunk.chunk_id * chunk_size
            expected = content[offset : offset + chunk_size]
            assert m.Segment(0, offset, len(expected)) == segment
            assert expected == chunk.payload
            assert xxhash.xxh3_128_digest(expected) == chunk.digests


def test_every_chunk_is_sent_once_where_connections_take_over(pair: Pair) -> None:
    file = pair.file("f", 300 * 1024)
    with RawReceiver() as receiver:
        sender = pair.sender(file, receiver.address, "--connections", 4, "--chunk-size", 1024)
        received = receive_all(receiver, 4, 300)
        result = sender.succeeds()
    assert list(range(300)) == sorted(chunk.chunk_id for chunks in received.values() for chunk in chunks)
    stolen = sum(chunk.chunk_id % 4 != connection for connection, chunks in received.items() for chunk in chunks)
    assert stolen == result["stolen_chunks"]


# -------------------------------------------------------------------------------------------------- many at once, order


def test_sender_starts_first(pair: Pair) -> None:
    file = pair.file("f", 100_000)
    with held_port() as port:
        sender = pair.sender(file, f"127.0.0.1:{port}")
        assert f"127.0.0.1:{port}" in sender.wait_for("cannot_connect")["reason"]
        receiver = pair.receiver("--once", listen=f"127.0.0.1:{port}")
        moved(sender, receiver)
    assert same(file, pair.destination / "f")


def test_two_transfers_at_once(pair: Pair, seed: int) -> None:
    files = [pair.file(f"f{index}", 2 * MIB + index, seed + index) for index in range(2)]
    receiver = pair.receiver()
    address = pair.address(receiver)
    senders = [pair.sender(file, address, "--rate-limit", "2MiB/s", "--chunk-size", "64KiB") for file in files]
    receiver.wait_for("transfer_started", count=2)
    assert not receiver.events("transfer_complete"), "they did not overlap"
    sent = {sender.succeeds()["transfer_id"] for sender in senders}
    assert sent == {result["transfer_id"] for result in receiver.wait_for_results(2)}
    assert [same(file, pair.destination / file.name) for file in files] == [True, True]
    assert pair.received() == ["f0", "f1"]


def test_second_sender_of_a_file_is_busy(pair: Pair, seed: int) -> None:
    """It waits, gives up with exit 1, and does not disturb the first, which completes."""
    first_file = pair.file("f", 4 * MIB, seed)
    second_file = make_file(pair.logs / "f", 1000, seed + 1)
    receiver = pair.receiver()
    address = pair.address(receiver)
    first = pair.sender(first_file, address, "--rate-limit", "2MiB/s", "--chunk-size", "64KiB")
    receiver.wait_for("transfer_started")
    first.signal(signal.SIGSTOP)  # it stays under way however long the second takes; a peer is dead after 30 s only

    def is_tried_again(give_up_after: float) -> bool:
        second = pair.sender(second_file, address, "--give-up-after", give_up_after)
        second.wait()
        times = len(second.events("control_lost"))
        assert times == 0 or "is locked by another transfer" in second.fails(1, "busy")
        return times >= 2

    with_patience(is_tried_again, "refused more than once")
    first.signal(signal.SIGCONT)
    first.succeeds()
    receiver.wait_for("transfer_complete")
    assert same(first_file, pair.destination / "f")
    assert pair.received() == ["f"]


def test_waiting_sender_goes_on_when_the_first_is_done(pair: Pair, seed: int) -> None:
    """BUSY is waited for: both succeed, and the later one's file is there in the end."""
    files = [pair.file("f", 2 * MIB, seed), make_file(pair.logs / "f", 1000, seed + 1)]
    receiver = pair.receiver()
    address = pair.address(receiver)
    first = pair.sender(files[0], address, "--rate-limit", "2MiB/s")
    receiver.wait_for("transfer_started")
    second = pair.sender(files[1], address)
    first.succeeds()
    second.succeeds()
    assert same(files[1], pair.destination / "f")
    receiver.wait_for("transfer_complete", count=2)


def test_busy_is_one_result_at_the_receiver(pair: Pair, seed: int) -> None:
    """Standard output has one result a transfer, however often its sender tries."""
    files = [pair.file("f", 4 * MIB, seed), make_file(pair.logs / "f", 1000, seed + 1)]
    receiver = pair.receiver()
    address = pair.address(receiver)
    first = pair.sender(files[0], address, "--rate-limit", "2MiB/s")
    receiver.wait_for("transfer_started")
    first.signal(signal.SIGSTOP)
    gives_up_busy(lambda seconds: pair.sender(files[1], address, "--give-up-after", seconds))
    first.signal(signal.SIGCONT)
    first.succeeds()
    first_id = first.result["transfer_id"]
    end = time.monotonic() + HANG
    while first_id not in (transfer_ids := [result["transfer_id"] for result in receiver.results]):
        assert time.monotonic() < end, receiver.stderr
        time.sleep(0.01)
    assert len(set(transfer_ids)) == len(transfer_ids)


def test_receiver_stays_through_a_failed_transfer(pair: Pair, seed: int) -> None:
    """A good one, one whose sender is killed, one that is refused, the killed one again, and a good one."""
    good, killed = pair.file("good", 200_000, seed), pair.file("killed", 4 * MIB, seed)
    receiver = pair.receiver()
    address = pair.address(receiver)
    pair.sender(good, address).succeeds()
    victim = pair.sender(killed, address, "--rate-limit", "1MiB/s", "--chunk-size", "64KiB")
    receiver.wait_for("transfer_started", count=2)
    victim.signal(signal.SIGKILL)
    assert victim.wait() == 137
    pair.sender(good, address, "--as", ".filestreamer").fails(3, "path", status="refused")
    pair.sender(killed, address).succeeds()
    pair.sender(good, address, "--as", "again").succeeds()
    receiver.wait_for("transfer_complete", count=3)
    assert pair.received() == ["again", "good", "killed"]
    assert [
        same(*pair_)
        for pair_ in (
            (good, pair.destination / "good"),
            (killed, pair.destination / "killed"),
            (good, pair.destination / "again"),
        )
    ] == [True] * 3
    receiver.signal(signal.SIGTERM)
    assert receiver.wait() == 143
    assert "Traceback" not in receiver.stderr


def test_once_outlives_a_failed_transfer(pair: Pair) -> None:
    file = pair.file("f", 1000)
    receiver = pair.receiver("--once")
    address = pair.address(receiver)
    pair.sender(file, address, "--as", ".filestreamer").fails(3, "path", status="refused")
    receiver.wait_for_results(1)
    pair.sender(file, address).succeeds()
    assert receiver.wait() == 0
    assert [result["status"] for result in receiver.results] == ["refused", "complete"]
    assert pair.received() == ["f"]


# ------------------------------------------------------------------------------------------------------------ addresses


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback address")


def port_of(receiver: Service) -> int:
    return int(Pair.address(receiver).rpartition(":")[2])


@needs_ipv6
def test_ipv6(pair: Pair) -> None:
    file = pair.file("f", 10_000)
    receiver = pair.receiver("--once", listen="[::1]:0")
    address = pair.address(receiver)
    assert address.startswith("[::1]:")
    moved(pair.sender(file, address), receiver)
    assert same(file, pair.destination / "f")


@needs_ipv6
@pytest.mark.parametrize("access", ["token", "anonymous"])
def test_any_address_takes_both_families(pair: Pair, access: str) -> None:
    file = pair.file("f", 10_000)
    env = {"FILESTREAMER_TOKEN": TOKEN} if access == "token" else {}
    receiver = pair.receiver(*(["--anonymous"] if access == "anonymous" else []), listen="[::]:0", env=env)
    port = port_of(receiver)
    for name, host in (("four", "127.0.0.1"), ("six", "[::1]")):
        pair.sender(file, f"{host}:{port}", "--as", name, env=env).succeeds()
        assert same(file, pair.destination / name)
    warnings = [line["event"] for line in receiver.log if line["level"] == "warning"]
    assert (["anonymous"] if access == "anonymous" else []) == warnings


@pytest.fixture
def name_with_two_addresses(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which `both.test` has two addresses, ::1 first."""
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "sitecustomize.py").write_text(
        "import socket\n"
        "real = socket.getaddrinfo\n"
        "def getaddrinfo(host, *args, **options):\n"
        "    if host != 'both.test':\n"
        "        return real(host, *args, **options)\n"
        "    return [*real('::1', *args, **options), *real('127.0.0.1', *args, **options)]\n"
        "socket.getaddrinfo = getaddrinfo\n"
    )
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path / "names"), *([before] if before else [])])}


@needs_ipv6
@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0"])
def test_every_address_of_a_name_is_tried(pair: Pair, name_with_two_addresses: dict[str, str], listen: str) -> None:
    file = pair.file("f", 100_000)
    receiver = pair.receiver("--once", listen=listen)
    sender = pair.sender(file, f"both.test:{port_of(receiver)}", env=name_with_two_addresses)
    moved(sender, receiver)
    assert same(file, pair.destination / "f")


@needs_ipv6
def test_the_next_address_is_tried_where_somebody_else_answers(
    pair: Pair, name_with_two_addresses: dict[str, str]
) -> None:
    """TCP connects to the first address, but what listens there closes the connection, as a proxy without backend."""
    file = pair.file("f", 100_000)
    receiver = pair.receiver("--once", "--no-replace")
    port = port_of(receiver)
    with socket.create_server(("::1", port), family=socket.AF_INET6) as proxy:
        sender = pair.sender(file, f"both.test:{port}", env=name_with_two_addresses)
        proxy.accept()[0].close()
        moved(sender, receiver)


@needs_ipv6
def test_the_error_names_every_address(pair: Pair, name_with_two_addresses: dict[str, str]) -> None:
    file = pair.file("f", 100)
    with held_port() as port:
        flags = (file, f"both.test:{port}", "--give-up-after")

        def names_both(give_up_after: float) -> bool:
            message = pair.sender(*flags, give_up_after, env=name_with_two_addresses).fails(1, "timeout")
            return f"[::1]:{port}" in message and f"127.0.0.1:{port}" in message

        with_patience(names_both, "both were tried")


@needs_ipv6
def test_receiver_listens_on_every_address_of_a_name(pair: Pair, name_with_two_addresses: dict[str, str]) -> None:
    file = pair.file("f", 100)
    receiver = pair.receiver(listen="both.test:0", env=name_with_two_addresses)
    receiver.wait_for("listening", count=2)
    addresses = [line["address"] for line in receiver.events("listening")]
    assert len({address.rpartition(":")[2] for address in addresses}) == 1
    for number, address in enumerate(addresses):
        pair.sender(file, address, "--as", str(number)).succeeds()
    assert pair.received() == ["0", "1"]


# ----------------------------------------------------------------------------------------------------------------- rate


@pytest.mark.parametrize("chunk_size", ["32KiB", "4MiB"])
def test_rate_limit_holds_over_all_connections(pair: Pair, chunk_size: str) -> None:
    """In no time does more get through than the rate makes of it, but for a piece and a burst of 1/20 s each."""
    size, rate = 4 * MIB, 4 * MIB
    file = pair.file("f", size)
    receiver = pair.receiver("--once")
    sender = pair.sender(
        file, pair.address(receiver), "--rate-limit", f"{rate}", "--connections", 4, "--chunk-size", chunk_size
    )
    sent, _ = moved(sender, receiver)
    assert sent["seconds"] >= size / rate - 0.1
    assert same(file, pair.destination / "f")


def test_the_receiver_limits_the_rate_of_all_transfers_together(pair: Pair) -> None:
    size, rate = 4 * MIB, 4 * MIB
    receiver = pair.receiver("--rate-limit", f"{rate}")
    files = [pair.file(name, size, seed) for seed, name in enumerate("ab")]
    senders = [pair.sender(file, pair.address(receiver), "--connections", 2) for file in files]
    results = [sender.succeeds() for sender in senders]
    assert max(result["seconds"] for result in results) >= 2 * size / rate - 0.25
    assert {result["bottleneck"] for result in results} == {"rate_limit"}
    assert all(same(file, pair.destination / file.name) for file in files)


def test_a_receiver_that_reads_slowly_is_not_taken_for_dead(pair: Pair) -> None:
    """Each chunk is in the receiver's kernel long before it is read: no acknowledgement comes for much of the time."""
    dead = {"filestreamer.wire.limits.DEAD_SECONDS": 0.7 * UNIT}
    listen = ("--listen", "127.0.0.1:0", "--directory", pair.destination, "--rate-limit", "64KiB")
    receiver = pair.start("receiver", *listen, **impatient("receiver", EACH_TICK))
    file = pair.file("f", MIB)
    args = (file, "--to", pair.address(receiver), "--connections", 4, "--chunk-size", "256KiB")
    sender = pair.start("sender", *args, "--give-up-after", 0.8 * UNIT, **impatient("sender", {**EACH_TICK, **dead}))
    assert sender.succeeds()["reconnects"] == 0


# ---------------------------------------------------------------------------------------------------------------- token


def printed_command(receiver: Service) -> str:
    """Wait for the sender command that a receiver prints, and return it."""
    receiver.wait_for("listening")
    lines = _wait_for_line(receiver, "send with:")
    assert len(lines) == 1
    return lines[0].partition("send with:")[2].strip()


def _wait_for_line(service: Service, start: str) -> list[str]:
    end = time.monotonic() + HANG
    while not (lines := [line for line in service.stderr.splitlines(keepends=True) if line.startswith(start)]) or any(
        not line.endswith("\n") for line in lines
    ):
        assert time.monotonic() < end, f"no line that starts with {start!r}:\n{service.stderr}"
        assert service.process.poll() is None, service.stderr
        time.sleep(0.01)
    return lines


def run_as_printed(command: str, file: Path) -> subprocess.CompletedProcess[str]:
    """Give a printed command to a shell that finds `sender`, with FILE replaced."""
    assert shlex.split(command).count("FILE") == 1
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FILESTREAMER_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["FILESTREAMER_GIVE_UP_AFTER"] = str(UNIT)
    return subprocess.run(
        ["sh", "-c", command.replace(" FILE ", f" {shlex.quote(str(file))} ")],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )


def own_address() -> str | None:
    """Return an address of this machine that is not loopback, without sending anything."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("198.51.100.1", 9))
        except OSError:
            return None
        address: str = sock.getsockname()[0]
    return None if address.startswith("127.") else address


@pytest.mark.parametrize("host", ["0.0.0.0", pytest.param("[::]", marks=needs_ipv6), "own"])
def test_made_token_works_as_printed(pair: Pair, host: str) -> None:
    """A receiver that others can reach makes a token, and prints the command that uses it."""
    if host == "own":
        address = own_address()
        if address is None:
            pytest.skip("this machine has no address but loopback")
        host = address
    file = pair.file("f", 10_000)
    receiver = pair.receiver("--once", listen=f"{host}:0")
    command = printed_command(receiver)
    done = run_as_printed(command, file)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert receiver.wait() == 0
    assert same(file, pair.destination / "f")


def test_made_token_is_kept_and_kept_secret(pair: Pair) -> None:
    file = pair.file("f", 100)
    kept = pair.destination / ".filestreamer" / "token"
    tokens = set()
    for number in range(2):
        receiver = pair.receiver("--once", listen="0.0.0.0:0")
        told = printed_command(receiver) if number == 0 else str(receiver.wait_for("token")["path"])
        token = kept.read_text().strip()
        tokens.add(token)
        assert told == str(kept) if number else shlex.split(told)[0].partition("=")[2] == token
        assert (kept.stat().st_mode, kept.parent.stat().st_mode) == (0o100600, 0o40700)
        pair.sender(
            file, f"127.0.0.1:{port_of(receiver)}", "--as", str(number), env={"FILESTREAMER_TOKEN": token}
        ).succeeds()
        assert receiver.wait() == 0
        assert token not in receiver.stderr.replace(told, "")
    assert pair.received() == [".filestreamer", "0", "1"]
    assert len(tokens) == 1


def test_wrong_and_missing_token(pair: Pair) -> None:
    """Both end with exit 3 at the sender, at once; the receiver goes on."""
    file = pair.file("f", 100)
    receiver = pair.receiver(env={"FILESTREAMER_TOKEN": TOKEN})
    address = pair.address(receiver)
    assert "token" in pair.sender(file, address, env={"FILESTREAMER_TOKEN": TOKEN + "."}).fails(
        3, "token", status="refused"
    )
    assert "--token-file" in pair.sender(file, address).fails(3, "token", status="refused")
    assert pair.received() == []
    pair.sender(file, address, env={"FILESTREAMER_TOKEN": TOKEN}).succeeds()
    assert len(receiver.wait_for_results()) == 1
    assert pair.received() == ["f"]


def test_a_sender_with_a_token_refuses_a_receiver_without(pair: Pair) -> None:
    file = pair.file("f", 100)
    receiver = pair.receiver()
    pair.sender(file, pair.address(receiver), env={"FILESTREAMER_TOKEN": TOKEN}).fails(3, "token", status="refused")
    assert pair.received() == []


def test_token_file(pair: Pair, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN + "\n")
    file = pair.file("f", 100)
    receiver = pair.receiver("--once", "--token-file", token_file)
    moved(pair.sender(file, pair.address(receiver), "--token-file", token_file), receiver)
    assert TOKEN not in receiver.stderr

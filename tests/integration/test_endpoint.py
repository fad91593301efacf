"""The metrics port of real services: attacked while they move files, lingering, pushing, and where it can't be had."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestreamer.wire import limits
from receiver import health
from tests.integration.test_moves import needs_ipv6
from tests.support.processes import descriptors, peak_bytes, thread_count
from tests.support.prometheus import program, wait_for
from tests.support.scrape import METRICS, get, metrics_address, scrape
from tests.support.services import HANG, UNIT, Pair, Service, held_port, same
from tests.support.waiting import until


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), HANG)


def status_of(address: str, path: str) -> tuple[int, str]:
    """Get a path; return the status and the body, whatever the status."""
    try:
        return 200, get(address, path)[0]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


# -------------------------------------------------------------------------------------------------------- under attack


class Attack:
    """Strangers who come again and again to a metrics port, all at once, until the block ends."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(body,), daemon=True)
            for body in (self._idle_ones, self._dribble, self._huge, self._garbage)
        ]
        self.rounds = 0

    def __enter__(self) -> "Attack":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(HANG)

    def _run(self, body: object) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
                body(stack)  # type: ignore[operator]
            self.rounds += 1

    def _idle_ones(self, stack: contextlib.ExitStack) -> None:
        for _ in range(200):
            stack.enter_context(connect(self._address))
        self._ended.wait(0.2)

    def _dribble(self, stack: contextlib.ExitStack) -> None:
        socks = [stack.enter_context(connect(self._address)) for _ in range(20)]
        for letter in b"GET /metrics HTTP/1.1":
            for sock in socks:
                with contextlib.suppress(OSError):
                    sock.sendall(bytes([letter]))
            self._ended.wait(0.05)

    def _huge(self, stack: contextlib.ExitStack) -> None:
        sock = stack.enter_context(connect(self._address))
        for _ in range(64):
            sock.sendall(b"GET /" + b"a" * 65536)

    def _garbage(self, stack: contextlib.ExitStack) -> None:
        for said in (
            b"\x16\x03\x01\x02",
            b"\0" * 1000,
            b"POST /metrics HTTP/1.1\r\n\r\nx",
            b"GET / HTTP/1.1\r\n\r\n" * 9,
        ):
            stack.enter_context(connect(self._address)).sendall(said)
        self._ended.wait(0.02)


@pytest.mark.parametrize("attacked", ["sender", "receiver"])
def test_an_attack_disturbs_neither_scrapes_nor_the_transfer(pair: Pair, seed: int, attacked: str) -> None:
    """A scrape may have to be tried again, as Prometheus does by itself."""
    file = pair.file("f", 12 * limits.MIB, seed)
    receiver = pair.receiver(*METRICS)
    settings = ("--rate-limit", "3MiB/s", *METRICS, "--metrics-linger", 600)
    sender = pair.sender(file, pair.address(receiver), *settings)
    service = {"sender": sender, "receiver": receiver}[attacked]
    address = metrics_address(service)
    receiver.wait_for("transfer_started")
    get(address, "/metrics")  # what it takes to answer is imported by now
    before, memory = len(descriptors(service.process.pid)), peak_bytes(service.process.pid)
    with Attack(address) as attack:
        scrapes = 0
        while scrapes < 5 or attack.rounds < 5:
            begun = time.monotonic()
            while True:
                with contextlib.suppress(OSError):
                    get(address, "/metrics", seconds=UNIT)
                    break
                assert time.monotonic() - begun < HANG, "no scrape gets through"
            scrapes += 1
        assert thread_count(service.process.pid) < 60
    grown = peak_bytes(service.process.pid) - memory
    assert grown < 8 * limits.MIB, f"it grew by {grown} bytes"
    wait_for(lambda: len(descriptors(service.process.pid)) <= before, "no descriptor is left")
    sender.wait_for("metrics_linger")
    sender.signal(signal.SIGTERM)
    assert sender.succeeds()["reconnects"] == 0
    assert receiver.wait_for_results()[0]["status"] == "complete"
    assert same(file, pair.destination / "f")
    for each in (sender, receiver):
        assert "Traceback" not in each.stderr
        assert not [line for line in each.log if line["level"] in ("warning", "error")]


@pytest.mark.parametrize("path", ["/nowhere", "/metrics/", "/../token"])
def test_what_is_not_there_says_what_is(pair: Pair, path: str) -> None:
    status, body = status_of(metrics_address(pair.receiver(*METRICS)), path)

    assert status == 404
    assert "/metrics" in body
    assert body.count("\n") == 1


def test_a_descriptor_shortage_is_waited_for(pair: Pair) -> None:
    """A port that can't accept is readable all the time: the service neither spins nor gives up."""
    receiver = pair.start(
        "receiver", "--listen", "127.0.0.1:0", "--directory", pair.destination, *METRICS,
        under=("prlimit", "--nofile=32"),
    )  # fmt: skip
    address = metrics_address(receiver)
    get(address, "/healthz")
    with contextlib.ExitStack() as stack:
        for _ in range(64):
            stack.enter_context(connect(address))
        used = cpu_seconds(receiver)
        begun = time.monotonic()
        while time.monotonic() < begun + 1.0:
            assert receiver.poll() is None
            time.sleep(0.05)
        assert cpu_seconds(receiver) - used < 0.5 * (time.monotonic() - begun)
    wait_for(lambda: answers(address), "it serves again")
    assert "Traceback" not in receiver.stderr


def cpu_seconds(service: Service) -> float:
    fields = Path(f"/proc/{service.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def answers(address: str) -> bool:
    with contextlib.suppress(OSError):
        return get(address, "/healthz")[0] == "alive\n"
    return False


# ------------------------------------------------------------------------------------------------------ where it serves


def test_the_default_port_in_use_is_a_warning(pair: Pair, seed: int) -> None:
    """Two receivers on one machine: the second one runs, and says what it lacks."""
    file = pair.file("f", 1000, seed)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # some other program has it: just as well
            stack.enter_context(socket.create_server(("127.0.0.1", 9464)))
        receiver = pair.receiver("--once", env={"FILESTREAMER_METRICS": ""})
        pair.sender(file, pair.address(receiver)).succeeds()
        assert receiver.wait() == 0
    assert receiver.events("no_metrics")[0]["address"] == "127.0.0.1:9464"


def test_a_given_port_in_use_is_an_error(pair: Pair, seed: int) -> None:
    file = pair.file("f", 1000, seed)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        flags = ("--metrics", f"127.0.0.1:{port}")
        message = pair.sender(file, "127.0.0.1:9", *flags).fails(2, "usage", status="failed")
        assert f"--metrics 127.0.0.1:{port}" in message
        assert message == pair.receiver(*flags).fails(2, "usage", status="failed")


def test_off_is_off(pair: Pair, seed: int) -> None:
    file = pair.file("f", 1000, seed)
    receiver = pair.receiver("--once", "--metrics", "off")
    sender = pair.sender(file, pair.address(receiver), "--metrics", "off", "--metrics-linger", 600)
    sender.succeeds()
    assert receiver.wait() == 0
    assert not sender.events("metrics") + sender.events("metrics_linger") + receiver.events("metrics")


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_the_health_check_takes_the_variable_as_the_receiver_does(pair: Pair, end: str) -> None:
    """A YAML block and a Secret that was made with `echo` end with a line."""
    with held_port() as port:
        metrics = {"FILESTREAMER_RECEIVER_METRICS": f"127.0.0.1:{port}{end}"}
        receiver = pair.receiver(env=metrics)
        metrics_address(receiver)
        for environ in (metrics, {"FILESTREAMER_RECEIVER_METRICS": f"off{end}"}):
            until(lambda environ=environ: health.check(environ) is None, "the receiver answers")  # type: ignore[misc]
        assert "does not answer" in str(health.check({"FILESTREAMER_METRICS": pair.address(receiver) + end}))


@needs_ipv6
def test_ipv6(pair: Pair) -> None:
    address = metrics_address(pair.receiver("--metrics", "[::1]:0"))

    assert address.startswith("[::1]:")
    assert status_of(address, "/healthz") == (200, "alive\n")


@pytest.mark.parametrize("value", ["localhost", "[::1]", "9464", "h:", "h:99999", ""])
@pytest.mark.parametrize("command", ["sender", "receiver"])
def test_an_address_without_a_port_is_an_error(pair: Pair, command: str, value: str) -> None:
    args = ("f", "--to", "127.0.0.1:9") if command == "sender" else ()

    assert "--metrics" in pair.start(command, *args, "--metrics", value).fails(2, "usage", status="failed")


def test_a_sender_is_ready_when_it_has_its_receiver(pair: Pair, seed: int) -> None:
    file = pair.file("f", 4 * limits.MIB, seed)
    port = pair.port()
    sender = pair.sender(file, f"127.0.0.1:{port}", "--rate-limit", "2MiB/s", *METRICS)
    address = metrics_address(sender)
    sender.wait_for("cannot_connect")
    assert status_of(address, "/readyz") == (503, "no receiver yet\n")
    assert status_of(address, "/healthz") == (200, "alive\n")
    receiver = pair.receiver("--once", *METRICS, listen=f"127.0.0.1:{port}")
    assert status_of(metrics_address(receiver), "/readyz") == (200, "ready\n")
    sender.wait_for("connected")
    wait_for(lambda: status_of(address, "/readyz") == (200, "ready\n"), "it is ready")
    sender.succeeds()


# ---------------------------------------------------------------------------------------------------------- the linger


def test_last_values_are_served_and_a_signal_ends_that(pair: Pair, seed: int) -> None:
    """Both services stay for a scrape; then each ends at once, as its transfer did."""
    file = pair.file("f", 100_000, seed)
    receiver = pair.receiver("--once", *METRICS, "--metrics-linger", 600)
    sender = pair.sender(file, pair.address(receiver), *METRICS, "--metrics-linger", 600)
    for service in (sender, receiver):
        service.wait_for("metrics_linger")
        assert service.result["status"] == "complete"
        seen = scrape(service)
        assert seen.value("transfer_acknowledged_bytes") == 100_000
        assert seen.value("transfers_total", result="complete") == 1
        service.signal(signal.SIGTERM)
        assert service.wait() == 0


def test_a_signal_that_another_thread_takes_ends_the_linger(pair: Pair, seed: int) -> None:
    """The kernel may give it to any thread, or to the main one just before that begins to wait: neither wakes it."""
    receiver = pair.receiver(*METRICS)
    sender = pair.sender(pair.file("f", 1000, seed), pair.address(receiver), *METRICS, "--metrics-linger", 600)
    sender.wait_for("metrics_linger")
    pid = sender.process.pid
    other = max(int(thread) for thread in os.listdir(f"/proc/{pid}/task"))
    assert other != pid
    assert ctypes.CDLL(None).tgkill(pid, other, signal.SIGTERM) == 0

    assert sender.wait() == 0


def test_a_signal_during_the_transfer_leaves_no_linger(pair: Pair, seed: int) -> None:
    file = pair.file("f", 8 * limits.MIB, seed)
    receiver = pair.receiver(*METRICS, "--metrics-linger", 600)
    sender = pair.sender(file, pair.address(receiver), "--rate-limit", "1MiB/s", *METRICS, "--metrics-linger", 600)
    receiver.wait_for("transfer_started")
    for service in (sender, receiver):
        service.signal(signal.SIGTERM)
        assert service.wait() == 143


def test_a_failed_transfer_lingers_and_keeps_its_exit_code(pair: Pair, seed: int) -> None:
    file = pair.file("f", 1000, seed)
    address = pair.address(pair.receiver("--no-replace"))
    pair.sender(file, address).succeeds()
    os.utime(file, ns=(0, 0))
    sender = pair.sender(file, address, *METRICS, "--metrics-linger", 600)
    sender.wait_for("metrics_linger")
    code = sender.result["exit_code"]
    assert code > 0
    assert sum(value for labels, value in scrape(sender).samples("transfers_total")) == 1
    sender.signal(signal.SIGINT)

    assert sender.wait() == code


def test_a_receiver_that_stays_forgets_series_and_keeps_totals(pair: Pair, seed: int) -> None:
    file = pair.file("f", 100_000, seed)
    receiver = pair.receiver(*METRICS, "--metrics-linger", 1)
    address = pair.address(receiver)
    for number in (1, 2):
        sent = pair.sender(file, address).succeeds()
        receiver.wait_for_results(number)
        label = {"transfer": sent["transfer_id"][:8]}
        assert scrape(receiver).values("transfers_total", result="complete") == [number]
        wait_for(lambda label=label: not list(scrape(receiver).samples("transfer_size_bytes", **label)), "it is gone")  # type: ignore[misc]
        seen = scrape(receiver)
        assert list(seen.samples("connection_up")) == []
        assert seen.value("transfers_total", result="complete") == number


# ------------------------------------------------------------------------------------------------------- the gateway


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[str]:
    """Run a real Pushgateway; return where."""
    with held_port() as port, (tmp_path / "gateway.log").open("wb") as log:
        # Debian's keeps what was pushed in a file of the machine, by default: what other tests pushed was there, too.
        options = (f"--web.listen-address=127.0.0.1:{port}", "--persistence.file=")
        command = [program("prometheus-pushgateway"), *options]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(lambda: _is_ready(f"127.0.0.1:{port}"), "the gateway")
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


def _is_ready(address: str) -> bool:
    with contextlib.suppress(OSError):
        return status_of(address, "/-/ready")[0] == 200
    return False


def test_last_values_are_pushed(pair: Pair, seed: int, gateway: str) -> None:
    """Both services of one configuration push to one job; neither takes the other's away."""
    file = pair.file("f", 100_000, seed)
    flags = ("--pushgateway", f"http://{gateway}/metrics/job/nightly%20backup")
    receiver = pair.receiver("--once", *flags)
    transfer = pair.sender(file, pair.address(receiver), *flags).succeeds()["transfer_id"][:8]
    assert receiver.wait() == 0
    pushed = get(gateway, "/metrics")[0].splitlines()

    for command in ("sender", "receiver"):
        (line,) = [each for each in pushed if each.startswith(f"filestreamer_{command}_transfer_acknowledged_bytes{{")]
        assert 'job="nightly backup"' in line
        assert f'transfer="{transfer}"' in line
        assert line.endswith(" 100000")
    assert not [line for line in pushed if line.startswith("filestreamer") and 'connection="' in line]
    assert not [line for line in pushed if line.startswith("push_failure_time_seconds") and not line.endswith(" 0")]


def test_the_labels_of_the_url_are_those_of_the_group(pair: Pair, seed: int, gateway: str) -> None:
    """Two senders with a label each do not replace each other's values; a value may be escaped, or in base64."""
    receiver = pair.receiver()
    for number, labels in enumerate(("instance/node%207", "instance/node8/path@base64/L3ZhcjEvw7w")):
        file = pair.file(f"f{number}", 1000 + number, seed)
        url = f"http://{gateway}/metrics/job/nightly/{labels}"
        pair.sender(file, pair.address(receiver), "--pushgateway", url).succeeds()
    pushed = get(gateway, "/metrics")[0].splitlines()

    found = [line for line in pushed if line.startswith("filestreamer_sender_transfer_acknowledged_bytes{")]
    assert [line.rpartition(" ")[2] for line in found] == ["1000", "1001"]
    for line, labels in zip(found, ('instance="node 7",', 'instance="node8",'), strict=True):
        assert 'job="nightly"' in line
        assert labels in line
    assert 'path="/var1/ü"' in found[1]


def test_a_job_has_a_name_of_its_own_where_the_url_gives_none(pair: Pair, seed: int, gateway: str) -> None:
    file = pair.file("f", 1000, seed)
    receiver = pair.receiver("--once")
    pair.sender(file, pair.address(receiver), "--pushgateway", f"http://{gateway}").succeeds()

    assert 'job="filestreamer_sender"' in get(gateway, "/metrics")[0]


@pytest.mark.parametrize("answer", ["nobody", "silence", "nonsense"])
def test_a_dead_gateway_changes_nothing(pair: Pair, seed: int, answer: str) -> None:
    """It is a warning, after the result, within a bounded time."""
    file = pair.file("f", 1000, seed)
    receiver = pair.receiver("--once")
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        port = stack.enter_context(held_port()) if answer == "nobody" else listener.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        sender = pair.sender(file, pair.address(receiver), "--pushgateway", url)
        if answer != "nobody":
            listener.settimeout(HANG)
            client = stack.enter_context(listener.accept()[0])
            assert sender.wait_for_results(), "the result does not wait for a gateway"
            if answer == "nonsense":
                client.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")
                client.shutdown(socket.SHUT_WR)
        sender.succeeds()
    (warning,) = sender.events("not_pushed")
    assert (warning["level"], warning["to"]) == ("warning", url)
    assert warning["reason"]


# ------------------------------------------------------------------------------------------------------- what it costs

METRICS_MODULES = ("prometheus_client", "http.server", "filestreamer.telemetry.metrics")


def test_nothing_of_metrics_is_imported_before_somebody_asks(pair: Pair, seed: int) -> None:
    """A plain sender never does; a receiver and a sender with a port only when they are asked."""
    file = pair.file("f", 1000, seed)
    traced = {"PYTHONPROFILEIMPORTTIME": "1"}
    receiver = pair.receiver("--once", *METRICS, env=traced)
    plain = pair.sender(file, pair.address(receiver), env=traced)
    plain.succeeds()
    assert receiver.wait() == 0
    asked = pair.receiver(*METRICS, env=traced)
    get(metrics_address(asked), "/healthz")
    assert [imported(service) & set(METRICS_MODULES) for service in (plain, receiver, asked)] == [set()] * 3
    scrape(asked)

    assert {"prometheus_client", "filestreamer.telemetry.metrics"} <= imported(asked)


def imported(service: Service) -> set[str]:
    """Return the modules that a service with PYTHONPROFILEIMPORTTIME has imported."""
    lines = [line for line in service.stderr.splitlines() if line.startswith("import time:")]
    assert lines
    return {line.rpartition("|")[2].strip() for line in lines}

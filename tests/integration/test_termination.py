"""What Kubernetes sees of a service: its termination message, in every case, and its answer to the liveness probe."""

import json
import signal
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.services import HANG, UNIT, Pair, Service, impatient

SIDES = ["sender", "receiver"]
SLOW = ("--rate-limit", "200KiB/s", "--chunk-size", "64KiB", "--window", "64KiB")


@pytest.fixture
def message(tmp_path: Path) -> Path:
    """Return the file that is the termination log, empty as the kubelet makes it."""
    path = tmp_path / "termination-log"
    path.touch()
    return path


def pod(message: Path, command: str, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return how a service is started that takes this file for Kubernetes' termination log."""
    arguments = impatient(command, {}, env)
    arguments["env"]["IMPATIENT"] = json.dumps({"filestreamer.telemetry.result.TERMINATION_LOG": str(message)})
    return arguments


def told(message: Path) -> Any:
    """Return the one JSON object that is the message."""
    content = message.read_bytes()
    assert len(content) <= 4096
    return json.loads(content)


# --- one JSON object, however a process ends


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("args", "env"),
    [
        (("--result-file", "FILE", "--unheard-of"), {}),
        (("--chunk-size=none", "--result-file=FILE"), {}),
        (("--config", "/missing.json"), {"FILESTREAMER_RESULT_FILE": "FILE"}),
        (
            ("--connections", "-1"),
            {"FILESTREAMER_SENDER_RESULT_FILE": "FILE", "FILESTREAMER_RECEIVER_RESULT_FILE": "FILE"},
        ),
        (("--result-file",), {"FILESTREAMER_RESULT_FILE": "FILE"}),
        (("--unheard-of",), {"FILESTREAMER_RESULT_FILE": "FILE\r\n"}),
    ],
    ids=[
        "flag",
        "flag with =",
        "variable",
        "variable of the service",
        "flag without a value",
        "variable that is a line",
    ],
)
def test_wrong_usage_is_told_in_the_result_file(
    pair: Pair, message: Path, side: str, args: tuple[str, ...], env: dict[str, str]
) -> None:
    named = {name: value.replace("FILE", str(message)) for name, value in env.items()}
    service = pair.start(side, *(arg.replace("FILE", str(message)) for arg in args), **pod(message, side, named))

    service.fails(2, "usage")
    assert told(message) == service.result


def test_a_file_that_is_named_behind_the_flags_is_no_result_file(pair: Pair, message: Path) -> None:
    service = pair.start("sender", "--unheard-of", "--", f"--result-file={message}", **pod(message, "sender"))

    service.fails(2, "usage")
    assert message.read_bytes() == b""


def start_slow(pair: Pair, message: Path, side: str, *args: object) -> tuple[Service, Service]:
    """Start a transfer that takes long; return the service of a side, whose message it is, and the other one."""
    of = {name: pod(message, name) if name == side else {} for name in SIDES}
    own: dict[str, tuple[object, ...]] = {
        name: ("--result-file", message, *args) if name == side else () for name in SIDES
    }
    receiver = pair.start(
        "receiver", "--listen", "127.0.0.1:0", "--directory", pair.destination, *own["receiver"], **of["receiver"]
    )
    sender = pair.start(
        "sender", pair.file("f", 8 << 20), "--to", pair.address(receiver), *SLOW, *own["sender"], **of["sender"]
    )
    receiver.wait_for("transfer_started")
    return (sender, receiver) if side == "sender" else (receiver, sender)


@pytest.mark.parametrize("side", SIDES)
def test_a_process_that_is_killed_has_told_so_before(pair: Pair, message: Path, side: str) -> None:
    service, _ = start_slow(pair, message, side)
    service.signal(signal.SIGKILL)

    assert service.wait() == 137
    result = told(message)
    assert (result["status"], result["exit_code"], result["error"]["code"]) == ("interrupted", 137, "killed")
    assert result["error"]["retryable"] is True


@pytest.mark.parametrize("side", SIDES)
def test_how_it_ends_takes_the_place_of_that(pair: Pair, message: Path, side: str) -> None:
    service, _ = start_slow(pair, message, side)
    service.signal(signal.SIGTERM)

    assert service.wait() == 143
    result = told(message)
    assert (result["status"], result["exit_code"], result["error"]["code"]) == ("interrupted", 143, "interrupted")


@pytest.mark.parametrize("side", SIDES)
def test_a_settings_file_that_is_no_json_is_told(pair: Pair, message: Path, tmp_path: Path, side: str) -> None:
    config = tmp_path / "config.json"
    config.write_text("{")
    service = pair.start(side, f"--config={config}", f"--result-file={message}", **pod(message, side))

    service.fails(2, "usage")
    assert str(config) in told(message)["error"]["message"]


def test_another_result_file_is_written_only_at_the_end(pair: Pair, tmp_path: Path) -> None:
    """Until then it is that of an earlier run."""
    result_file = tmp_path / "result.json"
    result_file.write_text("earlier")
    receiver = pair.receiver()
    sender = pair.sender(pair.file("f", 8 << 20), pair.address(receiver), *SLOW, "--result-file", result_file)
    receiver.wait_for("transfer_started")

    assert result_file.read_text() == "earlier"
    sender.signal(signal.SIGKILL)
    assert sender.wait() == 137
    assert result_file.read_text() == "earlier"


# --- the liveness probe


def is_alive(service: Service, seconds: float = HANG) -> bool:
    """Ask as the kubelet does, which waits for some seconds."""
    address = service.wait_for("metrics")["address"]
    try:
        with urllib.request.urlopen(f"http://{address}/healthz", timeout=seconds) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.parametrize("side", SIDES)
def test_a_frozen_process_does_not_answer_and_a_transfer_that_is_slow_or_stands_still_does(
    pair: Pair, message: Path, side: str
) -> None:
    service, other = start_slow(pair, message, side, "--metrics", "127.0.0.1:0")

    assert is_alive(service)
    other.signal(signal.SIGSTOP)
    assert is_alive(service)
    service.signal(signal.SIGSTOP)
    assert not is_alive(service, UNIT / 5)
    service.signal(signal.SIGCONT)
    assert is_alive(service)

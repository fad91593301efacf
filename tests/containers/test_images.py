"""What the images say of themselves, and what is in them."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from filestreamer.version import VERSION
from tests.support import traps
from tests.support.containers import BASE, Container, Site, inspect, run, until
from tests.support.services import UNIT

IMAGES = ["receiver", "sender"]
INSTALLED_BYTES_MAX = 45_000_000
"""17 MB of them are cryptography, with an OpenSSL of its own: it makes the certificates of `receiver --tls`."""


def settings_of(image: str) -> dict[str, Any]:
    """Return what the engine knows of an image."""
    (found,) = json.loads(inspect("image", "inspect", image))
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("image", IMAGES)
def test_what_an_image_says(images: None, image: str) -> None:
    config = settings_of(image)["Config"]
    assert [image] == config["Entrypoint"]
    assert config["User"] == "10001:10001"
    assert config["WorkingDir"] == "/data"
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert (labels["version"], labels["licenses"]) == (VERSION, "Apache-2.0")
    assert image in labels["title"]


def test_they_share_every_layer(images: None) -> None:
    receiver, sender = (settings_of(image)["RootFS"]["Layers"] for image in IMAGES)
    assert receiver == sender


def test_small(images: None) -> None:
    """What is not the base is the two services and what they depend on."""
    installed = settings_of("sender")["Size"] - settings_of(BASE)["Size"]
    assert 0 < installed < INSTALLED_BYTES_MAX


def python(script: str) -> str:
    """Run Python in an image."""
    return run(f"docker run --rm --read-only --network none --entrypoint python receiver -c {shlex.quote(script)}")


def test_nothing_is_compiled_at_start(images: None) -> None:
    """Every module that a transfer uses comes from bytecode that is in the image."""
    script = """
import os, sys
import receiver.health, receiver.server.server, sender.coordinator
import filestreamer.telemetry.metrics, filestreamer.terminal.screen
import filestreamer.wire.sockets.certificate, filestreamer.wire.sockets.tls_channel
modules = [module for module in sys.modules.values() if getattr(module, "__cached__", None)]
print(len(modules), *[module.__name__ for module in modules if not os.path.exists(module.__cached__)])
"""
    count, *uncompiled = python(script).split()
    assert int(count) > 100
    assert uncompiled == []


def test_only_what_runs(images: None) -> None:
    """No installer, no tests, no source of the builder's, nothing of the checkout."""
    script = "import os; print(*os.listdir('/opt/filestreamer/lib/python3.13/site-packages'), *os.listdir('/data'))"
    names = python(script).split()
    assert {"filestreamer", "receiver", "sender"} < set(names)
    assert not {"pip", "hatchling", "setuptools", "tests", "grpc"} & set(names)


def wait_until_healthy(container: Container) -> None:
    until(lambda: container.health == "healthy", f"{container.name} is not healthy", 4 * UNIT)


def test_health(here: Site) -> None:
    """The engine sees whether the receiver answers, wherever the variable says that it does."""
    receiver = here.receiver()
    elsewhere = here.receiver(name="elsewhere", env={"FILESTREAMER_RECEIVER_METRICS": "127.0.0.1:9000"})
    for container in (receiver, elsewhere):
        wait_until_healthy(container)
    answers = {"127.0.0.1:9000": 1, "127.0.0.1:7800": 1, "[::]:9464": 0, "off": 0}
    for address, exit_code in answers.items():
        variable = {"FILESTREAMER_RECEIVER_METRICS": address}
        assert receiver.engine.exec_run(["receiver-health"], environment=variable)[0] == exit_code


def test_nothing_that_was_received_is_executed(here: Site) -> None:
    """Neither by the health check, nor by what an operator runs beside the receiver, in /data as it is."""
    marks = here.destination / "marks"
    marks.mkdir()
    marks.chmod(0o777)
    traps.fill(here.destination, Path("/data/marks"))
    receiver = here.receiver()
    wait_until_healthy(receiver)
    file = here.file("a.bin", 100_000)
    here.sender(file).succeeds()
    for command in (
        ["receiver-health"],
        ["python", "-m", "receiver.health"],
        ["python", "-m", "receiver", "--version"],
        ["python", "-c", "import socket, ssl, json, receiver.server"],
    ):
        code, output = receiver.engine.exec_run(command)
        assert (code, receiver.health) == (0, "healthy"), output
    assert traps.sprung(marks) == []

"""deploy/compose.yaml: understood by the client that is here, and its services move the sample file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.containers import ROOT, run, until
from tests.support.prometheus import program
from tests.support.services import UNIT

FILE = ROOT / "deploy/compose.yaml"
PROJECT = "filestreamer-test"
SETTINGS = {"SAMPLE_MIB": "16", "RATE_LIMIT": "16MiB/s"}


@pytest.fixture(scope="module")
def client(engine: None) -> str:
    """Return the command: the engine's plugin, or the older program."""
    has_plugin = run("docker compose version >/dev/null 2>&1 && echo yes || true")
    return "docker compose" if has_plugin else program("docker-compose")


def compose(client: str, command: str) -> str:
    """Run a command of the client on our file."""
    return run(f"{client} --project-name {PROJECT} --file {FILE} {command}", env=SETTINGS)


@pytest.fixture
def project(client: str, images: None) -> Iterator[str]:
    """Return the client; what it started is removed."""
    yield client
    compose(client, "down --volumes --timeout 1")


def services(client: str) -> dict[str, Any]:
    """Return the services as the client understands them."""
    read = yaml.safe_load(compose(client, "config"))
    assert isinstance(read["services"], dict)
    return read["services"]


def test_what_is_mounted_is_there(client: str) -> None:
    """Prometheus and Grafana find their settings and the dashboard; they can't be started where no registry is."""
    found = services(client)
    assert {"receiver", "sample", "sender", "prometheus", "grafana"} == set(found)
    sources = [
        Path(volume["source"] if isinstance(volume, dict) else volume.split(":")[0])
        for name in ("prometheus", "grafana")
        for volume in found[name]["volumes"]
    ]
    assert len(sources) == 3
    for source in sources:
        assert any(source.iterdir())
    home = found["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (ROOT / "deploy/grafana/dashboards" / Path(home).name).is_file()


def test_the_sample_moves(project: str) -> None:
    compose(project, "up --no-build --detach sender receiver")

    def results() -> list[dict[str, Any]]:
        lines = compose(project, "logs --no-color sender receiver").splitlines()
        objects = [json.loads(line.partition("| ")[2]) for line in lines if "| {" in line]
        return [found for found in objects if "exit_code" in found]

    until(lambda: len(results()) == 2, "a service tells no result", 3 * UNIT)
    assert [(result["committed"], result["bytes"]) for result in results()] == [(True, 16 << 20)] * 2

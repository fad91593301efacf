"""A real Prometheus on loopback, and what is asked of it: the rules and the dashboard of deploy/."""

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
import yaml

from tests.support.services import HANG, held_port

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "filestreamer.json"

Found = TypeVar("Found")


def program(name: str) -> str:
    """Return where a program of Debian's packages prometheus and prometheus-pushgateway is.

    Without it the test is skipped; in CI it fails.
    """
    path = shutil.which(name)
    if path is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{name} is not installed")
    return path


def promtool(*args: object) -> str:
    """Run promtool; return all that it says. Fails where it finds a fault."""
    command = [program("promtool"), *map(str, args)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


# ------------------------------------------------------------------------------------------------- rules and dashboard


def rules() -> list[dict[str, Any]]:
    """Return the recording rules and the alerts."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    """Return the dashboard in Grafana's JSON model."""
    model: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return model


class PanelQuery(NamedTuple):
    """One query of one panel, as Grafana would send it."""

    panel: str
    expr: str


def panel_queries(*, window: str = "1m", **chosen: str) -> list[PanelQuery]:
    """Return every query of the dashboard, with its variables replaced by what is chosen, or by all there is."""
    values = {"$__rate_interval": window}
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            values[f"${variable['name']}"] = chosen.get(variable["name"], variable["allValue"])
    found = []
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            expr = target["expr"]
            for name, value in values.items():
                expr = expr.replace(name, value)
            found.append(PanelQuery(panel["title"], expr))
    return found


# ---------------------------------------------------------------------------------------------------------- the server


class Prometheus:
    """A server that runs, and its HTTP API."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str, **parameters: str) -> Any:
        """Ask the API; return `data` of its answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG)
        try:
            connection.request("GET", f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        assert answer["status"] == "success", f"{path} {parameters}: {answer}"
        return answer["data"]

    def is_ready(self) -> bool:
        """Whether it answers queries."""
        try:
            self.get("query", query="1")
        except (OSError, http.client.HTTPException, ValueError):
            return False
        return True

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Return the series that an expression has now, each with `metric` (its labels) and `value` (time and text)."""
        series: list[dict[str, Any]] = self.get("query", query=expr)["result"]
        return series

    def alerts(self, state: str = "firing") -> list[dict[str, Any]]:
        """Return the alerts in a state, with their labels and annotations."""
        return [alert for alert in self.get("alerts")["alerts"] if alert["state"] == state]


def wait_for(find: Callable[[], Found], what: str, seconds: float = HANG) -> Found:
    """Wait until something is found; return it."""
    end = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.1)
    return found


@contextlib.contextmanager
def prometheus(directory: Path, targets: dict[str, str], rules_text: str) -> Iterator[Prometheus]:
    """Run a server that each second scrapes `targets`, HOST:PORT by job, and evaluates the rules."""
    (directory / "rules.yml").write_text(rules_text)
    config = directory / "prometheus.yml"
    jobs = [{"job_name": job, "static_configs": [{"targets": [address]}]} for job, address in targets.items()]
    interval = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config.write_text(yaml.safe_dump({"global": interval, "rule_files": ["rules.yml"], "scrape_configs": jobs}))
    with held_port() as port, (directory / "prometheus.log").open("wb") as log:
        command = [program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={directory / 'tsdb'}"]
        command.append(f"--web.listen-address=127.0.0.1:{port}")
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            server = Prometheus(port)
            wait_for(server.is_ready, "Prometheus answers")
            yield server
        finally:
            process.kill()
            process.wait()

"""What a Prometheus would see: one scrape of a service, parsed by prometheus_client's own parsers.

receiver = pair.receiver(*METRICS)
seen = scrape(receiver)
assert seen.value("connection_up", connection="0") == 1
"""

import urllib.request
from collections.abc import Iterator
from typing import Final

from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.support.services import HANG, Service

METRICS: Final = ("--metrics", "127.0.0.1:0")
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0"


class Scrape:
    """The samples of one scrape; names without their prefix."""

    def __init__(self, prefix: str, families: list[Metric], text: str, content_type: str) -> None:
        self.families = {family.name.removeprefix(prefix): family for family in families}
        self.text = text
        self.content_type = content_type
        self._prefix = prefix
        assert all(family.name.startswith(prefix) for family in families), sorted(family.name for family in families)

    def samples(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """Yield labels and value of every sample of that name that has these labels."""
        for family in self.families.values():
            for sample in family.samples:
                if sample.name == self._prefix + name and labels.items() <= sample.labels.items():
                    yield dict(sample.labels), sample.value

    def values(self, name: str, **labels: str) -> list[float]:
        """Return the values of every sample of that name that has these labels."""
        return [value for _, value in self.samples(name, **labels)]

    def value(self, name: str, **labels: str) -> float:
        """Return the one value."""
        (value,) = self.values(name, **labels)
        return value


def get(address: str, path: str, accept: str = "", seconds: float = HANG) -> tuple[str, str]:
    """Get a path of a metrics port; return the body and its content type. Raises urllib's HTTPError."""
    request = urllib.request.Request(f"http://{address}{path}", headers={"Accept": accept} if accept else {})
    with urllib.request.urlopen(request, timeout=seconds) as response:
        return response.read().decode(), response.headers["Content-Type"]


def metrics_address(service: Service) -> str:
    """Wait until a service serves metrics; return HOST:PORT."""
    return str(service.wait_for("metrics")["address"])


def scrape(service: Service, accept: str = OPENMETRICS) -> Scrape:
    """Scrape a service that was started with METRICS."""
    text, content_type = get(metrics_address(service), "/metrics", accept)
    parse = parse_openmetrics if "openmetrics" in content_type else parse_text
    return Scrape(f"filestreamer_{service.command}_", list(parse(text)), text, content_type)

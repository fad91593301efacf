"""deploy/prometheus and deploy/grafana name only metrics that exist, and are what promtool and Grafana can read."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.contract import sample_names
from tests.support.prometheus import DASHBOARD, DEPLOY, RULES, dashboard, panel_queries, promtool, rules

METRICS = sample_names("sender") | sample_names("receiver")
RECORDED = {rule["record"] for rule in rules() if "record" in rule}
ALERTS = [rule for rule in rules() if "alert" in rule]


def metrics_of(expr: str) -> set[str]:
    """Return the names of the project's metrics, recorded ones included, that an expression asks for."""
    return set(re.findall(r"[\w:]*\bfilestreamer_[\w:]+", re.sub(r'"[^"]*"', "", expr)))


def test_the_configuration_is_valid() -> None:
    """The rules that it names included."""
    said = promtool("check", "config", DEPLOY / "prometheus" / "prometheus.yml")
    assert f"{len(rules())} rules found" in said


def test_each_alert_fires_where_it_should_and_only_there() -> None:
    promtool("test", "rules", DEPLOY / "prometheus" / "tests" / "rules.yml")


def test_each_alert_keeps_the_labels_of_kubernetes(tmp_path: Path) -> None:
    """Who is told, and what a dashboard shows, may depend on the namespace."""
    tested = (RULES.parent / "tests" / "rules.yml").read_text()
    there = tmp_path / "rules.yml"
    there.write_text(tested.replace("../rules.yml", str(RULES)).replace('job="', 'namespace="n", pod="p", job="'))
    promtool("test", "rules", there)


def test_each_alert_is_tested() -> None:
    tested = (DEPLOY / "prometheus" / "tests" / "rules.yml").read_text()
    assert {alert["alert"] for alert in ALERTS} == set(re.findall(r'alertname="(\w+)", alertstate="firing"', tested))


def test_each_alert_is_documented() -> None:
    rows = re.findall(r"^\| `(Filestreamer\w+)` \| (\w+) \|", (DEPLOY / "README.md").read_text(), re.MULTILINE)
    assert rows == [(alert["alert"], alert["labels"]["severity"]) for alert in ALERTS]


@pytest.mark.parametrize("alert", ALERTS, ids=[alert["alert"] for alert in ALERTS])
def test_each_alert_says_what_to_do(alert: dict[str, Any]) -> None:
    assert set(alert["annotations"]) == {"summary", "description", "runbook"}
    assert len(alert["annotations"]["summary"]) <= 100
    assert alert["labels"]["severity"] in ("critical", "warning", "info")


def test_panels_that_a_runbook_names_exist() -> None:
    titles = {panel["title"] for panel in dashboard()["panels"]}
    named = {name for alert in ALERTS for name in re.findall(r'"([A-Z][^"]+)"', alert["annotations"]["runbook"])}
    assert named
    assert named <= titles


def test_rules_and_panels_name_only_what_is_told() -> None:
    assert metrics_of(" ".join(rule["expr"] for rule in rules())) <= METRICS | RECORDED
    assert metrics_of(" ".join(query.expr for query in panel_queries())) <= METRICS | RECORDED


def test_each_recorded_series_is_asked_for() -> None:
    expressions = [*(alert["expr"] for alert in ALERTS), *(query.expr for query in panel_queries())]
    assert metrics_of(" ".join(expressions)) >= RECORDED


def test_each_query_of_the_dashboard_parses(tmp_path: Path) -> None:
    """As rules, which promtool reads."""
    queries = panel_queries()
    made = [{"record": f"panel:{number}", "expr": query.expr} for number, query in enumerate(queries)]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": made}]}))
    assert f"{len(queries)} rules found" in promtool("check", "rules", file)
    assert "$" not in " ".join(query.expr for query in queries)


def test_the_dashboard_is_what_its_program_makes() -> None:
    command = [sys.executable, str(DEPLOY / "grafana" / "dashboard.py")]
    made = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
    assert made == DASHBOARD.read_text(), "out of date: run `make grafana`"


def data_sources(node: Any) -> Iterator[Any]:
    """Yield every data source that the model names, at any depth."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        if key == "datasource":
            yield child
        yield from data_sources(child)


def test_the_data_source_is_chosen_everywhere() -> None:
    model = dashboard()
    found = list(data_sources(model))
    targets = sum(len(panel.get("targets", [])) for panel in model["panels"])
    assert len(found) > targets
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in found)


def test_panels_are_placed_side_by_side_and_numbered() -> None:
    panels = dashboard()["panels"]
    numbers = [panel["id"] for panel in panels]
    taken = Counter(
        (x, y)
        for grid in (panel["gridPos"] for panel in panels)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    )
    assert len(numbers) == len(set(numbers))
    assert set(taken.values()) == {1}
    assert {x for x, _ in taken} == set(range(24))


def test_each_panel_explains_itself() -> None:
    asking = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
    assert len({panel["title"] for panel in asking}) == len(asking)
    assert [panel["title"] for panel in asking if not (panel["description"] and panel["targets"])] == []


def test_transfers_and_connections_can_be_chosen() -> None:
    """Several at once, all at first; what has these labels is asked for those that were chosen."""
    variables = {item["name"]: item for item in dashboard()["templating"]["list"]}
    assert list(variables) == ["datasource", "namespace", "pod", "transfer", "connection"]
    for name in ("namespace", "pod", "transfer", "connection"):
        assert (variables[name]["multi"], variables[name]["includeAll"]) == (True, True)
        # Outside of Kubernetes nothing has a namespace or a pod: `.*` is also what a label that is missing has.
        assert variables[name]["allValue"] == ".*"
    for panel, expr in panel_queries(transfer="these", connection="those"):
        names = " ".join(metrics_of(expr))
        if re.search(r"\bconnection:|er_connection_", names):
            assert 'transfer=~"these", connection=~"those"}' in expr
        elif re.search(r"\btransfer:|er_transfer_|chunk_seconds", names) and panel != "Free space at the receiver":
            assert 'transfer=~"these"' in expr


def test_every_query_is_for_the_chosen_namespaces_and_pods() -> None:
    for _panel, expr in panel_queries(namespace="here", pod="some"):
        named = re.findall(r"\b(?:\w+:)?filestreamer_[\w:]+(\{[^}]*\})?", expr)
        assert named
        assert all(selector.startswith('{namespace=~"here", pod=~"some"') for selector in named), expr
    (alerts,) = dashboard()["annotations"]["list"]
    assert alerts["expr"].startswith('ALERTS{namespace=~"$namespace", pod=~"$pod", ')


def test_what_can_be_chosen_is_what_fits_to_the_choices_before_it() -> None:
    before: list[str] = []
    for variable in dashboard()["templating"]["list"][1:]:
        query = variable["query"]["query"]
        asked = re.fullmatch(
            r'label_values\(\{__name__=~"filestreamer_\(sender\|receiver\)(_\w+)"(.*)\}, (\w+)\)', query
        )
        assert asked, query
        for side in ("sender", "receiver"):
            assert f"filestreamer_{side}{asked[1]}" in METRICS
        assert re.findall(r"(\w+)=~", asked[2]) == before
        assert asked[3] == variable["name"]
        before.append(variable["name"])


def test_what_is_still_to_be_received_is_of_transfers_that_go_on(tmp_path: Path) -> None:
    """A run that failed is seen for some minutes, beside the one that goes on with its files."""
    told = {"size_bytes": ("50", "50"), "held_bytes": ("0", "10"), "acknowledged_bytes": ("10", "20")}
    series = {
        f'transfer_{name}{{instance="r:1", transfer="{transfer}"}}': value
        for name, values in told.items()
        for transfer, value in zip(("failed", "next"), values, strict=True)
    }
    for transfer, is_moving in (("failed", "0"), ("next", "1")):
        series[f'transfer_phase{{instance="r:1", transfer="{transfer}", phase="moving"}}'] = is_moving
    (expr,) = (
        query.expr for query in panel_queries() if query.panel == "Free space at the receiver" and "sum" in query.expr
    )
    tests = {
        "rule_files": [str(RULES)],
        "tests": [
            {
                "interval": "15s",
                "input_series": [
                    {"series": f"filestreamer_receiver_{name}", "values": f"{value}x8"}
                    for name, value in series.items()
                ],
                "promql_expr_test": [
                    {"expr": expr, "eval_time": "1m", "exp_samples": [{"labels": '{instance="r:1"}', "value": 20}]}
                ],
            }
        ],
    }
    file = tmp_path / "still.yml"
    file.write_text(yaml.safe_dump(tests))

    promtool("test", "rules", file)


def test_grafana_finds_what_it_is_given() -> None:
    """The provisioned data source asks as often as Prometheus scrapes the services."""
    grafana = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((grafana / "datasources" / "prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((grafana / "dashboards" / "filestreamer.yml").read_text())["providers"]
    jobs = yaml.safe_load((RULES.parent / "prometheus.yml").read_text())["scrape_configs"]
    assert source["type"] == "prometheus"
    assert {job["scrape_interval"] for job in jobs} == {source["jsonData"]["timeInterval"]}
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"

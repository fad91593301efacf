"""Writes the dashboard, dashboards/filestreamer.json, to standard output: `make grafana`. For Grafana 10 or newer.

Each panel is a line or two below, from top to bottom as they are seen; what all panels of a kind share is said once.
Whatever both services tell has a query for each, so that one of them is enough.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

Panel = dict[str, Any]
"""A panel of Grafana's JSON model, still without a place and a number."""

Query = tuple[str, str]
"""PromQL, and what its series are called in the legend."""

PLACE = 'namespace=~"$namespace", pod=~"$pod"'
"""In Kubernetes. Series from elsewhere have no such labels, which is what the `.*` of all choices matches, too."""
POD = f"{{{PLACE}}}"
TRANSFER = f'{{{PLACE}, transfer=~"$transfer"}}'
CONNECTION = f'{{{PLACE}, transfer=~"$transfer", connection=~"$connection"}}'
EACH = "{{transfer}} #{{connection}}"
SIDES = ("sender", "receiver")
SOURCE = {"type": "prometheus", "uid": "${datasource}"}

COLUMNS = 24
"""How wide Grafana's grid is."""


# ------------------------------------------------------------------------------------------------------- kinds of panel


def panel(kind: str, title: str, description: str, queries: Sequence[Query], **model: Any) -> Panel:
    """Return a panel that asks Prometheus."""
    targets = [
        {"refId": chr(ord("A") + number), "datasource": SOURCE, "expr": expr, "legendFormat": legend, "range": True}
        for number, (expr, legend) in enumerate(queries)
    ]
    return {"type": kind, "title": title, "description": description, "datasource": SOURCE, "targets": targets, **model}


def row(title: str) -> Panel:
    """Return the line that begins a group of panels."""
    return {"type": "row", "title": title, "collapsed": False, "panels": []}


def lines(
    title: str, description: str, unit: str, queries: Sequence[Query], *, stack: str = "none", step: bool = False
) -> Panel:
    """Return curves over time; the legend is a table that scrolls, so that 64 connections fit."""
    return panel(
        "timeseries",
        title,
        description,
        queries,
        fieldConfig={
            "defaults": {
                "unit": unit,
                "min": 0,
                "color": {"mode": "palette-classic-by-name"},  # a connection has one colour everywhere
                "custom": {
                    "drawStyle": "line",
                    "lineInterpolation": "stepAfter" if step else "linear",
                    "lineWidth": 1,
                    "fillOpacity": 0 if stack == "none" else 60,
                    "showPoints": "never",
                    "spanNulls": False,
                    "stacking": {"mode": stack, "group": "A"},
                },
            },
            "overrides": [],
        },
        options={
            "legend": {
                "displayMode": "table",
                "placement": "right",
                "calcs": ["lastNotNull", "max"],
                "sortBy": "Max",
                "sortDesc": True,
                "showLegend": True,
            },
            "tooltip": {"mode": "multi", "sort": "desc", "maxHeight": 400},
        },
    )


def stat(title: str, description: str, unit: str, queries: Sequence[Query], *, text: str = "auto") -> Panel:
    """Return last values as large figures."""
    return panel(
        "stat",
        title,
        description,
        queries,
        fieldConfig={"defaults": {"unit": unit, "color": {"mode": "fixed", "fixedColor": "text"}}, "overrides": []},
        options={
            "reduceOptions": {"calcs": ["lastNotNull"]},
            "textMode": text,
            "graphMode": "none",
            "wideLayout": True,
        },
    )


def bars(title: str, description: str, queries: Sequence[Query]) -> Panel:
    """Return last values as bars from 0 to 1."""
    return panel(
        "bargauge",
        title,
        description,
        queries,
        fieldConfig={
            "defaults": {"unit": "percentunit", "min": 0, "max": 1, "color": {"mode": "continuous-blues"}},
            "overrides": [],
        },
        options={"reduceOptions": {"calcs": ["lastNotNull"]}, "orientation": "horizontal", "displayMode": "basic"},
    )


def states(title: str, description: str, queries: Sequence[Query], names: dict[int, tuple[str, str]]) -> Panel:
    """Return bands over time; `names` gives each value a name and a colour."""
    mapping = {str(value): {"text": text, "color": color, "index": value} for value, (text, color) in names.items()}
    return panel(
        "state-timeline",
        title,
        description,
        queries,
        fieldConfig={
            "defaults": {"mappings": [{"type": "value", "options": mapping}], "custom": {"fillOpacity": 70}},
            "overrides": [],
        },
        options={"showValue": "auto", "mergeValues": True, "legend": {"showLegend": False}},
    )


def heatmap(title: str, description: str, query: str) -> Panel:
    """Return a histogram over time; the query gives its buckets."""
    made = panel(
        "heatmap",
        title,
        description,
        [(query, "{{le}}")],
        options={
            "calculate": False,
            "cellGap": 1,
            "color": {"mode": "scheme", "scheme": "Blues", "steps": 64, "exponent": 0.5, "reverse": True},
            "yAxis": {"unit": "s", "axisPlacement": "left"},
            "rowsFrame": {"layout": "auto"},
            "tooltip": {"mode": "single", "yHistogram": True},
            "legend": {"show": True},
        },
    )
    made["targets"][0]["format"] = "heatmap"
    return made


# -------------------------------------------------------------------------------------------------------------- queries


def both(query: str, legend: str) -> list[Query]:
    """Return a query for each side; SIDE in it is replaced."""
    return [(query.replace("SIDE", side), f"{side} {legend}") for side in SIDES]


def phase(side: str) -> str:
    """Return the phase as a number, 1 to 4; 0 of a transfer that has ended before it was complete."""
    phases = ("offering", "moving", "syncing", "complete")
    terms = [
        f'{number} * filestreamer_{side}_transfer_phase{{{PLACE}, transfer=~"$transfer", phase="{name}"}}'
        for number, name in enumerate(phases, 1)
    ]
    return f"max by (transfer) ({' or '.join(terms)})"


def per_second(counter: str) -> str:
    """Return how fast a counter of chosen connections grows, added up by transfer."""
    return f"sum by (transfer) (rate({counter}{CONNECTION}[$__rate_interval]))"


def total(gauge: str) -> str:
    """Return a gauge of chosen connections, added up by transfer."""
    return f"sum by (transfer) ({gauge}{CONNECTION})"


def stages(side: str) -> Query:
    """Return the share of chosen connections' time that each stage takes."""
    spent = f"rate(filestreamer_{side}_connection_stage_seconds_total{CONNECTION}[$__rate_interval])"
    return f"sum by (stage) ({spent}) / scalar(sum({spent}))", "{{stage}}"


IN_FLIGHT = "filestreamer_sender_connection_bytes_in_flight"
ON_THE_WAY = "filestreamer_sender_connection_tcp_unacknowledged_bytes"
UNSENT = "filestreamer_sender_connection_tcp_unsent_bytes"
ARRIVED = "filestreamer_receiver_connection_bytes_in_flight"
DONE = f"transfer:filestreamer_done_bytes:sum{TRANSFER}"
REMAINING = f"transfer:filestreamer_remaining_bytes:sum{TRANSFER}"
SLOPE = f"transfer:filestreamer_acknowledged_bytes:deriv1m{TRANSFER}"


# ----------------------------------------------------------------------------------------------------------- the layout

LAYOUT: Sequence[tuple[int, Sequence[Panel]]] = (
    # How high, and who shares the width.
    (1, [row("Transfers")]),
    (
        6,
        [
            bars(
                "Progress",
                "What the receiver has written and checked, or held before, of the whole; never merely sent bytes.",
                [(f"{DONE} / ({DONE} + {REMAINING}) >= 0", "{{transfer}} {{side}}")],
            ),
            stat(
                "Time left",
                "What remains, at the pace of the last minute. Nothing while nothing moves.",
                "s",
                [(f"{REMAINING} / ({SLOPE} > 0)", "{{transfer}} {{side}}")],
            ),
            stat(
                "Remaining",
                "Bytes that are neither acknowledged nor held.",
                "bytes",
                [(REMAINING, "{{transfer}} {{side}}")],
            ),
            states(
                "Phase",
                "offering: they find out who has what. moving: chunks are sent. syncing: all are there and go to disk. "
                "complete: the file is durable under its name. ended: given up before.",
                [(phase(side), f"{{{{transfer}}}} {side}") for side in SIDES],
                {
                    0: ("ended", "red"),
                    1: ("offering", "yellow"),
                    2: ("moving", "blue"),
                    3: ("syncing", "purple"),
                    4: ("complete", "green"),
                },
            ),
        ],
    ),
    (1, [row("In flight")]),
    (
        13,
        [
            lines(
                "Bytes in flight: sender",
                "Handed to the kernel and not acknowledged by the receiver, stacked by connection. A band that widens "
                "and stays is a connection that the receiver does not answer.",
                "bytes",
                [(IN_FLIGHT + CONNECTION, EACH)],
                stack="normal",
            ),
            lines(
                "Bytes in flight: receiver",
                "Read off the socket and not acknowledged yet: chunks that are under way, or being written. What the "
                "sender has more than this is in the network and in both kernels.",
                "bytes",
                [(ARRIVED + CONNECTION, EACH)],
                stack="normal",
            ),
        ],
    ),
    (
        9,
        [
            lines(
                "Where the bytes in flight are",
                "From the sender to the receiver. Unsent: in the sender's kernel. On the way: TCP has not acknowledged "
                "them. Unread: in the receiver's kernel (the rest of what is in flight; needs both services). At the "
                "receiver: read, being checked and written. The widest band is before what is too slow.",
                "bytes",
                [
                    (total(UNSENT), "{{transfer}} unsent"),
                    (total(ON_THE_WAY), "{{transfer}} on the way"),
                    (
                        f"clamp_min({total(IN_FLIGHT)} - {total(UNSENT)} - {total(ON_THE_WAY)} - {total(ARRIVED)}, 0)",
                        "{{transfer}} unread",
                    ),
                    (total(ARRIVED), "{{transfer}} at the receiver"),
                ],
                stack="normal",
            ),
            lines(
                "Throughput of both ends",
                "Payload. Sent: handed to the sender's kernel. Received: read by the receiver. Acknowledged: written, "
                "checked and told to the sender. Sent above acknowledged for long: in flight grows.",
                "Bps",
                [
                    (per_second("filestreamer_sender_connection_sent_bytes_total"), "{{transfer}} sent"),
                    (
                        per_second("filestreamer_sender_connection_acknowledged_bytes_total"),
                        "{{transfer}} acknowledged, at the sender",
                    ),
                    (per_second("filestreamer_receiver_connection_received_bytes_total"), "{{transfer}} received"),
                    (
                        per_second("filestreamer_receiver_connection_acknowledged_bytes_total"),
                        "{{transfer}} acknowledged, at the receiver",
                    ),
                ],
            ),
            lines(
                "Rate of each connection",
                "Payload that moved, over a minute. FilestreamerConnectionStraggling compares these with their median.",
                "Bps",
                [(f"connection:filestreamer_moved_bytes:rate1m{CONNECTION}", f"{{{{side}}}} {EACH}")],
            ),
        ],
    ),
    (1, [row("Network, as the sender's kernel sees it")]),
    (
        9,
        [
            lines(
                "Unacknowledged by the other kernel",
                "Sent and not acknowledged by TCP: on the wire, in a queue on the way, or lost.",
                "bytes",
                [(ON_THE_WAY + CONNECTION, EACH)],
                stack="normal",
            ),
            lines(
                "Unsent in this kernel",
                "In the sender's socket buffer and not sent: TCP waits for the congestion window, or the receiver does "
                "not read.",
                "bytes",
                [(UNSENT + CONNECTION, EACH)],
                stack="normal",
            ),
        ],
    ),
    (
        8,
        [
            lines(
                "Round trip",
                "TCP's smoothed estimate, of both ends. Growing with the throughput: a queue on the way fills.",
                "s",
                both(f"filestreamer_SIDE_connection_tcp_rtt_seconds{CONNECTION}", EACH),
            ),
            lines(
                "Congestion window",
                "As much as TCP lets be on its way at once. Divided by the round trip it is the most that a connection "
                "can move.",
                "bytes",
                [(f"filestreamer_sender_connection_tcp_congestion_window_bytes{CONNECTION}", EACH)],
            ),
        ],
    ),
    (
        8,
        [
            lines(
                "Delivery rate",
                "How fast data arrived at the receiver, as TCP last measured it.",
                "Bps",
                [(f"filestreamer_sender_connection_tcp_delivery_rate_bytes_per_second{CONNECTION}", EACH)],
            ),
            lines(
                "Retransmits",
                "Segments a second that had to be sent again.",
                "short",
                [(f"rate(filestreamer_sender_connection_tcp_retransmits_total{CONNECTION}[$__rate_interval])", EACH)],
            ),
            lines(
                "Share sent again",
                "Of the payload, in segments of 1448 bytes, in a minute. Above 5 % FilestreamerRetransmitStorm fires.",
                "percentunit",
                [(f"transfer:filestreamer_retransmitted:ratio_rate1m{TRANSFER}", "{{transfer}}")],
            ),
        ],
    ),
    (1, [row("Where the time goes")]),
    (
        9,
        [
            lines(
                "Where the time goes: sender",
                "Share of the connections' time by stage; the widest band is the bottleneck. send: until the kernel "
                "takes it. wait_ack: as much is in flight as may be. limit: --rate-limit.",
                "percentunit",
                [stages("sender")],
                stack="normal",
            ),
            lines(
                "Where the time goes: receiver",
                "Share of the connections' time by stage; the widest band is the bottleneck. receive: waits for the "
                "network. write: the disk. acknowledge: the way back. limit: --rate-limit.",
                "percentunit",
                [stages("receiver")],
                stack="normal",
            ),
            heatmap(
                "Chunk latency",
                "From its beginning to its acknowledgement. Two bands: some connections are slower.",
                f"sum by (le) (increase(filestreamer_sender_chunk_seconds_bucket{TRANSFER}[$__rate_interval]))",
            ),
        ],
    ),
    (1, [row("Trouble")]),
    (
        8,
        [
            lines(
                "Without progress",
                "Since the last progress, of transfers that move. FilestreamerTransferStalled fires from 30 s "
                "on; both services end after --give-up-after.",
                "s",
                [(f"transfer:filestreamer_idle_seconds:moving{TRANSFER}", "{{transfer}} {{side}}")],
            ),
            lines(
                "Connections up",
                "Data connections that are open.",
                "short",
                both(f"sum by (transfer) (filestreamer_SIDE_connection_up{CONNECTION})", "{{transfer}}"),
                step=True,
            ),
            lines(
                "Reconnects, resends and steals",
                "Totals: reconnects by transfer, the others since each service started. Stolen: taken over from a "
                "connection that was behind, which is no trouble by itself.",
                "short",
                [
                    *both(
                        f"sum by (transfer) (filestreamer_SIDE_connection_reconnects_total{CONNECTION})",
                        "{{transfer}} reconnects",
                    ),
                    *both(f"filestreamer_SIDE_digest_mismatches_total{POD}", "digest mismatches"),
                    *both(f"filestreamer_SIDE_chunks_resent_total{POD}", "chunks resent"),
                    (f"filestreamer_sender_chunks_stolen_total{POD}", "sender chunks stolen"),
                ],
                step=True,
            ),
        ],
    ),
    (
        8,
        [
            lines(
                "Refused connections",
                "Total by reason, since the receiver started. A wrong token, another version, a port scan.",
                "short",
                [(f"sum by (reason) (filestreamer_receiver_refused_connections_total{POD})", "{{reason}}")],
                step=True,
            ),
            lines(
                "Free space at the receiver",
                "Beside what the transfers that move still have to receive, which has to stay below.",
                "bytes",
                [
                    (f"filestreamer_receiver_destination_free_bytes{POD}", "{{instance}} free"),
                    (
                        f'sum by (instance) (transfer:filestreamer_remaining_bytes:sum{{{PLACE}, side="receiver"}} '
                        "and ignoring (side, phase) "
                        f'filestreamer_receiver_transfer_phase{{{PLACE}, phase="moving"}} == 1)',
                        "{{instance}} still to receive",
                    ),
                ],
            ),
            stat(
                "Transfers ended",
                "By result, since each service started.",
                "short",
                both(f"sum by (result) (filestreamer_SIDE_transfers_total{POD})", "{{result}}"),
            ),
            stat(
                "Versions",
                "Of the services that run.",
                "short",
                both(f"count by (version) (filestreamer_SIDE_build_info{POD})", "{{version}}"),
                text="name",
            ),
        ],
    ),
)


def place(layout: Sequence[tuple[int, Sequence[Panel]]]) -> list[Panel]:
    """Give each panel its place and its number, in reading order."""
    placed: list[Panel] = []
    top = 0
    for height, panels in layout:
        edges = [COLUMNS * number // len(panels) for number in range(len(panels) + 1)]
        for model, left, right in zip(panels, edges, edges[1:], strict=False):
            grid = {"x": left, "y": top, "w": right - left, "h": height}
            placed.append({"id": len(placed) + 1, "gridPos": grid, **model})
        top += height
    return placed


# -------------------------------------------------------------------------------------------------------- the dashboard


ANY = '__name__=~"filestreamer_(sender|receiver)'
"""Begins a selector of what both services tell."""


def variable(name: str, label: str, query: str, *, by_number: bool = True) -> dict[str, Any]:
    """Return a choice of several label values, all at first."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
        "refresh": 2,  # whenever the time range changes: transfers come and go
        "sort": 3 if by_number else 1,
    }


def dashboard() -> dict[str, Any]:
    """Return the dashboard in Grafana's JSON model."""
    return {
        "uid": "filestreamer",
        "title": "filestreamer",
        "description": "Transfers while they run: bytes in flight by connection, and where the time goes.",
        "tags": ["filestreamer"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,  # one crosshair in all panels
        "time": {"from": "now-5m", "to": "now"},
        "refresh": "5s",
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Data source",
                    "type": "datasource",
                    "query": "prometheus",
                    "current": {},
                },
                variable("namespace", "Namespace", f'label_values({{{ANY}_build_info"}}, namespace)', by_number=False),
                variable(
                    "pod", "Pod", f'label_values({{{ANY}_build_info", namespace=~"$namespace"}}, pod)', by_number=False
                ),
                variable("transfer", "Transfer", f'label_values({{{ANY}_transfer_size_bytes", {PLACE}}}, transfer)'),
                variable(
                    "connection",
                    "Connection",
                    f'label_values({{{ANY}_connection_up", {PLACE}, transfer=~"$transfer"}}, connection)',
                ),
            ]
        },
        "annotations": {
            "list": [
                {
                    "name": "Alerts",
                    "datasource": SOURCE,
                    "enable": True,
                    "iconColor": "red",
                    "expr": f'ALERTS{{{PLACE}, alertname=~"Filestreamer.+", alertstate="firing"}}',
                    "titleFormat": "{{alertname}}",
                    "textFormat": "{{transfer}} {{connection}} {{side}}",
                    "step": "5s",
                }
            ]
        },
        "panels": place(LAYOUT),
    }


if __name__ == "__main__":
    json.dump(dashboard(), sys.stdout, indent=2)
    sys.stdout.write("\n")

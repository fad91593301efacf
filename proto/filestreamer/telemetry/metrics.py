"""The metrics of both services (README.md lists them), read from the counters when a client asks.

A metric is defined by its name, which ends in its unit, its help, and how it is read. The module is imported only where
metrics are asked for: importing prometheus_client takes as long as a small transfer.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar, get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from filestreamer.process import stderr
from filestreamer.telemetry import tcp_info
from filestreamer.telemetry.counters import LATENCY_SECONDS, ConnectionCounters, Phase, TransferCounters
from filestreamer.telemetry.endpoint import Response
from filestreamer.telemetry.history import History, Snapshot, UserSums
from filestreamer.telemetry.tcp_info import TcpInfo
from filestreamer.telemetry.wall_clock import WALL_CLOCK
from filestreamer.version import VERSION
from filestreamer.wire import limits
from filestreamer.wire.session import Side

T = TypeVar("T")

PHASES: Final[tuple[Phase, ...]] = get_args(Phase)
OPENMETRICS: Final = "application/openmetrics-text"
REASONS: Final = ("corrupt", "limit", "policy", "protocol", "timeout", "token", "unknown_transfer", "version")
"""Why connections are refused. Each has a value from the start, so that the first refusal is seen as an increase."""
UNITS: Final = ("bytes", "seconds")
ENDED_CONNECTIONS: Final = 256
"""The most connections of ended transfers that have series, beside those of the one that ended last: a scrape has to be
over within its time-out, also on a busy machine."""


class Source(Protocol):
    """What the values are read from: a `Monitor`."""

    @property
    def history(self) -> History:
        """The transfers that have ended."""

    def snapshot(self) -> Snapshot:
        """Return the transfers at this moment."""

    def free_bytes(self) -> int | None:
        """Read the free space of the destination; None for a service without one."""

    def memory(self) -> tuple[int, int] | None:
        """Read (limit, used) of the memory that peers can make the service hold; None where it has no limit."""

    def users(self) -> dict[str, UserSums] | None:
        """Sum up the transfers of each user of now; None for a service without users."""


class Reading(NamedTuple, Generic[T]):
    """Defines one metric: a gauge, or a counter, whose samples get the suffix `_total`."""

    kind: type[GaugeMetricFamily] | type[CounterMetricFamily]
    name: str
    help: str
    read: Callable[[T], float]


Gauge, Counter = GaugeMetricFamily, CounterMetricFamily

CONNECTION: Final[list[Reading[ConnectionCounters]]] = [
    Reading(
        Counter,
        "connection_acknowledged_bytes",
        "Payload bytes that the receiver has written, verified and acknowledged.",
        lambda c: c.acknowledged_bytes,
    ),
    Reading(Counter, "connection_chunks", "Chunks acknowledged.", lambda c: c.chunks),
    Reading(Gauge, "connection_up", "Whether the connection is up (1) or down (0).", lambda c: c.up),
    Reading(Counter, "connection_reconnects", "Times that the connection was made again.", lambda c: c.reconnects),
]
SENDING: Final[list[Reading[ConnectionCounters]]] = [
    Reading(
        Gauge,
        "connection_bytes_in_flight",
        "Payload bytes handed to the kernel and not yet acknowledged by the receiver.",
        lambda c: c.bytes_in_flight,
    ),
    Reading(
        Counter,
        "connection_sent_bytes",
        "Payload bytes handed to the kernel, resent ones included.",
        lambda c: c.moved_bytes,
    ),
]
RECEIVING: Final[list[Reading[ConnectionCounters]]] = [
    Reading(
        Gauge,
        "connection_bytes_in_flight",
        "Payload bytes read off the socket and not yet acknowledged.",
        lambda c: c.bytes_in_flight,
    ),
    Reading(
        Counter,
        "connection_received_bytes",
        "Payload bytes read off the socket, resent ones included.",
        lambda c: c.moved_bytes,
    ),
]
TCP: Final[list[Reading[TcpInfo]]] = [
    Reading(
        Gauge,
        "connection_tcp_unacknowledged_bytes",
        "Bytes that this end's kernel has sent and the peer's has not acknowledged (SIOCOUTQ less the unsent ones).",
        lambda info: info.unacknowledged_bytes,
    ),
    Reading(
        Gauge,
        "connection_tcp_unsent_bytes",
        "Bytes that wait in this end's send queue (tcpi_notsent_bytes).",
        lambda info: info.unsent_bytes,
    ),
    Reading(Gauge, "connection_tcp_rtt_seconds", "Smoothed round-trip time, seconds.", lambda info: info.rtt_seconds),
    Reading(
        Gauge,
        "connection_tcp_congestion_window_bytes",
        "Congestion window, bytes: segments times their size.",
        lambda info: info.congestion_window_bytes,
    ),
    Reading(
        Gauge,
        "connection_tcp_delivery_rate_bytes_per_second",
        "The kernel's latest estimate of what the path delivers, bytes per second.",
        lambda info: info.delivery_rate,
    ),
]
TRANSFER: Final[list[Reading[TransferCounters]]] = [
    Reading(
        Gauge,
        "transfer_size_bytes",
        "Bytes of all files of the transfer, without those that are known to lie in holes.",
        lambda t: t.data_bytes,
    ),
    Reading(
        Gauge,
        "transfer_acknowledged_bytes",
        "Bytes that crossed the network in this transfer, and are written and verified.",
        lambda t: t.acknowledged_bytes,
    ),
    Reading(
        Gauge,
        "transfer_held_bytes",
        "Bytes that the receiver had before.",
        lambda t: t.there_bytes,
    ),
    Reading(
        Gauge,
        "transfer_start_time_seconds",
        "When the transfer began, Unix time in seconds by this machine's clock as it is set now.",
        lambda t: WALL_CLOCK.date(t.started_at),
    ),
    Reading(
        Gauge,
        "transfer_last_progress_time_seconds",
        "When the transfer last made progress, Unix time in seconds by this machine's clock as it is set now.",
        lambda t: WALL_CLOCK.date(t.last_progress_at),
    ),
    Reading(
        Gauge,
        "transfer_last_progress_age_seconds",
        "Seconds since the transfer last made progress, whatever happens to the clock; at its end, once it has ended.",
        lambda t: t.idle_seconds,
    ),
]
USER: Final[list[Reading[UserSums]]] = [
    Reading(Gauge, "user_transfers_under_way", "Transfers of the user that are under way.", lambda s: s.under_way),
    Reading(
        Counter,
        "user_received_bytes",
        "Payload bytes of the user's transfers that were read off the sockets, resent ones included.",
        lambda s: s.received_bytes,
    ),
]
"""For each user of a receiver with --tokens."""
PARALLELISM: Final[Reading[TransferCounters]] = Reading(
    Gauge,
    "transfer_connections",
    "Data connections that get chunks: as many as were chosen, or were found to be enough.",
    lambda t: t.parallelism,
)
TOTALS: Final = {
    "acknowledged_bytes": "Payload bytes that the receiver has written, verified and acknowledged.",
    "digest_mismatches": "Chunks whose digest at the receiver differed from the sender's.",
    "chunks_resent": "Chunks that were sent again.",
    "chunks_stolen": "Chunks that were sent by another connection than their home.",
}
"""The help of counters of the whole process, by the names of `TransferCounters.totals`."""
MOVED: Final = {
    "sender": ("sent_bytes", "Payload bytes handed to the kernel, resent ones included."),
    "receiver": ("received_bytes", "Payload bytes read off the sockets, resent ones included."),
}


class Collector:
    """Collects all metrics for prometheus_client. `connections=False` leaves out those of single connections."""

    def __init__(self, service: Side, source: Source, *, connections: bool = True) -> None:
        self.service = service
        self._source = source
        self._connections_too = connections

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, with its values at this moment."""
        transfers, totals = self._source.snapshot()
        if self._connections_too:
            yield from self._connections(transfers)
        rows = [([transfer.label], transfer) for transfer in transfers]
        for reading in TRANSFER:
            yield self._family(reading, ["transfer"], rows)
        if self.service == "sender":
            yield from self._parallelism(rows)
        yield self._phases(transfers)
        yield self._latencies(transfers)
        yield from self._process(totals)
        if (users := self._source.users()) is not None:
            yield from self._users(users)

    def _users(self, users: Mapping[str, UserSums]) -> Iterator[Metric]:
        rows = [([user], sums) for user, sums in users.items()]
        for reading in USER:
            yield self._family(reading, ["user"], rows)
        results = [([user, str(status)], n) for user, sums in users.items() for status, n in sums.results.items()]
        text = "Transfers of the user that ended, by result."
        yield self._simple(Counter, "user_transfers", text, ["user", "result"], results)

    def _connections(self, transfers: list[TransferCounters]) -> Iterator[Metric]:
        rows = [([t.label, str(c.connection_id)], c) for t in _with_connections(transfers) for c in t.connections]
        labels = ["transfer", "connection"]
        for reading in (SENDING if self.service == "sender" else RECEIVING) + CONNECTION:
            yield self._family(reading, labels, rows)
        stages = [([*values, stage], spent) for values, c in rows for stage, spent in list(c.stage_seconds.items())]
        yield self._simple(
            Counter,
            "connection_stage_seconds",
            "Seconds that the connection's thread spent in each stage: what takes most of it is the bottleneck.",
            [*labels, "stage"],
            stages,
        )
        infos, retransmits = [], []
        for values, connection in rows:
            sock, before = connection.link
            info = tcp_info.read(sock) if sock is not None else None
            retransmits.append((values, before + (info.retransmits if info is not None else 0)))
            if info is not None:
                infos.append((values, info))
        for tcp_reading in TCP:
            yield self._family(tcp_reading, labels, infos)
        yield self._simple(
            Counter, "connection_tcp_retransmits", "TCP segments that were sent again.", labels, retransmits
        )

    def _parallelism(self, rows: list[tuple[list[str], TransferCounters]]) -> Iterator[Metric]:
        yield self._family(PARALLELISM, ["transfer"], rows)
        changes = [([*values, reason], n) for values, t in rows for reason, n in list(t.parallelism_changes.items())]
        text = "Times that a sender changed the number of connections by itself, by reason."
        yield self._simple(Counter, "transfer_connection_changes", text, ["transfer", "reason"], changes)

    def _phases(self, transfers: list[TransferCounters]) -> Metric:
        samples = []
        for transfer in transfers:
            has_failed = transfer.ended_at is not None and transfer.phase != "complete"
            for phase in PHASES:
                samples.append(([transfer.label, phase], phase == transfer.phase and not has_failed))
        text = "1 for the current phase of the transfer; 0 for every phase once it has failed."
        return self._simple(Gauge, "transfer_phase", text, ["transfer", "phase"], samples)

    def _latencies(self, transfers: list[TransferCounters]) -> Metric:
        family = HistogramMetricFamily(
            f"filestreamer_{self.service}_chunk_seconds",
            "Seconds from the beginning of a chunk (at the receiver: from its header) to its acknowledgement.",
            labels=["transfer"],
            unit="seconds",
        )
        for transfer in transfers:
            latencies = [connection.latencies for connection in transfer.connections]
            buckets, number = [], 0
            for at, bound in enumerate([*map(str, LATENCY_SECONDS), "+Inf"]):
                number += sum(each.counts[at] for each in latencies)
                buckets.append((bound, number))
            family.add_metric([transfer.label], buckets, sum(each.sum_seconds for each in latencies))
        return family

    def _process(self, totals: Mapping[str, int]) -> Iterator[Metric]:
        """Yield the metrics of the process, which outlive its transfers."""
        history = self._source.history
        results = [([str(status)], number) for status, number in history.results.items()]
        yield self._simple(Counter, "transfers", "Transfers that ended, by result.", ["result"], results)
        if self.service == "receiver":
            refused = [([reason], history.refused[reason]) for reason in sorted({*REASONS, *history.refused})]
            text = "Connections that were refused, by reason."
            yield self._simple(Counter, "refused_connections", text, ["reason"], refused)
        for name, text in TOTALS.items():
            yield self._simple(Counter, name, text, [], [([], totals[name])])
        name, text = MOVED[self.service]
        yield self._simple(Counter, name, text, [], [([], totals["moved_bytes"])])
        text = "Log lines that were not written, because no program read them or the disk was full."
        yield self._simple(Counter, "log_lines_dropped", text, [], [([], stderr.dropped_lines())])
        free_bytes = self._source.free_bytes()
        if free_bytes is not None:
            text = "Free bytes of the destination's file system, including space taken ahead for unfinished files."
            yield self._simple(Gauge, "destination_free_bytes", text, [], [([], free_bytes)])
        if memory := self._source.memory():
            text = "Memory that all senders together can make this receiver hold (--memory-limit)."
            yield self._simple(Gauge, "memory_budget_bytes", text, [], [([], memory[0])])
            text = "Memory of this budget that is reserved for transfers or lent to them."
            yield self._simple(Gauge, "memory_used_bytes", text, [], [([], memory[1])])
        yield InfoMetricFamily(
            f"filestreamer_{self.service}_build",
            "The version of the service, and of the protocol that it speaks.",
            {"version": VERSION, "protocol": str(limits.VERSION)},
        )

    def _family(self, reading: Reading[T], labels: list[str], rows: Iterable[tuple[list[str], T]]) -> Metric:
        samples = [(values, reading.read(item)) for values, item in rows]
        return self._simple(reading.kind, reading.name, reading.help, labels, samples)

    def _simple(
        self, kind: Any, name: str, help: str, labels: list[str], samples: Iterable[tuple[list[str], float]]
    ) -> Metric:
        unit = name.rpartition("_")[2]
        family: Any = kind(
            f"filestreamer_{self.service}_{name}", help, labels=labels, unit=unit if unit in UNITS else ""
        )
        for values, value in samples:
            family.add_metric(values, float(value))
        return family  # type: ignore[no-any-return]


def _with_connections(transfers: list[TransferCounters]) -> list[TransferCounters]:
    """Return the transfers whose connections have series: those that run, and the latest that have ended."""
    shown, ended_connections = [], 0
    for transfer in reversed(transfers):
        if transfer.status is not None:
            ended_connections += len(transfer.connections)
            if ended_connections > max(ENDED_CONNECTIONS, len(transfer.connections)):
                continue
        shown.append(transfer)
    return shown[::-1]


def exposition(collector: Collector, accept: str) -> Response:
    """Write all metrics: as OpenMetrics where the Accept header asks for it, else as Prometheus' text format.

    The content type is always our own, and repeats nothing from the header, which a client chooses.
    """
    registry = _registry(collector)
    ranges = [accepted.partition(";")[0].strip().lower() for accepted in accept.split(",")]
    if OPENMETRICS in ranges:
        return Response(generate_openmetrics(registry), f"{OPENMETRICS}; version=1.0.0; charset=utf-8")  # type: ignore[no-untyped-call]
    return Response(generate_latest(registry), "text/plain; version=0.0.4; charset=utf-8")


def _registry(collector: Collector) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return registry

"""The live page: `/` is page.html, which draws the transfers from `/transfers`, the counters as JSON.

Everything is in the one file, and its Content-Security-Policy allows only its own script and style, by their hashes. As
the endpoint has no authentication, neither has paths, names of files or tokens. The page computes rates itself, from
the counters of two moments. The module is imported only where a client asks for it.
"""

import base64
import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Final

from filestreamer.telemetry import tcp_info
from filestreamer.telemetry.counters import ConnectionCounters, TransferCounters
from filestreamer.telemetry.endpoint import Response
from filestreamer.telemetry.history import Snapshot
from filestreamer.telemetry.wall_clock import WALL_CLOCK
from filestreamer.version import VERSION
from filestreamer.wire.messages import RECEIVER_STAGES, SENDER_STAGES
from filestreamer.wire.session import Side

ENDED_SHOWN: Final = 8
"""The most transfers that have ended and are shown: it limits what is sent each second."""


@functools.cache
def page() -> Response:
    """Return the page, with a policy by which a browser runs only its own script."""
    html = Path(__file__).with_name("page.html").read_text()
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash_of('script', html)}",
            f"style-src {_hash_of('style', html)}",
            "connect-src 'self'",
            "img-src data:",  # its icon
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        ]
    )
    headers = {
        "Content-Security-Policy": policy,
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
    }
    return Response(html.encode(), "text/html; charset=utf-8", headers=headers)


def _hash_of(tag: str, html: str) -> str:
    (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def transfers(service: Side, snapshot: Snapshot) -> Response:
    """Return the counters of the transfers as JSON."""
    running = [transfer for transfer in snapshot.transfers if transfer.ended_at is None]
    ended = [transfer for transfer in snapshot.transfers if transfer.ended_at is not None]
    shown = ended[-ENDED_SHOWN:] + running
    document = {"service": service, "version": VERSION, "transfers": [_transfer(each) for each in shown]}
    headers = {"Cross-Origin-Resource-Policy": "same-origin"}
    return Response(json.dumps(document, separators=(",", ":")).encode(), "application/json", headers=headers)


def _transfer(counters: TransferCounters) -> dict[str, Any]:
    sends = counters.stages == SENDER_STAGES
    chunk_map = counters.chunk_map
    return {
        "transfer": counters.label,
        "direction": "sending" if sends else "receiving",
        "phase": counters.phase,
        "ended": counters.ended_at is not None,
        "status": counters.status,
        "started_time_seconds": WALL_CLOCK.date(counters.started_at),
        "seconds": counters.seconds,
        "size_bytes": counters.data_bytes,
        "is_growing": counters.is_growing,
        "acknowledged_bytes": counters.acknowledged_bytes,
        "held_bytes": counters.there_bytes,
        "rehashed_bytes": counters.rehashed_bytes,
        "chunks": counters.chunks,
        "chunk_size": counters.chunk_size,
        "bottleneck": counters.bottleneck,
        "stage_microseconds": {
            "sender": _stages(SENDER_STAGES, counters.stage_microseconds() if sends else counters.peer_stages),
            "receiver": _stages(RECEIVER_STAGES, counters.peer_stages if sends else counters.stage_microseconds()),
        },
        "connections": [_connection(connection) for connection in list(counters.connections)],
        "map": {
            "chunks_per_cell": chunk_map.chunks_per_cell,
            "brought": chunk_map.brought,
            "held": chunk_map.held,
            "by": chunk_map.by,
        },
    }


def _stages(names: tuple[str, ...], microseconds: tuple[int, ...]) -> dict[str, int]:
    """Give stages their names. The peer may have told none yet; stages that only the peer knows are left out."""
    return dict(zip(names, microseconds, strict=False))


def _connection(counters: ConnectionCounters) -> dict[str, Any]:
    opened = counters.link[0]
    info = tcp_info.read(opened) if opened is not None else None
    return {
        "connection": counters.connection_id,
        "up": counters.up,
        "dismissed": counters.is_dismissed,
        "bytes_in_flight": counters.bytes_in_flight,
        "moved_bytes": counters.moved_bytes,
        "acknowledged_bytes": counters.acknowledged_bytes,
        "chunks": counters.chunks,
        "reconnects": counters.reconnects,
        "resent_chunks": counters.resent_chunks,
        "stolen_chunks": counters.stolen_chunks,
        "unsent_bytes": None if info is None else info.unsent_bytes,
        "unacknowledged_bytes": None if info is None else info.unacknowledged_bytes,
        "rtt_seconds": None if info is None else info.rtt_seconds,
    }

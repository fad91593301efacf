"""The metrics of both services: what dashboards, alerts and users depend on. Only ever added to."""

from typing import Final

BY_CONNECTION: Final = """
    gauge connection_bytes_in_flight
    counter connection_acknowledged_bytes
    counter connection_chunks
    gauge connection_up
    counter connection_reconnects
    gauge connection_tcp_unacknowledged_bytes
    gauge connection_tcp_unsent_bytes
    gauge connection_tcp_rtt_seconds
    gauge connection_tcp_congestion_window_bytes
    gauge connection_tcp_delivery_rate_bytes_per_second
    counter connection_tcp_retransmits
"""
BY_TRANSFER: Final = """
    gauge transfer_size_bytes
    gauge transfer_acknowledged_bytes
    gauge transfer_held_bytes
    gauge transfer_start_time_seconds
    gauge transfer_last_progress_time_seconds
    gauge transfer_last_progress_age_seconds
    histogram chunk_seconds
"""
OF_THE_PROCESS: Final = """
    counter acknowledged_bytes
    counter digest_mismatches
    counter chunks_resent
    counter chunks_stolen
    counter log_lines_dropped
    info build
"""
BY_USER: Final = {
    "user_transfers_under_way": ("gauge", {"user"}),
    "user_transfers": ("counter", {"user", "result"}),
    "user_received_bytes": ("counter", {"user"}),
}
"""What a receiver with users has in addition."""
STAGES: Final = {
    "sender": {"read", "digest", "send", "wait_ack", "limit"},
    "receiver": {"receive", "digest", "write", "acknowledge", "limit"},
}


def contract(service: str) -> dict[str, tuple[str, set[str]]]:
    """Return type and labels of every family, by name: DESIGN's contract."""
    moved = "connection_sent_bytes" if service == "sender" else "connection_received_bytes"
    families = {
        moved: ("counter", {"transfer", "connection"}),
        "connection_stage_seconds": ("counter", {"transfer", "connection", "stage"}),
        "transfer_phase": ("gauge", {"transfer", "phase"}),
        "transfers": ("counter", {"result"}),
        moved.removeprefix("connection_"): ("counter", set()),
    }
    if service == "sender":
        families["transfer_connections"] = ("gauge", {"transfer"})
        families["transfer_connection_changes"] = ("counter", {"transfer", "reason"})
    if service == "receiver":
        families["refused_connections"] = ("counter", {"reason"})
        families["destination_free_bytes"] = ("gauge", set())
        families["memory_budget_bytes"] = ("gauge", set())
        families["memory_used_bytes"] = ("gauge", set())
    for block, labels in (
        (BY_CONNECTION, {"transfer", "connection"}),
        (BY_TRANSFER, {"transfer"}),
        (OF_THE_PROCESS, set()),
    ):
        for line in block.split("\n"):
            if line.strip():
                kind, name = line.split()
                families[name] = (kind, labels)
    families["build"] = ("info", {"version", "protocol"})
    return families


def sample_names(service: str) -> set[str]:
    """Return what the samples of every family are called in queries."""
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "info": ["_info"], "gauge": [""]}
    return {
        f"filestreamer_{service}_{name}{suffix}"
        for name, (kind, _) in contract(service).items()
        for suffix in suffixes[kind]
    }

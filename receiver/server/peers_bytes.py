"""How much memory peers may make a receiver hold."""

from typing import Any

from filestreamer.settings.sizes import format_size
from receiver.memory import process_limit
from receiver.settings import ReceiverSettings


def read_peers_bytes(settings: ReceiverSettings, log: Any) -> int:
    """Return the memory that peers may make this process hold; warn if it is little."""
    limit = settings.memory_limit or process_limit.default_limit()
    if limit < process_limit.LIMIT_MIN_BYTES:
        least = format_size(process_limit.LIMIT_MIN_BYTES)
        log.warning("little_memory", limit_bytes=limit, reason=f"a receiver needs up to {least}: raise the limit")
    return process_limit.budget_bytes(limit)

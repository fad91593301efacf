"""The settings of the receiver: `receiver --help`, FILESTREAMER_RECEIVER_*, and the config file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from filestreamer.settings import values
from filestreamer.settings.address import Address, parse_address
from filestreamer.settings.common import WINDOW_MAX, CommonSettings
from filestreamer.settings.definition import setting
from filestreamer.settings.parse import parse_settings
from filestreamer.wire import limits
from filestreamer.wire.errors import UsageError

METRICS = Address("127.0.0.1", 9464)
"""Where metrics are served unless the settings say otherwise."""
STDOUT = "-"
"""The `output_file` that is standard output."""
SUMMARY = "Receive files from senders, check every byte, and put them in place when they are complete."


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverSettings(CommonSettings):
    """What the receiver is to do."""

    listen: Address = setting(
        parse_address, "Where to listen.", default=f"127.0.0.1:{limits.DEFAULT_PORT}", metavar="HOST:PORT"
    )
    """Where to listen; an empty host is every address of this machine, port 0 a free port."""

    directory: str = setting(values.text, "Where received files go.", default=".", metavar="DIR")
    """The destination directory, relative to the working directory. `output_file` goes before it."""

    output_file: str | None = setting(
        values.text,
        "Receive one file, under this name whatever the sender calls it, or - for standard output; implies --once.",
        metavar="PATH",
    )
    """Path of the one file to receive, relative to the working directory and not to `directory`; or STDOUT."""

    once: bool = setting(bool, "End after the first transfer that is complete.", default=False)
    """End after the first file that is committed, all shards of it having left; always true with `output_file`."""

    no_replace: bool = setting(bool, "Refuse a file that exists already.", default=False)
    """Refuse a transfer whose destination exists, instead of replacing it atomically."""

    idle_timeout: float | None = setting(
        values.seconds, "End with exit 1 after this long without a transfer.", metavar="SECONDS"
    )
    """Seconds without any transfer after which the receiver ends with exit 1; None waits for ever."""

    discard_staging_after: float | None = setting(
        values.seconds, "At start, discard incomplete files that nothing was added to for this long.", metavar="SECONDS"
    )
    """Seconds after which what an unfinished transfer left in staging is discarded at start; None keeps it for ever."""

    metrics: values.MetricsAddress | None = setting(
        values.metrics_address,
        f"Where to serve metrics, health and the live page, or off.  [default: {METRICS}, where that is free]",
        metavar="HOST:PORT",
    )
    """Where the metrics endpoint listens, or "off"; None is METRICS, where that is free."""

    anonymous: bool = setting(
        bool, "Ask for no token where none is given, on any address: whoever connects may write.", default=False
    )
    """Ask for no token, on whatever address."""

    memory_limit: int | None = setting(
        values.size(1, WINDOW_MAX),
        "Memory that this receiver stays within, socket buffers included."
        "  [default: what its container may take, or 512MiB]",
        metavar="SIZE",
    )
    """Bytes that the process is to get by with (`receiver.memory`); None is what its container may take."""

    def __post_init__(self) -> None:
        """Let `output_file` imply `once`. Raises UsageError where TLS settings don't go together."""
        if self.output_file is not None:
            object.__setattr__(self, "once", True)
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("--tls-cert and --tls-key go together")
        if self.tls_ca is not None and self.tls_cert is None:
            raise UsageError("--tls-ca checks the certificates of senders: it needs --tls-cert and --tls-key")

    @property
    def writes_stdout(self) -> bool:
        """Whether what is received goes to standard output."""
        return self.output_file == STDOUT


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[ReceiverSettings, list[str]]:
    """Return the settings and warnings for the log; see `filestreamer.settings.parse` for what it raises."""
    return parse_settings(ReceiverSettings, "receiver", SUMMARY, argv, environ)

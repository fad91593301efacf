"""The settings that both services have."""

import os
from typing import Final

from filestreamer.process import log
from filestreamer.process.descriptors import named_by
from filestreamer.records import Record
from filestreamer.settings import values
from filestreamer.settings.definition import setting, several
from filestreamer.settings.values import MetricsAddress
from filestreamer.wire import limits
from filestreamer.wire.errors import UsageError
from filestreamer.wire.messages import SkipKind
from filestreamer.wire.progress_clock import Patience

FIRST_SECONDS: Final = 60.0
"""Without --give-up-after, how long a run waits before it has moved anything: most likely it never will."""
LATER_SECONDS: Final = 30 * 60.0
"""The same after that: what interrupts a transfer that worked is a router that restarts, or a machine that sleeps."""
WINDOW_MAX: Final = 1024 * limits.GIB
"""More memory than any machine has."""


class CommonSettings(Record, kw_only=True):
    """The settings that both services have."""

    give_up_after: float | None = setting(
        values.seconds,
        "End the run after this long without progress."
        f"  [default: {FIRST_SECONDS:g} until the first byte is acknowledged, then {LATER_SECONDS:g}]",
        metavar="SECONDS",
    )
    """Seconds without progress after which the run ends with exit code 1, from the first connection to the end.

    With a job, a receiver that has dialled no sender for so long ends with exit code 6.
    """

    rate_limit: int | None = setting(
        values.rate,
        "Send or receive no faster than this over all connections together, such as 100MiB/s or 1Gbit/s.",
        metavar="RATE",
    )
    """Bytes per second over all data connections of the process together; None: no limit."""

    token: str | None = setting(
        values.token,
        "File that holds the token that both sides share. The variable FILESTREAMER_TOKEN may hold the token itself.",
        flag="--token-file",
        metavar="FILE",
        literal="TOKEN",
    )
    """The secret that both sides share, without white space around it. It must never be in a log or a repr."""

    job: str | None = setting(
        values.job_name,
        "Name of what is moved where, given to both sides: a receiver refuses senders of another one. It groups the"
        " shards of a tree.",
        metavar="NAME",
    )
    """1 to JOB_NAME_BYTES characters. None: of no job; a receiver then takes senders of any."""

    tls: bool = setting(bool, "Use TLS.", default=False)
    """Use TLS; each service has more to say of it."""

    tls_cert: str | None = setting(
        values.pem_file, "PEM file with the certificate that this side shows.", metavar="FILE"
    )
    """PEM file with this side's certificate, and the certificates that lead from it to its CA."""

    tls_key: str | None = setting(values.pem_file, "PEM file with the private key of --tls-cert.", metavar="FILE")
    """PEM file with the private key of `tls_cert`, not encrypted."""

    tls_ca: str | None = setting(
        values.pem_file,
        "PEM file with the CA certificates that the other side's certificate is checked against.",
        metavar="FILE",
    )
    """PEM file with the CAs that the other side's certificate is checked against: roots, intermediates, or itself."""

    tls_pin: tuple[tuple[bytes, ...], ...] = several(
        values.sha256,
        "The certificate of the side that listens must have this SHA-256 (of its DER), as the log there says it.",
        metavar="SHA256,...",
    )
    """Digests of 32 bytes, of which the receiver's certificate must have one."""

    metrics: MetricsAddress | None = setting(
        values.metrics_address, "Where to serve metrics, health checks and the live page, or off.", metavar="HOST:PORT"
    )
    """Where the metrics endpoint listens, or "off"; None is the default of the service."""

    metrics_linger: float | None = setting(
        values.seconds, "Go on serving metrics for this long after the last transfer has ended.", metavar="SECONDS"
    )
    """Seconds for which a process that ends goes on serving the last values; None: it does not wait."""

    pushgateway: str | None = setting(
        values.url,
        "Push the last values of each transfer to this Prometheus Pushgateway.",
        metavar="URL",
        is_secret=True,
    )
    """URL of a Pushgateway; /metrics/job/NAME, and labels behind it, say which group of metrics is replaced. It may
    contain a user and a password."""

    window: int = setting(
        values.size(1, WINDOW_MAX),
        "Most bytes of a pipe that this side buffers in memory.",
        default="64MiB",
        metavar="SIZE",
    )
    """Bytes that the sender buffers of standard input, and the receiver of what it writes to a pipe in order."""

    result_file: str | None = setting(values.text, "Also write the result to this file, as JSON.", metavar="FILE")
    """Where the JSON result of each transfer is written, beside standard output."""

    tolerate: tuple[tuple[str, ...], ...] = several(
        values.Words(*(kind.name.lower() for kind in SkipKind if kind is not SkipKind.SPECIAL)),
        "Exit with 0 if entries were skipped only as: vanished, changed, unreadable, declined, attribute, existing.",
        metavar="KIND,...",
    )
    """Kinds of skipped entries for which the exit code is not 5; they are reported nevertheless."""

    log_level: str = setting(
        values.one_of(*log.LEVELS),
        "Lowest level of log lines: debug, info, warning or error.",
        default="info",
        metavar="LEVEL",
    )
    """The least level of log lines that are written: debug, info, warning or error."""

    @property
    def patience(self) -> Patience:
        """How long to wait without progress."""
        if self.give_up_after is None:
            return Patience(FIRST_SECONDS, LATER_SECONDS)
        return Patience(self.give_up_after, self.give_up_after)

    @property
    def pins(self) -> tuple[bytes, ...]:
        """The digests in `tls_pin`, as one tuple."""
        return tuple(pin for several in self.tls_pin for pin in several)

    @property
    def is_certificate_named(self) -> bool:
        """Whether the user says which certificates to trust; else a token decides, or the system."""
        return self.tls_ca is not None or bool(self.tls_pin)

    def check_token(self, token: str) -> None:
        """Raise UsageError where a token would have to vouch for the other side's certificate, and is too short."""
        if not self.is_certificate_named and len(token) < values.VOUCHING_CHARACTERS_MIN:
            raise UsageError(
                f"--tls: a token of {len(token)} characters is too short to vouch for the other side's certificate:"
                f" pass --tls-ca or --tls-pin, or use one of {values.VOUCHING_CHARACTERS_MIN} or more"
                " (openssl rand -hex 32)"
            )

    @property
    def tolerated(self) -> frozenset[SkipKind]:
        """The kinds in `tolerate`, as a set."""
        return frozenset(SkipKind[word.upper()] for words in self.tolerate for word in words)

    def check_result_file(self, *paths: str | None) -> None:
        """Raise UsageError where the result would replace one of `paths`, or another file that this run uses."""
        result = self.result_file
        if result is None or named_by(result) is not None or (os.path.exists(result) and not os.path.isfile(result)):
            return
        token = self.token.path if isinstance(self.token, values.Token) else None
        for path in (*paths, token, self.tls_cert, self.tls_key, self.tls_ca):
            if path is not None and os.path.realpath(path) == os.path.realpath(result):
                raise UsageError(f"--result-file: the result would replace {path}: name another file")

    def exposed(self) -> list[str]:
        """Return a warning for each secret file that every user of this machine may read or change."""
        # PID 1 is the first process of a container: there are no other users, and files that are mounted there often
        # have such a mode.
        if os.getpid() == 1:
            return []
        return [
            f"{flag}: every user of this machine may read {path}, or change it: chmod 600 {path}"
            for flag, path in self._secret_files()
            if path is not None and values.is_open_to_all(path)
        ]

    def _secret_files(self) -> list[tuple[str, str | None]]:
        token = self.token.path if isinstance(self.token, values.Token) else None
        return [("--token-file", token), ("--tls-key", self.tls_key)]

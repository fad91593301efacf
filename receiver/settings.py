"""The settings of the receiver: `receiver --help`, FILESTREAMER_RECEIVER_*, and the config file."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from filestreamer.settings import values
from filestreamer.settings.address import Address, parse_address, peer
from filestreamer.settings.common import WINDOW_MAX
from filestreamer.settings.definition import setting, several
from filestreamer.settings.parse import Only, parse_settings
from filestreamer.settings.source import SOURCE_FIELDS, SourceSettings
from filestreamer.wire import limits
from filestreamer.wire.errors import UsageError

if TYPE_CHECKING:
    from filestreamer.ssh.remote import Remote

METRICS = Address("127.0.0.1", 9464)
"""Where metrics are served without --metrics."""
_NOT_WITH_DIALLING: Final = ("listen", "anonymous", "idle_timeout", "run", "tokens")
"""Fields of a receiver that waits for senders."""
STDOUT = "-"
"""The --output-file that means standard output."""
SUMMARY = """Receive files from senders, check every byte, and put them in place when they are complete.

\b
receiver --from alice@nas:/data/run-17           start the sender there, over ssh
receiver --listen 0.0.0.0:7800 --directory DIR   wait for senders that connect
receiver --connect sender.example:7800           a sender that listens there"""


def fetched(value: object) -> "Remote":
    """Read a path at another machine; `:PATH` is one at the machine that was named before."""
    from filestreamer.ssh.remote import Remote, is_remote, parse_remote  # few runs need it

    path = values.text(value)
    if not (path.startswith(":") or is_remote(path)):
        raise ValueError(
            f"{value!r} is not a path at another machine, [USER@]HOST:PATH; received files go to --directory"
        )
    read = Remote("", path[1:]) if path.startswith(":") else parse_remote(value)
    if read.name in ("", ".", "..") or (read.name.startswith("~") and "/" not in read.path.rstrip("/")):
        raise ValueError(f"{value!r} does not name what is to be fetched: end it with the name of a file or directory")
    return read


class ReceiverSettings(SourceSettings, kw_only=True):
    """The settings of one run of the receiver. The help texts are beside the fields."""

    listen: Address = setting(
        parse_address, "Where senders connect to.", default=f"127.0.0.1:{limits.DEFAULT_PORT}", metavar="HOST:PORT"
    )
    """An empty host is every address of this machine, port 0 a free port."""

    connect: Address | None = setting(
        peer,
        "Connect to a sender that listens, receive what it sends, then end.",
        metavar="HOST:PORT",
    )
    """Where a sender with --listen is; None waits for senders. Implies `once`."""

    more: tuple["Remote", ...] = several(
        fetched, "With --from: further paths at the same host, as [USER@]HOST:PATH or :PATH.", flag="PATH..."
    )
    """What is fetched beside the first path; the host may be left out."""

    fetch: tuple["Remote", ...] = several(
        fetched,
        "Start a sender at HOST over ssh, receive PATH from there, then end; further paths may follow.",
        flag="--from",
        metavar="[USER@]HOST:PATH",
    )
    """What is fetched, all of it from one host; () waits for senders. Implies `once`."""

    directory: str = setting(values.text, "Directory for received files.", default=".", metavar="DIR")
    """Relative to the working directory. Not used with `output_file`."""

    output_file: str | None = setting(
        values.text,
        "Receive one file under this path, whatever its name at the sender, then end. - writes to standard output.",
        metavar="PATH",
    )
    """Relative to the working directory, not to `directory`; or STDOUT. Implies `once`."""

    once: bool = setting(bool, "End after the first complete transfer.", default=False)
    """The transfer is committed, and all shards of its file have ended. Always true with `output_file`."""

    run: str | None = setting(
        values.run_id,
        "With --once: the ID of this run, such as the UID of a Kubernetes Job. A receiver that is started"
        " again with the same ID after its transfer was complete knows that, and ends.",
        metavar="ID",
    )
    """Whose receipt in staging says that everything is done; another run receives again. None: no receipt."""

    no_replace: bool = setting(bool, "Refuse files that exist already, instead of replacing them.", default=False)
    """Whether a transfer is refused whose destination exists; else it is replaced, atomically."""

    allow_delete: bool = setting(
        bool,
        "Let senders with --delete remove what they don't list below the directories that they send.",
        default=False,
    )
    """Whether an Offer with a Deletion is accepted."""

    allow_privileged: bool = setting(
        bool, "Let senders set owners, setuid and setgid bits, trusted.* and security.* attributes.", default=False
    )
    """Whether what is privileged is set as the sender says; else that is left out, and told."""

    idle_timeout: float | None = setting(
        values.seconds, "Exit with code 1 after this long without a transfer.", metavar="SECONDS"
    )
    """None waits for ever. With `once` and `job` the exit code is 6."""

    discard_staging_after: float | None = setting(
        values.seconds, "At start, delete incomplete files that have not grown for this long.", metavar="SECONDS"
    )
    """None keeps for ever what unfinished transfers left in staging."""

    metrics: values.MetricsAddress | None = setting(
        values.metrics_address,
        f"Where to serve metrics, health checks and the live page, or off.  [default: {METRICS}, where that is free]",
        metavar="HOST:PORT",
    )
    """Or "off"; None is METRICS, where that is free."""

    anonymous: bool = setting(
        bool, "If no token is given, require none: anybody who can connect may write.", default=False
    )
    """Whether no token is asked for where none is given; else the receiver chooses one."""

    tokens: str | None = setting(
        values.text,
        "Directory with a file for each user: its name is the user's, its content the user's token. Users send into"
        " directories of their own, DIR/USER. Files may come and go while the receiver runs.",
        metavar="DIRECTORY",
    )
    """Such as a mounted Secret of Kubernetes; None: one token for all senders."""

    tls: bool = setting(
        bool,
        "Speak TLS: without --tls-cert, with a certificate that is made for this run. --tls-cert implies this. With"
        " --connect, the sender's certificate is checked by the token or, if given, by --tls-ca or --tls-pin.",
        default=False,
    )
    """Speak TLS; always true where `tls_cert` is given."""

    memory_limit: int | None = setting(
        values.size(1, WINDOW_MAX),
        "Most memory that this receiver uses, socket buffers included."
        "  [default: the limit of its container, or 512MiB]",
        metavar="SIZE",
    )
    """In bytes (`receiver.memory`); None is the limit of its container."""

    def __post_init__(self) -> None:
        """Let `output_file` and `connect` imply `once`. Raises UsageError where settings contradict each other."""
        self.check_result_file(self.output_file)
        if self.fetch:
            self._check_fetch()
        if self.connect is not None:
            self._check_connect()
        if self.output_file is not None or self.dials:
            object.__setattr__(self, "once", True)
        if self.tokens is not None:
            self._check_tokens()
        if self.run is not None:
            self._check_run()
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("--tls-cert and --tls-key need each other")
        if self.tls_cert is not None:
            object.__setattr__(self, "tls", True)
        if self.tls_ca is not None and not self.tls and not self.dials:
            raise UsageError(
                "--tls-ca checks the certificates of senders: it needs --tls-cert and --tls-key, or --tls for a"
                " certificate of this run"
            )

    def _check_tokens(self) -> None:
        """Raise UsageError where there is something that is for one user, or none."""
        is_variable = isinstance(self.token, values.Token) and self.token.path is None
        given = {
            "FILESTREAMER_TOKEN" if is_variable else "--token-file": self.token,
            "--anonymous": self.anonymous,
            "--output-file": self.output_file,
            "--connect": self.connect,
            "--from": self.fetch,
            "--run": self.run,
            "--job": self.job,
        }
        if others := [name for name, value in given.items() if value]:
            raise UsageError(f"--tokens, with which each user has a token and a directory, excludes {others[0]}")

    def _secret_files(self) -> list[tuple[str, str | None]]:
        found = SourceSettings._secret_files(self)
        if self.tokens is not None:
            with contextlib.suppress(OSError):  # what is wrong with the directory is told when it is read
                paths = [os.path.join(self.tokens, name) for name in sorted(os.listdir(self.tokens))]
                found += [("--tokens", path) for path in paths if values.is_open_to_all(path)][:1]  # says it of all
        return found

    def _check_run(self) -> None:
        """Raise UsageError where a receipt makes no sense."""
        if not self.once:
            raise UsageError("--run needs --once: it tells whether the one transfer of a run is complete")
        if self.writes_stdout:
            raise UsageError("--run: what was written to standard output can't be known by a later process")

    def _check_fetch(self) -> None:
        """Have every path be one of the same host. Raises UsageError."""
        host = self.fetch[0]._replace(path="")
        if not host.host:
            raise UsageError(f"--from :{self.fetch[0].path}: the first path needs its host")
        paths = [each._replace(path="") if each.host else host for each in (*self.fetch, *self.more)]
        if any(each != host for each in paths):
            raise UsageError("--from: all paths are of one host, written alike; start another receiver for the others")
        whole = tuple([host._replace(path=each.path) for each in (*self.fetch, *self.more)])
        names = [each.name for each in whole]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UsageError(f"--from: two of the paths end with {twice[0]!r}, and would be one at the destination")
        if self.output_file is not None and len(whole) > 1:
            raise UsageError("--output-file takes one file: name one path with --from")
        if self.tls_cert is not None or self.is_certificate_named:
            raise UsageError("--from: its certificate is told over ssh: leave out --tls-ca, --tls-pin, --tls-cert")
        if self.tls and self.no_tls:
            raise UsageError("--no-tls contradicts --tls")
        # Who asks for it permits it.
        object.__setattr__(self, "allow_delete", self.delete)
        object.__setattr__(self, "allow_privileged", self.allow_privileged or self.owner)
        object.__setattr__(self, "fetch", whole)
        object.__setattr__(self, "more", ())

    def _check_connect(self) -> None:
        """Let TLS settings imply `tls`, as for a sender that connects. Raises UsageError."""
        if self.fetch:
            raise UsageError("--connect and --from: only one of them says where the sender is")
        if self.tls_cert is not None or self.tls_ca is not None or self.tls_pin:
            object.__setattr__(self, "tls", True)
        if self.tls and self.token is not None:
            self.check_token(self.token)

    @property
    def dials(self) -> bool:
        """Whether this receiver connects to its sender, and does not wait for senders."""
        return self.connect is not None or bool(self.fetch)

    @property
    def writes_stdout(self) -> bool:
        """Whether the bytes that are received go to standard output."""
        return self.output_file == STDOUT


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[ReceiverSettings, list[str]]:
    """Return the settings, and warnings for the log. Raises as `parse_settings` does."""
    return parse_settings(
        ReceiverSettings,
        "receiver",
        SUMMARY,
        argv,
        environ,
        only_with=[
            Only(("more", *SOURCE_FIELDS), "--from", lambda given: bool(given["fetch"])),
            # A receiver that listens shows a certificate, and pins none: it must not quietly go on in clear text.
            Only(("tls_pin",), "--connect", lambda given: given["connect"] is not None or bool(given["fetch"])),
        ],
        not_with=[("connect", _NOT_WITH_DIALLING), ("fetch", (*_NOT_WITH_DIALLING, "job"))],
    )

"""The settings of the sender, from its flags (`sender --help`), FILESTREAMER_SENDER_* variables, and a config file."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from filestreamer.settings import address as addresses
from filestreamer.settings import values
from filestreamer.settings.address import ADDRESSES_ACCEPTED, Address, numeric_address, parse_address
from filestreamer.settings.definition import setting, several
from filestreamer.settings.parse import Only, parse_settings
from filestreamer.settings.source import SSH_FIELDS, SourceSettings
from filestreamer.wire import limits
from filestreamer.wire.errors import UsageError
from filestreamer.wire.grid import Share
from filestreamer.wire.messages import Existing

if TYPE_CHECKING:
    from filestreamer.ssh.remote import Remote

STDIN: Final = "-"
"""The path that means standard input."""
STDIN_NAME: Final = "stdin"
"""The name of standard input at the destination, without --as."""
EVERYWHERE: Final = f":{limits.DEFAULT_PORT}"
"""Where a sender listens with --listen alone."""
SUMMARY = """Send files and directories to a receiver, over several TCP connections at once.

\b
sender big.iso photos --to alice@nas:incoming    start the receiver there, over ssh
sender big.iso --to receiver.example:7800        a receiver that listens there
sender big.iso --listen                          wait for receivers that connect"""


def peer(value: object) -> "Address | Remote":
    """Read an address to connect to, or where ssh leads to; an address without a host is one of this machine."""
    try:
        address = parse_address(value)
        if "@" in address.host:
            raise ValueError(f"{value!r} names no directory: write {value}:DIR, or {value}: for the home directory")
    except ValueError as error:
        from filestreamer.ssh.remote import is_remote, parse_remote  # few runs need it

        if is_remote(value):
            return parse_remote(value)
        if ADDRESSES_ACCEPTED in str(error):
            raise ValueError(f"{error}; or [USER@]HOST:DIR for a directory that ssh leads to") from None
        raise
    return addresses.peer(value)


def file_name(value: object) -> str:
    """Read the name of a file in a directory."""
    name = values.text(value)
    length = len(os.fsencode(name))
    if name in (".", "..") or "/" in name or length > limits.NAME_BYTES:
        raise ValueError(f"{value!r} is not a file name: no '/', no '..', at most {limits.NAME_BYTES} bytes")
    return name


def share(value: object) -> Share:
    """Read a shard, written INDEX/COUNT."""
    index, slash, count = values.text(value).partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and index.isascii() and count.isascii()):
        raise ValueError(f"{value!r} is not a shard: write it as INDEX/COUNT, such as 0/3, 1/3 or 2/3")
    read = Share(_shard_number(index), _shard_number(count))
    if not read.index < read.count <= limits.SHARDS_MAX:
        raise ValueError(f"{value!r} is not a shard: COUNT is 1 to {limits.SHARDS_MAX}, and INDEX 0 to COUNT-1")
    return read


def _shard_number(digits: str) -> int:
    """Read digits; a number that is too large becomes SHARDS_MAX + 1."""
    # int() refuses to read thousands of digits.
    significant = digits.lstrip("0") or "0"
    return int(significant) if len(significant) <= len(str(limits.SHARDS_MAX)) else limits.SHARDS_MAX + 1


class SenderSettings(SourceSettings, kw_only=True):
    """What the sender is asked to do."""

    input_files: tuple[str, ...] = several(
        values.text,
        "Files and directories to send. DIR/ sends the contents of DIR, - sends standard input.",
        flag="INPUT_FILE...",
        required=True,
    )
    """Paths to send, as the user wrote them: relative to the working directory. STDIN alone is standard input."""

    to: "Address | Remote | None" = setting(
        peer,
        "Where the files go: address of a receiver; or a directory on a machine that ssh leads to, where a receiver is"
        " started.",
        metavar="HOST:PORT|[USER@]HOST:DIR",
    )
    """Where the files go. It has no default, so that a sender without --to does not send to this machine; it is None
    only with `dry_run` or `listen`."""

    listen: Address | None = setting(
        parse_address,
        "Wait for receivers, which connect with receiver --connect, and send to each of them."
        f"  [without a value: {EVERYWHERE}, every address of this machine]",
        metavar="HOST:PORT",
        bare=EVERYWHERE,
        is_own=True,
    )
    """Where receivers connect to; an empty host is every address of this machine, port 0 a free port. None: `to`."""

    once: bool = setting(bool, "With --listen: end after the first complete transfer.", default=False, is_own=True)
    """Serve one receiver; always true where standard input is sent."""

    idle_timeout: float | None = setting(
        values.seconds,
        "With --listen: exit with code 1 after this long without a transfer.",
        metavar="SECONDS",
        is_own=True,
    )
    """None waits for ever. With `once` and `job` the exit code is 6."""

    source_address: str | None = setting(
        numeric_address, "Address of this machine to connect from.  [default: the system chooses]", metavar="ADDRESS"
    )
    """Numeric, with %INTERFACE where it is link-local; all connections come from it. None: the system chooses."""

    as_name: str | None = setting(
        file_name, "Name of the only INPUT_FILE at the destination.  [default: its own]", flag="--as", metavar="NAME"
    )
    """The name at the destination of a single path; None is its last part."""

    shard: Share = setting(
        share,
        "Send only share INDEX of COUNT; other senders send the other shares. With --job, where it is not one file.",
        default="0/1",
        metavar="INDEX/COUNT",
    )
    """Which share of the files to send, from 0/COUNT to COUNT-1/COUNT; 0/1 is all of them."""

    strict_modulo: bool = setting(
        bool,
        "Send each chunk only on its home connection, chunk_id % N; idle connections never take over.",
        default=False,
    )
    """Never let a connection take over chunks from a slower one that is up."""

    files_from: str | None = setting(
        values.text,
        "Send only the paths that this file lists, relative to INPUT_FILE: one a line, or NUL between them;"
        " - reads standard input.",
        metavar="FILE",
    )
    """A file with the paths to send below the one directory that is named; STDIN is standard input."""

    dry_run: bool = setting(
        bool,
        "Send nothing: list the entries or, with --to, ask the receiver what it would do with each.",
        default=False,
    )
    """Only list the entries that would be sent or, with `to`, how they stand at the receiver."""

    tls: bool = setting(
        bool,
        "Use TLS. The receiver's certificate is checked by the token or, without one, by the CAs of this system;"
        " --tls-ca and --tls-pin replace that. Any --tls-... setting implies this. With --listen this side shows a"
        " certificate: that of --tls-cert, or one that is made for this run.",
        default=False,
    )
    """Use TLS; always true where `tls_cert`, `tls_key`, `tls_ca` or `tls_pin` is given."""

    def __post_init__(self) -> None:
        """Let TLS files imply `tls`. Raises UsageError where settings contradict each other."""
        self._check_tls()
        self.check_result_file(*self.input_files, self.files_from)
        if self.listen is not None:
            self._check_listen()
        if self.as_name and len(self.input_files) > 1:
            raise UsageError("--as needs exactly one input path")
        if self.to is None and self.listen is None and not self.dry_run:
            raise UsageError(
                "--to is required (or FILESTREAMER_SENDER_TO or FILESTREAMER_TO, or to in the config file), or --listen"
                " to wait for receivers"
            )
        self._check_source()
        if self.files_from is not None:
            self._check_files_from()
        if STDIN in self.input_files:
            self._check_stdin()
        if self.shard.count > 1:
            self._check_shard()
        if self.delete and (self.include or self.files_from is not None):
            chosen = "--include" if self.include else "--files-from"
            raise UsageError(f"--delete: with {chosen} not all of a directory is sent, so nothing else can be removed")

    @property
    def remote(self) -> "Remote | None":
        """Where ssh leads to; None where the receiver has an address."""
        return None if self.to is None or isinstance(self.to, Address) else self.to

    @property
    def reads_stdin(self) -> bool:
        """Whether standard input is sent."""
        return self.input_files == (STDIN,)

    def _check_tls(self) -> None:
        """Let TLS files imply `tls`. Raises UsageError where TLS settings contradict each other."""
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("--tls-cert and --tls-key need each other")
        if self.tls_cert is not None or self.tls_ca is not None or self.tls_pin:
            object.__setattr__(self, "tls", True)
        if self.tls and self.no_tls:
            raise UsageError("--no-tls contradicts --tls, and what implies it")
        if self.remote is not None:
            self._check_remote()
        elif self.tls and self.token is not None and self.listen is None:
            self.check_token(self.token)

    def _check_remote(self) -> None:
        """Raise UsageError for settings that a receiver which ssh starts does not go with."""
        if self.tls_cert is not None or self.is_certificate_named:
            raise UsageError(
                f"--to {self.to}: its certificate is told over ssh: leave out --tls-ca, --tls-pin, --tls-cert"
            )
        if self.source_address is not None:
            raise UsageError(f"--source-address: --to {self.to} is reached by ssh: use --ssh 'ssh -b ADDRESS'")

    def _check_source(self) -> None:
        """Raise UsageError where the address to connect from is not of the family of the one to connect to."""
        source, to = self.source_address, self.to
        if source is not None and isinstance(to, Address) and to.is_numeric and (":" in source) != (":" in to.host):
            raise UsageError(f"--source-address {source} can't reach --to {to}: one is IPv4, the other one IPv6")

    def _check_listen(self) -> None:
        """Raise UsageError for settings that a sender which is dialled does not have."""
        if self.dry_run:
            raise UsageError("--dry-run: with --listen there is no receiver to ask: leave out --listen")
        if self.source_address is not None:
            raise UsageError("--source-address: with --listen this side does not connect: name the address there")
        if self.tls_pin:
            raise UsageError("--tls-pin: with --listen this side shows a certificate, and receivers pin it")

    def _check_files_from(self) -> None:
        """Raise UsageError for settings that a list of paths does not go with."""
        if len(self.input_files) != 1 or self.reads_stdin:
            raise UsageError("--files-from needs exactly one INPUT_FILE: the directory that its paths are relative to")

    def _check_stdin(self) -> None:
        """Raise UsageError for settings that standard input does not have."""
        if not self.reads_stdin:
            raise UsageError(
                "INPUT_FILE -: standard input can't be sent with other paths; write ./- for a file with the name -"
            )
        if self.shard.count > 1:
            raise UsageError("--shard: standard input has no shards: only one sender can read it")
        if self.dry_run:
            raise UsageError("--dry-run: standard input can't be listed without reading it")
        if self.chunk_size is not None and self.chunk_size > self.window:
            raise UsageError(
                f"--chunk-size {self.chunk_size}: a chunk of standard input must not be larger than --window"
            )

        if self.delete:
            raise UsageError("--delete: standard input is no directory")
        if self.existing in (Existing.SKIP, Existing.NEWER):
            raise UsageError("--existing: standard input is read to be sent: it can only replace or refuse")

    def _check_shard(self) -> None:
        """Raise UsageError for settings that a share of a file does not have."""
        if self.delete:
            raise UsageError(
                "--delete: no shard lists all that is at the source: when all shards are done, run one sender without"
                " --shard and with --delete; it moves nothing again"
            )
        if self.existing is not Existing.REPLACE and self.job is None:
            raise UsageError("--existing: shards of a single file have no say in that: receiver --no-replace has")
        if self.dry_run and self.to is not None:
            raise UsageError("--dry-run: a shard can't ask about its share: leave out --shard")

    @property
    def name(self) -> str:
        """The name of the transfer, for people: that of its only, or its first, path at the destination."""
        if self.reads_stdin:
            return self.as_name or STDIN_NAME
        return self.as_name or os.path.basename(os.path.abspath(self.input_files[0])) or "/"


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[SenderSettings, list[str]]:
    """Return the settings, and warnings for the log. Raises as `parse_settings` does."""
    return parse_settings(
        SenderSettings,
        "sender",
        SUMMARY,
        argv,
        environ,
        only_with=[
            Only(("once", "idle_timeout"), "--listen", lambda given: given["listen"] is not None),
            Only(SSH_FIELDS, "--to [USER@]HOST:DIR", lambda given: not isinstance(given["to"], Address | None)),
        ],
        not_with=[("listen", ("to",))],
    )

"""The settings of the sender: `sender --help`, FILESTREAMER_SENDER_*, and the config file."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from filestreamer.settings import values
from filestreamer.settings.address import Address, parse_address
from filestreamer.settings.common import CommonSettings
from filestreamer.settings.definition import setting, several
from filestreamer.settings.parse import parse_settings
from filestreamer.wire import limits
from filestreamer.wire.errors import UsageError
from filestreamer.wire.grid import Share

STDIN: Final = "-"
"""The path that is standard input."""
STDIN_NAME: Final = "stdin"
"""Its name at the destination, unless it is given one."""
SUMMARY = "Send files and directories to a receiver, over several TCP connections at once."


def peer(value: object) -> Address:
    """Read an address to connect to; without a host it is this machine."""
    address = parse_address(value)
    if address.port == 0:
        raise ValueError(f"{value!r} can't be connected to: ports begin at 1")
    return address if address.host else address._replace(host="localhost")


def file_name(value: object) -> str:
    """Read a name that a file can have in a directory."""
    name = values.text(value)
    length = len(os.fsencode(name))
    if name in (".", "..") or "/" in name or length > limits.NAME_BYTES:
        raise ValueError(f"{value!r} is not a file name: no '/', no '..', at most {limits.NAME_BYTES} bytes")
    return name


def share(value: object) -> Share:
    """Read INDEX/COUNT."""
    index, slash, count = values.text(value).partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and index.isascii() and count.isascii()):
        raise ValueError(f"{value!r} is not INDEX/COUNT, such as 0/3, 1/3 or 2/3")
    read = Share(_shard_number(index), _shard_number(count))
    if not read.index < read.count <= limits.SHARDS_MAX:
        raise ValueError(f"{value!r} is no shard: COUNT is 1 to {limits.SHARDS_MAX}, and INDEX 0 to COUNT-1")
    return read


def _shard_number(digits: str) -> int:
    """Read digits, however many, of which only those of a shard count; what is more becomes one more than there are."""
    significant = digits.lstrip("0") or "0"
    return int(significant) if len(significant) <= len(str(limits.SHARDS_MAX)) else limits.SHARDS_MAX + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderSettings(CommonSettings):
    """What the sender is to do."""

    input_files: tuple[str, ...] = several(
        values.text,
        "Files and directories to send; of DIR/, what is in it; - is standard input.",
        flag="INPUT_FILE...",
        required=True,
    )
    """Paths to send, as the user wrote them: relative to the working directory. One plain file is all or nothing.

    STDIN alone is standard input.
    """

    to: Address = setting(peer, "Where the receiver listens.", required=True, metavar="HOST:PORT")
    """Where the receiver listens. There is no default: a forgotten one must not send to this machine."""

    as_name: str | None = setting(
        file_name, "Name at the destination of the one INPUT_FILE.  [default: its own]", flag="--as", metavar="NAME"
    )
    """The name at the destination of a single path; None is its last part."""

    connections: int | None = setting(
        values.or_auto(values.whole(1, limits.CONNECTIONS_MAX)),
        "Data connections, or auto: as many as make it faster.",
        default="auto",
        metavar="N|auto",
    )
    """Number of data connections, 1 to 256; None finds it on the way, up to CONNECTIONS_AUTO."""

    chunk_size: int | None = setting(
        values.size(1, limits.CHUNK_SIZE_MAX),
        "Bytes in a chunk, such as 512KiB or 8MiB.  [default: 4MiB, more for very large files]",
        metavar="SIZE",
    )
    """Bytes in every chunk but the last, up to 1 GiB; None lets the size of the file decide."""

    rate_limit: int | None = setting(
        values.rate, "Send no faster than this over all connections, such as 100MiB/s or 1Gbit/s.", metavar="RATE"
    )
    """Payload bytes per second over all connections together; None is as fast as it goes."""

    shard: Share = setting(
        share,
        "Move share INDEX of COUNT of the file: its other shards move the others.",
        default="0/1",
        metavar="INDEX/COUNT",
    )
    """Which share of the file to move, from 0/COUNT to COUNT-1/COUNT; 0/1 is all of it."""

    strict_modulo: bool = setting(
        bool, "Keep each chunk on its home connection, chunk_id % N, while that lives.", default=False
    )
    """Never let a connection take over chunks from a slower one that lives."""

    include: tuple[str, ...] = several(
        values.text, "Of directories, send only files that match this pattern (gitignore's).", metavar="PATTERN"
    )
    """Patterns in gitignore's syntax, relative to each directory: only files that match one are sent."""

    exclude: tuple[str, ...] = several(
        values.text, "Of directories, leave out what matches this pattern (gitignore's).", metavar="PATTERN"
    )
    """Patterns in gitignore's syntax: what matches one is left out, a directory with all that is in it."""

    checksum: bool = setting(
        bool, "Compare files that are there already by their bytes, not by size and mtime.", default=False
    )
    """Compare digests of files that lie at the destination with the same size and mtime, too."""

    owner: bool = setting(bool, "Keep numeric owners: the receiver needs the right to set them.", default=False)
    """Tell the receiver the numeric owner and group of each entry."""

    dry_run: bool = setting(bool, "List what would be offered, and send nothing.", default=False)
    """Only list what is selected."""

    tls: bool = setting(bool, "Speak TLS, and trust the system's CAs; any --tls-... file implies it.", default=False)
    """Speak TLS; always true where `tls_cert`, `tls_key` or `tls_ca` is given."""

    def __post_init__(self) -> None:
        """Let TLS files imply `tls`. Raises UsageError where settings don't go together."""
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("--tls-cert and --tls-key go together")
        if self.tls_cert is not None or self.tls_ca is not None:
            object.__setattr__(self, "tls", True)
        if self.as_name and len(self.input_files) > 1:
            raise UsageError("--as names one path, and there are several")
        if STDIN in self.input_files:
            self._check_stdin()

    @property
    def reads_stdin(self) -> bool:
        """Whether what is sent is standard input."""
        return self.input_files == (STDIN,)

    def _check_stdin(self) -> None:
        """Refuse what standard input can't do. Raises UsageError."""
        if not self.reads_stdin:
            raise UsageError("INPUT_FILE -: standard input goes alone; a file of that name is ./-")
        if self.shard.count > 1:
            raise UsageError("--shard: standard input has no shards, as it can be read by one sender only")
        if self.dry_run:
            raise UsageError("--dry-run: nothing is known of standard input before it is read")
        if self.chunk_size is not None and self.chunk_size > self.window:
            raise UsageError(f"--chunk-size {self.chunk_size}: a chunk of standard input is more than --window has")

    @property
    def name(self) -> str:
        """What is sent, for people: the name at the destination, or of the first of several."""
        if self.reads_stdin:
            return self.as_name or STDIN_NAME
        return self.as_name or os.path.basename(os.path.abspath(self.input_files[0])) or "/"


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[SenderSettings, list[str]]:
    """Return the settings and warnings for the log; see `filestreamer.settings.parse` for what it raises."""
    return parse_settings(SenderSettings, "sender", SUMMARY, argv, environ)

"""The settings that say what is read at the source, and how it is offered.

A sender has them, and a receiver that starts a sender with --from.
"""

from typing import Final

from filestreamer.settings import values
from filestreamer.settings.common import CommonSettings
from filestreamer.settings.definition import definitions, setting, several
from filestreamer.wire import limits
from filestreamer.wire.messages import Existing


def command(value: object) -> str:
    """Read a command for a remote shell."""
    read = values.text(value)
    if not read.strip() or read.startswith("-") or not read.isprintable():
        raise ValueError(f"{read!r} is not a command")
    return read


class SourceSettings(CommonSettings, kw_only=True):
    """Which files are sent, what is kept of them, and over how many connections."""

    connections: int | None = setting(
        values.or_auto(values.whole(1, limits.CONNECTIONS_MAX, "connections")),
        "Number of data connections; auto: as many as make the transfer faster.",
        default="auto",
        metavar="N|auto",
    )
    """Number of data connections, 1 to 256; None: adapted while chunks move, up to CONNECTIONS_AUTO."""

    chunk_size: int | None = setting(
        values.size(1, limits.CHUNK_SIZE_MAX),
        "Bytes in a chunk, such as 512KiB or 8MiB.  [default: 4MiB, more for very large files]",
        metavar="SIZE",
    )
    """Bytes in every chunk but the last, up to 1 GiB; None: chosen by the size of the file."""

    include: tuple[str, ...] = several(
        values.text, "In directories, send only files that match this pattern (gitignore syntax).", metavar="PATTERN"
    )
    """Patterns in gitignore's syntax, relative to each directory: only files that match one are sent."""

    exclude: tuple[str, ...] = several(
        values.text,
        "In directories, leave out files and directories that match this pattern (gitignore syntax).",
        metavar="PATTERN",
    )
    """Patterns in gitignore's syntax: files and directories that match one are left out, with all that is in these."""

    ssh: str = setting(
        values.text,
        "The ssh that starts the other side, with its options, as in --ssh 'ssh -p 2222'.",
        default="ssh",
        metavar="COMMAND",
    )
    """A command line, split as a shell splits it."""

    remote_command: str | None = setting(
        command,
        "What ssh starts there, as the shell there reads it, such as '~/.venv/bin/receiver'."
        "  [default: receiver; with --from: sender]",
        metavar="COMMAND",
    )
    """Words for the remote shell; None is the name of the other service."""

    via: str | None = setting(
        values.one_of("direct", "ssh"),
        "How data reaches that machine: direct (TCP connections to a port that it chooses) or ssh (more ssh"
        " connections).  [default: direct, where that works within 5 s]",
        metavar="WAY",
    )
    """The way of the connections; None: a direct one is tried, and ssh is the other way."""

    no_tls: bool = setting(
        bool, "Don't encrypt direct connections to that machine: for networks that you trust.", default=False
    )
    """Leave out TLS, which is the default where the other side is started over ssh."""

    one_file_system: bool = setting(bool, "Leave out what is mounted below the named directories.", default=False)
    """Leave out other file systems below the named directories."""

    dereference: bool = setting(
        bool, "Send what symbolic links lead to in their place, also if that lies elsewhere.", default=False
    )
    """Follow symbolic links below the named directories."""

    checksum: bool = setting(
        bool, "Compare files that the receiver already has by their bytes, not by size and mtime.", default=False
    )
    """Compare the digests of files that lie at the destination with the same size and mtime, too."""

    owner: bool = setting(
        bool, "Keep numeric owners; without ssh, the receiver must permit it (--allow-privileged).", default=False
    )
    """Tell the receiver the numeric owner and group of each entry."""

    existing: Existing = setting(
        values.OneOf({each.name.lower(): each for each in Existing}),
        "What becomes of files at the destination that differ: skip (leave them), newer (replace only older ones),"
        " replace, or refuse.",
        default="replace",
        metavar="WHAT",
    )
    """What the receiver does with a file or symlink that has the name of an entry and differs from it."""

    delete: bool = setting(
        bool,
        "Remove from the named directories what is not at the source; without ssh, the receiver must permit it"
        " (--allow-delete).",
        default=False,
    )
    """Make an exact mirror of each directory that the user names, once all of it was moved."""

    xattrs: bool = setting(
        bool, "Keep extended attributes: ACLs, user.*, and where the receiver allows it capabilities.", default=False
    )
    """Read the extended attributes of each entry, and have the receiver set these and no others."""


SOURCE_FIELDS: Final = tuple(name for name in definitions(SourceSettings) if name not in definitions(CommonSettings))
"""The names of the fields that are added to CommonSettings here."""
SSH_FIELDS: Final = ("ssh", "remote_command", "via", "no_tls")
"""Those that count only where ssh starts the other side."""

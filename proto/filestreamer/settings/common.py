"""The settings of both services: one definition each, from which flag, variable, config key, default and help derive.

A service declares its settings as fields of one frozen dataclass that extends `CommonSettings`:

    chunk_size: int | None = setting(values.size(1, limits.CHUNK_SIZE_MAX), "Bytes in each chunk.", metavar="SIZE")

and `parse` fills it, strongest source first:

    1. flags                       --chunk-size 8MiB
    2. environment                 FILESTREAMER_SENDER_CHUNK_SIZE, then FILESTREAMER_CHUNK_SIZE; empty counts as unset
    3. the file that --config or FILESTREAMER_CONFIG names
                                   {"sender": {"chunk_size": "8MiB"}}, then {"chunk_size": "8MiB"}; null counts as unset
    4. the default

Whatever is wrong is one UsageError of one line that begins with the flag, the variable, or the file and the key.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeVar, cast

import click
import click.core

from filestreamer.process import log
from filestreamer.settings import values
from filestreamer.settings.values import MetricsAddress
from filestreamer.version import VERSION
from filestreamer.wire import limits
from filestreamer.wire.errors import UsageError
from filestreamer.wire.messages import SkipKind

Service = Literal["sender", "receiver"]
T = TypeVar("T")
S = TypeVar("S", bound="CommonSettings")

SERVICES: Final = ("sender", "receiver")
PREFIX: Final = "FILESTREAMER_"
CONFIG_BYTES_MAX: Final = 16 * limits.MIB
WINDOW_MAX: Final = 1024 * limits.GIB
"""More memory than any machine has."""

OWN_KEYS: Final[Mapping[str, frozenset[str]]] = {
    "sender": frozenset(
        "input_file to as connections chunk_size rate_limit shard strict_modulo tls include exclude checksum owner"
        " dry_run".split()
    ),
    "receiver": frozenset(
        "listen directory output_file once no_replace idle_timeout anonymous discard_staging_after memory_limit".split()
    ),
}
"""Config keys that one service has and the other must let pass. The services never import each other, so the keys are
repeated here; `parse` fails at once where a service and its line differ."""

ORIGINAL_KEYS: Final[Mapping[str, str]] = {
    "serveraddr": "listen",
    "clientaddr": "to",
    "parallelpage": "connections",
    "chunk": "chunk_size",
    "inputfile": "input_file",
    "outputfile": "output_file",
}
"""Config keys of the original program, in lower case (it matched them without regard to case), and ours."""


class Definition(NamedTuple):
    """One setting: how it is read, what it is called, and what --help says of it."""

    read: Callable[[Any], Any]
    help: str
    default: str | int | None = None
    required: bool = False
    flag: str = ""
    """`--chunk-size`, or a bare `INPUT_FILE` for the positional one."""
    metavar: str | None = None
    literal: str | None = None
    """For a setting that names a file: the variable (without prefix) that may hold the file's content instead."""
    multiple: bool = False
    """Whether it may be given several times: a list in the config file, a line each in a variable."""

    @property
    def key(self) -> str:
        """The key in the config file; in capitals and prefixed it is the variable."""
        return self.shown.removeprefix("--").replace("-", "_").lower()

    @property
    def shown(self) -> str:
        """The flag, for people."""
        return self.flag.removesuffix("...")

    def parameter(self, name: str) -> click.Parameter:
        """Return what click knows of it."""
        if not self.flag.startswith("--"):
            return click.Argument(
                [name],
                type=self.read,
                required=self.required,
                metavar=self.flag,
                help=self.help,
                nargs=-1 if self.multiple else 1,
            )
        return click.Option(
            [name, self.flag],
            type=self.read,
            is_flag=True if self.read is bool else None,
            help=self.help,
            metavar=self.metavar,
            multiple=self.multiple,
            show_default=self.default not in (None, False),
            **({"required": True} if self.required else {"default": self.default}),
        )

    def variables(self, service: Service) -> Iterator[tuple[str, type[str]]]:
        """Yield the variables that may hold it, strongest first, each with the type that its value is to have."""
        for prefix in (f"{PREFIX}{service.upper()}_", PREFIX):
            yield f"{prefix}{self.key.upper()}", str
            if self.literal:
                yield f"{prefix}{self.literal}", values.Literally


def several(
    read: Callable[[Any], T], help: str, *, required: bool = False, flag: str = "", metavar: str | None = None
) -> tuple[T, ...]:
    """Define a setting that may be given several times, as the value of a dataclass field: a tuple, () by default."""
    definition = Definition(read, help, None, required, flag, metavar, None, True)
    return cast(tuple[T, ...], dataclasses.field(default=(), metadata={"definition": definition}))


def setting(
    read: Callable[[Any], T],
    help: str,
    *,
    default: str | int | None = None,
    required: bool = False,
    flag: str = "",
    metavar: str | None = None,
    literal: str | None = None,
    is_secret: bool = False,
) -> T:
    """Define a setting, as the value of a dataclass field; `read=bool` makes it a flag without a value.

    `default` is written as a user would write it. `flag` is needed only where it differs from the field's name. What is
    secret, as what the environment may hold literally is, is in no repr.
    """
    definition = Definition(read, help, default, required, flag, metavar, literal)
    settings: dict[str, Any] = {"metadata": {"definition": definition}, "repr": not (is_secret or literal)}
    if not required:
        settings["default"] = None if default is None else read(default)
    return cast(T, dataclasses.field(**settings))


def definitions(settings: type["CommonSettings"]) -> dict[str, Definition]:
    """Return the settings of a service by the names of their fields."""
    found = {}
    for item in dataclasses.fields(settings):
        definition: Definition = item.metadata["definition"]
        found[item.name] = definition._replace(flag=definition.flag or f"--{item.name.replace('_', '-')}")
    return found


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CommonSettings:
    """The settings that both services have."""

    give_up_after: float = setting(
        values.seconds, "End the run after this long without progress.", default=60, metavar="SECONDS"
    )
    """Seconds without progress, the first connection included, after which the run ends with exit 1."""

    token: str | None = setting(
        values.token,
        "File that holds the token that both sides share. The variable FILESTREAMER_TOKEN may hold the token itself.",
        flag="--token-file",
        metavar="FILE",
        literal="TOKEN",
    )
    """The shared secret: 16 characters or more, without white space around it. Never logged, never in a repr."""

    tls_cert: str | None = setting(values.text, "PEM certificate that this side shows.", metavar="FILE")
    """PEM file with this side's certificate, and what leads from it to its CA."""

    tls_key: str | None = setting(values.text, "PEM private key of --tls-cert.", metavar="FILE")
    """PEM file with the private key of `tls_cert`, not encrypted."""

    tls_ca: str | None = setting(
        values.text, "PEM certificates of the CAs that sign the other side's certificate.", metavar="FILE"
    )
    """PEM file with the CAs that the other side's certificate is checked against."""

    metrics: MetricsAddress | None = setting(
        values.metrics_address, "Where to serve metrics, health and the live page, or off.", metavar="HOST:PORT"
    )
    """Where the metrics endpoint listens, or "off"; None is what the service does by default."""

    metrics_linger: float | None = setting(
        values.seconds, "Keep serving metrics for this long after the last transfer's end.", metavar="SECONDS"
    )
    """Seconds for which the last values are served: an ending process waits that long. None does not wait."""

    pushgateway: str | None = setting(
        values.url, "Push each transfer's last values to this Prometheus Pushgateway.", metavar="URL", is_secret=True
    )
    """Base URL of a Pushgateway; /metrics/job/NAME behind it names the job. It may have a user and a password in it."""

    window: int = setting(
        values.size(1, WINDOW_MAX),
        "Most bytes of a pipe that this side keeps in memory.",
        default="64MiB",
        metavar="SIZE",
    )
    """Bytes that the sender keeps of standard input, and the receiver of what it passes on in order."""

    result_file: str | None = setting(values.text, "Write the result there, too.", metavar="FILE")
    """Where the JSON result of each transfer is written, beside standard output."""

    tolerate: tuple[tuple[str, ...], ...] = several(
        values.words(*(kind.name.lower() for kind in SkipKind if kind is not SkipKind.SPECIAL)),
        "Exit 0 also where entries were skipped for these reasons: vanished, changed, unreadable, declined, attribute.",
        metavar="KIND,...",
    )
    """Kinds of skipped entries that don't make the exit code 5; they are told all the same."""

    log_level: str = setting(values.one_of(*log.LEVELS), "Least level of log lines.", default="info", metavar="LEVEL")
    """The least level of log lines that are written: debug, info, warning or error."""

    @property
    def tolerated(self) -> frozenset[SkipKind]:
        """The kinds of `tolerate`."""
        return frozenset(SkipKind[word.upper()] for words in self.tolerate for word in words)

    def exposed(self) -> list[str]:
        """Return a warning for each file of a secret that is open to every user of this machine.

        The first process of a container has no other users beside it, and what is mounted there often has such a mode.
        """
        files = {"--token-file": self.token.path if isinstance(self.token, values.Token) else None}
        files["--tls-key"] = self.tls_key
        if os.getpid() == 1:
            return []
        return [
            f"{flag}: every user of this machine may read {path}, or change it: chmod 600 {path}"
            for flag, path in files.items()
            if path is not None and values.is_open_to_all(path)
        ]


class Found(NamedTuple):
    """A value that the environment or the config file gives, and how an error about it begins."""

    value: object
    origin: str


CONFIG: Final = Definition(values.text, "JSON file with settings of both services.", flag="--config", metavar="FILE")
COMMON_KEYS: Final = frozenset(item.key for item in definitions(CommonSettings).values())


def parse(
    settings: type[S], service: Service, summary: str, argv: Sequence[str], environ: Mapping[str, str]
) -> tuple[S, list[str]]:
    """Fill the settings of a service from flags (`argv`, without the program), environment, config file and defaults.

    Returns them with warnings for the log; `summary` opens `--help`. Raises UsageError for whatever is wrong, and
    SystemExit(0) after `--help` and `--version`.
    """
    defined = definitions(settings)
    if difference := {item.key for item in defined.values()} ^ (OWN_KEYS[service] | COMMON_KEYS):
        raise LookupError(f"OWN_KEYS[{service!r}] is not what the {service} declares: {', '.join(difference)}")
    found: dict[str, Found] = {}

    def gather(context: click.Context, _parameter: click.Parameter, path: str | None) -> None:
        found.update(_from_sources(defined, service, environ, path))
        # click asks its default map after the flags and before the defaults.
        context.default_map = {name: item.value for name, item in found.items()}

    try:
        context = _command(service, summary, defined, gather).make_context(service, list(argv))
    except click.exceptions.Exit as end:
        raise SystemExit(end.exit_code) from None
    except click.UsageError as error:
        raise UsageError(_explain(error, service, defined, found)) from None
    return settings(**context.params), _unknown_variables(environ)


def _command(
    service: Service, summary: str, defined: Mapping[str, Definition], gather: Callable[..., None]
) -> click.Command:
    config = CONFIG.parameter("config")
    # Eager: it is read before any other setting asks for its value.
    config.is_eager, config.expose_value, config.callback = True, False, gather
    version = click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_print_version,
        help="Show the version and exit.",
    )
    # The service's own settings come first in --help.
    names = sorted(defined, key=lambda name: defined[name].key in COMMON_KEYS)
    parameters = [defined[name].parameter(name) for name in names]
    epilog = (
        f"Every flag is also an environment variable (--log-level: {PREFIX}{service.upper()}_LOG_LEVEL or "
        f"{PREFIX}LOG_LEVEL) and a key of the config file (log_level). Flags beat variables, and these the file."
    )
    return click.Command(service, params=[*parameters, config, version], help=summary, epilog=epilog)


def _print_version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"{context.info_name} {VERSION} (protocol {limits.VERSION})")
        context.exit()


def _explain(
    error: click.UsageError, service: Service, defined: Mapping[str, Definition], found: Mapping[str, Found]
) -> str:
    """Return one line that names the flag, the variable or the key at fault."""
    if not isinstance(error, click.BadParameter) or error.param is None or error.ctx is None:
        return error.format_message()
    name = error.param.name
    definition = defined.get(name, CONFIG)
    if isinstance(error, click.MissingParameter):
        variables = " or ".join(variable for variable, _ in definition.variables(service))
        return f"{definition.shown} is required (or {variables}, or {definition.key} in the config file)"
    from_found = error.ctx.get_parameter_source(name) is click.core.ParameterSource.DEFAULT_MAP
    return f"{found[name].origin if from_found else definition.flag}: {error.message}"


def _from_sources(
    defined: Mapping[str, Definition], service: Service, environ: Mapping[str, str], path: str | None
) -> dict[str, Found]:
    """Return what the config file and, stronger, the environment give, by the names of the fields."""
    config = Found(path, CONFIG.flag) if path else _from_environment(CONFIG, service, environ)
    found = _from_file(defined, service, str(config.value), config.origin) if config else {}
    for name, definition in defined.items():
        if item := _from_environment(definition, service, environ):
            found[name] = item
    return found


def _from_environment(definition: Definition, service: Service, environ: Mapping[str, str]) -> Found | None:
    for variable, kind in definition.variables(service):
        if value := environ.get(variable):
            return Found(value.splitlines() if definition.multiple else kind(value), variable)
    return None


def _from_file(defined: Mapping[str, Definition], service: Service, path: str, origin: str) -> dict[str, Found]:
    """Return what the config file gives; the keys of the other service are checked and left alone."""
    document = _load_object(path, origin)
    sections = {name: document.pop(name, None) for name in SERVICES}
    found = _entries(path, "", document, COMMON_KEYS.union(*OWN_KEYS.values()))
    for name, content in sections.items():
        entries = _entries(path, name, content, COMMON_KEYS | OWN_KEYS[name])
        if name == service:
            found |= entries
    own = {name: found[definition.key] for name, definition in defined.items() if definition.key in found}
    return {name: _shaped(item, defined[name]) for name, item in own.items()}


def _shaped(item: Found, definition: Definition) -> Found:
    """Make a list of what may be given several times. Raises UsageError for a list of what may not."""
    if definition.multiple:
        return item if isinstance(item.value, list) else Found([item.value], item.origin)
    if isinstance(item.value, list):
        raise UsageError(f"{item.origin}: must be text, a number, true or false")
    if definition.read is bool and isinstance(item.value, int | float) and not isinstance(item.value, bool):
        return Found(str(item.value), item.origin)  # click reads true and false out of text only
    return item


def _load_object(path: str, origin: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = file.read(CONFIG_BYTES_MAX + 1)
        if len(content) > CONFIG_BYTES_MAX:
            raise UsageError(f"{path}: has more than {CONFIG_BYTES_MAX >> 20} MiB: it is no file of settings")
        document = json.loads(content)
    except OSError as error:
        raise UsageError(f"{origin}: can't read {path!r}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}: line {error.lineno} column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise UsageError(f"{path}: must be a JSON object with settings")
    return document


def _entries(path: str, section: str, content: object, keys: frozenset[str]) -> dict[str, Found]:
    """Return one object of the config file by our keys.

    Raises UsageError for an unknown key, and for a value that can't be one.
    """
    if content is not None and not isinstance(content, dict):
        raise UsageError(f"{path}: {section}: must be an object with settings of the {section}")
    prefix = f"{section}." if section else ""
    entries: dict[str, Found] = {}
    for written, value in (content or {}).items():
        key = ORIGINAL_KEYS.get(written.lower(), written)
        if key not in keys:
            hint = _suggestion(prefix, written, keys if section else keys.union(SERVICES))
            raise UsageError(f"{path}: unknown key {prefix + written!r}{hint}")
        if key in entries:
            raise UsageError(f"{path}: {prefix}{written}: the same setting as {entries[key].origin}: keep one of them")
        if isinstance(value, dict) or (isinstance(value, list) and not all(isinstance(item, str) for item in value)):
            raise UsageError(f"{path}: {prefix}{written}: must be text, a number, true or false")
        if value is not None:
            entries[key] = Found(value, f"{path}: {prefix}{written}")
    return entries


def _unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Return a warning for each variable that has our prefix and is no setting of either service."""
    prefixes = {f"{PREFIX}{name.upper()}_": COMMON_KEYS | OWN_KEYS[name] for name in SERVICES}
    prefixes[PREFIX] = COMMON_KEYS.union(*OWN_KEYS.values())
    warnings = []
    for variable in sorted(name for name in environ if name.startswith(PREFIX)):
        prefix = next(prefix for prefix in prefixes if variable.startswith(prefix))
        names = {key.upper() for key in prefixes[prefix]} | {"CONFIG", "TOKEN"}
        rest = variable.removeprefix(prefix)
        if rest not in names:
            warnings.append(f"{variable} is not a setting and was ignored{_suggestion(prefix, rest, names)}")
    return warnings


def _suggestion(prefix: str, word: str, words: Iterable[str]) -> str:
    from difflib import get_close_matches

    matches = get_close_matches(word, sorted(words), n=1)
    return f": did you mean {prefix}{matches[0]}?" if matches else ""

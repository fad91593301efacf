"""Filling the settings of a service from flags, environment, config file and defaults.

Strongest source first:

    1. flags                       --chunk-size 8MiB
    2. environment                 FILESTREAMER_SENDER_CHUNK_SIZE, then FILESTREAMER_CHUNK_SIZE; empty counts as unset;
                                   of a setting that may be repeated, each line that is not empty is a value
    3. the file that --config or FILESTREAMER_CONFIG names
                                   {"sender": {"chunk_size": "8MiB"}}, then {"chunk_size": "8MiB"}; null counts as unset
    4. the default

Any mistake is a UsageError of one line, which begins with the flag, the variable, or the file and the key.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar, cast

import click
import click.core

from filestreamer.process.variables import value_of
from filestreamer.settings import values
from filestreamer.settings.common import CommonSettings
from filestreamer.settings.config_file import SERVICES, Found, read_settings, suggestion
from filestreamer.settings.definition import PREFIX, Definition, definitions
from filestreamer.settings.help import Command
from filestreamer.settings.keys import COMMON_KEYS, OWN_KEYS
from filestreamer.wire.errors import UsageError
from filestreamer.wire.session import Side

S = TypeVar("S", bound=CommonSettings)

MESSAGE_CHARACTERS_MAX: Final = 1000
"""A longer message is cut in its middle: it repeats a value, and a log has to show it."""

CONFIG: Final = Definition(values.text, "JSON file with settings of both services.", flag="--config", metavar="FILE")


class Only(NamedTuple):
    """Settings that count only where something is given."""

    fields: Sequence[str]
    condition: str
    """What has to be given, as messages show it."""
    is_met: Callable[[Mapping[str, Any]], bool]
    """Whether it is, from the values of all fields."""


def parse_settings(
    settings: type[S],
    service: Side,
    summary: str,
    argv: Sequence[str],
    environ: Mapping[str, str],
    *,
    only_with: Sequence[Only] = (),
    not_with: Sequence[tuple[str, Sequence[str]]] = (),
) -> tuple[S, list[str]]:
    """Fill the settings of a service from flags (`argv`, without the program), environment, config file and defaults.

    Return the settings, and warnings for the log. `summary` begins `--help`. Where the condition of `only_with` is
    not met, a flag of those settings is a mistake, and what a variable or a file says is for another run. `not_with`
    names fields with which others do not count. Raises UsageError for any mistake, and SystemExit(0) after `--help` and
    `--version`, and after an answer to a shell that completes a command.
    """
    defined = definitions(settings)
    for name in (service, f"filestreamer-{service}"):
        if instruction := environ.get(f"_{name.replace('-', '_').upper()}_COMPLETE"):
            from filestreamer.settings.completion import answer

            answer(_command(service, summary, defined, lambda *_: None), name, instruction)
            raise SystemExit(0)
    if difference := {item.key for item in defined.values()} ^ (OWN_KEYS[service] | COMMON_KEYS):
        raise LookupError(f"OWN_KEYS[{service!r}] differs from the settings of the {service}: {', '.join(difference)}")
    found: dict[str, Found] = {}

    def gather(context: click.Context, _parameter: click.Parameter, path: str | None) -> None:
        found.update(_from_sources(defined, service, environ, path))
        # click looks into its default map for settings without a flag, before it uses their defaults.
        context.default_map = {name: item.value for name, item in found.items()}

    try:
        context = _command(service, summary, defined, gather).make_context(service, list(argv))
    except click.exceptions.Exit as request:  # after --help or --version
        raise SystemExit(request.exit_code) from None
    except click.UsageError as error:
        raise UsageError(_cut(_explain(error, service, defined, found))) from None
    except UsageError as error:
        raise UsageError(_cut(str(error))) from None
    _reconcile(context, defined, only_with, not_with)
    return settings(**context.params), _unknown_variables(environ)


def _reconcile(
    context: click.Context,
    defined: Mapping[str, Definition],
    only_with: Sequence[Only],
    not_with: Sequence[tuple[str, Sequence[str]]],
) -> None:
    """Leave out what does not count beside what is given. Raises UsageError where flags contradict each other."""
    for name, others in not_with:
        _choose(context, defined, name, others)
    for only in only_with:
        if not only.is_met(context.params):
            _leave_out(context, defined, only.fields, f"goes with {only.condition}")


def _choose(context: click.Context, defined: Mapping[str, Definition], name: str, others: Sequence[str]) -> None:
    """Where `name` is given, leave out the fields `others`, which do not go with it; or `name` where flags say another.

    Raises UsageError where flags say both.
    """
    if not context.params[name]:
        return
    if context.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE and any(
        context.get_parameter_source(other) is click.core.ParameterSource.COMMANDLINE for other in others
    ):
        others = [name]
    _leave_out(context, defined, others, f"does not go with {defined[name].shown}")


def _leave_out(context: click.Context, defined: Mapping[str, Definition], names: Sequence[str], why: str) -> None:
    """Set the fields `names` to their defaults. Raises UsageError, which says `why`, where one was given as a flag."""
    for name in names:
        definition = defined[name]
        is_flag = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if is_flag and context.params[name] != ():  # as click has it for an argument that is not there
            raise UsageError(f"{definition.shown} {why}")
        default = () if definition.multiple else definition.default
        context.params[name] = definition.read(default) if isinstance(default, str) else default


def _command(
    service: Side, summary: str, defined: Mapping[str, Definition], gather: Callable[..., None]
) -> click.Command:
    config = cast(click.Option, CONFIG.parameter("config"))
    # Eager: click must call `gather` before it looks for the value of any other setting.
    config.is_eager, config.expose_value, config.callback = True, False, gather
    return Command(service, summary, defined, config)


def _cut(message: str) -> str:
    """Return a message with what is in its middle left out, where it is too long to be read."""
    if len(message) <= MESSAGE_CHARACTERS_MAX:
        return message
    half = MESSAGE_CHARACTERS_MAX // 2
    return f"{message[:half]} [...] {message[-half:]}"


def _explain(
    error: click.UsageError, service: Side, defined: Mapping[str, Definition], found: Mapping[str, Found]
) -> str:
    """Return one line about a mistake; it names the flag, the variable or the key."""
    if not isinstance(error, click.BadParameter) or error.param is None or error.ctx is None:
        return error.format_message()
    name = error.param.name
    definition = defined.get(name, CONFIG)
    if isinstance(error, click.MissingParameter):
        variables = " or ".join(variable for variable, _ in definition.variables(service))
        required = f"{definition.shown} is required (or {variables}, or {definition.key} in the config file)"
        # A flag that may be given without its value has taken the word behind it.
        took = [item.shown for key, item in defined.items() if item.bare and error.ctx.params.get(key) is not None]
        return f"{required}: write it before {took[0]}, which takes what follows as its value" if took else required
    from_found = error.ctx.get_parameter_source(name) is click.core.ParameterSource.DEFAULT_MAP
    return f"{found[name].origin if from_found else definition.shown}: {error.message}"


def _from_sources(
    defined: Mapping[str, Definition], service: Side, environ: Mapping[str, str], path: str | None
) -> dict[str, Found]:
    """Return the values of the environment and, for what it does not set, of the config file, by field name."""
    config = Found(path, CONFIG.flag) if path else _from_environment(CONFIG, service, environ)
    found = read_settings(defined, service, str(config.value), config.origin) if config else {}
    for name, definition in defined.items():
        if item := _from_environment(definition, service, environ):
            found[name] = item
    return found


def _from_environment(definition: Definition, service: Side, environ: Mapping[str, str]) -> Found | None:
    for variable, kind in definition.variables(service):
        value = value_of(environ, variable)
        # Not `splitlines`: other characters at which that splits may be part of a name.
        lines = [line for line in re.split(r"\r?\n", value) if line.strip()]
        if definition.multiple and lines:
            return Found(lines, variable)
        if value and not definition.multiple:
            return Found(kind(value), variable)
    return None


def _unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Return a warning for each variable that has our prefix and is not a setting of either service."""
    prefixes = {f"{PREFIX}{name.upper()}_": COMMON_KEYS | OWN_KEYS[name] for name in SERVICES}
    prefixes[PREFIX] = COMMON_KEYS.union(*OWN_KEYS.values())
    warnings = []
    for variable in sorted(name for name in environ if name.startswith(PREFIX)):
        prefix = next(prefix for prefix in prefixes if variable.startswith(prefix))
        names = {key.upper() for key in prefixes[prefix]} | {"CONFIG", "TOKEN"}
        rest = variable.removeprefix(prefix)
        if rest not in names:
            warnings.append(f"{variable} is not a setting and was ignored{suggestion(prefix, rest, names)}")
    return warnings

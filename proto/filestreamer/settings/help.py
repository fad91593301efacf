"""The command of a service as click has it: its --help has a section for each group of settings."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from filestreamer.settings.common import CommonSettings
from filestreamer.settings.definition import PREFIX, Definition, definitions
from filestreamer.settings.source import SOURCE_FIELDS, SSH_FIELDS
from filestreamer.version import VERSION
from filestreamer.wire import limits
from filestreamer.wire.session import Side

_TITLES: Final[Mapping[Side, Sequence[str]]] = {
    "sender": ("Options", "What is sent, and how", "With --to [USER@]HOST:DIR", "General"),
    "receiver": ("Options", "With --from: what is sent, and how", "With --from: the way there", "General"),
}
"""Of the service's own settings, those of the source, those of ssh, and those of both services."""


class Command(click.Command):
    """A command whose options stand in groups."""

    def __init__(
        self, service: Side, summary: str, defined: Mapping[str, Definition], config: click.Option, **settings: Any
    ) -> None:
        """`config` is the option that names the config file, `summary` the first paragraphs of --help."""
        common = definitions(CommonSettings)
        source = [name for name in SOURCE_FIELDS if name not in SSH_FIELDS]
        own = [name for name in defined if name not in (*SOURCE_FIELDS, *common)]
        groups = [[defined[name].parameter(name) for name in names] for names in (own, source, SSH_FIELDS, common)]
        groups[-1] += [config, _version()]
        self._sections = dict(zip(_TITLES[service], groups, strict=True))
        epilog = (
            f"Every flag is also an environment variable (--log-level: {PREFIX}{service.upper()}_LOG_LEVEL or "
            f"{PREFIX}LOG_LEVEL) and a key of the config file (log_level). Flags win over variables, and variables "
            "over the file."
        )
        parameters = [parameter for group in groups for parameter in group]
        super().__init__(service, params=parameters, help=summary, epilog=epilog, **settings)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group."""
        sections = {title: list(group) for title, group in self._sections.items()}
        if help_option := self.get_help_option(ctx):
            next(reversed(sections.values())).append(help_option)
        for title, group in sections.items():
            records = [parameter.get_help_record(ctx) for parameter in group if isinstance(parameter, click.Option)]
            with formatter.section(title):
                formatter.write_dl([record for record in records if record is not None])


def _version() -> click.Option:
    return click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_print_version,
        help="Show the version and exit.",
    )


def _print_version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        click.echo(f"{context.info_name} {VERSION} (protocol {limits.VERSION})")
        context.exit()

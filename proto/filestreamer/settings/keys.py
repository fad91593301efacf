"""Which keys each service has: both may share a config file, so each must know the other's."""

from collections.abc import Mapping
from typing import Final

from filestreamer.settings.definition import definitions
from filestreamer.settings.source import SourceSettings

COMMON_KEYS: Final = frozenset(item.key for item in definitions(SourceSettings).values())

OWN_KEYS: Final[Mapping[str, frozenset[str]]] = {
    "sender": frozenset(
        "input_file to listen once idle_timeout source_address as shard strict_modulo files_from dry_run".split()
    ),
    "receiver": frozenset(
        "listen connect from path directory output_file once no_replace allow_privileged allow_delete idle_timeout"
        " anonymous discard_staging_after memory_limit run tokens".split()
    ),
}
"""Config keys that only one service has. Both services may share a config file, so each must know the other's keys; but
they never import each other, so the keys are repeated here. `parse_settings` fails where a line and its service differ.
"""

"""What a variable of the environment says, for all who read one: some do so before the settings are known."""

from collections.abc import Mapping


def value_of(environ: Mapping[str, str], *variables: str) -> str:
    """Return the value of the first of these variables that has one, without ends of lines behind it; else ""."""
    # A YAML block ends each line, and an editor of Windows ends it with CR and LF.
    return next(filter(None, (environ.get(variable, "").rstrip("\r\n") for variable in variables)), "")

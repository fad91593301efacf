"""Answers to shells that complete a command line, by click's own protocol (click.shell_completion).

1. The user's shell evaluates the script that `_SENDER_COMPLETE=bash_source sender` prints;
2. at each TAB the script runs the command with `_SENDER_COMPLETE=bash_complete`, and the words so far in COMP_WORDS;
3. the answer is lines of words, or "file" or "dir": then the shell looks for names itself.

Nothing is read but the words: no file, no setting, no name of another machine.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    split_arg_string,
)

from filestreamer.settings.values import OneOf, Words
from filestreamer.wire.errors import UsageError


class Bash(BashComplete):
    """Bash takes HOST:DIR and --log-level=debug for three words each, so the script passes the line, too."""

    source_template = BashComplete.source_template.replace(
        "$(env ", '$(env COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT" '
    )

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words between the command and the cursor, and the one at the cursor."""
        line = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
        # With another character, the last word is there behind a blank, too.
        _, *words, incomplete = split_arg_string(f"{line}_")
        return words, incomplete[:-1]


SHELLS: Final[Mapping[str, type[ShellComplete]]] = {"bash": Bash, "zsh": ZshComplete, "fish": FishComplete}


class WordList(click.ParamType[str]):
    """Several of some words, with commas in between."""

    name = "words"

    def __init__(self, known: Sequence[str]) -> None:
        self.known = known

    def shell_complete(self, _: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Return how the last word may end; none is offered twice."""
        before, comma, last = incomplete.rpartition(",")
        offered = [word for word in self.known if word.startswith(last) and word not in before.split(",")]
        return [CompletionItem(f"{before}{comma}{word}") for word in offered]


def answer(command: click.Command, name: str, instruction: str) -> None:
    """Print what a shell asks for: `instruction` is such as bash_source or bash_complete. `name` is the command's.

    The script of a short name is for the long one, too. Raises UsageError for another instruction.
    """
    shell, _, what = instruction.partition("_")
    kind = SHELLS.get(shell)
    if kind is None or what not in ("source", "complete"):
        known = ", ".join(f"{each}_source" for each in SHELLS)
        raise UsageError(f"{_variable(name)}: {instruction!r} is none of {known}")
    if what == "source":
        names = dict.fromkeys([name, f"filestreamer-{command.name}"])
        click.echo("".join(kind(command, {}, each, _variable(each)).source() for each in names))
        return
    for parameter in command.params:
        parameter.type = _type(parameter)
    completer = kind(command, {}, name, _variable(name))
    click.echo("\n".join(completer.format_completion(item) for item in _items(completer)))


def _variable(name: str) -> str:
    """Return the variable that says what a shell asks for; that of click's `main`."""
    return f"_{name.replace('-', '_').upper()}_COMPLETE"


def _type(parameter: click.Parameter) -> click.ParamType[Any]:
    """Return a type that knows the values of a parameter, and reads nothing."""
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return parameter.type
    read = getattr(parameter.type, "func", None)  # where click was given a function
    match read, parameter.metavar:
        case OneOf(), _:
            return click.Choice(list(read.known))
        case Words(), _:
            return WordList(read.known)
        case _, "FILE" | "PATH" | "INPUT_FILE...":
            return click.Path()
        case _, "DIR":
            return click.Path(file_okay=False)
        case _, str(metavar) if "auto" in metavar.split("|"):
            return click.Choice(["auto"])
    return click.STRING  # has no completion


def _items(completer: ShellComplete) -> list[CompletionItem[str]]:
    """Return what may stand at the place of the cursor."""
    try:
        words, incomplete = completer.get_completion_args()
    except (LookupError, ValueError):  # run without the script's variables, or in the middle of a quoted word
        return []
    start = ""
    if completer.name != "bash" and incomplete.startswith("--"):
        # These replace the whole word, --log-level=debug; bash replaces what is behind the last separator.
        start = "".join(incomplete.partition("=")[:2]) if "=" in incomplete else ""
    items = completer.get_completions(words, incomplete)
    return [CompletionItem(start + item.value, item.type, item.help) for item in items]

"""Answers to shells, by click's protocol; tests/integration/test_completion.py asks real ones."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from filestreamer.wire.errors import UsageError
from sender.settings import parse

Complete = Callable[..., Sequence[str]]


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Complete:
    """Return what completes the last of some words, as the script of a shell asks."""

    def ask(*words: str, shell: str = "bash") -> Sequence[str]:
        line = shlex.join(["sender", *words[:-1]]) + f" {words[-1]}"
        monkeypatch.setenv("COMP_LINE", f"{line} and what is behind the cursor")
        monkeypatch.setenv("COMP_POINT", str(len(line)))
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", words[-1] if shell == "fish" else str(len(words)))
        with pytest.raises(SystemExit) as caught:
            parse([], {"_SENDER_COMPLETE": f"{shell}_complete"})
        assert caught.value.code == 0
        told = capsys.readouterr()
        assert told.err == ""
        return told.out.split()

    return ask


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_files_directories_and_words(complete: Complete, shell: str) -> None:
    assert "file" in complete("", shell=shell)[0]
    assert complete("f", "--to", "", shell=shell) == []
    assert "debug" in " ".join(complete("f", "--log-level", "d", shell=shell))


def test_a_word_behind_an_equals_sign(complete: Complete) -> None:
    """Bash takes it for three words, and replaces the third; others replace all of it."""
    assert complete("--log-level=d") == ["plain,debug"]
    assert complete("--log-level=") == [f"plain,{word}" for word in ("debug", "info", "warning", "error")]
    assert complete("--log-level=d", shell="zsh")[:2] == ["plain", "--log-level=debug"]


@pytest.mark.parametrize("there", ["far:", "far:/et", "ssh://far/et", "far:~/x", "'far:a b"])
def test_what_is_on_another_machine(complete: Complete, there: str) -> None:
    assert complete("f", "--to", there) == []


@pytest.mark.parametrize("words", [("--to", "far:", "f"), ("--to", "far:", ""), ("a b", "'c d"), ("a\\",)])
def test_what_is_here(complete: Complete, words: Sequence[str]) -> None:
    assert complete(*words)[0].startswith("file,")


def test_words_of_a_list_are_offered_once(complete: Complete) -> None:
    offered = complete("f", "--tolerate", "vanished,changed,")
    assert "plain,vanished,changed,unreadable" in offered
    assert not [line for line in offered if line.count("vanished") > 1]


def test_flags_that_were_given_and_values_that_are_wrong(complete: Complete) -> None:
    assert "plain,--chunk-size" in complete("--")
    assert "plain,--chunk-size" not in complete("--chunk-size", "no size", "--")
    assert complete("--version", "--hel") == ["plain,--help"]


def test_nothing_is_read(complete: Complete, tmp_path: Path) -> None:
    """Reading the pipe would wait for its writer."""
    os.mkfifo(tmp_path / "pipe")
    pipe = str(tmp_path / "pipe")
    assert complete("--config", pipe, "--token-file", pipe, "--log-level", "d") == ["plain,debug"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_for_both_names(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    with pytest.raises(SystemExit):
        parse([], {"_SENDER_COMPLETE": f"{shell}_source"})
    script = capsys.readouterr().out
    assert f"_SENDER_COMPLETE={shell}_complete" in script
    assert f"_FILESTREAMER_SENDER_COMPLETE={shell}_complete" in script
    with pytest.raises(SystemExit):
        parse([], {"_FILESTREAMER_SENDER_COMPLETE": f"{shell}_source"})
    assert "_SENDER_COMPLETE" not in capsys.readouterr().out.replace("_FILESTREAMER_SENDER_COMPLETE", "")


@pytest.mark.parametrize("instruction", ["1", "tcsh_source", "bash", "bash_", "powershell_source"])
def test_what_no_shell_asks(instruction: str) -> None:
    with pytest.raises(
        UsageError, match=f"^_SENDER_COMPLETE: '{instruction}' is none of bash_source, zsh_source, fish"
    ):
        parse([], {"_SENDER_COMPLETE": instruction})


def test_without_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("COMP_LINE", raising=False)
    with pytest.raises(SystemExit):
        parse([], {"_SENDER_COMPLETE": "bash_complete"})
    assert capsys.readouterr().out.strip() == ""


def test_who_asks_for_no_completion_does_not_load_it() -> None:
    program = "import sys, sender.settings; sender.settings.parse(['f', '--to', 'h'], {}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=30)
    assert not [name for name in done.stdout.split() if "completion" in name]

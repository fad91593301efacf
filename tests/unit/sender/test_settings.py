"""The settings of the sender: every source, which of them wins, and one clear line for every mistake."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from filestreamer.settings.address import Address
from filestreamer.settings.values import without_password
from filestreamer.wire.errors import UsageError
from filestreamer.wire.grid import WHOLE, Share
from filestreamer.wire.messages import Existing, SkipKind
from sender.settings import SenderSettings, parse

SAMPLE = Path(__file__).parents[3] / "deploy" / "config.json"
ORIGINAL = (
    '{"ServerAddr":"127.0.0.1:8080","InputFile":"./in.txt","ParallelPage":5,"Chunk":1024,'
    '"ClientAddr":"127.0.0.1:8081","OutputFile":"./out.txt"}'
)
LEAST = ("in.txt", "--to", "there")
NO_SECONDS = "is not a number of seconds: it must be 0.001 to 1000000000 seconds (31 years)"
TOKEN = "0123456789abcdef"


def settings(*argv: str, environ: Mapping[str, str] | None = None) -> SenderSettings:
    """Parse without expecting warnings."""
    parsed, warnings = parse(argv, environ or {})
    assert warnings == []
    return parsed


def failure(*argv: str, environ: Mapping[str, str] | None = None) -> str:
    """Parse what is wrong, and return the line that says so."""
    with pytest.raises(UsageError) as caught:
        parse(argv, environ or {})
    line = str(caught.value)
    assert "\n" not in line
    assert caught.value.exit_code == 2
    return line


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that writes config.json in the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(content: object) -> str:
        Path("config.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return "config.json"

    return write


def test_defaults() -> None:
    expected = SenderSettings(
        input_files=("in.txt",),
        to=Address("there", 7800),
        as_name=None,
        connections=None,
        chunk_size=None,
        rate_limit=None,
        shard=WHOLE,
        strict_modulo=False,
        give_up_after=None,
        token=None,
        result_file=None,
        log_level="info",
    )
    assert expected == settings(*LEAST)
    assert expected == SenderSettings(input_files=("in.txt",), to=Address("there", 7800))


def test_all_flags(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(f"  {TOKEN}\n")
    parsed = settings(
        *("dir/in.txt", "--to", "[::1]:9000", "--as", "other name", "--connections", "256", "--chunk-size", "1GiB"),
        *(
            "--rate-limit",
            "1Gbit/s",
            "--shard",
            "2/3",
            "--strict-modulo",
            "--give-up-after",
            "0.5",
            "--token-file",
            str(token_file),
        ),
        *("--result-file", "result.json", "--log-level", "debug"),
    )
    expected = SenderSettings(
        input_files=("dir/in.txt",),
        to=Address("::1", 9000),
        as_name="other name",
        connections=256,
        chunk_size=1 << 30,
        rate_limit=125_000_000,
        shard=Share(2, 3),
        strict_modulo=True,
        give_up_after=0.5,
        token=TOKEN,
        result_file="result.json",
        log_level="debug",
    )
    assert expected == parsed


@pytest.mark.parametrize("form", ["flag", "variable", "key"])
def test_source_address(config: Any, form: str) -> None:
    flags = {
        "flag": ("--source-address", "[fe80::1%eth0]"),
        "key": ("--config", config({"source_address": "fe80::1%eth0"})),
    }
    environ = {"FILESTREAMER_SOURCE_ADDRESS": "fe80::1%eth0"} if form == "variable" else {}
    assert settings(*LEAST, *flags.get(form, ()), environ=environ).source_address == "fe80::1%eth0"


@pytest.mark.parametrize(
    ("source", "to", "is_good"),
    [
        ("192.0.2.1", "198.51.100.1:1", True),
        ("192.0.2.1", "name.example:1", True),  # which of its addresses are of the same family is known later
        ("192.0.2.1", "[2001:db8::1]:1", False),
        ("2001:db8::1", "198.51.100.1:1", False),
        ("2001:db8::1", "[2001:db8::2]:1", True),
    ],
)
def test_source_address_of_the_other_family(source: str, to: str, is_good: bool) -> None:
    argv = ("f", "--to", to, "--source-address", source)
    if is_good:
        assert settings(*argv).source_address == source
    else:
        expected = f"--source-address {source} can't reach --to {to}: one is IPv4, the other one IPv6"
        assert failure(*argv) == expected


@pytest.mark.parametrize(
    ("input_file", "expected"),
    [("dir/ü b.txt", "ü b.txt"), ("./a", "a"), ("/x/y", "y"), ("dir/", "dir"), ("a\udcff", "a\udcff")],
)
def test_name_is_that_of_the_input_file(input_file: str, expected: str) -> None:
    assert expected == settings(input_file, "--to", "h").name


@pytest.mark.parametrize(
    "written",
    [
        "3/3",
        "-1/2",
        "1/0",
        "0/0",
        "1",
        "/",
        "1/",
        "/2",
        "a/b",
        "0/1025",
        "1/3/5",
        "0.5/2",
        "²/3",
        " 0/2",
        "9" * 5000 + "/2",
    ],
)
def test_what_is_no_shard(written: str) -> None:
    with pytest.raises(UsageError, match="--shard"):
        settings(*LEAST, "--shard", written)


@pytest.mark.parametrize(("written", "expected"), [("0/1", WHOLE), ("0/2", Share(0, 2)), ("02/03", Share(2, 3))])
def test_shard(written: str, expected: Share) -> None:
    assert expected == settings(*LEAST, "--shard", written).shard


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("host:1", "host:1"),
        ("host", "host:7800"),
        (":80", "localhost:80"),
        ("[::1]", "[::1]:7800"),
        ("[fe80::1%eth0]:80", "[fe80::1%eth0]:80"),
        ("münchen.example:80", "münchen.example:80"),
    ],
)
def test_address(written: str, expected: str) -> None:
    assert expected == str(settings("f", "--to", written).to)


def test_flag_beats_variable_beats_config_beats_default(config: Any) -> None:
    path = config({"connections": 2, "sender": {"connections": 3}, "to": "from-config"})
    own, general = {"FILESTREAMER_SENDER_CONNECTIONS": "5"}, {"FILESTREAMER_CONNECTIONS": "4"}

    def connections(*flags: str, environ: Mapping[str, str]) -> int | None:
        return settings("f", "--to", "h", *flags, environ=environ).connections

    assert connections("--config", path, "--connections", "6", environ=own | general) == 6
    assert connections("--config", path, environ=own | general) == 5
    assert connections("--config", path, environ=general) == 4
    assert connections("--config", path, environ={}) == 3
    config({"connections": 2, "to": "from-config"})
    assert connections("--config", path, environ={}) == 2
    assert connections(environ={}) is None
    assert connections("--connections", "auto", environ=own) is None


def test_everything_from_the_environment(tmp_path: Path) -> None:
    environ = {
        "FILESTREAMER_INPUT_FILE": "in.txt",
        "FILESTREAMER_SENDER_TO": "there:1",
        "FILESTREAMER_AS": "name",
        "FILESTREAMER_CHUNK_SIZE": "1KiB",
        "FILESTREAMER_RATE_LIMIT": "10",
        "FILESTREAMER_SHARD": "1023/1024",
        "FILESTREAMER_STRICT_MODULO": "true",
        "FILESTREAMER_TOKEN": TOKEN,
        "FILESTREAMER_LOG_LEVEL": "error",
    }
    expected = SenderSettings(
        input_files=("in.txt",),
        to=Address("there", 1),
        as_name="name",
        chunk_size=1024,
        rate_limit=10,
        shard=Share(1023, 1024),
        strict_modulo=True,
        token=TOKEN,
        log_level="error",
    )
    assert expected == settings(environ=environ)


def test_an_empty_variable_counts_as_unset() -> None:
    assert settings(*LEAST, environ={"FILESTREAMER_CONNECTIONS": "", "FILESTREAMER_TOKEN": ""}) == settings(*LEAST)


def test_a_false_variable_beats_a_true_config(config: Any) -> None:
    config({"strict_modulo": True})
    assert settings(*LEAST, environ={"FILESTREAMER_CONFIG": "config.json"}).strict_modulo
    environ = {"FILESTREAMER_CONFIG": "config.json", "FILESTREAMER_STRICT_MODULO": "0"}
    assert not settings(*LEAST, environ=environ).strict_modulo


def test_config_variable_of_the_service_beats_the_general_one(config: Any) -> None:
    config({"connections": 3})
    environ = {"FILESTREAMER_CONFIG": "not there", "FILESTREAMER_SENDER_CONFIG": "config.json"}
    assert settings(*LEAST, environ=environ).connections == 3


def test_null_in_the_config_counts_as_unset(config: Any) -> None:
    path = config({"connections": 3, "rate_limit": None, "sender": {"connections": None}, "receiver": None})
    assert settings(*LEAST, "--config", path).connections == 3


def test_keys_of_the_receiver_are_let_pass(config: Any) -> None:
    path = config({"listen": "nonsense", "directory": "/srv", "receiver": {"listen": "nonsense", "give_up_after": 5}})
    assert settings(*LEAST, "--config", path) == settings(*LEAST)


@pytest.mark.parametrize("spell", [str, str.lower, str.upper], ids=["as it was", "lower case", "upper case"])
def test_the_original_config_works_unchanged(config: Any, spell: Any) -> None:
    path = config({spell(key): value for key, value in json.loads(ORIGINAL).items()})
    expected = SenderSettings(input_files=("./in.txt",), to=Address("127.0.0.1", 8081), connections=5, chunk_size=1024)
    assert expected == settings("--config", path)


def test_the_sample_config_is_good() -> None:
    parsed = settings("f", "--config", str(SAMPLE))
    assert parsed.chunk_size == 4 << 20
    assert parsed.to is not None
    assert parsed.to.port == 7800


def test_token_file_and_variable(tmp_path: Path, config: Any) -> None:
    (tmp_path / "a").write_text("a" * 16)
    path = config({"token_file": "a"})
    environ = {"FILESTREAMER_TOKEN": "e" * 16}
    assert settings(*LEAST, "--config", path).token == "a" * 16
    assert settings(*LEAST, "--config", path, environ=environ).token == "e" * 16
    assert settings(*LEAST, "--token-file", "a", environ=environ).token == "a" * 16


def test_the_token_is_not_in_the_repr() -> None:
    assert TOKEN not in repr(settings(*LEAST, environ={"FILESTREAMER_TOKEN": TOKEN}))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--connections", "0"], "--connections: '0' is not a number of connections from 1 to 256, nor auto"),
        (["--connections", "257"], "--connections: '257' is not a number of connections from 1 to 256, nor auto"),
        (["--connections", "many"], "--connections: 'many' is not a number of connections from 1 to 256, nor auto"),
        (["--chunk-size", "0"], "--chunk-size: '0' is out of bounds: it must be 1 B to 1.00 GiB"),
        (["--chunk-size", "1025MiB"], "--chunk-size: '1025MiB' is out of bounds: it must be 1 B to 1.00 GiB"),
        (
            ["--chunk-size", "big"],
            "--chunk-size: 'big' is not a size: write it as 4MiB, 1.5GiB, 1GB or plain bytes, 1 B to 1.00 GiB",
        ),
        (["--rate-limit", "0"], "--rate-limit: '0' is out of bounds: it must be 1 B/s to 1.00 TiB/s"),
        (["--rate-limit", "2TiB/s"], "--rate-limit: '2TiB/s' is out of bounds: it must be 1 B/s to 1.00 TiB/s"),
        (
            ["--rate-limit", "1Gbps"],
            "--rate-limit: '1Gbps' is not a rate: write it as 100MiB/s, 1.5GB/s, 1Gbit/s or plain bytes per second,"
            " 1 B/s to 1.00 TiB/s",
        ),
        (["--give-up-after", "nan"], f"--give-up-after: 'nan' {NO_SECONDS}"),
        (["--give-up-after", "soon"], f"--give-up-after: 'soon' {NO_SECONDS}"),
        (["--as", "a/b"], "--as: 'a/b' is not a file name: no '/', no '..', at most 255 bytes"),
        (["--as", ".."], "--as: '..' is not a file name: no '/', no '..', at most 255 bytes"),
        (["--as", "ü" * 128], f"--as: '{'ü' * 128}' is not a file name: no '/', no '..', at most 255 bytes"),
        (["--as", ""], "--as: must not be empty"),
        (["--log-level", "loud"], "--log-level: 'loud' is none of debug, info, warning, error"),
        (["--token-file", "/not/there"], "--token-file: can't read '/not/there': No such file or directory"),
        (
            ["--token-file", "/etc/no/token-here"],
            "--token-file: can't read '/etc/no/token-here': No such file or directory",
        ),
        (
            ["--token-file", "./a-token-of-mine"],
            "--token-file: can't read './a-token-of-mine': No such file or directory",
        ),
        (["--config", "/not/there"], "--config: can't read '/not/there': No such file or directory"),
        (["--to", "h:0"], "--to: 'h:0' is not an address to connect to: ports begin at 1"),
        (["--to", "h:65536"], "--to: 'h:65536' is not an address: ports end at 65535"),
        (
            ["--source-address", "eth0"],
            "--source-address: 'eth0' is not an address: write it as 192.0.2.1, 2001:db8::1 or fe80::1%eth0",
        ),
        (["--to", "7800"], "--to: '7800' is not an address: a port alone is written :7800"),
    ],
)
def test_a_bad_flag_is_named(argv: list[str], expected: str) -> None:
    assert expected == failure(*LEAST, *argv)


@pytest.mark.parametrize("written", ["", "::1", "http://h:1", "h:65536", "[::1", "[h]:1", "a b", "a..b"])
def test_a_bad_address_is_named(written: str) -> None:
    assert failure("f", "--to", written).startswith(f"--to: {written!r} is not an address: ")


def test_a_machine_without_a_directory_is_named() -> None:
    line = failure("f", "--to", "alice@nas")
    assert line == "--to: 'alice@nas' names no directory: write alice@nas:DIR, or alice@nas: for the home directory"
    assert failure("f", "--to", "scp://nas/x").endswith("or [USER@]HOST:DIR for a directory that ssh leads to")


@pytest.mark.parametrize("flag", [["--ssh", "ssh -v"], ["--remote-command", "r"], ["--via", "ssh"], ["--no-tls"]])
def test_what_ssh_alone_has(flag: list[str]) -> None:
    """Who asks for ssh does not get a clear connection without a word."""
    assert failure(*LEAST, *flag) == f"{flag[0]} goes with --to [USER@]HOST:DIR"
    assert failure("f", "--listen", *flag) == f"{flag[0]} goes with --to [USER@]HOST:DIR"
    assert settings("f", "--to", "nas:", *flag).remote is not None
    assert settings("f", *flag, environ={"FILESTREAMER_TO": "alice@nas:x"}).remote is not None


def test_what_a_variable_says_of_ssh_is_for_another_run() -> None:
    environ = {"FILESTREAMER_SSH": "ssh -v", "FILESTREAMER_VIA": "ssh", "FILESTREAMER_SENDER_NO_TLS": "1"}
    assert settings(*LEAST, "--tls", environ=environ) == settings(*LEAST, "--tls")


def test_help_has_the_settings_of_ssh_together(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"], {})
    before, behind = capsys.readouterr().out.split("\nWith --to [USER@]HOST:DIR:\n")
    section, behind = behind.split("\nGeneral:\n")
    assert [line.split()[0] for line in section.splitlines() if line.startswith("  --")] == [
        "--ssh",
        "--remote-command",
        "--via",
        "--no-tls",
    ]
    assert "\n  --delete" in before
    assert "\n  --help" in behind


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--conections", "3"], "'--conections'. (Did you mean one of: '--config', '--connections'?)"),
        (["--connections"], "'--connections'"),
        (["--strict-modulo=1"], "'--strict-modulo'"),
        (["--directory", "h"], "'--directory'"),
        (["-x"], "'-x'"),
    ],
)
def test_unknown_flags_and_arguments_are_named(argv: list[str], named: str) -> None:
    assert named in failure(*LEAST, *argv)


def test_several_paths_have_no_common_name() -> None:
    assert settings(*LEAST, "more.txt").input_files == (LEAST[0], "more.txt")
    assert failure(*LEAST, "more.txt", "--as", "x") == "--as needs exactly one input path"


def test_lists_in_every_source(config: Any) -> None:
    path = config({"input_file": ["a", "b"], "exclude": "*.tmp"})
    parsed = settings("--to", "h", "--config", path, environ={"FILESTREAMER_INCLUDE": "*.pt\n*.bin"})
    assert (parsed.input_files, parsed.include, parsed.exclude) == (("a", "b"), ("*.pt", "*.bin"), ("*.tmp",))
    flags = ("--include", "x", "--include", "y")
    assert settings("--to", "h", "--config", path, *flags).include == ("x", "y")


@pytest.mark.parametrize(
    "value",
    ["*.pt\n*.bin", "*.pt\n*.bin\n", "\n*.pt\n\n  \n*.bin\n\n", "*.pt\r\n\r\n*.bin\r\n", "\t\n*.pt\n*.bin\n\t"],
)
@pytest.mark.parametrize("variable", ["FILESTREAMER_INCLUDE", "FILESTREAMER_SENDER_INCLUDE"])
def test_lines_of_a_variable_that_are_empty_are_no_values(variable: str, value: str) -> None:
    assert settings(*LEAST, environ={variable: value}).include == ("*.pt", "*.bin")


@pytest.mark.parametrize("value", ["\n", " \n\r\n"])
def test_a_variable_of_empty_lines_counts_as_unset(config: Any, value: str) -> None:
    environ = {"FILESTREAMER_SENDER_EXCLUDE": value, "FILESTREAMER_EXCLUDE": "*.tmp", "FILESTREAMER_INCLUDE": value}
    parsed = settings(*LEAST, "--config", config({"include": ["*.pt"]}), environ=environ)
    assert (parsed.exclude, parsed.include) == (("*.tmp",), ("*.pt",))
    assert failure("--to", "h", environ={"FILESTREAMER_INPUT_FILE": value}).startswith("INPUT_FILE is required")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n"], ids=repr)
def test_the_end_of_a_line_is_no_part_of_a_value(end: str) -> None:
    """A block of YAML has one, and so has a file of variables with the line ends of Windows."""
    environ = {f"FILESTREAMER_{name}": f"{value}{end}" for name, value in (("AS", "copy.bin"), ("CONNECTIONS", "3"))}
    parsed = settings(*LEAST, environ=environ)
    assert (parsed.as_name, parsed.connections) == ("copy.bin", 3)


@pytest.mark.parametrize("name", [" a b ", "a\x0bb", "a\x1cb", "a\x85b", "a\u2028b", "a\rb"])
def test_a_name_in_a_variable_keeps_all_its_characters(name: str) -> None:
    environ = {"FILESTREAMER_INPUT_FILE": f"{name}\nother"}
    assert settings("--to", "h", environ=environ).input_files == (name, "other")


@pytest.mark.parametrize(
    "value",
    ["vanished,changed", "vanished\nchanged\n", " vanished changed"],
)
def test_words_stand_between_commas_or_white_space(value: str) -> None:
    expected = {SkipKind.VANISHED, SkipKind.CHANGED}
    assert settings(*LEAST, environ={"FILESTREAMER_TOLERATE": value}).tolerated == expected
    assert settings(*LEAST, "--tolerate", value).tolerated == expected
    assert failure(*LEAST, "--tolerate", ", ,") == "--tolerate: must not be empty"


def test_a_list_where_one_value_belongs(config: Any) -> None:
    path = config({"to": ["a", "b"]})
    assert failure("f", "--config", path).endswith("to: must be text, a number, true or false")


def test_required_settings_say_where_they_can_come_from() -> None:
    assert failure("f") == (
        "--to is required (or FILESTREAMER_SENDER_TO or FILESTREAMER_TO, or to in the config file), or --listen to wait"
        " for receivers"
    )
    assert failure("--to", "h") == (
        "INPUT_FILE is required "
        "(or FILESTREAMER_SENDER_INPUT_FILE or FILESTREAMER_INPUT_FILE, or input_file in the config file)"
    )
    assert failure("--listen", "f").endswith(": write it before --listen, which takes what follows as its value")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("FILESTREAMER_CONNECTIONS", "0", "'0' is not a number of connections from 1 to 256, nor auto"),
        (
            "FILESTREAMER_SENDER_CHUNK_SIZE",
            "x",
            "'x' is not a size: write it as 4MiB, 1.5GiB, 1GB or plain bytes, 1 B to 1.00 GiB",
        ),
        ("FILESTREAMER_TOKEN", "short", "the token has 5 characters: it must have 16 to 4096"),
        ("FILESTREAMER_TOKEN_FILE", "/not/there", "can't read '/not/there': No such file or directory"),
        ("FILESTREAMER_CONFIG", "/not/there", "can't read '/not/there': No such file or directory"),
    ],
)
def test_a_bad_variable_is_named(name: str, value: str, expected: str) -> None:
    assert failure(*LEAST, environ={name: value}) == f"{name}: {expected}"


def test_a_bad_boolean_variable_is_named() -> None:
    line = failure(*LEAST, environ={"FILESTREAMER_STRICT_MODULO": "maybe"})
    assert line.startswith("FILESTREAMER_STRICT_MODULO: 'maybe' is not a valid boolean")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"connections": 0}, "connections: 0 is not a number of connections from 1 to 256, nor auto"),
        ({"connections": True}, "connections: True is not a number of connections from 1 to 256, nor auto"),
        ({"connections": 5.5}, "connections: 5.5 is not a number of connections from 1 to 256, nor auto"),
        ({"connections": [5]}, "connections: must be text, a number, true, false or a list of texts"),
        ({"exclude": ["*.tmp", 5]}, "exclude: must be text, a number, true, false or a list of texts"),
        ({"sender": {"chunk_size": "x"}}, "sender.chunk_size: 'x' is not a size: write it as 4MiB, 1.5GiB, 1GB or"),
        ({"chunk_size": -1}, "chunk_size: -1 is not a size: write it as"),
        ({"Chunk": 0}, "Chunk: 0 is out of bounds: it must be 1 B to 1.00 GiB"),
        ({"ParallelPage": "x"}, "ParallelPage: 'x' is not a number of connections from 1 to 256, nor auto"),
        ({"rate_limit": False}, "rate_limit: False is not a rate"),
        ({"give_up_after": "x"}, f"give_up_after: 'x' {NO_SECONDS}"),
        ('{"give_up_after": NaN}', f"give_up_after: nan {NO_SECONDS}"),
        ({"give_up_after": 10**400}, f"give_up_after: {10**400} is out of bounds: it must be 0.001 to"),
        ({"as": "a/b"}, "as: 'a/b' is not a file name"),
        ({"strict_modulo": "maybe"}, "strict_modulo: 'maybe' is not a valid boolean"),
        ({"conections": 5}, "unknown key 'conections': did you mean connections?"),
        ({"Connections": 5}, "unknown key 'Connections': did you mean connections?"),
        ({"sender": {"conections": 5}}, "unknown key 'sender.conections': did you mean sender.connections?"),
        ({"receiver": {"direktory": 5}}, "unknown key 'receiver.direktory': did you mean receiver.directory?"),
        ({"sender": {"directory": "h"}}, "unknown key 'sender.directory'"),
        ({"Sender": {}}, "unknown key 'Sender': did you mean sender?"),
        ({"token": TOKEN}, "unknown key 'token': did you mean "),
        ({"a\nb": 1}, "unknown key 'a\\nb'"),
        ({"sender": 5}, "sender: must be an object with settings of the sender"),
        ({"connections": 5, "ParallelPage": 6}, "ParallelPage: the same setting as config.json: connections: keep one"),
        ({"Chunk": 5, "chunk": 6}, "chunk: the same setting as config.json: Chunk: keep one of them"),
        ([], "must be a JSON object with settings"),
        ("", "line 1 column 1: Expecting value"),
        ('{\n  "connections": 5,\n}', "line 3 column 1: "),
        ('{"connections": ' + "9" * 5000 + "}", "connections: inf is not a number of connections from 1 to 256"),
        ('{"to": "h:1", "to": "h:2"}', "the key 'to' stands twice: keep one of them"),
        ('{"to": null, "to": "h:2"}', "the key 'to' stands twice"),
        ('{"sender": {"to": "h:1", "to": "h:1"}}', "the key 'sender.to' stands twice"),
        ('{"receiver": {"listen": ":1", "listen": ":2"}}', "the key 'receiver.listen' stands twice"),
        ('{"sender": {"connections": 1}, "sender": {}}', "the key 'sender' stands twice"),
        ('{"sender": null, "sender": {}}', "the key 'sender' stands twice"),
        (r'{"to": "h:1", "t\u006f": "h:2"}', "the key 'to' stands twice"),
        ({"sender": {"Chunk": 5, "chunk_size": 6}}, "sender.chunk_size: the same setting as config.json: sender.Chunk"),
        ({"clientaddr": "h:1", "ClientAddr": "h:1"}, "ClientAddr: the same setting as config.json: clientaddr: keep"),
        ({"chunk-size": 5}, "unknown key 'chunk-size': did you mean chunk_size?"),
        ("[" * 100_000, "is not JSON: "),
    ],
)
def test_a_bad_config_is_named_with_its_key(config: Any, content: object, expected: str) -> None:
    line = failure(*LEAST, "--config", config(content))
    assert line.startswith(f"config.json: {expected}")
    assert TOKEN not in line


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"input_file": 5}, "input_file: 5 is not text"),
        ({"input_file": "a\0b"}, "input_file: 'a\\x00b' is not text"),
        ({"input_file": "a\ud800"}, "input_file: "),
        ({"input_file": "a", "to": 7800}, "to: 7800 is not an address"),
        ({"InputFile": "a", "ClientAddr": "a b"}, "ClientAddr: 'a b' is not an address"),
    ],
)
def test_a_bad_required_setting_in_the_config_is_named(config: Any, content: object, expected: str) -> None:
    assert failure("--config", config(content)).startswith(f"config.json: {expected}")


def test_a_config_that_is_no_text_is_named(config: Any) -> None:
    Path(config("")).write_bytes(b"\xff\xff\xff")
    assert failure(*LEAST, "--config", "config.json").startswith("config.json: is not JSON: ")


def test_a_short_token_in_a_file_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    line = failure(*LEAST, "--token-file", str(tmp_path / "token"))
    assert line == "--token-file: the token has 6 characters: it must have 16 to 4096"


@pytest.mark.parametrize("content", [b"\xff" * 20, b"x" * 5000], ids=["bytes", "too long"])
def test_a_token_file_that_holds_no_token_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    assert failure(*LEAST, "--token-file", str(tmp_path / "token")).startswith("--token-file: ")


BEYOND_ASCII = "Kennwort für Größe und Maß"


@pytest.mark.parametrize(
    "content",
    [
        TOKEN.encode(),
        f"{TOKEN}\n".encode(),
        f"{TOKEN}\r\n".encode(),
        f"  {TOKEN}\t\r\n\n".encode(),
        b"\xef\xbb\xbf" + TOKEN.encode(),
        f"\ufeff{TOKEN}\r\n".encode(),
    ],
    ids=repr,
)
@pytest.mark.parametrize("token", [TOKEN, BEYOND_ASCII], ids=["ascii", "beyond"])
def test_the_same_token_whatever_wrote_it(tmp_path: Path, content: bytes, token: str) -> None:
    """By file or by variable: editors and shells of all systems."""
    content = content.replace(TOKEN.encode(), token.encode())
    (tmp_path / "token").write_bytes(content)
    assert settings(*LEAST, "--token-file", str(tmp_path / "token")).token == token
    assert settings(*LEAST, environ={"FILESTREAMER_TOKEN": os.fsdecode(content)}).token == token


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff" * 20, "is not UTF-8 text"),
        ("Kennwort für Größe".encode("latin-1"), "is not UTF-8 text"),
        (TOKEN.encode("utf-16"), "is UTF-16 text: save it as UTF-8"),
        (b"\xfe\xff" + TOKEN.encode("utf-16-be"), "is UTF-16 text: save it as UTF-8"),
        (f"{TOKEN}\nanother line".encode(), "has a line break"),
        (f"{TOKEN}\r\nanother line".encode(), "has a line break"),
        (f"{TOKEN}\x1b[0m..".encode(), "character"),
        (f"{TOKEN}\u200b{TOKEN}".encode(), "character"),
        (f"{TOKEN}\ufeff{TOKEN}".encode(), "character"),
        (f"{TOKEN}\xa0{TOKEN}".encode(), "character"),
        (b" \r\n", "has 0 characters"),
        (b"x" * 5000, "has 5000 characters"),
    ],
    ids=repr,
)
def test_what_could_pass_for_another_token_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "token").write_bytes(content)
    by_file = failure(*LEAST, "--token-file", str(tmp_path / "token"))
    by_variable = failure(*LEAST, environ={"FILESTREAMER_TOKEN": os.fsdecode(content)})
    for line, origin in ((by_file, "--token-file"), (by_variable, "FILESTREAMER_TOKEN")):
        assert line.startswith(f"{origin}: the token {says}") or says == "character"
        assert says in line
        assert "0123456789" not in line


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/dev/null", "has 0 characters"),
        ("/dev/zero", "is not a token"),
        ("/", "Is a directory"),
        ("/proc/1", "directory"),
    ],
)
def test_a_token_file_that_is_none(path: str, says: str) -> None:
    line = failure(*LEAST, "--token-file", path)
    assert line.startswith("--token-file: ")
    assert says in line


def test_a_token_with_nul_bytes(tmp_path: Path) -> None:
    """UTF-16 without its mark; a variable can't hold it."""
    (tmp_path / "token").write_bytes(TOKEN.encode("utf-16-le"))
    assert "character" in failure(*LEAST, "--token-file", str(tmp_path / "token"))


@contextlib.contextmanager
def fifo(path: Path, content: bytes) -> Iterator[str]:
    """Make a pipe by name that gives `content` to whoever reads it first."""
    os.mkfifo(path)
    thread = threading.Thread(target=path.write_bytes, args=(content,), daemon=True)
    thread.start()
    yield str(path)
    thread.join(10)
    assert not thread.is_alive(), "nobody read it"


@pytest.mark.parametrize("how", ["flag", "variable", "config"])
def test_a_token_from_a_pipe_which_is_read_once(tmp_path: Path, config: Any, how: str) -> None:
    with fifo(tmp_path / "pipe", f"{TOKEN}\n".encode()) as path:
        flags = {"flag": ["--token-file", path], "config": ["--config", config({"token_file": path})]}.get(how, [])
        environ = {"FILESTREAMER_TOKEN_FILE": path} if how == "variable" else {}
        assert settings(*LEAST, *flags, environ=environ).token == TOKEN


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_a_config_from_a_pipe(tmp_path: Path, how: str) -> None:
    with fifo(tmp_path / "pipe", b'{"connections": 7}') as path:
        environ = {"FILESTREAMER_CONFIG": path} if how == "variable" else {}
        assert settings(*LEAST, *(["--config", path] if how == "flag" else []), environ=environ).connections == 7


def test_a_config_without_end() -> None:
    assert failure(*LEAST, "--config", "/dev/zero") == "/dev/zero: has more than 16 MiB: it is not a config file"


# --- secrets that others can read


@pytest.mark.parametrize(("mode", "is_told"), [(0o600, False), (0o640, False), (0o644, True), (0o602, True)])
def test_a_secret_that_every_user_can_read_is_told(tmp_path: Path, mode: int, is_told: bool) -> None:
    token, key = tmp_path / "token", tmp_path / "key"
    for path in (token, key):
        path.write_text(TOKEN * 2)
        path.chmod(mode)
    parsed = settings(*LEAST, "--token-file", str(token), "--tls-cert", "c", "--tls-key", str(key))
    warnings = parsed.exposed()
    assert [TOKEN in warning for warning in warnings] == [False, False] * is_told
    assert [f"chmod 600 {path}" in warning for path, warning in zip((token, key), warnings, strict=False)] == (
        [True, True] * is_told
    )


def test_a_pipe_and_a_variable_are_nobodys_to_read(tmp_path: Path) -> None:
    with fifo(tmp_path / "pipe", TOKEN.encode()) as path:
        os.chmod(path, 0o644)
        assert settings(*LEAST, "--token-file", path).exposed() == []
    assert settings(*LEAST, environ={"FILESTREAMER_TOKEN": TOKEN}).exposed() == []


def test_in_a_container_there_is_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o644)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert settings(*LEAST, "--token-file", str(tmp_path / "token")).exposed() == []


# --- a password in a URL

SECRET = "s3cr3t-w0rd"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"http://me:{SECRET}@h:9091", "http://h:9091"),
        (f"https://me:{SECRET}@h/metrics/job/x", "https://h/metrics/job/x"),
        (f"http://me:{SECRET}%40%2F@[::1]:9091/", "http://[::1]:9091/"),
        ("http://me@h", "http://h"),
        ("http://h/metrics/job@base64/YS9i", "http://h/metrics/job@base64/YS9i"),
        ("http://h", "http://h"),
    ],
)
def test_a_url_with_a_password_is_taken_and_not_shown(url: str, shown: str) -> None:
    parsed = settings(*LEAST, "--pushgateway", url)
    assert parsed.pushgateway == url
    assert without_password(url) == shown
    assert url not in repr(parsed)
    assert SECRET not in repr(parsed)


@pytest.mark.parametrize(
    "url",
    [
        f"me:{SECRET}@h:9091",
        f"htp://me:{SECRET}@h",
        f"http://me:{SECRET}/x@h",
        f"http://me:12/{SECRET}@h",
        f"http://me:12#{SECRET}@h",
        f"http://me:12?{SECRET}@h",
        f"http://me:{SECRET}@x@h",
        f"http://me:{SECRET}@",
        f"http://me:{SECRET}@h:port",
        f"http://me:{SECRET}@h:99999",
        f"http://me:{SECRET}@[::1",
        f"http://me:{SECRET} @h",
        f"http://me:{SECRET}\n@h",
        f"http://me:{SECRET}\udcff@h",
    ],
)
def test_no_error_shows_a_password(config: Any, url: str) -> None:
    written = {
        "--pushgateway": failure(*LEAST, "--pushgateway", url),
        "FILESTREAMER_PUSHGATEWAY": failure(*LEAST, environ={"FILESTREAMER_PUSHGATEWAY": url}),
        "config.json: pushgateway": failure(*LEAST, "--config", config({"pushgateway": url})),
    }
    for origin, line in written.items():
        assert line.startswith(f"{origin}: it is not a URL of the form http://[USER:PASSWORD@]HOST")
        assert SECRET not in line


@pytest.mark.parametrize("flag", ["--pushgatewy", "--pushgateway-url", "--token", "--pass"])
def test_no_error_shows_the_value_of_a_flag_that_is_none(flag: str) -> None:
    assert SECRET not in failure(*LEAST, f"{flag}={SECRET}")


@pytest.mark.parametrize("key", ["pushgatewy", "token", "pushgateway", "tokenfile"])
def test_no_error_shows_the_value_of_a_key_that_is_none(config: Any, key: str) -> None:
    assert SECRET not in failure(*LEAST, "--config", config({key: [SECRET]}))
    assert SECRET not in failure(*LEAST, "--config", config({key: {"password": SECRET}}))


SECONDS = ("--give-up-after", "--metrics-linger")
BOUNDS = "is out of bounds: it must be 0.001 to 1000000000 seconds (31 years)"


@pytest.mark.parametrize(
    "written", ["0", "-1", "-inf", "1e-300", "0.0009", "1000000001", "1e10", "1e300", "1e400", "inf", "9" * 400]
)
@pytest.mark.parametrize("flag", SECONDS)
def test_seconds_have_bounds_in_every_form(config: Any, flag: str, written: str) -> None:
    key = flag.removeprefix("--").replace("-", "_")
    variable = f"FILESTREAMER_{key.upper()}"
    assert failure(*LEAST, flag, written) == f"{flag}: {written!r} {BOUNDS}"
    assert failure(*LEAST, environ={variable: written}) == f"{variable}: {written!r} {BOUNDS}"
    assert failure(*LEAST, "--config", config({key: written})) == f"config.json: {key}: {written!r} {BOUNDS}"


@pytest.mark.parametrize("written", ["1e-300", "1e10", "1e400", "-1e400", "Infinity", "NaN", "9" * 400, "9" * 5000])
@pytest.mark.parametrize("flag", SECONDS)
def test_numbers_of_json_have_the_same_bounds(config: Any, flag: str, written: str) -> None:
    key = flag.removeprefix("--").replace("-", "_")
    assert failure(*LEAST, "--config", config(f'{{"{key}": {written}}}')).startswith("config.json: ")


@pytest.mark.parametrize("written", ["0.001", "3000000", "1e9", " 1_000 "])
def test_seconds_within_the_bounds(written: str) -> None:
    parsed = settings(*LEAST, "--give-up-after", written, "--metrics-linger", written)
    assert parsed.give_up_after == parsed.metrics_linger == float(written)


@pytest.mark.parametrize(
    "written", ["0", "1e400", "-1e400", "NaN", "Infinity", "1e30", "-1", "9" * 400, "9" * 5000, "true"]
)
@pytest.mark.parametrize("key", ["connections", "chunk_size", "rate_limit", "shard", "window", "to", "metrics"])
def test_a_number_that_can_not_be_is_one_clear_line(config: Any, key: str, written: str) -> None:
    path = config(f'{{"{key}": {written}}}')
    line = failure("f", "--config", path, *(() if key == "to" else ("--to", "h")))
    assert line.startswith("config.json: ")


@pytest.mark.parametrize("size", [5000, 1_000_000])
@pytest.mark.parametrize("key", ["connections", "chunk_size", "rate_limit", "give_up_after", "to", "checksum", "other"])
def test_a_value_that_fills_the_screen_is_cut_and_the_rest_is_told(config: Any, key: str, size: int) -> None:
    line = failure("f", *(() if key == "to" else ("--to", "h")), "--config", config({key: "9" * (size - 1) + "x"}))
    assert line.startswith(f"config.json: {'unknown key' if key == 'other' else key}")
    assert len(line) < 1100
    name = "x" * size
    assert failure("f", "--config", config({name: 1})).startswith("config.json: unknown key 'xxx")


@pytest.mark.parametrize("written", ["0000000001/2", "0" * 5000 + "1/2", "1/" + "0" * 5000 + "2"])
def test_a_shard_with_many_digits_is_the_one_that_was_written(written: str) -> None:
    assert settings(*LEAST, "--shard", written).shard == Share(1, 2)


@pytest.mark.parametrize("written", ["10000000000/2", "0/10000000000", "1" * 5000 + "/" + "1" * 5000])
def test_a_shard_of_too_many_is_none(written: str) -> None:
    assert failure(*LEAST, "--shard", written).startswith("--shard: ")


@pytest.mark.parametrize(("written", "expected"), [("0", False), ("1", True)])
def test_true_and_false_as_a_number(config: Any, written: str, expected: bool) -> None:
    assert settings(*LEAST, "--config", config(f'{{"checksum": {written}}}')).checksum is expected


@pytest.mark.parametrize("written", ["2", "-1", "0.5", "1e400", "NaN", "9" * 400])
def test_a_number_that_is_neither_true_nor_false(config: Any, written: str) -> None:
    path = config(f'{{"checksum": {written}}}')
    assert failure(*LEAST, "--config", path).startswith("config.json: checksum: ")


def test_unknown_variables_are_warned_of_and_ignored() -> None:
    environ = {
        "FILESTREAMER_CONECTIONS": "1",
        "FILESTREAMER_SENDER_DIRECTORY": "x",
        "FILESTREAMER_PORT_7800_TCP": "tcp://10.0.0.1:7800",
        "FILESTREAMER_RECEIVER_LISTEN": "nonsense of the other service",
        "FILESTREAMER_RECEIVER_CONFIG": "/not/there",
        "OTHER": "x",
    }
    parsed, warnings = parse(LEAST, environ)
    assert parsed == settings(*LEAST)
    assert warnings == [
        "FILESTREAMER_CONECTIONS is not a setting and was ignored: did you mean FILESTREAMER_CONNECTIONS?",
        "FILESTREAMER_PORT_7800_TCP is not a setting and was ignored",
        "FILESTREAMER_SENDER_DIRECTORY is not a setting and was ignored",
    ]


def test_help_names_every_setting_and_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help"], {"FILESTREAMER_CONFIG": "/not/there"})
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for name in ("INPUT_FILE", "--to HOST:PORT", "--as", "--connections", "--chunk-size", "--rate-limit", "--config"):
        assert name in shown
    assert "[default: auto]" in shown


def test_version_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--version"], {})
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("sender ")


def test_settings_cost_no_more_than_they_need() -> None:
    program = "import sys, sender.settings; sender.settings.parse(['f', '--to', 'h'], {}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=30)
    imported = done.stdout.split()
    assert "click" in imported
    assert not {"structlog", "rich", "importlib.metadata", "difflib", "socket", "prometheus_client", "http"} & set(
        imported
    )


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("d", "--delete", "--include", "*.c"), "--delete"),
        (("f", "--delete", "--shard", "0/2"), "--delete"),
        (("f", "--existing", "skip", "--shard", "0/2"), "--existing"),
        (("f", "--dry-run", "--shard", "0/2"), "--dry-run"),
        (("-", "--delete"), "--delete"),
        (("-", "--existing", "newer"), "--existing"),
        (("f", "--existing", "maybe"), "--existing"),
    ],
)
def test_what_does_not_go_together(args: tuple[str, ...], says: str) -> None:
    assert failure(*args, "--to", "h:1").startswith(says)


def test_only_a_list_needs_no_receiver() -> None:
    assert settings("f", "--dry-run").to is None
    assert settings("f", "--dry-run", "--shard", "0/2").to is None
    assert settings("f", "--dry-run", "--to", "h:1").to is not None
    assert settings("f", "--to", "h:1", "--existing", "newer").existing is Existing.NEWER


# --- TLS


@pytest.mark.parametrize("written", ["ab" * 32, "AB" * 32, ":".join(["ab"] * 32), f" {'ab' * 32} "])
def test_a_pin(written: str) -> None:
    parsed = settings(*LEAST, "--tls-pin", written)
    assert parsed.pins == (b"\xab" * 32,)
    assert parsed.tls


def test_several_pins(config: Any) -> None:
    one, two, three = (f"{digit}0" * 32 for digit in "123")
    expected = tuple(map(bytes.fromhex, (one, two, three)))
    assert settings(*LEAST, "--tls-pin", f"{one}, {two}", "--tls-pin", three).pins == expected
    assert settings(*LEAST, environ={"FILESTREAMER_TLS_PIN": f"{one}\n{two},{three}"}).pins == expected
    assert settings(*LEAST, "--config", config({"sender": {"tls_pin": [one, two, three]}})).pins == expected


@pytest.mark.parametrize("wrong", ["ab", "ab" * 31 + "xy", "ab" * 33, "", f"{'ab' * 32},", "sha256//" + "ab" * 32])
def test_what_is_no_pin(wrong: str) -> None:
    said = failure(*LEAST, "--tls-pin", wrong)
    assert said.startswith("--tls-pin: ")
    assert "64 hex digits" in said or wrong == ""


@pytest.mark.parametrize("length", [16, 31])
def test_a_token_that_is_too_short_to_vouch(length: int) -> None:
    token = {"FILESTREAMER_TOKEN": "t" * length}
    said = failure(*LEAST, "--tls", environ=token)
    assert f"{length} characters" in said
    assert "--tls-ca or --tls-pin" in said
    assert failure(*LEAST, "--tls-cert", "c", "--tls-key", "k", environ=token) == said
    for flags in (("--tls-ca", "ca.pem"), ("--tls-pin", "ab" * 32), ()):
        settings(*LEAST, *flags, environ=token)
    assert settings(*LEAST, "--tls", environ={"FILESTREAMER_TOKEN": "t" * 32}).tls


def test_both_services_may_share_that_they_speak_tls(config: Any) -> None:
    assert settings(*LEAST, "--config", config({"tls": True, "receiver": {"tls": False}})).tls
    assert not settings(*LEAST, "--config", config({"receiver": {"tls": True}})).tls


# --- a sender that listens


def test_listening() -> None:
    assert settings("in.txt", "--listen", "127.0.0.1:7900", "--once", "--idle-timeout", "5").listen == Address(
        "127.0.0.1", 7900
    )
    assert settings("in.txt", "--listen").listen == Address("", 7800)
    assert settings("in.txt", "--listen", "--once").once
    assert settings("in.txt", environ={"FILESTREAMER_SENDER_LISTEN": ":7901"}).listen == Address("", 7901)


def test_what_both_services_share_says_where_the_receiver_listens(config: Any) -> None:
    """A sender that listens says so in its own section or variable, or by a flag."""
    shared = {"FILESTREAMER_LISTEN": ":7901", "FILESTREAMER_ONCE": "1", "FILESTREAMER_IDLE_TIMEOUT": "5"}
    assert settings(*LEAST, environ=shared) == settings(*LEAST)
    name = config({"listen": ":7901", "once": True, "idle_timeout": 5})
    assert settings(*LEAST, "--config", name) == settings(*LEAST)
    name = config({"listen": ":7901", "sender": {"listen": ":7902", "once": True}})
    parsed = settings("in.txt", "--config", name)
    assert (parsed.listen, parsed.once) == (Address("", 7902), True)


def test_flags_choose_between_to_and_listen(config: Any) -> None:
    assert settings("in.txt", "--listen", ":1", environ={"FILESTREAMER_TO": "there:1"}).to is None
    name = config({"sender": {"listen": ":7902"}})
    parsed = settings(*LEAST, "--config", name)
    assert (parsed.listen, str(parsed.to)) == (None, "there:7800")
    assert failure(*LEAST, "--listen", ":1") == "--to does not go with --listen"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("--to", "there", "--once"), "--once goes with --listen"),
        (("--to", "there", "--idle-timeout", "5"), "--idle-timeout goes with --listen"),
        (("--listen", "--dry-run"), "--dry-run: with --listen there is no receiver to ask"),
        (("--listen", ":1", "--source-address", "127.0.0.1"), "--source-address: with --listen this side does not"),
        (("--listen", ":1", "--tls-pin", "ab" * 32), "--tls-pin: with --listen this side shows a certificate"),
        (("--listen", "nonsense:x"), "--listen: "),
    ],
)
def test_what_does_not_go_with_listening(argv: tuple[str, ...], expected: str) -> None:
    assert failure("in.txt", *argv).startswith(expected)


@pytest.mark.parametrize("written", ["a", "move-1.of-a", "0" * 63])
def test_the_name_of_a_job(written: str) -> None:
    assert settings(*LEAST, "--shard", "0/2", "--job", written).job == written


@pytest.mark.parametrize("written", ["A", "a b", "a_b", "a/b", "0" * 64, "\u00e4"])
def test_what_is_no_name_of_a_job(written: str) -> None:
    assert "is not the name of a job" in failure(*LEAST, "--job", written)

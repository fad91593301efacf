"""The settings of the receiver. What both services share in settings is tested with the sender's."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from filestreamer.settings.address import Address
from filestreamer.wire.errors import UsageError
from receiver.settings import ReceiverSettings, parse

SAMPLE = Path(__file__).parents[3] / "deploy" / "config.json"
ORIGINAL = (
    '{"ServerAddr":"127.0.0.1:8080","InputFile":"./in.txt","ParallelPage":5,"Chunk":1024,'
    '"ClientAddr":"127.0.0.1:8081","OutputFile":"./out.txt"}'
)
TOKEN = "0123456789abcdef"


def settings(*argv: str, environ: Mapping[str, str] | None = None) -> ReceiverSettings:
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
    return line


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that writes config.json in the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(content: object) -> str:
        Path("config.json").write_text(json.dumps(content))
        return "config.json"

    return write


def test_defaults() -> None:
    expected = ReceiverSettings(
        listen=Address("127.0.0.1", 7800),
        directory=".",
        output_file=None,
        once=False,
        no_replace=False,
        idle_timeout=None,
        anonymous=False,
        give_up_after=None,
        token=None,
        result_file=None,
        log_level="info",
    )
    assert expected == settings()
    assert expected == ReceiverSettings()


def test_all_flags(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    parsed = settings(
        *("--listen", "[::]:0", "--directory", "d", "--output-file", "f", "--no-replace", "--idle-timeout", "30"),
        *("--anonymous", "--give-up-after", "1200", "--token-file", str(token_file), "--result-file", "r"),
    )
    expected = ReceiverSettings(
        listen=Address("::", 0),
        directory="d",
        output_file="f",
        once=True,
        no_replace=True,
        idle_timeout=30,
        anonymous=True,
        give_up_after=1200,
        token=TOKEN,
        result_file="r",
    )
    assert expected == parsed


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (":9000", Address("", 9000)),
        ("0.0.0.0", Address("0.0.0.0", 7800)),
        ("[::]:7800", Address("::", 7800)),
        ("localhost:0", Address("localhost", 0)),
    ],
)
def test_listen(written: str, expected: Address) -> None:
    assert expected == settings("--listen", written).listen


def test_tokens_of_users_from_every_source(config: Any) -> None:
    expected = ReceiverSettings(tokens="users", once=True)
    assert settings("--tokens", "users", "--once") == expected
    assert settings("--once", environ={"FILESTREAMER_RECEIVER_TOKENS": "users"}) == expected
    assert settings("--config", config({"receiver": {"tokens": "users", "once": True}})) == expected


@pytest.mark.parametrize(
    ("argv", "environ", "named"),
    [
        (["--token-file", "token"], {}, "--token-file"),
        ([], {"FILESTREAMER_TOKEN_FILE": "token"}, "--token-file"),
        ([], {"FILESTREAMER_TOKEN": TOKEN}, "FILESTREAMER_TOKEN"),
        (["--anonymous"], {}, "--anonymous"),
        (["--output-file", "f"], {}, "--output-file"),
        (["--output-file", "-"], {}, "--output-file"),
        (["--once", "--run", "1"], {}, "--run"),
        (["--job", "photos"], {}, "--job"),
        (["--connect", "host"], {}, "--connect"),
        (["--from", "host:f"], {}, "--from"),
    ],
)
def test_what_is_for_one_sender_does_not_go_with_users(
    argv: list[str], environ: dict[str, str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("token").write_text(TOKEN)
    said = failure("--tokens", "users", *argv, environ=environ)
    assert "--tokens" in said
    assert said.endswith(named)


def test_a_receiver_that_dials_has_no_users() -> None:
    """What a variable says is for another receiver."""
    assert settings("--connect", "host", environ={"FILESTREAMER_RECEIVER_TOKENS": "users"}).tokens is None


def test_tokens_that_others_can_read_are_told_once(tmp_path: Path) -> None:
    for name in ("alice", "bob", "carol"):
        (tmp_path / name).write_text(TOKEN)
        (tmp_path / name).chmod(0o600 if name == "alice" else 0o644)
    (line,) = settings("--tokens", str(tmp_path)).exposed()
    assert line.startswith("--tokens: every user of this machine may read")
    assert line.endswith(f"chmod 600 {tmp_path}/bob")


def test_output_file_implies_once_from_every_source(config: Any) -> None:
    assert settings("--output-file", "f").once
    assert settings(environ={"FILESTREAMER_OUTPUT_FILE": "f", "FILESTREAMER_ONCE": "no"}).once
    assert settings("--config", config({"receiver": {"output_file": "f"}})).once


def test_flag_beats_variable_beats_config_beats_default(config: Any) -> None:
    path = config({"directory": "top", "receiver": {"directory": "section"}})
    own, general = {"FILESTREAMER_RECEIVER_DIRECTORY": "own"}, {"FILESTREAMER_DIRECTORY": "general"}

    assert settings("--config", path, "--directory", "flag", environ=own | general).directory == "flag"
    assert settings("--config", path, environ=own | general).directory == "own"
    assert settings("--config", path, environ=general).directory == "general"
    assert settings("--config", path).directory == "section"
    assert settings("--config", config({"directory": "top", "sender": {}})).directory == "top"
    assert settings().directory == "."


def test_everything_from_the_environment() -> None:
    environ = {
        "FILESTREAMER_LISTEN": ":1",
        "FILESTREAMER_RECEIVER_ONCE": "true",
        "FILESTREAMER_NO_REPLACE": "1",
        "FILESTREAMER_IDLE_TIMEOUT": "0.5",
        "FILESTREAMER_RECEIVER_MEMORY_LIMIT": "256MiB",
        "FILESTREAMER_ANONYMOUS": "yes",
        "FILESTREAMER_RECEIVER_TOKEN": TOKEN,
    }
    expected = ReceiverSettings(
        listen=Address("", 1),
        once=True,
        no_replace=True,
        idle_timeout=0.5,
        memory_limit=256 << 20,
        anonymous=True,
        token=TOKEN,
    )
    assert expected == settings(environ=environ)


@pytest.mark.parametrize("spell", [str, str.lower, str.upper], ids=["as it was", "lower case", "upper case"])
def test_the_original_config_works_unchanged(config: Any, spell: Any) -> None:
    path = config({spell(key): value for key, value in json.loads(ORIGINAL).items()})
    expected = ReceiverSettings(listen=Address("127.0.0.1", 8080), output_file="./out.txt", once=True)
    assert expected == settings("--config", path)


def test_the_sample_config_is_good() -> None:
    assert settings("--config", str(SAMPLE)) == ReceiverSettings()


def test_keys_of_the_sender_are_let_pass(config: Any) -> None:
    path = config({"to": 5, "as": "a/b", "shard": "nonsense", "sender": {"to": "x"}})
    assert settings("--config", path) == settings()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--listen", "h:x"], "--listen: 'h:x' is not an address: write it as HOST:PORT"),
        (
            ["--idle-timeout", "-1"],
            "--idle-timeout: '-1' is out of bounds: it must be 0.001 to 1000000000 seconds (31 years)",
        ),
        (["--output-file", ""], "--output-file: must not be empty"),
        (["--shard", "0/2"], "No such option '--shard'."),
        (["--connections", "5"], "--connections goes with --from"),
        (["--from", "nas:f", "--tls-ca", "ca.pem"], "--from: its certificate is told over ssh: leave out --tls-ca"),
        (["--from", "nas:f", "--tls-pin", "ab" * 32], "--from: its certificate is told over ssh: leave out --tls-ca"),
        (["--from", "nas:f", "--tls", "--no-tls"], "--no-tls contradicts --tls"),
        (
            ["in.txt"],
            "PATH: 'in.txt' is not a path at another machine, [USER@]HOST:PATH; received files go to --directory",
        ),
    ],
)
def test_a_bad_flag_is_named(argv: list[str], expected: str) -> None:
    assert failure(*argv).startswith(expected)


@pytest.mark.parametrize("written", ["1e-300", "1e10", "1e300", "1e400", "inf"])
@pytest.mark.parametrize("flag", ["--give-up-after", "--idle-timeout", "--metrics-linger", "--discard-staging-after"])
def test_seconds_have_bounds(flag: str, written: str) -> None:
    expected = f"{flag}: {written!r} is out of bounds: it must be 0.001 to 1000000000 seconds (31 years)"
    assert failure(flag, written) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"ServerAddr": "x:y"}, "ServerAddr: 'x:y' is not an address"),
        ({"receiver": {"directory": 7}}, "receiver.directory: 7 is not text"),
        ({"once": "perhaps"}, "once: 'perhaps' is not a valid boolean"),
        ({"idle_timeout": True}, "idle_timeout: True is not a number of seconds: it must be 0.001 to"),
        ({"receiver": {"shard": "0/2"}}, "unknown key 'receiver.shard'"),
        ({"sender": {"too": 5}}, "unknown key 'sender.too': did you mean sender.to"),
    ],
)
def test_a_bad_config_is_named_with_its_key(config: Any, content: object, expected: str) -> None:
    assert failure("--config", config(content)).startswith(f"config.json: {expected}")


def test_a_bad_variable_is_named() -> None:
    line = failure(environ={"FILESTREAMER_RECEIVER_LISTEN": "::1", "FILESTREAMER_LISTEN": ":1"})
    assert line.startswith("FILESTREAMER_RECEIVER_LISTEN: '::1' is not an address")


def test_help_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help"], {})
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith("Usage: receiver [OPTIONS] [PATH...] ")
    assert "[default: 127.0.0.1:7800]" in shown
    assert " With --from: the way there: --ssh COMMAND " in shown


def test_tls() -> None:
    assert not settings().tls
    assert settings("--tls").tls
    assert settings("--tls-cert", "c", "--tls-key", "k").tls
    assert settings("--tls", "--tls-ca", "ca.pem").tls_ca == "ca.pem"
    assert "or --tls for a certificate of this run" in failure("--tls-ca", "ca.pem")
    assert failure("--tls", "--tls-cert", "c") == "--tls-cert and --tls-key need each other"


# --- a receiver that connects


def test_connecting() -> None:
    parsed = settings("--connect", "there")
    assert (parsed.connect, parsed.once) == (Address("there", 7800), True)
    assert settings("--connect", ":7900").connect == Address("localhost", 7900)
    assert settings("--connect", "there", "--tls-pin", "ab" * 32).tls


def test_flags_choose_between_listening_and_connecting() -> None:
    """What the environment says of listening does not count where this one connects, and the other way round."""
    listening = {"FILESTREAMER_LISTEN": ":1", "FILESTREAMER_IDLE_TIMEOUT": "5", "FILESTREAMER_ANONYMOUS": "1"}
    assert settings("--connect", "there", environ=listening) == settings("--connect", "there")
    assert settings("--listen", ":1", environ={"FILESTREAMER_CONNECT": "there"}).connect is None


@pytest.mark.parametrize("flag", [["--listen", ":1"], ["--anonymous"], ["--idle-timeout", "5"]])
def test_what_does_not_go_with_connecting(flag: list[str]) -> None:
    assert failure("--connect", "there", *flag) == f"{flag[0]} does not go with --connect"


def test_a_short_token_does_not_vouch_for_the_senders_certificate() -> None:
    line = failure("--connect", "there", "--tls", environ={"FILESTREAMER_TOKEN": TOKEN})
    assert "too short to vouch for the other side's certificate" in line


def test_a_receiver_that_listens_pins_nothing() -> None:
    """It would speak clear text, and its user takes it for TLS. What both sides read is for the sender, though."""
    pin = "ab" * 32
    assert failure("--listen", ":1", "--tls-pin", pin) == "--tls-pin goes with --connect"
    assert failure("--tls", "--tls-pin", pin) == "--tls-pin goes with --connect"
    for_the_sender = {"FILESTREAMER_TLS_PIN": pin}
    assert settings("--listen", ":1", environ=for_the_sender) == settings("--listen", ":1")
    assert settings("--connect", "there", environ=for_the_sender).pins == (bytes.fromhex(pin),)


# --- jobs and runs


def test_a_job_and_a_run() -> None:
    parsed = settings("--once", "--job", "photos", "--run", "6ab3e5c0-1f3c")
    assert (parsed.job, parsed.run) == ("photos", "6ab3e5c0-1f3c")
    variables = {"FILESTREAMER_JOB": "photos", "FILESTREAMER_RECEIVER_RUN": "uid", "FILESTREAMER_ONCE": "true"}
    assert settings(environ=variables).run == "uid"
    assert settings("--output-file", "f", "--run", "uid").run == "uid"


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("--run", "uid"), "--once"),
        (("--output-file", "-", "--run", "uid"), "standard output"),
        (("--once", "--run", ""), "--run"),
        (("--once", "--run", "a b"), "ID of a run"),
        (("--once", "--run", "x" * 129), "ID of a run"),
        (("--job", "Photos"), "name of a job"),
        (("--job", "-photos"), "name of a job"),
        (("--connect", "h:1", "--run", "uid"), "--run"),
        (("--from", "h:f", "--job", "photos"), "--job"),
    ],
)
def test_jobs_and_runs_that_make_no_sense(argv: tuple[str, ...], named: str) -> None:
    assert named in failure(*argv)

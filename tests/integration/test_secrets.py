"""Secrets between real services: whose token it is, where it comes from, and that nobody is told.

The user's own token lies where XDG_RUNTIME_DIR says, which for these tests is a directory of theirs.
"""

import base64
import contextlib
import http.server
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.test_moves import own_address, printed_command, run_as_printed
from tests.support.certificates import Authority, Pem, openssl
from tests.support.services import HANG, PRIVATE, UNIT, Pair, Service, same

TOKEN = "a token of these tests"
SOMEBODY = 12345
NOWHERE = {"XDG_RUNTIME_DIR": "/not/there", "XDG_CACHE_HOME": "/not/there", "HOME": "/not/there"}
"""The environment of a user who has no place for a token."""


# ------------------------------------------------------------------------------------------------- the user's own token


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """Return a runtime directory in which nothing lies yet."""
    made = tmp_path / "run"
    made.mkdir(mode=0o700)
    return made


def own(runtime: Path) -> dict[str, str]:
    return {"XDG_RUNTIME_DIR": str(runtime)}


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:0"])
def test_the_same_user_types_nothing(pair: Pair, runtime: Path, listen: str) -> None:
    file = pair.file("f", 3_000_000)
    receiver = pair.receiver("--once", listen=listen, env=own(runtime))
    pair.sender(file, pair.address(receiver), env=own(runtime)).succeeds()
    receiver.succeeds()
    assert same(file, pair.destination / "f")
    token = runtime / "filestreamer" / "token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert receiver.wait_for("token")["path"] == str(token)
    assert token.read_text().strip() not in receiver.stderr
    assert pair.received() == ["f"]


def test_both_at_once_with_nothing_there(pair: Pair, runtime: Path) -> None:
    """A sender that was first finds the token that its receiver has made meanwhile."""
    file = pair.file("f", 100_000)
    port = pair.port()
    sender = pair.sender(file, f"127.0.0.1:{port}", env=own(runtime))
    sender.wait_for("cannot_connect")
    receiver = pair.receiver("--once", listen=f"127.0.0.1:{port}", env=own(runtime))
    sender.succeeds()
    receiver.succeeds()


def test_two_receivers_have_one(pair: Pair, runtime: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first = pair.receiver(env=own(runtime))
    second = pair.start("receiver", "--listen", "127.0.0.1:0", "--directory", tmp_path / "other", env=own(runtime))
    for receiver in (first, second):
        pair.sender(pair.file("f", 1000), pair.address(receiver), env=own(runtime)).succeeds()


def test_a_sender_with_only_this_goes_on_with_a_receiver_that_asks_for_none(pair: Pair) -> None:
    file = pair.file("f", 1000)
    pair.sender(file, pair.address(pair.receiver())).succeeds()
    assert (PRIVATE / "filestreamer" / "token").exists()
    receiver = pair.receiver("--once", "--anonymous")
    (warning,) = [receiver.wait_for("anonymous")]
    assert (warning["level"], warning["reason"][:24]) == ("warning", "any user of this machine")
    pair.sender(file, pair.address(receiver)).succeeds()


def test_a_receiver_that_was_given_one_wants_that(pair: Pair) -> None:
    file = pair.file("f", 1000)
    pair.sender(file, pair.address(pair.receiver())).succeeds()  # now there is an own one
    receiver = pair.receiver(env={"FILESTREAMER_TOKEN": TOKEN})
    message = pair.sender(file, pair.address(receiver)).fails(3, "token", status="refused")
    assert message == "the receiver has another token than this user's own: pass --token-file or FILESTREAMER_TOKEN"
    pair.sender(file, pair.address(receiver), env={"FILESTREAMER_TOKEN": TOKEN}).succeeds()


def test_it_is_for_this_machine_only(pair: Pair, tmp_path: Path) -> None:
    """A receiver that is reached by another address gets no proof of it, and the error says what to pass."""
    host = own_address()
    if host is None:
        pytest.skip("this machine has no address but loopback")
    file = pair.file("f", 1000)
    pair.sender(file, pair.address(pair.receiver())).succeeds()
    receiver = pair.receiver(listen=f"{host}:0")
    message = pair.sender(file, pair.address(receiver)).fails(3, "token", status="refused")
    assert message == "the receiver requires a token: pass --token-file or FILESTREAMER_TOKEN"
    assert {each["code"] for each in receiver.events("connection_refused")} <= {"token"}


@pytest.fixture
def somebody() -> Iterator[tuple[list[str], Path]]:
    """Return what runs a service as another user, and a directory of that user's."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv, to be somebody else")
    under = ["setpriv", f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}", "--clear-groups"]
    if subprocess.run([*under, sys.executable, "-c", ""], capture_output=True, check=False).returncode != 0:
        # Python itself lies where only root may look: this one right more, and nothing that it could write.
        under += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    directory = Path(tempfile.mkdtemp(prefix="filestreamer-somebody-"))
    os.chown(directory, SOMEBODY, SOMEBODY)
    yield under, directory
    shutil.rmtree(directory)


def test_another_user_is_refused(pair: Pair, somebody: tuple[list[str], Path]) -> None:
    under, home = somebody
    (home / "f").write_bytes(b"from somebody else")
    os.chown(home / "f", SOMEBODY, SOMEBODY)
    receiver = pair.receiver()
    to = pair.address(receiver)
    # With the receiver's own environment, as su leaves it; with nothing; with a token of their own.
    environments = ({"HOME": str(home)}, {"HOME": str(home), "XDG_RUNTIME_DIR": ""}, NOWHERE)
    for environment in environments:
        sender = pair.start("sender", home / "f", "--to", to, env=environment, under=under)
        message = sender.fails(3, "token", status="refused")
        assert "--token-file or FILESTREAMER_TOKEN" in message
    theirs = pair.start(
        "receiver", "--listen", "127.0.0.1:0", "--directory", home, env={"HOME": str(home)}, under=under
    )
    made = Path(theirs.wait_for("token")["path"])
    assert made.stat().st_uid == SOMEBODY
    sender = pair.start("sender", home / "f", "--to", to, env={"HOME": str(home)}, under=under)
    assert sender.fails(3, "token", status="refused").startswith("the receiver has another token than this user's own")
    # And root, in turn, is not let in there by what is root's own.
    assert pair.sender(pair.file("g", 10), pair.address(theirs)).wait() == 3
    assert "Traceback" not in receiver.stderr + theirs.stderr
    assert pair.received() == []


def test_another_user_with_the_token_is_let_in(pair: Pair, somebody: tuple[list[str], Path]) -> None:
    under, home = somebody
    (home / "f").write_bytes(b"from somebody else")
    receiver = pair.receiver("--once", env={"FILESTREAMER_TOKEN": TOKEN})
    environment = {"FILESTREAMER_TOKEN": TOKEN, "HOME": str(home)}
    pair.start("sender", home / "f", "--to", pair.address(receiver), env=environment, under=under).succeeds()
    assert (pair.destination / "f").read_bytes() == b"from somebody else"


def test_a_user_without_a_place_for_one(pair: Pair) -> None:
    """As in a container with a read-only root: the receiver makes one in its directory, and prints the command."""
    file = pair.file("f", 1000)
    receiver = pair.receiver(env=NOWHERE)
    message = pair.sender(file, pair.address(receiver), env=NOWHERE).fails(3, "token", status="refused")
    assert message == "the receiver requires a token: pass --token-file or FILESTREAMER_TOKEN"
    done = run_as_printed(printed_command(receiver), file)
    assert done.returncode == 0, done.stderr
    assert same(file, pair.destination / "f")


def test_a_place_that_is_open_to_others(pair: Pair, runtime: Path) -> None:
    (runtime / "filestreamer").mkdir(mode=0o755)
    message = pair.receiver(env=own(runtime)).fails(2, "usage")
    assert message.startswith(f"{runtime}/filestreamer is open to other users")


# ------------------------------------------------------------------------------------------------- a token that is made


def test_it_is_printed_once_and_then_its_path(pair: Pair) -> None:
    file = pair.file("f", 1000)
    first = pair.receiver(listen="0.0.0.0:0")
    command = printed_command(first)
    kept = pair.destination / ".filestreamer" / "token"
    token = kept.read_text().strip()
    assert token in command
    first.end()
    again = pair.receiver(listen="0.0.0.0:0")
    assert again.wait_for("token")["path"] == str(kept)
    sender = pair.sender(file, f"127.0.0.1:{pair.address(again).rpartition(':')[2]}", "--token-file", kept)
    sender.succeeds()
    for service in (again, sender):
        assert token not in service.stderr + service.stdout
    assert sender.events("secret_exposed") == []


def test_a_token_file_that_everybody_can_read_is_told(pair: Pair, tmp_path: Path) -> None:
    shared = tmp_path / "token"
    shared.write_text(TOKEN)
    shared.chmod(0o644)
    receiver = pair.receiver("--once", "--token-file", shared)
    sender = pair.sender(pair.file("f", 1000), pair.address(receiver), "--token-file", shared)
    sender.succeeds()
    receiver.succeeds()
    for service in (receiver, sender):
        (warning,) = service.events("secret_exposed")
        assert warning["level"] == "warning"
        assert str(shared) in warning["reason"]
        assert TOKEN not in service.stderr


@pytest.mark.parametrize(
    "content", ["Kennwort für Größe".encode("latin-1"), TOKEN.encode("utf-16"), b"\xff" * 40, b""], ids=repr
)
@pytest.mark.parametrize("command", ["sender", "receiver"])
def test_a_token_that_is_no_text(pair: Pair, tmp_path: Path, command: str, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    given = [("--token-file", tmp_path / "token")]
    environments = [{}, {"FILESTREAMER_TOKEN": os.fsdecode(content)}][: 2 if content and b"\0" not in content else 1]
    for flags, env in zip([*given, ()], environments, strict=False):
        args = (pair.file("f", 10), "--to", "127.0.0.1:1") if command == "sender" else ()
        message = pair.start(command, *args, *flags, env=env).fails(2, "usage")
        assert "the token" in message
        assert message.startswith("--token-file: " if flags else "FILESTREAMER_TOKEN: ")


@pytest.mark.parametrize("command", ["sender", "receiver"])
@pytest.mark.parametrize(
    "secret", ["0f4b7c3d" * 8, "/f4b7c3d+/" * 8 + "==", "token" * 100], ids=["hex", "base64", "long"]
)
def test_a_token_in_place_of_its_file_is_told_to_nobody(pair: Pair, command: str, secret: str) -> None:
    """By a flag or a variable; what is to be done instead is told."""
    args = (pair.file("f", 10), "--to", "127.0.0.1:1") if command == "sender" else ()
    for flags, env in ((("--token-file", secret), {}), ((), {"FILESTREAMER_TOKEN_FILE": secret})):
        service = pair.start(command, *args, *flags, env=env)
        message = service.fails(2, "usage")
        assert message.startswith("--token-file: " if flags else "FILESTREAMER_TOKEN_FILE: ")
        assert "the variable FILESTREAMER_TOKEN takes a token itself" in message
        assert secret[:16] not in service.stderr + service.stdout


def test_a_token_in_place_of_the_directory_of_tokens_is_told_to_nobody(pair: Pair) -> None:
    """FILESTREAMER_TOKENS has one letter more than the variable that was meant."""
    receiver = pair.receiver(env={"FILESTREAMER_TOKENS": TOKEN})
    assert "may be a token" in receiver.fails(2, "usage")
    assert TOKEN not in receiver.stderr + receiver.stdout


def test_one_token_written_in_two_ways(pair: Pair, tmp_path: Path) -> None:
    """A file of one system, a variable of another."""
    (tmp_path / "token").write_bytes(b"\xef\xbb\xbf" + "Kennwort für Größe".encode() + b"\r\n")
    receiver = pair.receiver("--once", "--token-file", tmp_path / "token")
    variable = {"FILESTREAMER_TOKEN": "Kennwort für Größe"}
    pair.sender(pair.file("f", 1000), pair.address(receiver), env=variable).succeeds()


# ------------------------------------------------------------------------------------------------ certificates and keys


Pki = tuple[Authority, Pem, Pem, Path]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Return an authority, a receiver's and a sender's certificate, and the directory of all."""
    directory = tmp_path_factory.mktemp("pki")
    authority = Authority(directory, "ca")
    return authority, authority.issue("receiver"), authority.issue("sender", "DNS:sender"), directory


@contextlib.contextmanager
def pipes(directory: Path, *files: Path) -> Iterator[list[Path]]:
    """Make a pipe for each file, which gives its content once."""
    made = []
    threads = []
    for number, file in enumerate(files):
        path = directory / f"pipe-{number}-{file.name}"
        os.mkfifo(path)
        threads.append(threading.Thread(target=path.write_bytes, args=(file.read_bytes(),), daemon=True))
        threads[-1].start()
        made.append(path)
    yield made
    for thread in threads:
        thread.join(HANG)
        assert not thread.is_alive(), "nobody read a pipe"


def test_every_secret_from_a_pipe(pair: Pair, pki: Pki, tmp_path: Path) -> None:
    """Nothing of it lies on a disk, and each pipe can be read once."""
    authority, receivers, senders, _ = pki
    (tmp_path / "token").write_text(TOKEN)
    for directory in ("r", "s"):
        (tmp_path / directory).mkdir()
    file = pair.file("f", 3_000_000)
    theirs = (tmp_path / "token", authority.certificate)
    with pipes(tmp_path / "r", *receivers, *theirs) as (certificate, key, token, ca):
        receiver = pair.receiver(
            "--once", "--tls-cert", certificate, "--tls-key", key, "--token-file", token, "--tls-ca", ca
        )
        to = pair.address(receiver)
    with pipes(tmp_path / "s", *senders, *theirs) as (certificate, key, token, ca):
        flags = ("--tls-cert", certificate, "--tls-key", key, "--token-file", token, "--tls-ca", ca)
        pair.sender(file, to, *flags, "--connections", 4).succeeds()
    receiver.succeeds()
    assert same(file, pair.destination / "f")


def test_one_pipe_for_certificate_and_key(pair: Pair, pki: Pki, tmp_path: Path) -> None:
    authority, receivers, _, _ = pki
    both = tmp_path / "both.pem"
    both.write_bytes(receivers.key.read_bytes() + receivers.certificate.read_bytes())
    with pipes(tmp_path, both) as (pipe,):
        receiver = pair.receiver("--once", "--tls-cert", pipe, "--tls-key", pipe)
        pair.sender(pair.file("f", 1000), pair.address(receiver), *authority.trusted).succeeds()


def reverse(shown: Pem, ca: bytes, path: Path) -> None:
    path.write_bytes(ca + shown.certificate.read_bytes())


def all_in_one(shown: Pem, ca: bytes, path: Path) -> None:
    path.write_bytes(shown.key.read_bytes() + shown.certificate.read_bytes() + ca)


def older_label(shown: Pem, ca: bytes, path: Path) -> None:
    text = shown.certificate.read_bytes().replace(b"N CERTIFICATE", b"N X509 CERTIFICATE")
    path.write_bytes(text.replace(b"D CERTIFICATE", b"D X509 CERTIFICATE") + ca)


def trusted(shown: Pem, ca: bytes, path: Path) -> None:
    openssl("x509", "-in", shown.certificate, "-trustout", "-addtrust", "serverAuth", "-out", path)
    path.write_bytes(path.read_bytes() + ca)


def from_elsewhere(shown: Pem, ca: bytes, path: Path) -> None:
    path.write_bytes((b"\xef\xbb\xbf" + shown.certificate.read_bytes() + ca).replace(b"\n", b"\r\n"))


@pytest.mark.parametrize("write", [reverse, all_in_one, older_label, trusted, from_elsewhere])
def test_a_certificate_however_it_is_written(
    pair: Pair, pki: Pki, tmp_path: Path, write: Callable[[Pem, bytes, Path], None]
) -> None:
    """With a token: both ends bind their proofs to the same certificate. The CA's file is written the same way."""
    authority, shown, senders, _ = pki
    own_ca = authority.certificate.read_bytes()
    certificate, ca, client = tmp_path / "certificate.pem", tmp_path / "ca.pem", tmp_path / "client.pem"
    write(shown, own_ca, certificate)
    write(Pem(authority.certificate, shown.key), b"", ca)
    write(senders, own_ca, client)
    env = {"FILESTREAMER_TOKEN": TOKEN}
    key = certificate if write is all_in_one else shown.key
    receiver = pair.receiver("--once", "--tls-cert", certificate, "--tls-key", key, "--tls-ca", ca, env=env)
    flags = ("--tls-ca", ca, "--tls-cert", client, "--tls-key", senders.key)
    pair.sender(pair.file("f", 100_000), pair.address(receiver), *flags, env=env).succeeds()
    receiver.succeeds()


@pytest.mark.parametrize("command", ["sender", "receiver"])
@pytest.mark.parametrize("encode", [str, lambda pem: base64.b64encode(pem.encode()).decode()], ids=["PEM", "base64"])
def test_a_key_in_place_of_its_file_is_told_to_nobody(
    pair: Pair, pki: Pki, command: str, encode: Callable[[str], str]
) -> None:
    """By a flag or a variable, as other programs take them."""
    secret = encode(pki[1].key.read_text())
    args = (pair.file("f", 10), "--to", "127.0.0.1:1") if command == "sender" else ()
    args = (*args, "--tls-cert", pki[1].certificate)
    for flags, env in ((("--tls-key", secret), {}), ((), {"FILESTREAMER_TLS_KEY": secret})):
        service = pair.start(command, *args, *flags, env=env)
        message = service.fails(2, "usage")
        assert message.startswith("--tls-key: " if flags else "FILESTREAMER_TLS_KEY: ")
        assert "write that to a file, and name the file" in message
        assert secret.splitlines()[-2:][0][:40] not in service.stderr + service.stdout
        assert "-----BEGIN" not in service.stderr + service.stdout


def test_a_key_that_everybody_can_read_is_told(pair: Pair, pki: Pki, tmp_path: Path) -> None:
    key = tmp_path / "shared.key"
    key.write_bytes(pki[1].key.read_bytes())
    key.chmod(0o644)
    receiver = pair.receiver("--tls-cert", pki[1].certificate, "--tls-key", key)
    assert str(key) in receiver.wait_for("secret_exposed")["reason"]


# ------------------------------------------------------------------------------------------------- a gateway's password

PASSWORD = "s3cr3t @:/wörd%"
ESCAPED = "s3cr3t%20%40%3A%2Fw%C3%B6rd%25"


class Gateway:
    """An HTTP server that keeps what it was asked, and answers what it is told to."""

    def __init__(self, status: int = 200, location: str = "") -> None:
        asked: list[tuple[str, str, str | None]] = []
        self.asked = asked

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                asked.append((self.command, self.path, self.headers.get("Authorization")))
                self.send_response(status)
                if location:
                    self.send_header("Location", location)
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> "Gateway":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(HANG)


def push(pair: Pair, gateway: Gateway, *, how: str = "flag") -> list[Service]:
    """Move a file with both services pushing; return them."""
    url = f"http://me:{ESCAPED}@127.0.0.1:{gateway.port}/metrics/job/nightly"
    config = pair.source / "config.json"
    config.write_text(f'{{"pushgateway": "{url}"}}')
    flags = {"flag": ("--pushgateway", url), "config": ("--config", config)}.get(how, ())
    env = {"FILESTREAMER_PUSHGATEWAY": url} if how == "variable" else {}
    receiver = pair.receiver("--once", "--log-level", "debug", *flags, env=env)
    sender = pair.sender(pair.file("f", 1000), pair.address(receiver), "--log-level", "debug", *flags, env=env)
    sender.succeeds()
    receiver.succeeds()
    return [sender, receiver]


def check_untold(services: list[Service]) -> None:
    for service in services:
        for secret in ("s3cr3t", base64.b64encode(f"me:{PASSWORD}".encode()).decode()):
            assert secret not in service.stderr + service.stdout


@pytest.mark.parametrize("how", ["flag", "variable", "config"])
def test_the_gateways_password_is_used_and_not_told(pair: Pair, how: str) -> None:
    with Gateway() as gateway:
        services = push(pair, gateway, how=how)
    authorization = f"Basic {base64.b64encode(f'me:{PASSWORD}'.encode()).decode()}"
    assert gateway.asked == [("POST", "/metrics/job/nightly", authorization)] * 2
    assert [service.events("not_pushed") for service in services] == [[], []]
    check_untold(services)


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_gateway_that_does_not_take_it_is_a_warning_without_the_password(pair: Pair, status: int) -> None:
    with Gateway(status) as gateway:
        services = push(pair, gateway)
    for service in services:
        (warning,) = service.events("not_pushed")
        assert warning["to"] == f"http://127.0.0.1:{gateway.port}/metrics/job/nightly"
        assert str(status) in warning["reason"]
    check_untold(services)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_password_goes_to_no_other_address(pair: Pair, status: int) -> None:
    with Gateway() as other, Gateway(status, f"http://127.0.0.1:{other.port}/elsewhere") as gateway:
        services = push(pair, gateway)
    assert other.asked == []
    assert [len(service.events("not_pushed")) for service in services] == [1, 1]
    check_untold(services)


def test_with_standard_error_closed_no_token_is_among_the_results(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out"
    port = pair.port()
    command = [sys.executable, "-P", "-m", "receiver", "--listen", f"0.0.0.0:{port}", "--metrics", "off"]
    with out.open("wb") as stdout:
        receiver = subprocess.Popen(["sh", "-c", 'exec "$@" 2>&-', "sh", *command], stdout=stdout, cwd=tmp_path)
    try:
        sender = pair.sender(pair.file("f", 10), f"127.0.0.1:{port}", env={"FILESTREAMER_TOKEN": TOKEN})
        assert sender.wait() == 3  # it listens by now, and asks for the token that it has made
        receiver.terminate()
        receiver.wait(UNIT)
    finally:
        receiver.kill()
        receiver.wait()
    token = (tmp_path / ".filestreamer" / "token").read_text().strip()
    assert token not in out.read_text()
    assert out.read_text().count("\n") == 1

"""The user's own token: where it lies, who may have made it, and that two that make it at once have the same."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from filestreamer.settings import own_token
from filestreamer.settings.own_token import OwnToken, is_loopback
from filestreamer.wire.errors import UsageError

SOMEBODY = 12345


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    made = tmp_path / "run"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def environ(runtime: Path) -> Mapping[str, str]:
    return {"XDG_RUNTIME_DIR": str(runtime), "HOME": "/not/there"}


@pytest.fixture
def token(runtime: Path, environ: Mapping[str, str]) -> Path:
    """Return the file of a token that is made."""
    own_token.make(environ)
    return runtime / "filestreamer" / "token"


def modes(path: Path) -> tuple[int, int]:
    return stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.255.0.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.0.0.1", False),
        ("0.0.0.0", False),
        ("::", False),
        ("10.127.0.0", False),
        ("192.0.2.1", False),
        ("fe80::1%lo", False),
        ("::127.0.0.1", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_it_is_made_once_for_this_user_alone(runtime: Path, environ: Mapping[str, str]) -> None:
    assert own_token.read(environ) is None
    made = own_token.make(environ)
    place = runtime / "filestreamer" / "token"
    assert made == OwnToken(place.read_text().strip(), str(place))
    assert len(made.token) >= 32
    assert modes(place) == (0o600, 0o700)
    assert made == own_token.make(environ) == own_token.read(environ)
    assert os.listdir(place.parent) == ["token"]


@pytest.mark.parametrize("umask", [0o000, 0o027, 0o077, 0o177])
def test_whatever_the_umask(runtime: Path, environ: Mapping[str, str], umask: int) -> None:
    before = os.umask(umask)
    try:
        own_token.make(environ)
    finally:
        os.umask(before)
    assert modes(runtime / "filestreamer" / "token")[0] == 0o600


# --- where


@pytest.mark.parametrize("runtime_dir", [None, "", "relative", "/not/there"])
def test_below_the_cache_where_there_is_no_runtime_directory(tmp_path: Path, runtime_dir: str | None) -> None:
    environ = {"HOME": str(tmp_path)} | ({} if runtime_dir is None else {"XDG_RUNTIME_DIR": runtime_dir})
    if runtime_dir in (None, "") and os.path.isdir(f"/run/user/{os.geteuid()}"):
        pytest.skip("this user has a runtime directory that is found without the variable")
    place = tmp_path / ".cache" / "filestreamer" / "token"
    assert own_token.make(environ) == OwnToken(place.read_text().strip(), str(place))
    assert modes(place) == (0o600, 0o700)
    assert own_token.read(environ) == own_token.make(environ)


def test_below_another_cache(tmp_path: Path) -> None:
    (tmp_path / "caches").mkdir()
    environ = {"XDG_RUNTIME_DIR": "/not/there", "XDG_CACHE_HOME": str(tmp_path / "caches"), "HOME": str(tmp_path)}
    made = own_token.make(environ)
    assert made is not None
    assert made.path == str(tmp_path / "caches" / "filestreamer" / "token")
    assert not (tmp_path / ".cache").exists()


def test_a_runtime_directory_of_another_user_is_passed_over(tmp_path: Path, runtime: Path) -> None:
    """As `su` leaves it in the environment."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a directory away")
    os.chown(runtime, SOMEBODY, SOMEBODY)
    made = own_token.make({"XDG_RUNTIME_DIR": str(runtime), "HOME": str(tmp_path)})
    assert made is not None
    assert made.path.startswith(f"{tmp_path}/.cache/")
    assert os.listdir(runtime) == []


def test_a_home_of_another_user_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `su` and `sudo -E` leave it: then it is the home that the table of users has."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a directory away")
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", SOMEBODY, SOMEBODY)
    monkeypatch.setattr(own_token, "_home", lambda: str(tmp_path / "ours"))
    (tmp_path / "ours").mkdir()
    made = own_token.make({"XDG_RUNTIME_DIR": "/not/there", "HOME": str(tmp_path / "theirs")})
    assert made is not None
    assert made.path == str(tmp_path / "ours" / ".cache" / "filestreamer" / "token")
    assert os.listdir(tmp_path / "theirs") == []


def test_a_directory_of_everybody_is_passed_over(tmp_path: Path, runtime: Path) -> None:
    runtime.chmod(0o1777)
    made = own_token.make({"XDG_RUNTIME_DIR": str(runtime), "HOME": str(tmp_path)})
    assert made is not None
    assert made.path.startswith(f"{tmp_path}/.cache/")


def test_no_place_at_all() -> None:
    environ = {"XDG_RUNTIME_DIR": "/not/there", "XDG_CACHE_HOME": "/not/there/either", "HOME": "/not/there"}
    assert own_token.make(environ) is None
    assert own_token.read(environ) is None


# --- whose


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o660])
def test_a_token_that_others_may_know_or_have_made_is_made_anew(
    environ: Mapping[str, str], token: Path, mode: int
) -> None:
    known = token.read_text()
    token.chmod(mode)
    assert own_token.read(environ) is None
    made = own_token.make(environ)
    assert made is not None
    assert token.read_text() == f"{made.token}\n" != known
    assert modes(token) == (0o600, 0o700)


@pytest.mark.parametrize("content", [b"", b"short", b"\n" * 100, b"\0" * 33])
def test_a_file_that_holds_none_is_made_anew(environ: Mapping[str, str], token: Path, content: bytes) -> None:
    token.write_bytes(content)
    assert own_token.read(environ) is None
    made = own_token.make(environ)
    assert made is not None
    assert token.read_text() == f"{made.token}\n"


@pytest.mark.parametrize("kind", ["symlink", "dangling", "fifo", "socket"])
def test_what_is_no_file_is_replaced_and_never_followed(
    environ: Mapping[str, str], token: Path, tmp_path: Path, kind: str
) -> None:
    token.unlink()
    elsewhere = tmp_path / "elsewhere"
    if kind == "symlink":
        elsewhere.write_text("x" * 40)
        elsewhere.chmod(0o600)
    if kind in ("symlink", "dangling"):
        token.symlink_to(elsewhere)
    elif kind == "fifo":
        os.mkfifo(token, 0o600)
    else:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(os.path.relpath(token))
    assert own_token.read(environ) is None
    made = own_token.make(environ)
    assert made is not None
    assert token.read_text() == f"{made.token}\n"
    assert not token.is_symlink()
    assert elsewhere.exists() == (kind == "symlink")


def test_a_directory_in_its_place_is_refused(environ: Mapping[str, str], token: Path) -> None:
    token.unlink()
    token.mkdir()
    with pytest.raises(UsageError, match=f"can't create the token file {token} .*--token-file"):
        own_token.make(environ)


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o702])
def test_a_directory_that_is_open_to_others_is_refused(environ: Mapping[str, str], token: Path, mode: int) -> None:
    token.parent.chmod(mode)
    for use in (own_token.make, own_token.read):
        with pytest.raises(UsageError, match=f"{token.parent} is open to other users: remove it.*--token-file"):
            use(environ)


def test_a_directory_of_another_user_is_refused(environ: Mapping[str, str], token: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a directory away")
    os.chown(token.parent, SOMEBODY, SOMEBODY)
    with pytest.raises(UsageError, match="is open to other users"):
        own_token.make(environ)


def test_a_directory_behind_a_symlink_is_not_followed(runtime: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (runtime / "filestreamer").symlink_to(tmp_path / "elsewhere")
    made = own_token.make({"XDG_RUNTIME_DIR": str(runtime), "HOME": str(tmp_path)})
    assert made is not None
    assert made.path.startswith(f"{tmp_path}/.cache/")
    assert os.listdir(tmp_path / "elsewhere") == []


# --- at once


@pytest.mark.parametrize(("has_locks", "before"), [(True, "nothing"), (True, "open to others"), (False, "nothing")])
def test_many_that_make_it_at_once_have_the_same(
    runtime: Path, environ: Mapping[str, str], has_locks: bool, before: str
) -> None:
    if before != "nothing":
        own_token.make(environ)
        (runtime / "filestreamer" / "token").chmod(0o644)
    program = (
        "import os, sys, fcntl\n"
        "from filestreamer.settings import own_token\n"
        f"if not {has_locks}:\n    own_token.fcntl.flock = lambda *_: (_ for _ in ()).throw(OSError())\n"
        "sys.stdin.read()\n"  # until all have begun
        "print(own_token.make(os.environ).token)\n"
    )
    command = [sys.executable, "-P", "-c", program]
    reader, writer = os.pipe()
    started = [
        subprocess.Popen(command, env=dict(environ), stdin=reader, stdout=subprocess.PIPE, text=True) for _ in range(12)
    ]
    os.close(reader)
    os.close(writer)
    tokens = {process.communicate(timeout=60)[0] for process in started}
    assert tokens == {(runtime / "filestreamer" / "token").read_text()}
    assert os.listdir(runtime / "filestreamer") == ["token"]

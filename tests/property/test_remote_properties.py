"""A place behind ssh: whatever is written, ssh takes no part of it for an option, and it is read as it is shown."""

from hypothesis import given
from hypothesis import strategies as st

from filestreamer.settings.address import parse_address
from filestreamer.ssh.remote import Remote, is_remote, parse_remote

WRITTEN = st.lists(
    st.sampled_from(
        ["a", "nas", "-", "@", ":", "/", "//", "~", "[", "]", "::1", "ssh://", "22", " ", "%2d", "%00", "\n"]
    ),
    max_size=8,
).map("".join) | st.text(max_size=20)
NAMES = st.text("abcxyz0189._", min_size=1, max_size=12)
PATHS = st.text(st.characters(exclude_characters="\0"), max_size=20)


@given(WRITTEN)
def test_ssh_gets_a_host_and_nothing_else(written: str) -> None:
    try:
        remote = parse_remote(written)
    except ValueError:
        return
    assert remote.destination.isprintable()
    assert not remote.destination.startswith("-")
    assert not remote.host.startswith("-")
    assert not set(" '\"`$;&<>|(){}/\t\n") & set(remote.host)
    assert "\0" not in remote.path
    assert parse_remote(str(remote)) == remote or not is_remote(str(remote))


@given(NAMES, PATHS, st.none() | NAMES)
def test_what_scp_would_take_is_taken_so(host: str, path: str, user: str | None) -> None:
    written = f"{host}:{path}" if user is None else f"{user}@{host}:{path}"
    if not is_remote(written):
        assert path.startswith("//") or (path.isascii() and path.isdecimal())
    elif not (path.isascii() and path.isdecimal()) and not path.startswith("//") and ":" not in path:
        assert parse_remote(written) == Remote(host, path, user)


@given(NAMES, st.integers(1, 65535))
def test_an_address_stays_one(host: str, port: int) -> None:
    written = f"{host}:{port}"
    assert not is_remote(written)
    try:
        assert parse_address(written).port == port
    except ValueError:
        assert ".." in host or host.startswith(".")

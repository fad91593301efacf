"""Where ssh leads to: [USER@]HOST:PATH and ssh:// URLs."""

import pytest

from filestreamer.ssh.remote import Remote, is_remote, parse_remote


@pytest.mark.parametrize(
    ("written", "remote"),
    [
        ("nas:/srv", Remote("nas", "/srv")),
        ("alice@nas:", Remote("nas", "", "alice")),
        ("nas:./123", Remote("nas", "./123")),
        ("nas:2026-11-26", Remote("nas", "2026-11-26")),
        ("nas:~/x", Remote("nas", "~/x")),
        ("nas:~bob", Remote("nas", "~bob")),
        ("nas:a:b", Remote("nas", "a:b")),
        ("nas:-rf", Remote("nas", "-rf")),
        ("nas:it's \n\udc80 'here'", Remote("nas", "it's \n\udc80 'here'")),
        ("alice@example.org@nas:x", Remote("nas", "x", "alice@example.org")),
        ("DOMAIN\\alice@nas:x", Remote("nas", "x", "DOMAIN\\alice")),
        ("[2001:db8::1]:/dir", Remote("2001:db8::1", "/dir")),
        ("[fe80::1%eth0]:dir", Remote("fe80::1%eth0", "dir")),
        ("ssh://nas", Remote("nas", "")),
        ("ssh://nas/", Remote("nas", "/")),
        ("ssh://nas/srv", Remote("nas", "/srv")),
        ("ssh://nas//srv", Remote("nas", "/srv")),
        ("ssh://nas/~/x", Remote("nas", "x")),
        ("ssh://nas/~bob/x", Remote("nas", "~bob/x")),
        ("ssh://alice@nas:2222/a%20b", Remote("nas", "/a b", "alice", 2222)),
        ("ssh://nas/%ff", Remote("nas", "/\udcff")),
        ("ssh://[fe80::1%25eth0]:22/x", Remote("fe80::1%eth0", "/x", None, 22)),
    ],
)
def test_a_place_behind_ssh(written: str, remote: Remote) -> None:
    assert is_remote(written)
    assert parse_remote(written) == remote
    assert parse_remote(str(remote)) == remote


@pytest.mark.parametrize(
    "written",
    ["nas:123", "nas", ":7800", "[::1]:7800", "::1", "2001:db8::1", "./a:b", "/a:b", "http://h/x", "http://h:1", 7, ""],
)
def test_what_is_meant_otherwise(written: object) -> None:
    """Addresses to connect to stay what they are, and local paths are none."""
    assert not is_remote(written)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("-oProxyCommand=x:/d", "does not begin with '-'"),
        ("alice@-oX:/d", "does not begin with '-'"),
        ("-l@nas:/d", "does not begin with '-'"),
        ("ssh://-oX/d", "does not begin with '-'"),
        ("ssh://%2doX/d", "does not begin with '-'"),
        ("a b:/d", "is not the name of a host"),
        ("a\n:/d", "is not the name of a host"),
        ("a;b:/d", "is not the name of a host"),
        ("$(a):/d", "is not the name of a host"),
        ("ssh://a%0ab/d", "is not the name of a host"),
        ("a\tb@nas:/d", "is not the name of a user"),
        ("a`b`@nas:/d", "is not the name of a user"),
        ("@nas:/d", "has no user"),
        ("ssh:///d", "has no host"),
        ("alice@nas:123", "a directory or a port? Write alice@nas:./123, or ssh://alice@nas:123/DIR"),
        ("2001:db8::1:/dir", "write an IPv6 address in brackets, such as [2001:db8::1]:DIR"),
        ("ssh://nas:0/d", "ports are 1 to 65535"),
        ("ssh://nas:123456/d", "ports are 1 to 65535"),
        ("ssh://nas:x/d", "write it as [USER@]HOST:DIR"),
        ("ssh://nas/%00", "a path has no NUL"),
        ("nas:\0", "write it as [USER@]HOST:DIR"),
    ],
)
def test_what_no_ssh_is_asked_for(written: str, said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_remote(written)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()

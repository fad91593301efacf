"""Attributes: the one order in which they are set, what needs the receiver's own flag, and what is told."""

import errno
import os
import re
import stat
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from filestreamer.wire import messages as m
from receiver.disk.attributes import acl, attributes
from receiver.disk.attributes.attributes import Attributes
from receiver.disk.report import Report
from tests.support.tree_receiver import told

MTIME = 1_700_000_000_000_000_000
IS_ROOT = os.geteuid() == 0
roots = pytest.mark.skipif(not IS_ROOT, reason="only root may set what is privileged")


def entry(type: m.EntryType = m.EntryType.FILE, mode: int = 0o640, **more: Any) -> m.Entry:
    return m.Entry(b"f", type, 0, mode, MTIME, **more)


class Setter:
    """Sets attributes, and remembers what is told."""

    def __init__(self, xattrs: Sequence[m.Xattr] | None = None, *, allow_privileged: bool = False) -> None:
        self.report = Report(lambda: None)
        xattrs_of = None if xattrs is None else lambda _: xattrs
        self.attributes = Attributes(self.report, allow_privileged=allow_privileged, xattrs_of=xattrs_of)

    def told(self) -> tuple[list[m.DeclinedEntry], list[str]]:
        return told(self.report)

    def file(self, path: Path, wanted: m.Entry) -> int:
        """Give a file what its entry has; return its mode."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self.attributes.put_file(fd, wanted, 7)
        finally:
            os.close(fd)
        return stat.S_IMODE(path.stat().st_mode)

    def directory(self, path: Path, wanted: m.Entry) -> int:
        fd = os.open(path, os.O_RDONLY)
        try:
            self.attributes.put_directory(fd, wanted, 7)
        finally:
            os.close(fd)
        return stat.S_IMODE(path.stat().st_mode)

    def correct(self, path: Path, wanted: m.Entry) -> int:
        fd = os.open(path.parent, os.O_RDONLY)
        try:
            self.attributes.correct_file(fd, os.fsencode(path.name), wanted, 7, path.lstat())
        finally:
            os.close(fd)
        return stat.S_IMODE(path.stat().st_mode)


def user(name: str, value: bytes = b"value") -> m.Xattr:
    return m.Xattr(b"user." + name.encode(), value)


def made_acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in entries)


NOBODY = 0xFFFFFFFF
NARROW_GROUP = made_acl((1, 6, NOBODY), (2, 6, 1234), (4, 0, NOBODY), (0x10, 6, NOBODY), (0x20, 0, NOBODY))
"""A user may read and write, the owning group nothing: its mode is 0660."""


# --------------------------------------------------------------------------------------------------------- special bits


@pytest.mark.parametrize("bits", [0o4000, 0o2000, 0o6000])
def test_setuid_and_setgid_need_the_flag_and_an_owner(tmp_path: Path, bits: int) -> None:
    ours: dict[str, Any] = {"uid": os.geteuid(), "gid": os.getegid()}
    for allowed, owner, kept in [(False, ours, 0), (True, {}, 0), (True, {"uid": ours["uid"]}, 0), (True, ours, bits)]:
        setter = Setter(allow_privileged=allowed)
        assert setter.file(tmp_path / "f", entry(mode=bits | 0o755, **owner)) == kept | 0o755
        told, warnings = setter.told()
        assert (told, len(warnings)) == ([], not kept)


def test_what_is_not_special_costs_no_warning(tmp_path: Path) -> None:
    setter = Setter()
    assert setter.file(tmp_path / "f", entry(mode=0o1644)) == 0o644
    assert setter.told() == ([], [])


@roots
def test_a_file_that_another_user_may_run_never_has_a_wrong_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    def watch(name: str) -> None:
        call: Callable[..., None] = getattr(os, name)

        def watched(this: int, *args: Any, **more: Any) -> None:
            call(this, *args, **more)
            status = os.stat(this)
            seen.append((status.st_uid, stat.S_IMODE(status.st_mode)))

        monkeypatch.setattr(os, name, watched)

    watch("chown")
    watch("chmod")
    setter = Setter(allow_privileged=True)
    assert setter.file(tmp_path / "f", entry(mode=0o4755, uid=1234, gid=5)) == 0o4755
    assert seen == [(1234, 0o600), (1234, 0o4755)]


@roots
def test_an_owner_that_the_file_system_ignores_is_no_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some network file systems do: the call succeeds, and nothing changes."""
    monkeypatch.setattr(os, "chown", lambda *_args, **_more: None)
    setter = Setter(allow_privileged=True)
    assert setter.file(tmp_path / "f", entry(mode=0o4755, uid=1234, gid=5)) == 0o755
    (told,), _ = setter.told()
    assert (told.file_id, told.reason) == (7, "its owner is not set to 1234:5: its file system keeps none")


def test_a_full_quota_of_another_owner_ends_the_transfer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(OSError, match="quota"):
        Setter(allow_privileged=True).file(tmp_path / "f", entry(uid=1234))


# ---------------------------------------------------------------------------------------------------------- directories


def test_a_directory_keeps_its_special_bits_and_gets_those_of_the_source(tmp_path: Path) -> None:
    wanted = entry(m.EntryType.DIRECTORY, 0o3750)
    (tmp_path / "d").mkdir()
    assert Setter().directory(tmp_path / "d", wanted) == 0o3750
    for mode in (0o1777, 0o2777, 0o3777, 0o4777):
        (tmp_path / "d").chmod(mode)
        assert Setter().directory(tmp_path / "d", wanted._replace(mode=0o750)) == mode & 0o3000 | 0o750
    assert (tmp_path / "d").stat().st_mtime_ns == MTIME


def test_the_mode_of_a_directory_stays_where_it_would_lose_its_setgid_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attributes, "_may_keep_setgid", lambda _: False)
    (tmp_path / "d").mkdir()
    (tmp_path / "d").chmod(0o2770)
    setter = Setter()
    assert setter.directory(tmp_path / "d", entry(m.EntryType.DIRECTORY, 0o755)) == 0o2770
    assert setter.directory(tmp_path / "d", entry(m.EntryType.DIRECTORY, 0o770)) == 0o2770
    told, warnings = setter.told()
    assert (told, ["setgid" in text for text in warnings]) == ([], [True])


def test_a_directory_is_sticky_from_the_first() -> None:
    assert Setter().attributes.new_directory_mode(entry(m.EntryType.DIRECTORY, 0o3777), 0) == 0o1777
    with_acl = Setter([m.Xattr(acl.ACCESS, NARROW_GROUP)]).attributes
    assert with_acl.new_directory_mode(entry(m.EntryType.DIRECTORY, 0o770), 0) == 0o700


# ------------------------------------------------------------------------------------------------ files that stay there


def test_a_file_that_stays_keeps_bits_that_its_entry_has(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.touch()
    for there, wanted, after in [
        (0o4755, 0o4755, 0o4755),
        (0o4755, 0o4711, 0o4711),
        (0o4755, 0o755, 0o755),
        (0o755, 0o4755, 0o755),
        (0o6755, 0o4755, 0o4755),
    ]:
        file.chmod(there)
        assert Setter().correct(file, entry(mode=wanted)) == after
    file.chmod(0o4755)
    setter = Setter()
    assert setter.correct(file, entry(mode=0o4755, uid=os.geteuid() + 1)) == 0o755
    told, warnings = setter.told()
    assert (len(told), len(warnings)) == (1, 1)


def test_what_took_the_place_of_a_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "f").touch(0o600)
    before = (tmp_path / "f").lstat()
    (tmp_path / "other").touch(0o600)
    os.replace(tmp_path / "other", tmp_path / "f")
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="replaced"):
            Setter().attributes.correct_file(fd, b"f", entry(), 0, before)
    finally:
        os.close(fd)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600


@roots
def test_a_symlink_gets_its_own_attributes(tmp_path: Path) -> None:
    (tmp_path / "target").touch(0o600)
    (tmp_path / "f").symlink_to("target")
    fd = os.open(tmp_path, os.O_RDONLY)
    setter = Setter([m.Xattr(b"trusted.x", b"1"), user("x")], allow_privileged=True)
    try:
        setter.attributes.put_symlink(fd, b"f", entry(m.EntryType.SYMLINK, 0o777, uid=1234, gid=5), 7)
    finally:
        os.close(fd)
    link, target = (tmp_path / "f").lstat(), (tmp_path / "target").stat()
    assert (link.st_uid, link.st_gid, link.st_mtime_ns) == (1234, 5, MTIME)
    assert (target.st_uid, stat.S_IMODE(target.st_mode)) == (0, 0o600)
    assert target.st_mtime_ns != MTIME
    assert os.listxattr(tmp_path / "target") == []
    assert os.getxattr(tmp_path / "f", "trusted.x", follow_symlinks=False) == b"1"
    (told,), _ = setter.told()
    assert told.reason == "extended attributes are not set: user.x (Operation not permitted)"


# -------------------------------------------------------------------------------------------------- extended attributes


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "f"
    path.touch()
    try:
        os.setxattr(path, "user.there", b"1")
    except OSError:
        pytest.skip("this file system keeps no extended attributes")
    return path


def values(path: Path) -> dict[str, bytes]:
    return {name: os.getxattr(path, name) for name in os.listxattr(path)}


def test_extended_attributes_become_those_of_the_source(file: Path) -> None:
    os.setxattr(file, "user.same", b"same")
    Setter([user("a", b"x" * 1000), user("same", b"same"), user("empty", b"")]).file(file, entry())
    assert values(file) == {"user.a": b"x" * 1000, "user.same": b"same", "user.empty": b""}
    Setter([user("a", b"other")]).correct(file, entry())
    assert values(file) == {"user.a": b"other"}
    Setter([]).correct(file, entry())
    assert values(file) == {}


def test_they_stay_where_the_sender_does_not_keep_them(file: Path) -> None:
    Setter().file(file, entry())
    Setter().correct(file, entry())
    assert values(file) == {"user.there": b"1"}


def test_what_can_not_be_set_is_told_and_the_rest_is_set(file: Path) -> None:
    # More than a file system keeps, one of another's namespace, and what the receiver does not allow.
    label, capability, trusted = (
        m.Xattr(b"security.selinux", b"x\0"),
        m.Xattr(b"security.capability", bytes(20)),
        m.Xattr(b"trusted.x", b""),
    )
    setter = Setter(
        [
            m.Xattr(b"user.large", bytes(100_000)),
            label,
            capability,
            trusted,
            m.Xattr(b"system.nfs4_acl", b"x"),
            user("z"),
        ]
    )
    assert setter.file(file, entry()) == 0o640
    assert values(file) == {"user.z": b"value"}
    (told,), (warning,) = setter.told()
    assert told.kind is m.SkipKind.ATTRIBUTE
    assert told.reason.startswith("extended attributes are not set: ")
    assert told.reason.endswith(" and 1 more")
    assert "label" in warning


def test_a_full_attribute_space_is_no_full_disk(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "setxattr", refuse)
    setter = Setter([user("a")])
    setter.file(file, entry())
    assert setter.told()[0][0].reason == "extended attributes are not set: user.a (No space left on device)"


@roots
def test_capabilities_come_last_and_only_with_the_right_owner(file: Path) -> None:
    capability = m.Xattr(b"security.capability", struct.pack("<IIIII", 0x02000001, 0x400, 0, 0, 0))
    setter = Setter([capability, user("z")], allow_privileged=True)
    setter.file(file, entry(mode=0o755, uid=1234, gid=5))
    assert values(file) == {"security.capability": capability.value, "user.z": b"value"}
    assert setter.told() == ([], [])
    setter.correct(file, entry(mode=0o755))
    assert setter.told() == ([], []), "it is there already"
    os.setxattr(file, "security.capability", struct.pack("<IIIII", 0x02000001, 0x800, 0, 0, 0))
    setter.correct(file, entry(mode=0o755))
    assert "owner" in setter.told()[0][0].reason


def test_an_acl_is_there_before_the_mode_gives_its_group_more(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    chmod = os.chmod

    def watch(this: int, mode: int) -> None:
        chmod(this, mode)
        seen.append(mode if acl.ACCESS.decode() in os.listxattr(this) else -mode)

    file.chmod(0o600)
    monkeypatch.setattr(os, "chmod", watch)
    setter = Setter([m.Xattr(acl.ACCESS, NARROW_GROUP)])
    assert setter.file(file, entry(mode=0o660)) == 0o660
    assert os.getxattr(file, acl.ACCESS) == NARROW_GROUP
    assert seen == []
    assert Setter([]).correct(file, entry(mode=0o660)) == 0o660
    assert os.listxattr(file) == []
    assert seen == [0o600, -0o660]


def test_without_its_acl_a_file_gives_its_group_no_more(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    setter = Setter([m.Xattr(acl.ACCESS, NARROW_GROUP)])
    assert setter.file(file, entry(mode=0o660)) == 0o600
    assert setter.told()[0][0].reason == "its ACL is not set: Operation not supported"


@pytest.mark.parametrize("number", [errno.EIO, errno.EUCLEAN, errno.ESTALE])
@pytest.mark.parametrize("xattr", [m.Xattr(acl.ACCESS, NARROW_GROUP), user("a")], ids=["acl", "user"])
def test_an_attribute_that_a_failing_disk_does_not_take_ends_the_transfer(
    file: Path, monkeypatch: pytest.MonkeyPatch, xattr: m.Xattr, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "setxattr", fail)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        Setter([xattr]).file(file, entry(mode=0o660))


@pytest.mark.parametrize("value", [b"", b"\2\0\0\0", NARROW_GROUP[:-3], bytes(1000)])
def test_an_acl_that_is_none_widens_nothing(value: bytes) -> None:
    assert acl.narrowed(0o664, value) == 0o604

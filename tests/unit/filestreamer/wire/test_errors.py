"""What can go wrong, and what each end means (proto/README.md, "Codes")."""

import errno
import signal

import pytest

from filestreamer.wire import errors
from filestreamer.wire.errors import (
    CONSEQUENCES,
    Aborted,
    Code,
    ConnectionLost,
    Consequence,
    Exit,
    FilestreamerError,
    Interrupted,
    LocalProtocolError,
    Refused,
    RemoteProtocolError,
    TransferFailed,
    UsageError,
    from_os_error,
)


def test_every_code_has_consequences() -> None:
    assert list(CONSEQUENCES) == list(Code)


def test_what_is_retryable_exits_1() -> None:
    """Who may try again by itself must be told apart from who was refused, or can't read or write."""
    assert {consequence.exit_code for consequence in CONSEQUENCES.values() if consequence.retryable} == {Exit.FAILED}


def test_the_exit_codes_that_users_script_against() -> None:
    assert {name: int(code) for name, code in Exit.__members__.items()} == {
        "COMPLETE": 0,
        "FAILED": 1,
        "USAGE": 2,
        "REFUSED": 3,
        "DATA": 4,
        "PARTIAL": 5,
        "ABSENT": 6,
    }


@pytest.mark.parametrize("code", Code)
def test_an_end_with_a_code_goes_by_its_verdict(code: Code) -> None:
    for error in (
        RemoteProtocolError("why", code),
        Refused(code, "why"),
        Aborted(code, "why"),
        TransferFailed(code, "why"),
    ):
        assert Consequence(error.retryable, Exit(error.exit_code)) == CONSEQUENCES[code]
        assert error.code is code
        assert error.reason == "why"
        assert error.name == code.name.lower()
        assert str(error).endswith("why")


def test_who_ended_it_is_said() -> None:
    assert str(Refused(Code.BUSY, "why")) == "the receiver refused: why"
    assert str(Aborted(Code.BUSY, "why")) == "the other side ended the transfer: why"
    assert str(TransferFailed(Code.BUSY, "why")) == "why"


def test_nonsense_of_the_peer_is_protocol_unless_said_otherwise() -> None:
    assert RemoteProtocolError("why").code is Code.PROTOCOL
    assert not RemoteProtocolError("why").retryable


@pytest.mark.parametrize(
    ("error", "retryable", "exit_code", "name"),
    [
        (FilestreamerError("why"), False, 1, "failed"),
        (UsageError("why"), False, 2, "usage"),
        (LocalProtocolError("why"), False, 1, "internal"),
        (ConnectionLost("why"), True, 1, "connection_lost"),
        (Interrupted(signal.SIGINT), True, 130, "interrupted"),
        (Interrupted(signal.SIGTERM), True, 143, "interrupted"),
    ],
)
def test_an_end_without_a_code(error: FilestreamerError, retryable: bool, exit_code: int, name: str) -> None:
    assert (error.retryable, error.exit_code, error.name) == (retryable, exit_code, name)


def test_one_root() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BaseException)]

    assert len(kinds) >= 9
    assert all(issubclass(kind, FilestreamerError) for kind in kinds)


def test_the_docstring_shows_the_whole_tree() -> None:
    assert errors.__doc__ is not None
    kinds = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and not name.startswith("_")}
    public = {name for name, kind in kinds.items() if issubclass(kind, FilestreamerError)}

    assert public == public & set(errors.__doc__.split())


@pytest.mark.parametrize(
    ("number", "code", "expected"),
    [
        (errno.ENOSPC, Code.DESTINATION, Code.NO_SPACE),
        (errno.EDQUOT, Code.DESTINATION, Code.NO_SPACE),
        (errno.EFBIG, Code.DESTINATION, Code.NO_SPACE),
        (errno.EACCES, Code.DESTINATION, Code.DESTINATION),
        (errno.EIO, Code.DESTINATION, Code.DESTINATION),
        (errno.ENOSPC, Code.SOURCE, Code.SOURCE),  # a source can't be full
        (errno.EIO, Code.SOURCE, Code.SOURCE),
    ],
)
def test_an_error_of_a_file(number: int, code: Code, expected: Code) -> None:
    failure = from_os_error(OSError(number, "as the system says"), code, "writing x")

    assert failure.code is expected
    assert str(failure) == "writing x: as the system says"


def test_an_error_of_a_file_without_a_number() -> None:
    assert str(from_os_error(OSError("odd"), Code.SOURCE, "reading x")) == "reading x: odd"

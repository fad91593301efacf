"""Paths: which names may be written, and how names of a peer are shown."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from filestreamer.wire.errors import Code, TransferFailed
from receiver.disk.paths import check_name, check_path, check_paths
from tests.support.staged_file import failure


@pytest.mark.parametrize(
    "name",
    [b"f", b"x" * 255, b"..f", b"f..", b" ", b"\n", b"\xff\xfe", b".filestreamer2", b"-", b"a\\b", b"filestreamer"],
)
def test_names_that_may_be_written(name: bytes) -> None:
    assert name == check_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *(b"", b".", b"..", b"/", b"/f", b"//f", b"../f", b"f/..", b"f/../g", b"./f", b"f/.", b"f/", b"f//g"),
        *(b"\0", b"f\0", b"\0f", b".filestreamer", b".filestreamer/f", b"f/.filestreamer"),
        *(b"x" * 256, b"f/" + b"x" * 256),
        *(b"f/.FileStreamer/g", ".filestre\u200camer".encode(), b".filestreamer."),
    ],
    ids=repr,
)
def test_names_that_may_not(name: bytes) -> None:
    failure(Code.PATH, check_name, name)


PIECES = [b"f", b"/", b".", b"..", b"\0", b"", b"x" * 250, b".filestreamer", b".FileStreamer.", "ﬁ".encode(), b"\xff"]
"""What paths are made of: the last but one folds to `fi`, which a name of staging could begin with behind its dot."""


@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=4).map(b"".join), max_size=4))
@example([b"a", b"/b"])
@example([b"a/", b"b"])
@example([".ﬁlestreamer".encode(), b"b"])
@example([b"a.", b"filestreamer"])
@example(["a\u0338".encode(), b"b"])
def test_many_paths_are_refused_where_one_is(paths: list[bytes]) -> None:
    refused = []
    for path in paths:
        try:
            check_path(path)
        except TransferFailed as error:
            refused.append(error.reason)
    if refused:
        assert refused[0] == failure(Code.PATH, check_paths, paths)
    else:
        check_paths(paths)


@pytest.mark.parametrize("name", [b"f/g", b"a/b/c/d"])
def test_names_of_trees(name: bytes) -> None:
    failure(Code.POLICY, check_name, name)


def test_names_are_shown_escaped() -> None:
    message = failure(Code.PATH, check_name, b"\x1b[2J\n\xff\0" + b"x" * 1000)
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 500

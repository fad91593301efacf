"""Descriptors that large files of trees share."""

import errno
import os

import pytest

from filestreamer.wire.errors import Code, from_os_error
from receiver.disk.descriptors import DescriptorPool, directories, places


def test_places_are_shared() -> None:
    shared = DescriptorPool(4)
    shared.add_tree("a")
    assert [shared.try_take("a") for _ in range(5)] == [True] * 4 + [False]
    shared.add_tree("b")
    assert shared.try_take("b"), "one is for each tree, in any case"
    assert not shared.try_take("b")
    assert shared.excess("a") == 2
    shared.give_back("a")
    shared.give_back("a")
    assert shared.try_take("b")
    assert not shared.try_take("a")
    shared.remove_tree("b")
    assert [shared.try_take("a") for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("allowed", [16, 64, 256, 1024, 1 << 20])
def test_something_is_left_of_few_descriptors(allowed: int) -> None:
    assert 1 <= places(allowed) * 3 <= max(3, allowed // 4)
    assert 2 <= directories(allowed) <= max(2, allowed // 8)


@pytest.mark.parametrize("code", [Code.DESTINATION, Code.SOURCE])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_too_many_open_files_is_retryable(code: Code, number: int) -> None:
    error = from_os_error(OSError(number, os.strerror(number)), code, "can't open it")
    assert (error.code, error.retryable) == (Code.LIMIT, True)

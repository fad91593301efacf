"""The names of jobs, and how each end compares its own (proto/README.md, "Jobs")."""

import pytest

from filestreamer.wire.errors import Code, RemoteProtocolError
from filestreamer.wire.job_name import check_receiver, check_sender, is_job_name


@pytest.mark.parametrize("name", ["a", "7", "filestreamer-photos", "photos.to-volume-2", "a" * 63, "a--b", "a..b"])
def test_names(name: str) -> None:
    assert is_job_name(name)


@pytest.mark.parametrize(
    "name", ["", "a" * 64, "A", "a_b", "a/b", "a b", "-a", "a-", ".a", "a.", "a\n", "ä", "a\0", "²", "\u0661"]
)
def test_what_is_no_name(name: str) -> None:
    assert not is_job_name(name)


def test_a_receiver_compares() -> None:
    assert check_sender("photos", "photos") == "photos"
    assert check_sender("", "photos") == "photos"
    assert check_sender("", "") == ""
    for senders in ("mails", ""):
        with pytest.raises(RemoteProtocolError, match="'photos'") as caught:
            check_sender("photos", senders)
        assert (caught.value.code, caught.value.retryable, caught.value.exit_code) == (Code.JOB, False, 3)


def test_a_sender_compares() -> None:
    check_receiver("photos", "photos")
    check_receiver("", "")
    for job, receivers in (("photos", "mails"), ("photos", ""), ("", "photos")):
        with pytest.raises(RemoteProtocolError) as caught:
            check_receiver(job, receivers)
        assert caught.value.code is Code.JOB

"""What is told of this side's own certificate, and when."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from filestreamer.settings import own_certificate
from filestreamer.settings.own_certificate import OwnCertificate
from filestreamer.wire.session import Side
from tests.support.certificates import Authority, Pem


class Log:
    """Remembers the reasons of warnings."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def warning(self, event: str, *, reason: str) -> None:
        assert event == "certificate_not_valid"
        self.reasons.append(reason)


class Clock:
    """Stands for `datetime` in the module: its time goes on when a test says so."""

    def __init__(self) -> None:
        # A minute ahead: certificates that a test makes are valid by then, however slow the machine is.
        self.time = datetime.now(UTC) + timedelta(minutes=1)

    def now(self, _zone: Any) -> datetime:
        return self.time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock that certificates are compared with."""
    made = Clock()
    monkeypatch.setattr(own_certificate, "datetime", made)
    return made


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return an authority for the whole module."""
    return Authority(tmp_path_factory.mktemp("pki"), "ca")


def der(pem: Pem) -> bytes:
    import ssl

    return ssl.PEM_cert_to_DER_cert(Path(pem.certificate).read_text())


def test_one_that_expires_while_it_is_shown(authority: Authority, clock: Clock) -> None:
    log = Log()
    own = OwnCertificate("receiver", "tls.crt", log, "peers")
    shown = der(authority.issue("short"))  # two days
    own.look(shown)
    assert log.reasons == []
    clock.time += timedelta(days=3)
    for _ in range(3):
        own.look(shown)
        clock.time += timedelta(hours=1)
    assert len(log.reasons) == 1
    assert log.reasons[0].startswith("--tls-cert tls.crt expired on ")
    own.look(der(authority.issue("old", expired=True)))  # renewed, by another one that is of no use
    assert len(log.reasons) == 2


def test_a_clock_that_was_wrong(authority: Authority, clock: Clock) -> None:
    log = Log()
    own = OwnCertificate("sender", "tls.crt", log, "peers")
    shown = der(authority.issue("good"))
    clock.time -= timedelta(days=20_000)
    own.look(shown)
    assert "is not valid before" in log.reasons[0]
    clock.time += timedelta(days=20_000)
    own.look(shown)
    assert len(log.reasons) == 1


@pytest.mark.parametrize(("side", "usage"), [("receiver", "clientAuth"), ("sender", "serverAuth")])
def test_one_that_is_for_the_other_side(authority: Authority, side: Side, usage: str) -> None:
    log = Log()
    shown = der(authority.issue(f"for-{side}", extensions=[f"extendedKeyUsage={usage}"]))
    OwnCertificate(side, "tls.crt", log, "peers").look(shown)
    assert f"has the extended key usage {usage}" in log.reasons[0]
    assert log.reasons[0].endswith("peers that check it refuse it: issue it anew")
    log.reasons.clear()
    both = der(authority.issue("both", extensions=["extendedKeyUsage=serverAuth,clientAuth"]))
    OwnCertificate(side, "tls.crt", log, "peers").look(both)
    assert log.reasons == []


def test_what_can_not_be_read_is_left_to_openssl() -> None:
    log = Log()
    OwnCertificate("receiver", "tls.crt", log, "peers").look(b"\x30\x00")
    assert log.reasons == []

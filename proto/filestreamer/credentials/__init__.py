"""What each end shows and asks for, so that both know who the other one is (proto/README.md, "Security").

1. `tokens`       the end that dials: the token that each connection proves, as its file has it now;
2. `trust`        the TLS client: how it knows that the certificate is its peer's, and the handshake;
3. `certificate`  the TLS server: what it shows, of --tls-cert or made for this run.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from filestreamer.credentials.trust import Trust
    from filestreamer.settings.common import CommonSettings


def trust_of(settings: "CommonSettings", log: Any, peers: str) -> "Trust | None":
    """Return what does the TLS handshakes of an end that dials `peers`; None without TLS. Raises UsageError."""
    if not settings.tls:
        return None
    from filestreamer.credentials.trust import Trust  # it loads OpenSSL

    return Trust(settings, log, peers)

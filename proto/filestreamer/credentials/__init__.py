"""What each end shows and asks for, so that both know who the other one is (proto/README.md, "Security").

1. `tokens`       the end that dials: the token that each connection proves, as its file has it now;
2. `trust`        the TLS client: how it knows that the certificate is its peer's, and the handshake;
3. `certificate`  the TLS server: what it shows, of --tls-cert or made for this run.
"""

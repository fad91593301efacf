"""Sockets of both services: the only modules of `wire` that touch one.

1. `addresses`  a host name becomes addresses; an address becomes text for people;
2. `listen`     a receiver, and the metrics endpoint, listen on every address of a name;
3. `dial`       a sender connects to the first address that answers, trying them side by side; both know from
                `own_address` what to wait for where this machine does not have an address yet;
                `route` is how a peer is reached, of which TCP is the usual way;
4. `tls`        where it is wanted, TLS 1.3: contexts, and the handshake of a sender;
                `pem` reads certificates and keys from PEM files, whatever tool wrote them, and `certificate` what they
                say, and makes one; `tls_errors` says what a failed handshake means;
5. `transport`  `prepare` sets the options of a connected socket, and `Channel` reads and writes it: whole frames and
                payload, with a limit for each wait, until it is closed in order; `tls_channel` does so over TLS,
                on the session of `tls_stream`;
6. `control_link`  the control connection of a transfer, as both coordinators use it: writes, heartbeats, goodbye;
7. `memory`     buffers for payload, in huge pages where the kernel has them.
"""

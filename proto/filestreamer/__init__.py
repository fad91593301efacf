"""What sender and receiver share: the protocol, and what a command around a transfer needs.

From the bottom, each floor importing only floors below it:

1. `v1`         the protocol's messages as protobuf (wire.proto), and the code that is generated from them;
   `version`    the version of the distribution;
2. `wire`       the protocol: limits, messages, frames, session, errors; and in `wire.sockets` the sockets;
3. `process`    the process of a command: log, standard error, signals, threads;
4. `settings`   flags, environment variables and the config file;
5. `telemetry`  what is measured of transfers: counters, metrics, the live page, the result;
6. `terminal`   the progress display.

The normative text of the protocol is proto/README.md.
"""

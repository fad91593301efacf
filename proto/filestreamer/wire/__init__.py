"""The bytes between a sender and a receiver, and nothing else (normative text: proto/README.md).

What happens to a frame, from the socket to the code that acts on it:

1. `limits`     how large, how many, how long: every bound;
2. `transport`  a connected socket: whole buffers in and out, deadlines, an end in order (the only module with sockets);
3. `framing`    length, checksum, body: cuts the byte stream into frames;
4. `codec`      a body to a native, frozen message and back (the only module that sees generated code);
5. `messages`   those messages;
6. `session`    which message is legal when, as one table;
7. `opening`    Greeting, Hello, Proof, Welcome: the first frames, as seen by either end; `auth` computes the proofs, and
                `features` says what a transfer may use of what both ends name;
8. `grid`       where the segments of a file lie; `digests` what proves them;
9. `errors`     what can go wrong, as one tree, and the exit code each end means.

Payload is never in here: to the framing it is "N bytes owed", which the services move between socket and file.
"""

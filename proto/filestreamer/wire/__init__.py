"""The bytes between a sender and a receiver (normative text: proto/README.md).

The life of a connection, and of the bytes on it:

1. `sockets`         connects and listens, and reads and writes whole frames; everything else here is pure
                     (it knows no socket, no file and no clock);
2. `opening`         Greeting, Hello, Proof, Welcome, as seen by either end; `receiver_dials` is the same where the
                     receiver dials; `auth` computes the proofs; `features` are options that a transfer may use if both
                     ends have named them;
3. `framing`         a frame on the wire: length, checksum, body;
4. `codec`           a body to a message and back; the only module that imports generated code (`v1`);
5. `messages`        the messages, as named tuples; `xattr_parts` cuts extended attributes to fit them;
6. `session`         which message is legal when, as one table;
7. `layout`          cuts files into chunks, and bundles small files into one; `grid` cuts one file into segments;
                     `tree_shares` says which shard of a job moves which of them; `blocks` takes the small segments of
                     a chunk together;
8. `digests`         the digests of segments and of the whole transfer, and the checksum of a frame;
9. `progress_clock`  when a transfer last made progress, as both ends define it;
10. `errors`         everything that can go wrong, as one tree, with codes and exit codes;
11. `limits`         every limit of the protocol;
12. `job_name`       the name of a job, as both ends must read it; likewise `staging_name`, the name that no path may
                     have, and the `patterns` of --exclude and --include.

`runs` finds the runs in tables of states and in numbers, which messages tell as ranges.

Payload is not a message: after the header of a chunk, the services move raw bytes between socket and file.
"""

"""What sender and receiver share: the protocol, and what a command around a transfer needs.

From the bottom, each floor importing only floors below it:

0. `imports`    libraries without what they import and nothing here needs;
   `records`    classes of fields that are made quickly;
1. `v1`         the protocol's messages as protobuf (wire.proto), and the code that is generated from them;
   `version`    the version of the distribution;
2. `wire`       the protocol: limits, messages, frames, session, errors; and in `wire.sockets` the sockets;
3. `process`    the process of a command: log, standard error, signals, threads;
4. `settings`   flags, environment variables and the config file;
   `listening`  the side that listens: connections in their opening;
5. `credentials`  what each end shows and asks for: tokens and certificates;
6. `ssh`        the far side over ssh, and the way to it;
7. `telemetry`  what is measured of transfers: counters, metrics, the live page, the result;
8. `terminal`   the progress display.

The normative text of the protocol is proto/README.md. Its words, which the code uses:

    entry, part     what one path is (file, directory, symlink); a thousand entries of the manifest, in one ManifestPart
    chunk           what one connection sends, and the receiver acknowledges, as a whole: a slice of one large file, or
                    a bundle of small ones; a segment is the piece of one file in it, a block one read or write
    needed, held    the receiver's answers: chunks that are to be sent, and chunks that it has already
    shard, share    a sender that moves only some chunks of a large file, and these chunks
    stream, pipe    a source without a size (standard input); an output that is written in order (standard output)
    staging, ledger where an incomplete file is kept, and the list of its segments that are there
"""

"""The receiver: one port, any number of senders, every byte checked, nothing partial under a final name.

The floors, from the top; each imports only floors below it:

    server       the service: lets connections in, gives out names, reports every transfer that has ended
    transfer     one transfer: its coordinator, its data connections, its end
    check        what a dry run is answered; nothing is written
    tree | pipe  what a transfer receives into, if it is no single file: a tree; an output that is written in order
    file         a single file: the states of its chunks, what the sender is answered, what is re-hashed
    disk         the destination: staging, ledger, locks, space, renames
    memory       the memory that this process may take, and lends to its peers

The path of a file through them:

1. `server` accepts a connection, and takes it through TLS, Greeting, Hello and Proof. The control connection begins a
   transfer; data connections with the same transfer id join it.
2. `transfer` takes the Offer and the manifest. `server` gives it the name, if no other transfer has it, or
   the one that has it yields (its sender is gone, or makes no progress). `disk` opens the staging in `.filestreamer/`,
   and locks it.
3. `disk` reads the ledger of an earlier run. `file` hashes the segments again that the ledger claims, while the sender
   already sends those that it does not claim.
4. `transfer` receives chunks: it hashes and writes them block by block, compares the digests, records them in the
   ledger, and acknowledges them. Where a digest differs, `file` makes the chunk free
   again, and the sender is told to send it again. `file` lets one connection at a time write a chunk, and lets no
   connection write into a chunk that is verified.
5. At Finish `file` compares the root digest, and `disk` commits: sync, rename, sync of the directory. A shard whose
   siblings are missing seals its share in the ledger instead. Then the receiver sends Complete.
6. `server` reports the result, and frees the name.

`__main__` is the command, `settings` its flags, `health` the command that the image's HEALTHCHECK runs. `pull` starts
the sender over ssh (--from), and `far_side` is what `sender --to HOST:DIR` starts over ssh.
"""

import os
import sys

if sys.version_info < (3, 11):  # noqa: UP036 - as a command over ssh, this may be run by any Python
    sys.stderr.write(
        "filestreamer needs Python 3.11 or newer; this is " + ".".join(map(str, sys.version_info[:2])) + "\n"
    )
    sys.exit(2)

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    # `python -m receiver` puts the working directory first on sys.path. Received files may lie there, and none of them
    # must be imported. The two modules above are loaded before any directory is searched.
    try:
        sys.path.remove(os.getcwd())
    except (OSError, ValueError):  # the directory is gone, or was never on sys.path
        pass

"""The receiver: one port, any number of senders, every byte checked, nothing partial under a final name.

The data path, in the order of the modules:

1. `server`      accepts; `handshake` lives through the opening with strangers (`token`); then a transfer goes on;
2. `transfer`    coordinates one transfer, one event at a time, whatever its `target` is: a `single` file, a `tree`, or
                 what is `piped` to an `output`. What may wait for a disk is done `aside`, in another thread;
                 `liveness` says whether the transfer makes progress;
3. `files`       gives it the file, a shard its share of one, or a tree its root, if no other transfer has it, and
   `staging`     opens it in `.filestreamer/`, under a lock; `space` takes its space ahead, and gives it back;
4. `ledger`      says what an earlier run left there (pure), which
5. `rehash`      hashes again, while what is certainly missing flows already;
6. `connection`  receives chunks: hashes and writes block by block, compares digests, acknowledges;
7. `connection_set`      hands them to the cargo: every segment checked, one writer at a time; in it
8. `chunk_states`    keeps the state of each chunk of a file (pure): no write ever lands on a verified one;
9. `staging`     commits: sync, rename (`commit` where no name may be replaced), sync the directory; only then
                 Complete. A shard whose siblings are missing seals its share in the ledger instead.

A tree, in the order of what becomes of an entry:

1. `tree`        takes parts of the manifest, a bounded number at once; `archive` keeps all of them on the disk, in a
                 `spool`, and `roots` keeps the names that the tree has at the top of the destination;
2. `listing`     makes what needs no bytes, and looks at what lies there already; `part_state` keeps the states of a part's
                 files, and `answers` tells them to the sender;
3. `tree_writer`    takes chunks: `small` files are written whole, a `large` one is staged and resumed like a single file.
                 `cache` keeps some large files open, as many as `descriptors` and memory allow;
4. `place`       puts complete files in place: thousands after one sync of the file system. Links, then modes and times
                 of directories, come last.

Memory: `memory` finds the limit of this process; `budget` lends what senders make it hold, over all transfers; `connection_budget`
says what a connection takes of that.
"""

import os
import sys

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    # `python -m receiver` puts the working directory first on sys.path. Nothing is imported from there, as received
    # files may lie in it. The two modules above are loaded before any directory is searched.
    try:
        sys.path.remove(os.getcwd())
    except (OSError, ValueError):  # it is gone, or was never there
        pass

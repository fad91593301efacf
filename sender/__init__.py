"""The sender: walks trees, sends their chunks over N connections, and ends when the receiver says all is durable.

The folders, from the top: server, network, dispatch and listing, source. Each imports only what is below it; where the
modules beside them stand is in pyproject.toml, which `make check` enforces. What happens, in order:

1. `__main__`      reads the `settings`, runs one transfer, and reports its result and exit code
                   (`filestreamer.wire.errors` has the codes);
2. `coordinator`   has the main thread, and acts on the events in its `mailbox`: it alone writes to the
                   control connection. `offer` makes the first message there;
3. `listing`       lists what the user names, and posts parts of a thousand entries; `source` reads it;
4. `dispatch`      cuts the parts into chunks, reads from the answers which of them are needed, and queues these;
5. `network`       opens the connections; each data connection takes chunks from the queue, and sends them;
6. `withdrawals`   goes on without files that can't be sent as they were listed; `second_tries` has those that changed
                   listed again, when everything else is done; `declined` goes on without entries that the receiver
                   can't make; `zeros` tells whole chunks of zeros;
7. `liveness`      notes what counts as progress, and gives up where there is none for too long (`waits` says what was
                   waited for), and `presence` where the receiver of a job is gone.

`asking` is a dry run that asks the receiver: nothing is sent. `farewell` tells the receiver of a job why its sender
ends, where no control connection does. `server` is --listen: a transfer for each receiver that connects. `push` starts
the receiver over ssh, and `far_side` is what `receiver --from` starts over ssh.

The life of a chunk, each step in one place:

    listing.listing           the walk finds a file, and posts it as an Item of a part
    coordinator               adds the part to dispatch.manifest (dispatch.part cuts it), and offers it on control
    dispatch.answers          the receiver needs the chunk; or it holds the chunk, and dispatch.verify compares it
    dispatch.send_queue       the chunk is queued
    network.chunk_sender      send: header; blocks: read, hash, send; digests
                              (small chunks: the queue adds those that follow, and _send_run sends them together)
    network.connection        _take_acknowledgement
    dispatch.send_queue       mark_done; after the last chunk of all the coordinator says Finish

    where a digest differs    network.connection _take_rejected; dispatch.send_queue put_back_damaged queues it again
    where a connection ends   network.connection _close; dispatch.send_queue put_back queues its chunks again
"""

import os
import sys

if sys.version_info < (3, 11):  # noqa: UP036 - as a command over ssh, this may be run by any Python
    sys.stderr.write(
        "filestreamer needs Python 3.11 or newer; this is " + ".".join(map(str, sys.version_info[:2])) + "\n"
    )
    sys.exit(2)

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    # `python -m sender` puts the working directory first on sys.path. Nothing is imported from there, as received files
    # may lie in it. The two modules above are loaded before any directory is searched.
    try:
        sys.path.remove(os.getcwd())
    except (OSError, ValueError):  # the directory is gone, or was never on sys.path
        pass

"""The sender: walks trees, deals chunks to N connections, and ends when the receiver says that all of it is durable.

The data path, in the order of the modules:

1. `walk`        finds what there is below the paths that the user names, as items (`source`); `directories` opens
                 each directory step by step, so that no symbolic link leads out of the tree;
2. `listing`     makes parts of a thousand items, a few ahead of what is sent (one plain file is one part);
3. `manifest`    keeps the parts that are under way, and cuts each into chunks (`chunks`, pure);
4. `dial`        opens the control connection, and the N data connections to where it led;
5. `control`     offers the parts; the receiver says what it needs, and what it holds;
6. `answers`     takes that in: held segments are compared with the source (`verify`), while
7. `schedule`    deals the needed ones (pure): chunk k to connection k mod N, and what is left to connections that are
                 free; of a tree nothing too far `ahead` (pure) of the first chunk that has not arrived;
8. `connection`  sends header, raw bytes, digests; takes in acknowledgements (`rate` slows it down);
9. `queue`        keeps the account under one lock: answered, dealt, settled; puts back what a lost connection had;
10. `transfer`   coordinates, one event at a time, and finds the number of connections (`parallelism`): when all chunks
                 are settled, Finish; after Complete, exit 0.
"""

import os
import sys

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    # `python -m sender` puts the working directory first on sys.path. Nothing is imported from there, as received files
    # may lie in it. The two modules above are loaded before any directory is searched.
    try:
        sys.path.remove(os.getcwd())
    except (OSError, ValueError):  # it is gone, or was never there
        pass

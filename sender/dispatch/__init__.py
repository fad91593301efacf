"""Which chunk is sent next, and over which connection: the queue between the source and the connections. No sockets.

1. `manifest`         keeps the parts that are under way; `part` has the entries of one part, and their answers;
                      `filestreamer.wire.layout` cuts its files into chunks;
2. `answers`          acts on Needed and Held;
3. `verify`           compares segments that the receiver holds with the source, in threads of its own; it reads files
                      again whose ctime moved, which `moved_files` keeps (pure);
4. `send_queue`       queues the needed chunks, under one lock for all threads. Its parts are pure:
   `schedule`         which chunk a connection sends next: chunk k has the home k mod N, and idle connections steal;
   `ahead_limit`      how far chunks of a tree are sent ahead of the first one that is not acknowledged;
   `chunk_states`     which chunks are answered and which are done;
   `pinned_digests`   the digests of what was read, which make the root digest at the end;
5. `withdrawn_files`  keeps the files that can't be sent as listed, and which of them the receiver knows;
6. `parallelism`      finds the number of connections, if the user did not choose it (pure);
7. `stragglers`       finds the connections for whose chunks all others would wait (pure).
"""

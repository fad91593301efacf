"""Which chunk is sent next, and over which connection: the queue between the source and the connections. No sockets.

1. `manifest`         keeps the parts that are under way; `part` has the entries of one, and what they are answered;
                      (`filestreamer.wire.layout` cuts its files into chunks);
2. `answers`          takes in what the receiver says it needs and holds;
3. `verify`           compares what it holds with the source, in threads of its own;
4. `send_queue`       queues the chunks that are needed, under one lock for all threads. In it are, all pure:
   `schedule`         which chunk a connection sends next: chunk k has the home k mod N, and idle connections steal;
   `ahead_limit`      how far ahead of the first chunk that has not arrived those of a tree are sent;
   `chunk_states`     which chunks are answered and which are done;
   `pinned_digests`   the digests of what was read, which make the root digest at the end;
5. `withdrawn_files`  keeps the files that can't be sent after all, and whether the receiver knows;
6. `parallelism`      finds the number of connections, where the user did not choose it (pure).
"""

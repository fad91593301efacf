"""The connections to the receiver: one for control, N for data.

1. `control`        is the thread that opens control, reads it, and opens it again; the coordinator writes to it;
2. `dial`           opens every connection: connects, TLS, Greeting, Hello, Welcome (`pending_opening` is what
                    follows Hello); `filestreamer.credentials` says whether that is the receiver;
   `accepted`       has them where the receiver has dialled; `connector` is the interface of both;
3. `control_state`  says how far control is opened, and to which address: data connections wait for that;
4. `connections`    starts as many data connections as there are chunks for, and has as many as
                    `dispatch.parallelism` decides;
5. `connection`     is one of them: it takes chunks from the queue, and takes in acknowledgements. Beside what all of
                    them have in common (`shared`), it has
   `chunk_sender`   which reads, hashes and sends a chunk,
   `outbox`         what is about to be sent, gathered into few system calls,
   `send_window`    the chunks that it sent and that are not acknowledged;
6. `peer`           knows when bytes came last on any of them, and which error came last;
7. `black_hole`     finds out whether the path loses large packets: `path_mtu` then limits those of new connections.
"""

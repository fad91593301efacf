"""One transfer: from the first connection of its sender to the report of its end.

1. `transfer`        makes the parts (`context`), runs the coordinator, ends everything
2. `coordinator`     holds the control conversation: acts on the events in the `mailbox`, one at a time; whatever may
                     wait for a disk is done by the `disk_worker`, while the coordinator sends heartbeats
3. `target_opener`   at the first part of the manifest, claims a name (`names`: the interface of the registry),
                     and opens the `Target` of a file, a tree or a pipe (`receiver.file.target`);
                     `asked` is all that may be offered, where this receiver has fetched it
4. `connection_set`  the data connections: how many may come, what each takes of memory, one for each connection id
5. `connection`      receives chunks, in a thread for each data connection: header, blocks, digests, acknowledgement
                     `dialling` is the interface of what dials them, where the sender does not
6. `liveness`        whether the sender is there, and the transfer makes progress; if not, the transfer yields its
                     name to another one, or gives up; `black_hole` tells of a path that seems to lose large packets
7. `syncer`          runs each step from Finish to Complete (`Target.next_step`) in a thread, as it may wait for a disk
8. `ending`          stops the threads, closes the target, releases the names; says which of these hangs

File data goes from `connection` through `Target.chunks` to the staging on the disk. The coordinator never sees it.
"""

"""The service: one port, many senders, one destination, or one for each user.

1. `server`      makes the parts, runs the loop, and reports every transfer that has ended;
                 connections come from `filestreamer.listening`, after their opening
2. `token`       chooses the secret that senders have to prove; `users` reads those of several users
3. `admission`   finds the transfer of a connection, or begins one; reserves a place and memory for both
4. `registry`    gives names in the destination to transfers; `name_table` says which transfer has which name.
                 A newer transfer displaces one whose sender is gone or that makes no progress; else it is refused BUSY.
                 `homes` has a registry for each user
5. `run`         says when a receiver with --once is done: by a receipt, or because its sender has ended for good
6. `client`      takes the place of `server` where this end dials (--connect, --from): it receives from one sender, and
                 `dialled` opens the connections to it

`peers_bytes` says how much memory peers may make either of them hold.

A transfer has a thread of its own, and so has each of its data connections (`receiver.transfer`). The server's thread
only takes connections through their opening, and never waits for a peer.
"""

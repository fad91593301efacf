"""The end of a connection that was dialled: it listens, and takes whoever comes through the opening.

1. `acceptor`   accepts connections, and takes many through their opening at once: one thread, nothing ever blocks;
2. `handshake`  one of them: TLS handshake, then the frames of the opening, as far as the bytes reach;
3. `listeners`  the sockets of --listen;
4. `command`    what is printed for the other side, which connects to them.

What is said in an opening, and who proves what first, is that of the service: an `Opening`
(`filestreamer.wire.opening`).
"""

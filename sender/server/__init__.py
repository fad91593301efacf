"""A sender that listens: receivers connect to it, at once and one after another (`sender --listen`).

1. `server`    accepts connections, takes them through the opening, and finds the receiver of each;
2. `serving`   one receiver, in a thread of its own: its transfer, and the report of how it ended;
3. `token`     the token that receivers have to prove.

A receiver is known by the incarnation in its Greeting. What the transfers share is what this process knows of its
files: their digests.
"""

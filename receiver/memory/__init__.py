"""The memory of this process: how much it may take, and how peers share it.

1. `process_limit`      finds the limit: --memory-limit, or what the container allows; and what of it is for peers.
2. `budget`             lends that to transfers: each transfer has an account with a reserved minimum, and borrows the
                        rest. While others wait, a peer borrows no more than a quarter of all.
3. `connection_budget`  says how much a connection takes, and borrows the largest size that there is memory for; where
                        memory is short, connections become smaller.

What a whole transfer takes beside its connections (tables of chunks, parts of a manifest) is borrowed by its owners in
`file`, `tree` and `pipe`, from the account of the transfer.
"""

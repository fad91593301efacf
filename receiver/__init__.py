"""The receiver: one port, any number of senders, every byte checked, nothing partial under a final name.

The data path, in the order of the modules:

1. `server`      accepts; `slot` lives through the opening with strangers (`token`); then a transfer goes on;
2. `transfer`    coordinates one transfer: takes the offer, answers, commits, one event at a time;
3. `files`       gives it the file, or a shard its share of one, if nobody else has it, and
   `store`       stages that in `.filestreamer/`, under a lock;
4. `ledger`      says what an earlier run left there (pure), which
5. `rehash`      hashes again, while what is certainly missing flows already;
6. `connection`  receives chunks: hashes and writes block by block, compares digests, acknowledges;
7. `intake`      lets them in: every segment checked, one writer at a time, the answers to the sender; in it
8. `assembly`    keeps the state of each chunk (pure): no write ever lands on a verified one;
9. `store`       commits: sync, rename, sync the directory; only then Complete. A shard that others are missing of
                 seals its share in the ledger instead.
"""

"""The sender: reads a file, deals its chunks to N connections, and ends when the receiver says that it is durable.

The data path, in the order of the modules:

1. `source`      opens the file and watches that it stays what it is;
2. `chunks`      cuts it (pure): chunk k is bytes [k*C, (k+1)*C); a shard takes every COUNT-th of these;
3. `dial`        opens the control connection, and the N data connections to where it led;
4. `control`     offers the file; the receiver answers which chunks it needs, and which it holds;
5. `verify`      compares the held ones with the source, while
6. `schedule`    deals the needed ones (pure): chunk k to connection k mod N, and what is left over to who is free;
7. `connection`  sends header, raw bytes, digests; takes in acknowledgements (`rate` slows it down);
8. `deal`        keeps the account under one lock: answered, dealt, settled; puts back what a lost connection had;
9. `parallelism` finds how many connections make it fast (pure), where nobody chose: N doubles and halves on the way;
10. `transfer`   coordinates, one event at a time: when all chunks are settled, Finish; after Complete, exit 0.
"""

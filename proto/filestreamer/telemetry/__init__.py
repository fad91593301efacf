"""Measurements of transfers, and how users, scripts and monitoring read them.

While a transfer runs:

1. `counters`    plain numbers, written by the threads of the transfer;
   `chunk_map`   which chunks are there, and which connection brought them (page.html draws it);
   `tcp_info`    what the kernel knows of a connection, read when it is wanted;
   `black_hole`  finds in that a path that loses large packets;
2. `monitor`     what a service shows of itself: it opens the `endpoint`, a small HTTP server, and answers with
   `page`        the live page (page.html) and its data,
   `metrics`     Prometheus metrics; `push` sends them to a Pushgateway, too;
   `wall_clock`  makes dates of monotonic times; `slow_value` reads a value of a disk, which may hang.

When a transfer has ended:

3. `history`     keeps its last values for a while, and totals of all transfers for ever;
4. `bottleneck`  names the stage that limited the transfer;
5. `result`      makes the result of it, as JSON for scripts and as text for people;
6. `report`      writes the result to standard output, the result file and the log.
"""

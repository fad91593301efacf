"""What a process of either service needs around its transfers.

1. `stderr`   replaces standard error when a command begins, so that no thread waits for its reader: lines become jobs
              of a `background` thread;
2. `signals`  ends the process: at once while nothing has begun, in order from then on, at last with an exit code;
3. `log`      makes the logger: JSON lines, or short ones on a terminal; `repeats` counts lines that are repeated again
              and again, so that not each of them is written;
4. `threads`  starts threads, and turns any exception that ends one into an error of the transfer;
5. `backoff`  says how long to wait before the next attempt at something that failed.
"""

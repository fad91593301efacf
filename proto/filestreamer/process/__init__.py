"""What a process of either service needs around its transfers.

1. `stderr`   replaces standard error when a command begins, so that no thread waits for a program that reads it
              slowly: a `background` thread writes the lines;
2. `signals`  ends the process for a signal: at once before a transfer begins, in order after that;
3. `log`      makes the logger: JSON lines, or short ones on a terminal; `repeats` counts lines instead of writing
              each of them, and `log` says of which events, and from which number on;
4. `threads`  starts threads, and turns any exception that ends one into an error of the transfer;
5. `backoff`  says how long to wait before the next attempt at something that failed;
6. `mount`    says on which mount an open file lies;
7. `rate_limit` makes the data connections wait, so that all together stay below a rate;
8. `variables` says what a variable of the environment holds;
9. `garbage`  has Python search for cycles of objects less often than it would;
10. `descriptors` says how many descriptors the process may have, and which of them a path names.
"""

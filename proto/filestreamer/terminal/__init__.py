"""The progress that a user sees while transfers run.

1. `display`    a thread looks at the counters every quarter of a second on a terminal, every five seconds elsewhere;
2. `views`      the counters become views: what is done, how fast, how long it will take, for each connection, too;
3. `screen`     on a terminal, the views are drawn with rich, and log lines go above the drawing;
   `log_lines`  elsewhere, they become `progress` lines in the log.

`telemetry.report` shows the end of a transfer.
"""

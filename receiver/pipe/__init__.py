"""Transfers whose bytes are written in order: to standard output, a FIFO or a device, or a stream to a new file.

1. `standard_output`  opens the output of this receiver, and keeps all other text of the process out of it
2. `window`           borrows memory for chunks that come before their turn
3. `pipe_target`      the target: tells the sender the window, compares the root digest, ends the output
4. `reorder_buffer`   takes chunks in any order from the data connections, and writes them in order, in a thread
5. `ordered_writer`   the interface of the place where they are written: the output, or the staging of a stream
"""

"""Signals while a service starts: they end it by an exception, whatever else comes at the same moment."""

import signal
import subprocess
import sys

import pytest

from tests.support.services import HANG

STARTS = """
import os, signal, sys, time
from filestreamer.process import signals
from filestreamer.wire.errors import Interrupted

numbers = {number, signal.SIGALRM}
signals.WAKE_SECONDS = 0.001
signals.exit_on_signal()
try:
    with signals.raised():
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        os.kill(os.getpid(), number)
        while signal.sigpending() != numbers:
            pass
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        time.sleep(60)
except Interrupted as error:
    print("interrupted by", error.signal_number)
"""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_with_the_clock_that_wakes(number: signal.Signals) -> None:
    """The clock of the start must not be taken for the one that ends a process which does not end by itself."""
    program = f"number = {number.value}\n{STARTS}"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG, check=False)
    assert (ran.returncode, ran.stdout) == (0, f"interrupted by {number.value}\n"), ran.stderr


DEFERS = """
import os, signal
from filestreamer.process import signals
from filestreamer.wire.errors import Interrupted

signals.exit_on_signal()
try:
    with signals.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        print("to the end")
except Interrupted as error:
    print("interrupted by", error.signal_number)
"""

SWALLOWS = (
    DEFERS.replace("deferred", "raised")
    .replace("        os.kill", "      try:\n        os.kill")
    .replace('        print("to the end")', '      except Interrupted:\n        print("to the end")')
)


@pytest.mark.parametrize("program", [DEFERS, SWALLOWS], ids=["put off", "swallowed"])
def test_a_signal_in_a_step_that_goes_on_counts_at_its_end(program: str) -> None:
    """Imports can't be cut short; and where Python drops the exception, the signal is not lost."""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG, check=False)
    assert ran.stdout == "to the end\ninterrupted by 15\n", ran.stderr


def test_after_the_block_the_clock_stands_still() -> None:
    program = (
        "import signal; from filestreamer.process import signals\n"
        "with signals.raised(): pass\n"
        "print(signal.getitimer(signal.ITIMER_REAL))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG, check=False)
    assert ran.stdout == "(0.0, 0.0)\n", ran.stderr

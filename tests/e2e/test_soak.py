"""The front under half-closes, cancels, stalls and resets for some seconds; `bench.soak` is the long form."""

from __future__ import annotations

import json
import subprocess
import sys


def test_no_message_is_lost_doubled_or_out_of_order_and_no_call_is_left() -> None:
    command = [sys.executable, "-m", "bench.soak", "--messages", "20000"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert (found["faults"], found["calls_left"], done.returncode) == ([], 0, 0)
    assert found["messages"] > 10_000

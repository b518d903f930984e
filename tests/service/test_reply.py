"""Replies that call back within the tick."""

from __future__ import annotations

import pytest

from tidegate.reply import DirectReply


def test_a_callback_that_fails_is_logged_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """The tick that calls it has others to answer."""
    reply = DirectReply()
    reply.add_done_callback(lambda _: 1 / 0)
    reply.set_result("done")
    assert (reply.done(), reply.result()) == (True, "done")
    assert "ZeroDivisionError" in caplog.text

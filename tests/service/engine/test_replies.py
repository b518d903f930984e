"""Large replies are counted while a session remembers them, and the oldest dropped where they are too many."""

from __future__ import annotations

from tidegate.api import SessionRequest
from tidegate.engine.replies import DroppedReply, LargeReply, Replies
from tidegate.engine.session import LastReply, Session


def session(position: int = 0) -> Session:
    return Session("s", None, SessionRequest("m"), 0, created_at=0.0, used_at=0.0, position=position)


def reply(start: int = 0) -> LastReply:
    return LastReply(start, b"fingerprint", f"reply {start}")


class Shared:
    length = 1

    """A reply to single steps."""

    def recall(self, session: Session) -> LastReply:
        return reply(session.position - 1)


def test_a_reply_counts_as_long_as_it_is_remembered() -> None:
    replies, one = Replies(100), session()
    one.last = LargeReply(reply())
    replies.hold(one.last, 60)
    assert replies.num_bytes == 60
    assert one.recall() == reply()
    one.last = LargeReply(reply(1))
    replies.hold(one.last, 70)
    assert replies.num_bytes == 70, "the first was replaced"
    one.last = None
    assert (replies.num_bytes, replies.num_dropped) == (0, 0)


def test_the_oldest_are_dropped_and_the_chunk_is_still_known() -> None:
    replies, sessions = Replies(100), [session() for _ in range(4)]
    for start, each in enumerate(sessions):
        each.last = large = LargeReply(reply(start))
        replies.hold(large, 40)
    assert (replies.num_bytes, replies.num_dropped) == (80, 2)
    assert [each.recall() for each in sessions] == [
        DroppedReply(0, b"fingerprint"), DroppedReply(1, b"fingerprint"), reply(2), reply(3)
    ]  # fmt: skip


def test_one_that_is_over_the_budget_is_not_kept_at_all() -> None:
    replies, one = Replies(0), session()
    one.last = large = LargeReply(reply())
    replies.hold(large, 1)
    assert one.recall() == DroppedReply(0, b"fingerprint")
    assert replies.num_bytes == 0


def test_what_many_share_counts_once_and_until_the_last_forgets_it() -> None:
    replies, sessions = Replies(100), [session(position) for position in (5, 7)]
    shared = LargeReply(None, Shared())
    replies.hold(shared, 30)
    for each in sessions:
        each.last = shared
    del shared, each
    assert [each.recall() for each in sessions] == [reply(4), reply(6)]
    sessions[0].last = None
    assert replies.num_bytes == 30
    sessions[1].last = None
    assert replies.num_bytes == 0


def test_of_what_many_share_only_the_place_is_known_once_it_is_dropped() -> None:
    replies, one = Replies(10), session(5)
    one.last = shared = LargeReply(None, Shared())
    replies.hold(shared, 30)
    assert one.recall() == DroppedReply(4, None)

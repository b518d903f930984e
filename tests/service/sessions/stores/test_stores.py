"""What every store does."""

from __future__ import annotations

from tests.service.sessions.stores.places import Place, after, all_due, entry, first, key, keys, listed, opened
from tidegate.sessions.stores.store import DUE_CALLS, Due, Entry, Store, Stored, Write


async def test_what_was_written_is_read(store: Store) -> None:
    await store.ping()
    one, two = first("one", b"1"), first("two", b"")
    assert await store.write([one, two]) == [True, True]
    assert await store.read(keys(["two", "none", "one", "two"])) == [
        entry(two),
        None,
        entry(one),
        entry(two),
    ]


async def test_nothing_to_do_is_done(store: Store) -> None:
    assert await store.write([]) == []
    assert await store.read([]) == []


async def test_a_session_is_opened_once(store: Store) -> None:
    one = first("s", b"1")
    assert await store.write([one]) == [True]
    assert await store.write([first("s", b"2")]) == [False]
    assert await store.read(keys(["s"])) == [entry(one)]


async def test_a_step_needs_the_stored_revision(store: Store) -> None:
    opening = first("s")
    step = after(opening, b"1")
    assert await store.write([opening]) == [True]
    assert await store.write([step]) == [True]
    assert await store.write([after(opening, b"stale")]) == [False]
    assert await store.read(keys(["s"])) == [entry(step)]


async def test_the_same_step_again_is_not_made(store: Store) -> None:
    opening = first("s")
    step = after(opening)
    assert [await store.write([write]) for write in (opening, step, step)] == [[True], [True], [False]]


async def test_what_is_not_stored_cannot_be_stepped(store: Store) -> None:
    assert await store.write([after(first("s"))]) == [False]
    assert await store.read(keys(["s"])) == [None]


async def test_a_deleted_session_may_be_opened_again_and_its_old_revision_is_stale(store: Store) -> None:
    opening = first("s")
    await store.write([opening])
    assert await store.delete(key("s"), opening.revision)
    assert await store.read(keys(["s"])) == [None]
    assert not await store.delete(key("s"), opening.revision)

    again = first("s", b"again")
    assert await store.write([again]) == [True]
    assert await store.write([after(opening)]) == [False]
    assert not await store.delete(key("s"), opening.revision)
    assert await store.read(keys(["s"])) == [entry(again)]


async def test_each_write_of_a_group_is_made_or_not_by_itself(store: Store) -> None:
    openings = [first(name) for name in "abcd"]
    await store.write(openings)
    a, b, c, d = openings
    stale = after(b, b"stale")._replace(expected=a.revision)
    group = [after(a, b"a"), stale, after(c, b"c"), after(d, b"d")]
    assert await store.write(group) == [True, False, True, True]
    assert [found.body for found in await store.read(keys("abcd")) if found] == [b"a", b"new", b"c", b"d"]


async def test_a_group_may_open_step_and_end_sessions(store: Store) -> None:
    a, b, d = first("a", due=1.0), first("b", due=2.0), first("d", due=4.0)
    await store.write([a, b, d])
    ending = Write(key("b"), b.revision, b"e" * 16, b"ended", b"", Due(9.0), is_listed=False)
    assert await store.write([after(a), first("c", due=3.0), first("d"), ending]) == [True, True, False, True]
    assert [id_ for id_, _ in await store.page("t", 9, "")] == ["a", "c", "d"]
    assert await all_due(store, 9.0) == ["a", "b", "c", "d"]


async def test_attachments_come_and_go_with_writes(store: Store) -> None:
    opening = first("s")._replace(attachments={"one": b"1", "two": b""})
    await store.write([opening])
    step = after(opening)._replace(attachments={"one": None, "two": b"2", "three": b"3", "none": None})
    assert await store.write([step]) == [True]
    assert [await store.read_attachment(key("s"), name) for name in ("one", "two", "three", "none")] == [
        None,
        b"2",
        b"3",
        None,
    ]
    await store.write([after(step)])
    assert await store.read_attachment(key("s"), "three") == b"3"


async def test_a_failed_compare_leaves_attachments_as_they_are(store: Store) -> None:
    opening = first("s")._replace(attachments={"one": b"1"})
    await store.write([opening])
    stale = after(first("s"))._replace(attachments={"one": None, "two": b"2"})
    twice = first("s")._replace(attachments={"one": b"other"})
    assert await store.write([stale, first("t")]) == [False, True]
    assert await store.write([twice]) == [False]
    assert [await store.read_attachment(key("s"), name) for name in ("one", "two")] == [b"1", None]


async def test_attachments_are_of_one_session_and_gone_with_it(store: Store) -> None:
    one, two = (first(id_)._replace(attachments={"kept": id_.encode()}) for id_ in ("one", "two"))
    await store.write([one, two])
    assert not await store.delete(key("one"), two.revision)
    assert await store.read_attachment(key("one"), "kept") == b"one"
    assert await store.delete(key("one"), one.revision)
    assert await store.read_attachment(key("two"), "kept") == b"two"
    await store.write([first("one")])
    assert await store.read_attachment(key("one"), "kept") is None


async def test_what_is_due_comes_up_and_what_is_not_does_not(store: Store) -> None:
    await store.write([first("c", due=3.0), first("a", due=2.5), first("never"), first("b", due=1.0)])
    assert await all_due(store, 0.5) == []
    assert await all_due(store, 2.5) == ["a", "b"]
    assert await all_due(store, 1e12) == ["a", "b", "c"]


async def test_a_step_leaves_the_order_of_expiry_as_it_is(store: Store) -> None:
    a, b = first("a", due=1.0), first("b", due=2.0)
    await store.write([a, b])
    step = after(a)
    await store.write([step, after(b)])
    assert await all_due(store, 1.0) == ["a"]
    await store.write([after(step)._replace(due=Due(3.0))])
    assert await all_due(store, 2.0) == ["b"]


async def test_a_write_may_take_a_session_out_of_the_order(store: Store) -> None:
    opening = first("s", due=1.0)
    await store.write([opening])
    await store.write([after(opening)._replace(due=Due(None))])
    assert await all_due(store, 9.0) == []


async def test_a_failed_compare_leaves_the_order_as_it_is(store: Store) -> None:
    await store.write([first("s", due=5.0)])
    await store.write([first("s", due=1.0), after(first("t"))._replace(due=Due(1.0))])
    assert await all_due(store, 9.0) == ["s"]
    assert await all_due(store, 4.0) == []


async def test_expiry_is_put_off_whatever_the_revision(store: Store) -> None:
    opening = first("a", due=1.0)
    await store.write([opening, first("b", due=2.0)])
    await store.postpone(key("a"), 3.0)
    assert await all_due(store, 2.0) == ["b"]
    await store.postpone(key("b"), None)
    await store.postpone(key("none"), 1.0)
    assert await all_due(store, 9.0) == ["a"]
    assert await store.write([after(opening)]) == [True]
    assert await store.read(keys(["none"])) == [None]


async def test_a_deleted_session_is_neither_due_nor_listed(store: Store) -> None:
    opening = first("s", due=1.0)
    await store.write([opening])
    await store.delete(key("s"), opening.revision)
    assert await all_due(store, 9.0) == []
    assert await store.page("t", 9, "") == []
    await store.write([first("s")])
    assert await all_due(store, 9.0) == []


async def test_pages_go_through_ids_by_code_points(store: Store) -> None:
    ids = ["-", ".", "0", "9", "A", "Z", "_", "a", "a-", "a.b", "aa", "z", "~", "d~x", "e~r~x"]
    writes = {id_: first(id_, id_.encode()) for id_ in ids}
    await store.write(list(writes.values()))
    seen: list[tuple[str, Stored]] = []
    while page := await store.page("t", 4, seen[-1][0] if seen else ""):
        assert len(page) <= 4
        seen += page
    assert seen == listed(*(writes[id_] for id_ in sorted(ids)))


async def test_a_page_begins_above_an_id_that_need_not_exist(store: Store) -> None:
    await store.write([first("a"), first("c")])
    assert [id_ for id_, _ in await store.page("t", 9, "b")] == ["c"]
    assert [id_ for id_, _ in await store.page("t", 9, "c")] == []


async def test_ended_sessions_are_kept_but_not_shown_until_opened_again(store: Store) -> None:
    a, b = first("a"), first("b", is_listed=False)
    await store.write([a, b])
    ended = after(a, b"ended")._replace(is_listed=False)
    assert await store.write([ended]) == [True]
    assert await store.page("t", 9, "") == []
    assert await store.read(keys(["a"])) == [entry(ended)]

    assert await store.write([after(ended, b"open"), after(b, b"open")]) == [True, True]
    assert [id_ for id_, _ in await store.page("t", 9, "")] == ["a", "b"]


async def test_large_records_and_attachments_are_kept(store: Store) -> None:
    large = bytes(range(256)) * 4096
    opening = first("s", large)._replace(attachments={"large": large[::-1]})
    await store.write([opening])
    assert await store.read(keys(["s"])) == [entry(opening)]
    assert await store.read_attachment(key("s"), "large") == large[::-1]
    step = after(opening, b"small")
    await store.write([step])
    assert await store.read(keys(["s"])) == [entry(step)]


async def test_the_longest_id_and_every_character_of_ids(store: Store) -> None:
    ids = ["x" * 128, "0123456789", "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "._~-"]
    assert await store.write([first(id_, id_.encode()) for id_ in ids]) == [True] * len(ids)
    assert [found.body.decode() for found in await store.read(keys(ids)) if found] == ids


async def test_a_large_group_is_written(store: Store) -> None:
    openings = [first(f"s{number}") for number in range(3000)]
    assert all(await store.write(openings))
    assert all(await store.write([after(opening) for opening in openings]))
    assert {found.body for found in await store.read([opening.key for opening in openings]) if found} == {b"stepped"}


async def test_another_store_sees_what_was_written(store: Store, other: Store) -> None:
    opening = first("s", due=1.0)._replace(attachments={"kept": b"1"})
    await store.write([opening])
    assert await other.read(keys(["s"])) == [entry(opening)]
    assert await other.read_attachment(key("s"), "kept") == b"1"
    assert await all_due(other, 1.0) == ["s"]
    step = after(opening, b"by the other")
    assert await other.write([step]) == [True]
    assert await store.write([after(opening)]) == [False]
    assert await store.read(keys(["s"])) == [entry(step)]


async def test_what_was_written_is_there_after_a_restart(place: Place, store: Store) -> None:
    opening = first("s", due=1.0)._replace(attachments={"kept": b"1"})
    await store.write([opening, first("hidden", is_listed=False)])
    await store.stop()
    async with opened(place.store()) as again:
        assert await again.page("t", 9, "") == listed(opening)
        assert await again.read_attachment(key("s"), "kept") == b"1"
        assert await all_due(again, 9.0) == ["s"]
        assert await again.write([after(opening)]) == [True]


async def test_a_store_may_be_stopped_and_started_again(store: Store) -> None:
    await store.write([first("s")])
    await store.stop()
    await store.stop()
    await store.start()
    await store.ping()
    assert await store.read(keys(["s"])) != [None]


async def test_summaries_are_read_without_bodies(store: Store) -> None:
    one, two = first("one", b"1"), first("two", b"2")
    await store.write([one, two])
    summaries = await store.read_summaries(keys(["two", "none", "one"]))
    assert summaries == [Stored(two.revision, two.summary), None, Stored(one.revision, one.summary)]


async def test_a_write_without_a_body_leaves_the_one_that_is_there(store: Store) -> None:
    opening = first("s", b"state")
    bare = first("t")._replace(body=None)
    await store.write([opening, bare])
    ending = after(opening)._replace(summary=b"ended", body=None, is_listed=False)
    assert await store.write([ending]) == [True]
    assert await store.read(keys("st")) == [
        Entry(ending.revision, b"ended", b"state"),
        Entry(bare.revision, bare.summary, b""),
    ]


async def test_tenants_are_apart(store: Store) -> None:
    mine = first("s", b"mine", due=1.0)._replace(key=key("s", "mine"), attachments={"kept": b"1"})
    theirs = first("s", b"theirs", due=2.0)._replace(key=key("s", "mine~"))
    assert await store.write([mine, theirs]) == [True, True]
    assert await store.read([mine.key, theirs.key, key("s", "min")]) == [entry(mine), entry(theirs), None]
    assert await store.read_attachment(theirs.key, "kept") is None
    assert [await store.page(tenant, 9, "") for tenant in ("mine", "mine~", "min")] == [
        listed(mine),
        listed(theirs),
        [],
    ]
    assert not await store.delete(theirs.key, mine.revision)
    assert await store.delete(mine.key, mine.revision)
    assert await store.read([mine.key, theirs.key]) == [None, entry(theirs)]
    assert await store.page("mine~", 9, "") == listed(theirs)


async def test_the_longest_tenant_and_every_character_of_tenants(store: Store) -> None:
    tenants = ["x" * 64, "0123456789", "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "._~-"]
    writes = [first("s", due=1.0)._replace(key=key("s", tenant)) for tenant in tenants]
    assert await store.write(writes) == [True] * len(writes)
    assert [await store.page(tenant, 9, "") for tenant in tenants] == [listed(write) for write in writes]
    found = {each for _ in range(DUE_CALLS) for each in await store.due(1.0, 9)}
    assert found == {write.key for write in writes}


async def test_all_that_is_due_comes_up_however_little_a_call_may_return(store: Store) -> None:
    writes = [first(f"s{number}", due=1.0) for number in range(100)]
    await store.write([*writes, first("later", due=2.0)])
    seen, num_short = set(), 0
    while num_short < DUE_CALLS:
        found = await store.due(1.0, 3)
        assert len(found) <= 3
        for each in found:
            seen.add(each)
            await store.postpone(each, None)
        num_short += len(found) < 3
    assert seen == {write.key for write in writes}


async def test_many_pages_show_every_session_once(store: Store) -> None:
    writes = sorted((first(f"s{number * 7919 % 3001}") for number in range(3000)), key=lambda write: write.key.id)
    await store.write(writes)
    seen: list[tuple[str, Stored]] = []
    while page := await store.page("t", 700, seen[-1][0] if seen else ""):
        seen += page
    assert seen == listed(*writes)


async def test_the_stores_clock_tells_seconds_since_the_epoch(store: Store, other: Store) -> None:
    one, two = await store.time(), await other.time()
    assert 1.6e9 < one <= two < one + 60

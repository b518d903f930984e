"""What only Redis has: a server that dies, hangs, fills up or is another's. What all stores do is in test_stores.py."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.programs import program
from tests.redis import RedisServer, free_port, redis_server
from tests.service.sessions.stores.places import all_due, first, key, keys
from tidegate.errors import ConfigurationError, UnavailableError
from tidegate.sessions.stores.redis import RedisStore
from tidegate.sessions.stores.redis_commands import FORMAT_KEY, place_of
from tidegate.sessions.stores.store import FORMAT, Due, Entry, Store, Stored, Write

ALL_CHARACTERS = "ABCXYZabcxyz0123456789._~-"


@pytest.fixture(scope="module")
def shared() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    """For tests that leave it running as it was."""
    shared.call("FLUSHALL")
    return shared


@contextlib.asynccontextmanager
async def opened(url: str, timeout: float = 20.0) -> AsyncIterator[Store]:  # noqa: ASYNC109
    store: Store = RedisStore(url, timeout)
    await store.start()
    try:
        yield store
    finally:
        await store.stop()


def fresh(id_: str, revision: bytes = b"first", record: bytes = b"record") -> Write:
    return Write(key(id_), None, revision, b"in short", record, due=Due(1.0))


async def put(store: Store, id_: str, revision: bytes = b"first") -> None:
    assert await store.write([fresh(id_, revision)]) == [True]


async def assert_works(store: Store) -> None:
    await store.ping()
    await put(store, "works")
    assert await store.delete(key("works"), b"first")


async def test_every_acknowledged_write_is_there_after_a_kill() -> None:
    with redis_server(appendfsync="always") as redis:
        async with opened(redis.url) as store:
            acknowledged: dict[str, bytes] = {}
            number_of = itertools.count()

            async def write_until_it_fails(id_: str) -> Write:
                while True:
                    write = Write(key(id_), acknowledged.get(id_), os.urandom(16), b"", os.urandom(4096))
                    try:
                        assert await store.write([write]) == [True]
                    except UnavailableError:
                        return write
                    acknowledged[id_] = write.revision
                    if next(number_of) == 200:
                        redis.process.kill()

            unknown = await asyncio.gather(*(write_until_it_fails(f"s{number}") for number in range(8)))
            redis.restart()
            stored = await store.read([write.key for write in unknown])
    for write, entry in zip(unknown, stored, strict=True):
        assert entry is not None
        assert entry.revision in {acknowledged[write.key.id], write.revision}


async def test_the_connection_is_made_again_after_a_restart() -> None:
    with redis_server() as redis:
        async with opened(redis.url) as store:
            await put(store, "kept")
            redis.kill()
            with pytest.raises(UnavailableError) as caught:
                await store.ping()
            assert (caught.value.reason, caught.value.retry_after) == ("STORE_AWAY", 1.0)
            redis.start()
            await assert_works(store)
            assert await store.read(keys(["kept"])) == [Entry(b"first", b"in short", b"record")]


async def test_a_redis_that_hangs_is_away_until_it_wakes() -> None:
    with redis_server() as redis:
        async with opened(redis.url, timeout=2) as store:
            await put(store, "a")
            redis.pause()
            # More than the system takes off our hands: sending waits, too.
            large = store.write([fresh("large", record=bytes(1 << 25))])
            calls = (
                store.write([Write(key("a"), b"first", b"second", b"", b"")]),
                store.read(keys(["a"])),
                store.due(5.0, 1),
                large,
            )
            assert [error.reason for error in await failures(*calls)] == ["STORE_AWAY"] * 4
            # A new connection is taken by the system, not by Redis: that must not hang either.
            assert [error.reason for error in await failures(store.ping())] == ["STORE_AWAY"]
            redis.resume()
        async with opened(redis.url) as store:
            (entry,) = await store.read(keys(["a"]))
            assert entry is not None
            # Unknown, until it is read, whether the write was made.
            assert entry.revision in {b"first", b"second"}
            await assert_works(store)


async def failures(*calls: object) -> list[UnavailableError]:
    outcomes = await asyncio.gather(*calls, return_exceptions=True)  # type: ignore[call-overload]
    assert all(isinstance(outcome, UnavailableError) for outcome in outcomes), outcomes
    return list(outcomes)


async def test_a_store_that_was_hung_up_on_recovers_by_itself() -> None:
    with redis_server() as redis:
        async with opened(redis.url) as store:
            redis.call("CLIENT", "KILL", "TYPE", "normal")
            # The end of the connection may be seen before or after this is sent.
            with contextlib.suppress(UnavailableError):
                await store.ping()
            await assert_works(store)


async def test_scripts_that_redis_forgot_are_loaded_again(server: RedisServer) -> None:
    async with opened(server.url) as store:
        await put(store, "a")
        server.call("SCRIPT", "FLUSH")
        writes = [
            Write(key("a"), b"first", b"second", b"", b""),
            fresh("b"),
            Write(key("c"), b"never", b"first", b"", b""),
        ]
        assert await store.write(writes) == [True, True, False]
        server.call("SCRIPT", "FLUSH")
        assert await store.delete(key("a"), b"second")


async def test_two_clients_that_race_win_each_revision_once(server: RedisServer) -> None:
    async with opened(server.url) as one, opened(server.url) as other:
        await put(one, "a", b"0")
        for round_ in range(50):
            new = [b"%d-%d" % (round_, number) for number in range(8)]
            calls = [
                (one, other)[number % 2].write([Write(key("a"), b"%d" % round_, revision, b"", revision)])
                for number, revision in enumerate(new)
            ]
            won = [revision for revision, (made,) in zip(new, await asyncio.gather(*calls), strict=True) if made]
            assert await one.read(keys(["a"])) == [Entry(won[0], b"", won[0])]
            assert len(won) == 1
            assert await other.write([Write(key("a"), won[0], b"%d" % (round_ + 1), b"", b"")]) == [True]


async def test_calls_at_once_get_their_own_answers(server: RedisServer) -> None:
    async with opened(server.url) as store:
        ids = [f"s{number}" for number in range(50)]
        await asyncio.gather(*(put(store, id_, id_.encode()) for id_ in ids))
        answers = await asyncio.gather(*(store.read(keys([id_, "nobody"])) for id_ in ids))
    assert answers == [[Entry(id_.encode(), b"in short", b"record"), None] for id_ in ids]


async def test_a_cancelled_call_disturbs_no_other(server: RedisServer) -> None:
    async with opened(server.url) as store:
        await put(store, "a")
        cancelled = asyncio.create_task(store.due(5.0, 10))
        other = asyncio.create_task(store.read(keys(["a"])))
        await asyncio.sleep(0)  # both are sent
        cancelled.cancel()
        assert await other == [Entry(b"first", b"in short", b"record")]
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert await store.read(keys(["a"])) == [Entry(b"first", b"in short", b"record")]


@pytest.mark.parametrize("id_", [ALL_CHARACTERS, "~" * 128, ".", "-", "due", "listed"])
async def test_any_id_is_a_key_of_its_own(server: RedisServer, id_: str) -> None:
    async with opened(server.url) as store:
        await put(store, id_)
        assert await store.read(keys([id_, f"{id_}."])) == [Entry(b"first", b"in short", b"record"), None]
        assert await all_due(store, 1.0) == [id_]
        assert await store.page("t", 5, "") == [(id_, Stored(b"first", b"in short"))]
        assert await store.delete(key(id_), b"first")
        assert server.call("KEYS", "*") == [FORMAT_KEY.encode()]


@contextlib.contextmanager
def cluster_node(first_slot: int, last_slot: int, bus: int) -> Iterator[RedisServer]:
    """A node that has those slots; others of its cluster reach it at the port ``bus``."""
    with redis_server("--cluster-enabled", "yes", "--cluster-port", str(bus)) as redis:
        redis.call("CLUSTER", "ADDSLOTSRANGE", first_slot, last_slot)
        yield redis


async def test_a_session_keeps_to_one_slot_of_a_cluster() -> None:
    """A cluster's node refuses scripts over keys of several slots, here one that has all slots."""
    with cluster_node(0, 16383, free_port()) as redis:
        redis.wait_for("Cluster state changed: ok")
        async with opened(redis.url) as store:
            writes = [
                Write(key(f"s{number:02}"), None, b"first", b"", b"", Due(float(number)), attachments={"a": b"1"})
                for number in range(40)
            ]
            assert await store.write(writes) == [True] * 40
            assert await store.write(
                [Write(key("s00"), b"first", b"second", b"", b"", Due(None), is_listed=False)]
            ) == [True]
            await store.postpone(key("s01"), 100.0)
            assert await all_due(store, 5.0) == ["s02", "s03", "s04", "s05"]
            assert [id_ for id_, _ in await store.page("t", 3, "")] == ["s01", "s02", "s03"]
            assert await store.delete(key("s05"), b"first")


async def test_one_node_of_many_is_refused_at_the_start() -> None:
    bus = free_port()
    with cluster_node(0, 8191, free_port()) as one, cluster_node(8192, 16383, bus) as other:
        one.call("CLUSTER", "MEET", "127.0.0.1", other.port, bus)
        for node in (one, other):
            node.wait_for("Cluster state changed: ok")
        for node in (one, other):
            with pytest.raises(ConfigurationError, match="one of several nodes of a cluster"):
                await RedisStore(node.url).start()


@pytest.mark.parametrize("stored", ["3", "other"])
async def test_another_format_is_refused_at_the_start(server: RedisServer, stored: str) -> None:
    server.call("SET", FORMAT_KEY, stored)
    store = RedisStore(server.url)
    with pytest.raises(ConfigurationError, match=f"format {stored}, .* format {FORMAT}"):
        await store.start()


async def test_another_format_is_refused_while_running(server: RedisServer) -> None:
    async with opened(server.url) as store:
        server.call("SET", FORMAT_KEY, FORMAT + 1)
        for call in (store.ping(), store.write([fresh("a")]), store.read(keys(["a"]))):
            with pytest.raises(UnavailableError, match=f"format {FORMAT + 1}"):
                await call
        server.call("SET", FORMAT_KEY, FORMAT)
        await assert_works(store)


async def test_an_emptied_database_is_told_and_gets_the_format_again(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(server.url) as store:
        await store.ping()
        assert caplog.messages == []
        server.call("FLUSHALL")
        await assert_works(store)
    assert "came back empty" in "".join(caplog.messages)
    assert server.call("GET", FORMAT_KEY) == str(FORMAT).encode()


async def test_databases_are_apart(server: RedisServer) -> None:
    async with opened(server.url) as zero, opened(server.url.replace("/0", "/3")) as three:
        await put(zero, "a")
        assert await three.read(keys(["a"])) == [None]


async def test_credentials() -> None:
    with redis_server("--requirepass", "a:b@c/d") as redis:
        for url in (redis.url, redis.url.replace("//", "//:wrong@"), redis.url.replace("//", "//nobody:wrong@")):
            with pytest.raises(ConfigurationError, match="the store cannot be used") as caught:
                await RedisStore(url).start()
            assert "wrong" not in caught.value.message
        async with opened(redis.url.replace("//", "//:a%3Ab%40c%2Fd@")) as store:
            await assert_works(store)


async def test_a_user_who_may_not_write_is_refused_at_the_start(server: RedisServer) -> None:
    server.call("ACL", "SETUSER", "reader", "on", ">secret", "~*", "+@read", "+@connection")
    with pytest.raises(ConfigurationError, match="no permissions"):
        await RedisStore(server.url.replace("//", "//reader:secret@")).start()


async def test_a_database_that_is_not_there_is_refused(server: RedisServer) -> None:
    with pytest.raises(ConfigurationError, match="DB index is out of range"):
        await RedisStore(server.url.replace("/0", "/99")).start()


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:6379",
        "redis+cluster://localhost",
        "redis://localhost:port",
        "redis://:secret@[::1/0",
        "redis://localhost/sessions",
        "redis://localhost/1/2",
        "redis://localhost?colour=red",
        "redis://localhost?db=one",
        "localhost:6379",
        "",
    ],
)
def test_a_malformed_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="the store's URL"):
        RedisStore(url)


@pytest.mark.parametrize(
    "url", ["redis://:hunter2@localhost:port", "redis://:hun/ter2@localhost", "redis://:hunter2@localhost?colour=red"]
)
def test_a_malformed_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match="the store's URL") as caught:
        RedisStore(url)
    assert "ter2" not in str(caught.value)


async def test_where_redis_is_and_the_password_are_told_to_no_caller_and_the_password_to_nobody() -> None:
    async def repeat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        # An old Redis, or one whose AUTH was renamed, says what it did not understand.
        writer.write(b"-ERR unknown command 'AUTH', with args beginning with: 'hunter2'\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(repeat, "127.0.0.1", 0) as old:
        port = old.sockets[0].getsockname()[1]
        with pytest.raises(ConfigurationError, match="AUTH") as refused:
            await RedisStore(f"redis://:hunter2@127.0.0.1:{port}").start()
    assert "hunter2" not in str(refused.value)
    with pytest.raises(UnavailableError, match=f"127.0.0.1:{port}") as away:  # the log is told
        await RedisStore(f"redis://:hunter2@127.0.0.1:{port}").start()
    assert away.value.message == "the store of sessions is away"


async def test_what_is_not_redis_is_refused() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as web:
        port = web.sockets[0].getsockname()[1]
        with pytest.raises(ConfigurationError, match="the store cannot be used"):
            await RedisStore(f"redis://127.0.0.1:{port}").start()


async def test_a_start_before_redis_may_be_tried_again() -> None:
    with redis_server() as redis:
        redis.kill()
        store = RedisStore(redis.url)
        with pytest.raises(UnavailableError) as caught:
            await store.start()
        assert caught.value.reason == "STORE_AWAY"
        redis.start()
        await store.start()
        await assert_works(store)
        await store.stop()


async def test_a_full_redis_writes_nothing_and_goes_on_when_there_is_room() -> None:
    with redis_server() as redis:
        async with opened(redis.url) as store:
            await put(store, "a")
            redis.call("CONFIG", "SET", "maxmemory", 1)
            for call in (store.write([Write(key("a"), b"first", b"second", b"", b"", Due(9.0))]), store.ping()):
                with pytest.raises(UnavailableError) as caught:
                    await call
                assert caught.value.reason == "STORE_FULL"
            assert await store.read(keys(["a"])) == [Entry(b"first", b"in short", b"record")]
            assert await all_due(store, 1.0) == ["a"]
            # What makes room works.
            assert await store.delete(key("a"), b"first")
            redis.call("CONFIG", "SET", "maxmemory", 0)
            await assert_works(store)


async def test_a_redis_that_cannot_write_its_disk_is_full() -> None:
    with redis_server("--save", "3600 1000000", appendonly=False) as redis:
        async with opened(redis.url) as store:
            shutil.rmtree(redis.directory)
            redis.call("BGSAVE")
            while redis.call("INFO", "persistence")["rdb_bgsave_in_progress"]:
                pass
            with pytest.raises(UnavailableError, match="MISCONF") as caught:
                await put(store, "a")
            assert caught.value.reason == "STORE_FULL"
            redis.directory.mkdir()


async def test_a_replica_is_away_until_it_is_promoted() -> None:
    with redis_server() as redis, redis_server() as primary:
        async with opened(redis.url) as store:
            redis.call("REPLICAOF", "127.0.0.1", primary.port)
            with pytest.raises(UnavailableError, match="read only replica") as caught:
                await put(store, "a")
            assert caught.value.reason == "STORE_AWAY"
            redis.call("REPLICAOF", "NO", "ONE")
            await assert_works(store)


@pytest.mark.parametrize(
    ("trouble", "cure"),
    [
        (("REPLICAOF", "127.0.0.1", "9"), ("REPLICAOF", "NO", "ONE")),
        (("CONFIG", "SET", "maxmemory", 1), ("CONFIG", "SET", "maxmemory", 0)),
        (("CONFIG", "SET", "min-replicas-to-write", 1), ("CONFIG", "SET", "min-replicas-to-write", 0)),
        (("ACL", "SETUSER", "default", "-evalsha"), ("ACL", "SETUSER", "default", "+evalsha")),
        (("ACL", "SETUSER", "default", "-hset"), ("ACL", "SETUSER", "default", "+hset")),
        (("ACL", "SETUSER", "default", "resetkeys", "~other:*"), ("ACL", "SETUSER", "default", "allkeys")),
    ],
)
async def test_a_redis_that_takes_no_writes_says_so_when_it_is_asked(
    trouble: tuple[str | int, ...], cure: tuple[str | int, ...]
) -> None:
    with redis_server() as redis:
        async with opened(redis.url) as store:
            await put(store, "a")
            redis.call(*trouble)
            with pytest.raises(UnavailableError):
                await store.write([Write(key("a"), b"first", b"second", b"", b"")])
            with pytest.raises(UnavailableError) as caught:
                await store.ping()
            assert caught.value.reason == ("STORE_FULL" if "maxmemory" in trouble else "STORE_AWAY")
            redis.call(*cure)
            await assert_works(store)


async def test_a_redis_that_runs_a_script_for_ever_is_away_until_it_is_killed() -> None:
    with redis_server("--busy-reply-threshold", "10") as redis:
        async with opened(redis.url) as store:
            await store.ping()
            running = asyncio.get_running_loop().run_in_executor(None, redis.run_for_ever)
            while not redis.is_busy():
                pass
            with pytest.raises(UnavailableError, match="BUSY"):
                await store.ping()
            redis.call("SCRIPT", "KILL")
            await running
            await assert_works(store)


async def test_asking_whether_it_can_be_written_leaves_nothing(server: RedisServer) -> None:
    async with opened(server.url) as store:
        await store.ping()
        assert server.call("KEYS", "*") == [FORMAT_KEY.encode()]


async def test_a_foreign_value_under_a_key_of_ours_is_one_sessions_trouble(server: RedisServer) -> None:
    async with opened(server.url) as store:
        await put(store, "a")
        (name,) = server.call("KEYS", "*:session:t:a")
        server.call("SET", name, "foreign")
        assert await store.read(keys(["a"])) == [Entry(b"", b"", b"")]
        assert await store.page("t", 9, "") == [("a", Stored(b"", b""))]
        # It keeps no other of its group from being written.
        assert await store.write([Write(key("a"), b"first", b"second", b"", b""), fresh("b")]) == [False, True]
        assert await store.read(keys(["b"])) == [Entry(b"first", b"in short", b"record")]
        await assert_works(store)


@pytest.mark.parametrize("index", ["due", "listed"])
async def test_a_foreign_value_under_an_index_is_its_buckets_trouble(server: RedisServer, index: str) -> None:
    async with opened(server.url) as store:
        bucket = place_of(key("a")).bucket
        server.call("SET", getattr(bucket, index), "foreign")
        # The others of its group are in other buckets, before it and after it.
        writes = [first(id_, due=1.0) for id_ in ("b", "a", "c")]
        assert len({place_of(write.key).bucket for write in writes}) == len(writes)
        assert await store.write(writes) == [True] * 3
        assert [found is not None for found in await store.read(keys(["a", "b", "c"]))] == [True] * 3
        hidden = {"due": [], "listed": ["a"]}[index]
        assert [id_ for id_, _ in await store.page("t", 9, "")] == sorted({"a", "b", "c"} - set(hidden))
        assert await all_due(store, 1.0) == (["b", "c"] if index == "due" else ["a", "b", "c"])
        await assert_works(store)


@pytest.mark.parametrize("member", [b"\xff", b"t:\xff", b"no separator", b"t:of another bucket", b"t:" + b"x" * 10_000])
async def test_a_foreign_member_of_an_index_keeps_no_session_from_being_found(
    server: RedisServer, member: bytes
) -> None:
    async with opened(server.url) as store:
        await store.write([first("a", due=1.0)])
        bucket = place_of(key("a")).bucket
        for index in (bucket.due, bucket.listed):
            server.call("ZADD", index, 0, member)
        assert [id_ for id_, _ in await store.page("t", 9, "")] == ["a"]
        assert await all_due(store, 1.0) == ["a"]
        assert server.call("ZRANGE", bucket.due, 0, -1) == [b"t:a"]


async def test_a_session_that_stands_in_two_buckets_listings_is_listed_once(server: RedisServer) -> None:
    async with opened(server.url) as store:
        await store.write([first("a"), first("b")])
        server.call("ZADD", place_of(key("b")).bucket.listed, 0, "t:a")
        assert [id_ for id_, _ in await store.page("t", 9, "")] == ["a", "b"]


@pytest.mark.parametrize("command", ["evalsha", "hmget", "hset", "hget", "zadd", "zrem", "del"])
async def test_a_command_that_is_forbidden_meanwhile_says_so_when_it_is_asked(
    server: RedisServer, command: str
) -> None:
    async with opened(server.url) as store:
        await store.ping()
        server.call("ACL", "SETUSER", "default", f"-{command}")
        try:
            with pytest.raises(UnavailableError) as caught:
                await store.ping()
        finally:
            server.call("ACL", "SETUSER", "default", f"+{command}")
        assert caught.value.reason == "STORE_AWAY"
        await store.ping()
        assert server.call("KEYS", "*") == [FORMAT_KEY.encode()]


@pytest.mark.parametrize(
    ("appendonly", "options", "warned"),
    [
        (True, (), ""),
        (True, ("--maxmemory-policy", "volatile-lru"), ""),
        (True, ("--maxmemory-policy", "allkeys-lru"), "maxmemory-policy is allkeys-lru: sessions vanish"),
        (True, ("--appendfsync", "everysec"), "appendfsync is everysec"),
        (False, (), "appendonly is no"),
        (True, ("--rename-command", "CONFIG", ""), "does not tell its settings"),
    ],
)
async def test_settings_that_lose_sessions_are_told_at_the_start(
    appendonly: bool, options: tuple[str, ...], warned: str, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_server(*options, appendonly=appendonly) as redis:
        async with opened(redis.url) as store:
            await assert_works(store)
    messages = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(messages) == bool(warned)
    assert warned in "".join(messages)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of 127.0.0.1, signed by itself; its key lies beside it in key.pem."""
    file = tmp_path / "certificate.pem"
    subject = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    files = ("-keyout", str(tmp_path / "key.pem"), "-out", str(file))
    command = [program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *files]
    subprocess.run(command, check=True, capture_output=True)
    return file


async def test_tls(certificate: Path) -> None:
    files = ("--tls-cert-file", str(certificate), "--tls-key-file", str(certificate.with_name("key.pem")))
    authority = ("--tls-ca-cert-file", str(certificate), "--tls-auth-clients", "no")
    with redis_server(*files, *authority, tls=True) as redis:
        secured = redis.url.replace("redis:", "rediss:")
        async with opened(f"{secured}?ssl_ca_certs={certificate}") as store:
            await assert_works(store)
        with pytest.raises(ConfigurationError, match="certificate"):
            await RedisStore(secured).start()


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_redis_is_imported_only_for_a_redis_store() -> None:
    code = "import sys, tidegate.sessions.stores.redis; print('redis' in sys.modules, 'hiredis' in sys.modules)"
    assert run_python(code) == "False False\n"


@pytest.mark.parametrize("package", ["redis", "hiredis"])
def test_a_missing_package_is_named(package: str) -> None:
    code = f"""
import sys
sys.modules[{package!r}] = None
from tidegate.errors import ConfigurationError
from tidegate.sessions.stores.redis import RedisStore
try:
    RedisStore("redis://localhost")
except ConfigurationError as error:
    print(error.message)
"""
    assert run_python(code) == f"a Redis store needs the package {package}: pip install 'tidegate[redis]'\n"

"""One connection to Redis for everybody who asks: commands go out at once, replies come back in their order.

Knows redis-py's connections (address, TLS, credentials, database), hiredis, and what Redis's errors mean to us. Knows
no keys and no scripts. Nothing is ever sent twice: whether what failed was done is for the caller to find out.

redis-py's own pipeline is not used. Measured on loopback without an append-only file, in process, beside other work:

| | here | redis-py 8.1, a pool |
| --- | ---: | ---: |
| one durable session, steps a second (best of 14 rounds) | 747 | 674 |
| the same, CPU of a step | 1,039 µs | 1,129 µs |
| 16 sessions at once, CPU of a step | 130 µs | 129 µs |
| `RedisStore.time`, one command | 0.06 ms | 0.21 ms |
| `RedisStore.page` of 10, a thousand commands | 6.2 ms | 28.9 ms |
| `RedisStore.start` | 6.1 ms | 49.5 ms |

redis-py waits for each reply, and keeps statistics of each call: some 0.1 ms a call and 20 µs a command.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import hiredis
from redis import exceptions as theirs
from redis.asyncio.connection import AbstractConnection, Connection, parse_url

from tidegate.errors import ConfigurationError, UnavailableError
from tidegate.sessions.stores.redis_commands import Command
from tidegate.sessions.stores.store import trouble

CLIENT_NAME = "tidegate"
"""What Redis lists our connections as."""

# Its published type says that a command is a tuple of one.
_pack: Callable[[Command], bytes] = hiredis.pack_command  # type: ignore[assignment]

Reply = Any
"""bytes, int, None, a list of these, or the `redis.exceptions.ResponseError` that answered that command."""


class PipelinedConnection:
    """A connection that is made when needed and made again after any error.

    Args:
        url: ``redis://[[user]:password@]host[:port][/db]``, ``rediss://…`` for TLS, ``unix://path?db=…``; redis-py's
            connection options may follow as a query (``?ssl_ca_certs=…``).
        timeout: Seconds for a call, connecting and waiting included.

    Raises:
        ConfigurationError: The URL is malformed.
    """

    def __init__(self, url: str, timeout: float) -> None:
        options = _options(url)
        self._connect = partial(options.pop("connection_class"), **options)
        # As it is sent, and as an error may repeat it: the URL has it with percent signs.
        self._secrets = [secret for secret in (options.get("password"),) if secret]
        self._timeout = timeout
        self._connecting = asyncio.Lock()
        self._live: _Live | None = None

    async def ask(self, commands: Sequence[Command]) -> list[Reply]:
        """Send the commands as one pipeline and return their replies, errors among them as values.

        Raises:
            UnavailableError: No answer: the cause is redis-py's error, or TimeoutError. The connection is given up,
                and with it whatever else was waiting on it.
        """
        if not commands:
            return []
        packed = [_pack(command) for command in commands]
        live = None
        try:
            async with asyncio.timeout(self._timeout):
                live = self._live
                if live is None or not live.is_alive:
                    live = await self._connected()
                return await live.ask(packed)
        except TimeoutError as error:
            await self._drop(live)
            raise away(f"Redis did not answer within {self._timeout:g} s") from error
        except (theirs.RedisError, OSError) as error:
            raise self._meaning(error) from error

    async def check(self, replies: Sequence[Reply]) -> None:
        """Raise the first error among the replies as UnavailableError."""
        for reply in replies:
            if isinstance(reply, theirs.ResponseError):
                if isinstance(reply, theirs.ReadOnlyError):
                    # A fail-over: the same name may lead to the new primary.
                    await self.drop()
                raise self._meaning(reply) from reply

    def _meaning(self, error: Exception) -> UnavailableError:
        """Ours for an error of redis-py's, whose text may repeat what was sent: ``AUTH`` and a password."""
        said = str(error)
        for secret in self._secrets:
            said = said.replace(secret, "***")
        return meaning(error, said)

    async def drop(self) -> None:
        """Close the connection; the next call makes another."""
        await self._drop(self._live)

    async def _drop(self, live: _Live | None) -> None:
        """Close that connection, which others may have replaced already."""
        if live is self._live:
            self._live = None
        if live is not None:
            await live.close()

    async def _connected(self) -> _Live:
        async with self._connecting:
            if self._live is None or not self._live.is_alive:
                await self.drop()
                connection = self._connect()
                try:
                    await connection.connect()
                except BaseException:
                    await connection.disconnect(nowait=True)
                    raise
                self._live = _Live(connection)
            return self._live


class _Live:
    """A connection that works so far; who waits on it, in order."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        # Of each call: where its replies go, and how many there will be. An exception is a result here, so that one
        # whose caller has gone is not reported as never looked at.
        self._waiting: deque[tuple[asyncio.Future[list[Reply] | Exception], int]] = deque()
        self._reader = asyncio.create_task(self._read())

    @property
    def is_alive(self) -> bool:
        return not self._reader.done()

    async def ask(self, packed: list[bytes]) -> list[Reply]:
        answered: asyncio.Future[list[Reply] | Exception] = asyncio.get_running_loop().create_future()
        self._waiting.append((answered, len(packed)))
        # Hands everything to the transport before it first waits, so calls keep the order of `_waiting`.
        try:
            await self._connection.send_packed_command(packed)
        except RuntimeError as error:
            # uvloop's word for a transport that was reset and is closed by now.
            raise theirs.ConnectionError(str(error)) from error
        result = await answered
        if isinstance(result, Exception):
            raise result
        return result

    async def close(self) -> None:
        self._reader.cancel()
        await asyncio.wait([self._reader])
        await self._connection.disconnect(nowait=True)

    async def _read(self) -> None:
        """Hand replies to who waits for them, until something breaks; then tell them all."""
        reason: Exception = theirs.ConnectionError("the connection was closed")
        try:
            while True:
                await self._read_call()
        except (theirs.RedisError, OSError) as error:
            reason = error
        finally:
            for answered, _ in self._waiting:
                if not answered.done():
                    answered.set_result(reason)

    async def _read_call(self) -> None:
        replies = [await self._read_reply()]
        if not self._waiting:
            raise theirs.InvalidResponse(f"Redis spoke unasked: {replies[0]!r:.200}")
        answered, count = self._waiting[0]
        while len(replies) < count:
            replies.append(await self._read_reply())
        self._waiting.popleft()
        if not answered.done():
            answered.set_result(replies)

    async def _read_reply(self) -> Reply:
        try:
            return await self._connection.read_response()
        except theirs.ResponseError as error:
            return error


def _options(url: str) -> dict[str, Any]:
    """What to make connections to that address with, ``connection_class`` among it; nothing is connected here."""
    try:
        address = urlsplit(url)
    except ValueError:  # a bracket of an IPv6 address without the other
        raise ConfigurationError("the store's URL is not one of Redis: see its host") from None
    try:
        # redis-py takes what follows the host for database 0 where it is no number.
        if address.scheme != "unix" and not re.fullmatch(r"/?\d*", address.path):
            raise ValueError("the database must be a number (a password with / in it has %2F there)")
        options: dict[str, Any] = dict(parse_url(url))
        kind = options.pop("connection_class", Connection)
        # Version 2 of the protocol is all that is needed; no limits of its own, since a call's covers everything.
        options |= {"protocol": 2, "decode_responses": False, "socket_timeout": None, "client_name": CLIENT_NAME}
        kind(**options)
    except (ValueError, TypeError, theirs.RedisError) as error:
        # A part of the URL that is read wrongly may be a password's.
        told = str(error) if address.password is None and "@" not in url else "see its port, database and options"
        raise ConfigurationError(f"the store's URL is not one of Redis: {told}") from None
    return {"connection_class": kind, **options}


def is_unknown_script(reply: Reply) -> bool:
    """Whether Redis does not have the script, and so did nothing: it was restarted, or told to forget."""
    return isinstance(reply, theirs.NoScriptError)


def is_foreign(reply: Reply) -> bool:
    """Whether a key holds something of another kind than what was asked of it."""
    return isinstance(reply, theirs.ResponseError) and str(reply).startswith("WRONGTYPE")


def is_across_slots(reply: Reply) -> bool:
    """Whether a cluster's node refused a command over keys of several slots."""
    return isinstance(reply, theirs.ClusterCrossSlotError)


def away(cause: str) -> UnavailableError:
    return trouble("STORE_AWAY", cause)


def meaning(error: Exception, said: str) -> UnavailableError:
    """Ours for an error of redis-py's that said so."""
    if isinstance(error, theirs.MovedError):
        return away("Redis: this is one of several nodes of a cluster, and a store is a single Redis")
    if isinstance(error, theirs.OutOfMemoryError) or said.startswith("MISCONF"):
        return trouble("STORE_FULL", f"Redis: {said}")
    if said.startswith("WRONGTYPE"):
        return trouble("STORE_CORRUPT", f"Redis: {said}")
    return away(f"Redis: {said}")


# What passes by itself, among the errors for which redis-py has no better class than ResponseError.
_PASSING = (theirs.OutOfMemoryError, theirs.ReadOnlyError, theirs.ClusterDownError, theirs.TryAgainError)
_PASSING_WORDS = ("MISCONF", "BUSY", "NOREPLICAS", "UNBLOCKED")


def is_hopeless(error: BaseException | None) -> bool:
    """Whether asking again will not help: wrong credentials or database, no permission, not a Redis at all."""
    if isinstance(error, theirs.AuthenticationError | theirs.InvalidResponse):
        return True
    if isinstance(error, theirs.ResponseError):
        return not isinstance(error, _PASSING) and not str(error).startswith(_PASSING_WORDS)
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False

"""How sessions lie in Redis: keys, scripts, and the commands made of them.

A session is one hash ``tidegate:{B}:session:<tenant>:<id>`` with the fields ``revision``, ``summary``, ``body``,
``hidden`` (where `Store.page` does not show it) and ``attachment:<name>``. B is one of 1,024 buckets, chosen by the
CRC-32 of ``<tenant>:<id>``; each has two indexes beside its sessions, whose members are ``<tenant>:<id>``:
``tidegate:{B}:due``, sorted by time, and ``tidegate:{B}:listed``, sorted by name. What stands in braces is Redis
Cluster's hash tag, so that a session and its entries in the indexes lie in one slot: a write is one script over three
keys of that slot, atomic whole. There is no order of updates to get wrong in a crash and nothing to clean up later;
what it costs is that `due` and `page` ask many indexes (`redis`). A step without a new due time leaves the indexes
alone.

The writes of a call are one script, in a cluster one a bucket. Redis takes 16 KB from a connection at a time, runs what
is whole in it, and with ``appendfsync always`` goes to the disk before it takes more: 64 records of 4 KB as 64 commands
are 16 waits for the disk, as one command they are one. A script goes on past a write whose compare fails.

Knows nothing of connections, and does not import redis-py.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

from tidegate.api import SessionKey
from tidegate.sessions.stores.store import FORMAT, Write

FORMAT_KEY = "tidegate:format"
MIGRATING = f"1>{FORMAT}"
"""The stored format while an older one is migrated: no server takes it."""
NUM_BUCKETS = 1024
"""Part of the format: which bucket a session is in decides its key."""

Command = tuple[bytes | str | int, ...]


class Script(NamedTuple):
    """What Redis runs by its hash; it forgets scripts when it restarts."""

    text: str
    sha1: str


def _script(text: str) -> Script:
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


# All scripts: KEYS are a session, its bucket's due times and its bucket's listing; WRITE takes several such groups.

# ARGV of each write: member, expected revision ('' for none), new revision, summary, '1' if there is a new body, the
# body, due ('' leaves it, 'never', or seconds), '1' if listed, how many attachments; then of each attachment 'put' or
# 'remove', its field, its content.
# Returns of each write 1, 0, or the error that its key gave. Out of memory fails the first HSET, before any change.
# An index that holds something foreign is left as it is, and the session goes on without it: an error would end the
# script, and with it the writes of others.
WRITE = _script("""
local function index(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err and string.sub(reply.err, 1, 9) ~= 'WRONGTYPE' then error(reply) end
end

local function write(session, due, listed, member, expected, revision, summary, renewed, body, at, shown)
  local stored = redis.pcall('HMGET', session, 'revision', 'hidden')
  if stored.err then return stored end
  if (stored[1] or '') ~= expected then return 0 end
  if renewed == '1' then
    redis.call('HSET', session, 'revision', revision, 'summary', summary, 'body', body)
  else
    redis.call('HSET', session, 'revision', revision, 'summary', summary)
  end
  if shown ~= '1' then
    redis.call('HSET', session, 'hidden', '1')
    index('ZREM', listed, member)
  elseif stored[2] or not stored[1] then
    redis.call('HDEL', session, 'hidden')
    index('ZADD', listed, 0, member)
  end
  if at == 'never' then
    index('ZREM', due, member)
  elseif at ~= '' then
    index('ZADD', due, at, member)
  end
  return 1
end

local made, key, next = {}, 1, 1
while ARGV[next] do
  made[#made + 1] = write(KEYS[key], KEYS[key + 1], KEYS[key + 2], unpack(ARGV, next, next + 7))
  local last = next + 8 + 3 * ARGV[next + 8]
  for i = next + 9, last, 3 do
    if made[#made] ~= 1 then break end
    if ARGV[i] == 'put' then
      redis.call('HSET', KEYS[key], ARGV[i + 1], ARGV[i + 2])
    else
      redis.call('HDEL', KEYS[key], ARGV[i + 1])
    end
  end
  key, next = key + 3, last + 1
end
return made
""")

# The usual tick. KEYS are sessions; ARGV of each: expected revision, new revision, summary, body. Returns as WRITE; and
# 2, with nothing done, of a session that is not shown, which WRITE is to show.
STEP = _script("""
local made = {}
for i = 1, #KEYS do
  local stored = redis.pcall('HMGET', KEYS[i], 'revision', 'hidden')
  local next = 4 * i - 3
  if stored.err then
    made[i] = stored
  elseif stored[1] ~= ARGV[next] then
    made[i] = 0
  elseif stored[2] then
    made[i] = 2
  else
    redis.call('HSET', KEYS[i], 'revision', ARGV[next + 1], 'summary', ARGV[next + 2], 'body', ARGV[next + 3])
    made[i] = 1
  end
end
return made
""")
NOT_SHOWN = 2

# ARGV: member, expected revision.
DELETE = _script("""
if redis.call('HGET', KEYS[1], 'revision') ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
return 1
""")

# ARGV: member, 'never' or seconds. An entry of the index that has no session, of a migration cut short, goes.
POSTPONE = _script("""
if ARGV[2] == 'never' or redis.call('EXISTS', KEYS[1]) == 0 then return redis.call('ZREM', KEYS[2], ARGV[1]) end
return redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
""")

LOADS: tuple[Command, ...] = tuple(("SCRIPT", "LOAD", script.text) for script in (WRITE, STEP, DELETE, POSTPONE))


class Bucket(NamedTuple):
    """The keys of a bucket: what its sessions' begin with, and its indexes."""

    sessions: str
    due: str
    listed: str


class Place(NamedTuple):
    """Where a session is: its bucket, its key, and what stands for it in the indexes."""

    bucket: Bucket
    session: str
    member: str


BUCKETS = tuple(
    Bucket(f"tidegate:{{{number}}}:session:", f"tidegate:{{{number}}}:due", f"tidegate:{{{number}}}:listed")
    for number in range(NUM_BUCKETS)
)
# A cluster's node refuses this one, which does nothing to two buckets.
NOTHING_ACROSS_BUCKETS: Command = ("EVALSHA", WRITE.sha1, 2, BUCKETS[0].due, BUCKETS[1].due)


@functools.lru_cache(8192)
def place_of(key: SessionKey) -> Place:
    member = f"{key.tenant}:{key.id}"
    bucket = BUCKETS[crc32(member.encode()) % NUM_BUCKETS]
    return Place(bucket, bucket.sessions + member, member)


def member_of(tenant: str, id_: str) -> bytes:
    """Return what stands for a session in an index."""
    return f"{tenant}:{id_}".encode()


def key_of(member: bytes) -> SessionKey | None:
    """Return the key that stands in an index; None of what no write of ours put there."""
    try:
        tenant, separator, id_ = member.decode().partition(":")
    except UnicodeDecodeError:
        return None
    return SessionKey(tenant, id_) if separator else None


def is_of(bucket: Bucket, key: SessionKey | None) -> bool:
    """Whether a key that stands in an index of the bucket is a session's of it."""
    return key is not None and place_of(key).bucket is bucket


def read(key: SessionKey, *fields: str) -> Command:
    return ("HMGET", place_of(key).session, *fields)


def read_attachment(key: SessionKey, name: str) -> Command:
    return ("HGET", place_of(key).session, _attachment(name))


def write(writes: Sequence[Write]) -> Command:
    """All of them; in a cluster they must be of one bucket."""
    keys: list[str] = []
    arguments: list[bytes | str | int] = []
    for one in writes:
        bucket, session, member = place_of(one.key)
        keys += (session, bucket.due, bucket.listed)
        arguments += (
            member,
            one.expected or b"",
            one.revision,
            one.summary,
            "0" if one.body is None else "1",
            one.body or b"",
            "" if one.due is None else _when(one.due.at),
            "1" if one.is_listed else "0",
            len(one.attachments),
        )
        for name, content in one.attachments.items():
            arguments += ("remove" if content is None else "put", _attachment(name), content or b"")
    return ("EVALSHA", WRITE.sha1, len(keys), *keys, *arguments)


def step(writes: Sequence[Write]) -> Command:
    """All of them, which must be steps; in a cluster they must be of one bucket."""
    arguments: list[bytes | str] = []
    for _, expected, revision, summary, body, *_ in writes:
        arguments += (expected or b"", revision, summary, body or b"")
    return ("EVALSHA", STEP.sha1, len(writes), *[place_of(one.key).session for one in writes], *arguments)


def delete(key: SessionKey, expected: bytes) -> Command:
    return _run(DELETE, key, expected)


def postpone(key: SessionKey, at: float | None) -> Command:
    return _run(POSTPONE, key, _when(at))


def due(bucket: Bucket, now: float, limit: int) -> Command:
    return ("ZRANGEBYSCORE", bucket.due, "-inf", repr(now), "LIMIT", 0, limit)


def listed(bucket: Bucket, tenant: str, limit: int, after: bytes) -> Command:
    # ";" is the character after ":".
    return ("ZRANGEBYLEX", bucket.listed, b"(" + after, f"({tenant};", "LIMIT", 0, limit)


def strike_due(bucket: Bucket, members: Sequence[bytes]) -> Command:
    """Remove entries that no write of ours made."""
    return ("ZREM", bucket.due, *members)


def _run(script: Script, key: SessionKey, argument: bytes | str) -> Command:
    bucket, session, member = place_of(key)
    return ("EVALSHA", script.sha1, 3, session, bucket.due, bucket.listed, member, argument)


def _attachment(name: str) -> str:
    return f"attachment:{name}"


def _when(at: float | None) -> str:
    return "never" if at is None else repr(at)

"""How sessions lie in Redis: keys, scripts, and the commands made of them.

A session is one hash ``tidegate:{B}:session:<id>`` with the fields ``revision``, ``record``, ``hidden`` (where
`Store.page` does not show it) and ``attachment:<name>``. B is one of 32 buckets, chosen by the id's CRC-32; each has
two indexes beside its sessions: ``tidegate:{B}:due``, sorted by time, and ``tidegate:{B}:listed``, sorted by id. What
stands in braces is Redis Cluster's hash tag, so that a session and its entries in the indexes lie in one slot: a write
is one script over three keys of that slot, atomic whole. There is no order of updates to get wrong in a crash and
nothing to clean up later; what it costs is that `due` and `page` ask 32 indexes. A step without a new due time leaves
the indexes alone.

The writes of a call are one script, in a cluster one a bucket. Redis takes 16 KB from a connection at a time, runs what
is whole in it, and with ``appendfsync always`` goes to the disk before it takes more: 64 records of 4 KB as 64 commands
are 16 waits for the disk, as one command they are one. A script goes on past a write whose compare fails.

Knows nothing of connections, and does not import redis-py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

from tidegate.sessions.stores.store import Write

FORMAT_KEY = "tidegate:format"
NUM_BUCKETS = 32
"""Part of the format: which bucket a session is in decides its key."""

Command = tuple[bytes | str | int, ...]


class Script(NamedTuple):
    """What Redis runs by its hash; it forgets scripts when it restarts."""

    text: str
    sha1: str


def _script(text: str) -> Script:
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


# All scripts: KEYS are a session, its bucket's due times and its bucket's listing; WRITE takes several such groups.

# ARGV of each write: id, expected revision ('' for none), new revision, record, due ('' leaves it, 'never', or
# seconds), '1' if listed, how many attachments; then of each attachment 'put' or 'remove', its field, its content.
# Returns of each write 1, 0, or the error that its key gave. Out of memory fails the first HSET, before any change.
WRITE = _script("""
local function write(session, due, listed, id, expected, revision, record, at, shown)
  local stored = redis.pcall('HMGET', session, 'revision', 'hidden')
  if stored.err then return stored end
  if (stored[1] or '') ~= expected then return 0 end
  redis.call('HSET', session, 'revision', revision, 'record', record)
  if shown ~= '1' then
    redis.call('HSET', session, 'hidden', '1')
    redis.call('ZREM', listed, id)
  elseif stored[2] or not stored[1] then
    redis.call('HDEL', session, 'hidden')
    redis.call('ZADD', listed, 0, id)
  end
  if at == 'never' then
    redis.call('ZREM', due, id)
  elseif at ~= '' then
    redis.call('ZADD', due, at, id)
  end
  return 1
end

local made, key, next = {}, 1, 1
while ARGV[next] do
  made[#made + 1] = write(KEYS[key], KEYS[key + 1], KEYS[key + 2], unpack(ARGV, next, next + 5))
  local last = next + 6 + 3 * ARGV[next + 6]
  for i = next + 7, last, 3 do
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

# ARGV: id, expected revision.
DELETE = _script("""
if redis.call('HGET', KEYS[1], 'revision') ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
return 1
""")

# ARGV: id, 'never' or seconds.
POSTPONE = _script("""
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if ARGV[2] == 'never' then return redis.call('ZREM', KEYS[2], ARGV[1]) end
return redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
""")

LOADS: tuple[Command, ...] = tuple(("SCRIPT", "LOAD", script.text) for script in (WRITE, DELETE, POSTPONE))


class Bucket(NamedTuple):
    """The keys of a bucket: what its sessions' begin with, and its indexes."""

    sessions: str
    due: str
    listed: str


BUCKETS = tuple(
    Bucket(f"tidegate:{{{number}}}:session:", f"tidegate:{{{number}}}:due", f"tidegate:{{{number}}}:listed")
    for number in range(NUM_BUCKETS)
)
# A cluster's node refuses this one, which does nothing to two buckets.
NOTHING_ACROSS_BUCKETS: Command = ("EVALSHA", WRITE.sha1, 2, BUCKETS[0].due, BUCKETS[1].due)


def bucket_of(id_: str) -> Bucket:
    return BUCKETS[crc32(id_.encode()) % NUM_BUCKETS]


def read(id_: str, *fields: str) -> Command:
    return ("HMGET", bucket_of(id_).sessions + id_, *fields)


def read_attachment(id_: str, name: str) -> Command:
    return ("HGET", bucket_of(id_).sessions + id_, _attachment(name))


def write(writes: Sequence[Write]) -> Command:
    """All of them; in a cluster they must be of one bucket."""
    keys: list[str] = []
    arguments: list[bytes | str | int] = []
    for one in writes:
        bucket = bucket_of(one.id)
        keys += (bucket.sessions + one.id, bucket.due, bucket.listed)
        arguments += (one.id, one.expected or b"", one.revision, one.record)
        arguments += ("" if one.due is None else _when(one.due.at), "1" if one.is_listed else "0")
        arguments.append(len(one.attachments))
        for name, content in one.attachments.items():
            arguments += ("remove" if content is None else "put", _attachment(name), content or b"")
    return ("EVALSHA", WRITE.sha1, len(keys), *keys, *arguments)


def delete(id_: str, expected: bytes) -> Command:
    return _run(DELETE, id_, expected)


def postpone(id_: str, at: float | None) -> Command:
    return _run(POSTPONE, id_, _when(at))


def due(bucket: Bucket, now: float, limit: int) -> Command:
    return ("ZRANGEBYSCORE", bucket.due, "-inf", repr(now), "WITHSCORES", "LIMIT", 0, limit)


def listed(bucket: Bucket, limit: int, after: str) -> Command:
    return ("ZRANGEBYLEX", bucket.listed, f"({after}", "+", "LIMIT", 0, limit)


def _run(script: Script, id_: str, argument: bytes | str) -> Command:
    bucket = bucket_of(id_)
    return ("EVALSHA", script.sha1, 3, bucket.sessions + id_, bucket.due, bucket.listed, id_, argument)


def _attachment(name: str) -> str:
    return f"attachment:{name}"


def _when(at: float | None) -> str:
    return "never" if at is None else repr(at)

"""The numbered lease by which a head holds its rows in Redis: what is asked of Redis in one atomic step.

One more hash beside the tables, `ray_mono:{namespace}:head`, says who holds them:

    number     of the head: above all before, and when it took over, in milliseconds of Redis's clock
    holder     who that is, for people
    process    the same for the next head on its machine, which can see whether it has ended (head_process.py)
    token      drawn by that head: its own question, come twice, is known again
    sequence   how many commits of this head were applied
    released   1 where that head ended in order

**Writes.** A commit names its head's number and its own place in the sequence; `COMMIT` looks at both and
writes in one step. A head with a lower number writes nothing. A commit whose answer was lost is sent again,
and applied once: the second time its place is taken. It may even arrive late, after commits that followed it,
out of a connection that was given up: then its place is long behind, and it changes nothing.

A Redis that has fewer commits than it acknowledged, or a lower number, has lost them: it came back empty, or
failed over to a replica that did not have them. That is said, and the head ends.

The number is a time for such a Redis. Nodes that knew heads which it has forgotten, or an old head that was
stopped meanwhile, must not take the next one for an earlier one.

**Answers.** Each commit also renews a lease of LEASE_S. The head trusts it for less, from before it asked, by
a clock of its own that counts while the machine sleeps; after that it asks again before it answers anyone.
Who takes over waits for LEASE_S, by its own clock, before it answers anyone, unless the last head ended in
order, or was a process of the same machine and is gone. The difference, MARGIN_S, is what the two clocks may
differ by in that time: a fifth of it.
"""

from __future__ import annotations

LEASE_S = 0.5
MARGIN_S = 0.1

# KEYS: head. ARGV: the number seen, the new holder, its token, its process.
# Answers the number of the next head where that is this one now, else 0.
TAKE_OVER = """
local head = redis.call('HMGET', KEYS[1], 'number', 'token')
local number = tonumber(head[1] or '0')
if head[2] == ARGV[3] then return number end
if number ~= tonumber(ARGV[1]) then return 0 end
local time = redis.call('TIME')
number = math.max(number + 1, time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('HSET', KEYS[1], 'number', string.format('%.0f', number), 'holder', ARGV[2], 'token', ARGV[3],
    'process', ARGV[4], 'sequence', 0, 'released', 0)
return number
"""

# KEYS: head, then the tables. ARGV: number, sequence, then for each write: the place of its table in KEYS,
# the key, the value with a 1 before it, or 0 to delete.
# Answers the head's number, sequence and holder. It was applied where these are our own.
COMMIT = """
local head = redis.call('HMGET', KEYS[1], 'number', 'sequence', 'holder')
local number, sequence = tonumber(head[1] or '0'), tonumber(head[2] or '0')
local mine, place = tonumber(ARGV[1]), tonumber(ARGV[2])
if number == mine and sequence == place - 1 then
    for i = 3, #ARGV, 3 do
        local table = KEYS[tonumber(ARGV[i])]
        if ARGV[i + 2] == '0' then
            redis.call('HDEL', table, ARGV[i + 1])
        else
            redis.call('HSET', table, ARGV[i + 1], string.sub(ARGV[i + 2], 2))
        end
    end
    redis.call('HSET', KEYS[1], 'sequence', place)
    sequence = place
end
return {number, sequence, head[3] or ''}
"""

# KEYS: a table. ARGV: bytes, then keys.
# Answers the values of these keys in their order, up to the one that makes them so many bytes or more.
READ = """
local values, bytes = {}, 0
for i = 2, #ARGV do
    local value = redis.call('HGET', KEYS[1], ARGV[i])
    values[i - 1] = value
    bytes = bytes + #(value or '')
    if bytes >= tonumber(ARGV[1]) then break end
end
return values
"""

# KEYS: head. ARGV: number.
RELEASE = """
if redis.call('HGET', KEYS[1], 'number') == ARGV[1] then redis.call('HSET', KEYS[1], 'released', 1) end
"""

package redislimit

import "github.com/redis/rueidis"

// A machine has a name that is good for one life: until it or Redis may have missed something.
// With the next one all that was said under the old one is void, even what Redis reads only
// then. A name is alive while it has a lease in the sorted set KEYS[1], by when that ends
// in microseconds. What is counted under any other is nobody's.

// joinScript begins a life (ARGV[2]) and ends the one before. It adds first: a Redis that is out of memory refuses
// that, but only if the script has not written anything yet.
var joinScript = rueidis.NewLuaScript(`
local is = redis.call('TYPE', KEYS[1]).ok
if is ~= 'zset' and is ~= 'none' then redis.call('DEL', KEYS[1]) end
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], string.format('%d', time[1] * 1000000 + time[2] + ARGV[3] * 1000), ARGV[2])
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[1], 2 * ARGV[3])
return 1`)

// turnScript is one round trip of a machine. It returns 1, and two numbers for every connection: which
// claim is refused, or -1, and for how many microseconds at least. Or only 0, if the
// machine's life is over.
//
// Its arguments are the name, a new lease or 0, how long to keep counts, and how many are
// told; then these counts, whose keys are KEYS[2] and so on, each with a 1 if earlier lives have
// told it too; and then the connections: how many claims, and of
// each how many may be open and are on this machine, the interval and the span of the rate. The keys of a claim follow
// in that order, of what is not 0.
//
// All is decided first and written then, each key once: if a write is refused, for want of
// memory or because this is a replica, that is the first one, and none was done.
var turnScript = rueidis.NewLuaScript(`
local me, lease, keep = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local ends = {}
local function lives(name)
	if not ends[name] then ends[name] = tonumber(redis.call('ZSCORE', KEYS[1], name) or 0) end
	return ends[name] > now
end
if not lives(me) then return {0} end

local argument, key = 3, 1
local function number()
	argument = argument + 1
	return tonumber(ARGV[argument])
end
local function nextKey()
	key = key + 1
	return KEYS[key]
end

-- What is of another type at a key of ours is nothing of ours.
local function own(command, at, ...)
	local reply = redis.pcall(command, at, ...)
	if type(reply) == 'table' and reply.err then
		if not string.find(reply.err, 'WRONGTYPE', 1, true) then error(reply.err) end
		redis.call('DEL', at)
		reply = redis.call(command, at, ...)
	end
	return reply
end

local dead = {}
local others = {}
local function openElsewhere(at)
	if others[at] then return others[at] end
	local sum, all = 0, own('HGETALL', at)
	for i = 1, #all, 2 do
		if all[i] == me then
		elseif lives(all[i]) then sum = sum + (tonumber(all[i + 1]) or 0)
		else table.insert(dead, {at, all[i]}) end
	end
	others[at] = sum
	return sum
end

local mine, whole = {}, {} -- by key: how many are open here, and when a burst is whole again
for _ = 1, number() do
	local at = nextKey()
	mine[at] = number()
	if number() > 0 then openElsewhere(at) end
end

local replies = {1}
while argument < #ARGV do
	local refused, wait, opened, spent = -1, 0, {}, {}
	for i = 0, number() - 1 do
		local most, open, interval, span = number(), number(), number(), number()
		if most > 0 then
			local at = nextKey()
			opened[at] = (opened[at] or mine[at] or open) + 1
			if refused < 0 and openElsewhere(at) + opened[at] > most then refused = i end
		end
		if interval > 0 then
			local at = nextKey()
			local again = spent[at] or whole[at] or tonumber(own('GET', at) or 0) or 0
			-- No later than after a whole burst: the clock may have been set, or the limit raised.
			spent[at] = math.max(now, math.min(again, now + span)) + interval
			if refused < 0 and spent[at] > now + span + 0.5 then refused, wait = i, spent[at] - now - span end
		end
	end
	if refused < 0 then
		for at, n in pairs(opened) do mine[at] = n end
		for at, again in pairs(spent) do whole[at] = again end
	end
	table.insert(replies, refused)
	table.insert(replies, math.ceil(wait))
end

for at, n in pairs(mine) do
	if n > 0 then
		own('HSET', at, me, n)
		redis.call('PEXPIRE', at, keep)
	end
end
for at, again in pairs(whole) do
	redis.call('SET', at, string.format('%.3f', again), 'PX', math.ceil((again - now) / 1000))
end
if lease > 0 then
	redis.call('ZADD', KEYS[1], string.format('%d', now + lease * 1000), me)
	redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. string.format('%d', now))
	redis.call('PEXPIRE', KEYS[1], 2 * lease)
end
for at, n in pairs(mine) do
	if n == 0 then own('HDEL', at, me) end
end
for _, who in ipairs(dead) do own('HDEL', who[1], who[2]) end
return replies`)

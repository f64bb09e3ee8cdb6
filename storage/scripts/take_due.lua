-- ARGV: now, sorted set (name), limit, hold seconds. Answers the members that are due; each is held back for
-- the hold time, so that one whose taker dies comes again.
local now = now_or(ARGV[1])
local due = redis.call('ZRANGEBYSCORE', key(ARGV[2]), '-inf', now, 'LIMIT', 0, tonumber(ARGV[3]))
for _, member in ipairs(due) do redis.call('ZADD', key(ARGV[2]), now + tonumber(ARGV[4]), member) end
return due

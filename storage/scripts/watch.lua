-- ARGV: job id, watcher, seconds. Answers 1, or 0 when the job was given up.
local KEPT_SECONDS = 86400
if redis.call('EXISTS', key('given_up', ARGV[1])) == 1 then return 0 end
local watchers = key('watchers', ARGV[1])
redis.call('ZADD', watchers, now_or('') + tonumber(ARGV[3]), ARGV[2])
redis.call('EXPIRE', watchers, KEPT_SECONDS)
return 1

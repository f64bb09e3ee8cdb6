-- ARGV: job id, watcher, key id, name of its submission or ''. Answers 1 when the job is given up by this.
local KEPT_SECONDS = 86400
local watchers = key('watchers', ARGV[1])
redis.call('ZREM', watchers, ARGV[2])
redis.call('ZREMRANGEBYSCORE', watchers, '-inf', now_or(''))
if redis.call('ZCARD', watchers) > 0 then return 0 end
local status = redis.call('HGET', key('job', ARGV[1]), 'status')
if status ~= 'queued' and status ~= 'processing' then return 0 end

redis.call('SET', key('given_up', ARGV[1]), 1, 'EX', KEPT_SECONDS)
forget_submission(ARGV[1], ARGV[3], ARGV[4])
return 1

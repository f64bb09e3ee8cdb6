-- ARGV: job id, fence, the pictures so far (JSON). Answers 1, or 0 when the lease is another's by now.
local stored = key('job', ARGV[1])
local current = redis.call('HMGET', stored, 'status', 'fence')
if current[1] ~= 'processing' or tonumber(current[2]) ~= tonumber(ARGV[2]) then return 0 end

redis.call('HSET', stored, 'images', ARGV[3])
redis.call('PUBLISH', key('done'), ARGV[1])
return 1

-- ARGV: job id, fence, seconds, then fields and values. Answers 1, or 0 when the lease is another's by now.
local current = redis.call('HMGET', key('job', ARGV[1]), 'status', 'fence')
if current[1] ~= 'processing' or tonumber(current[2]) ~= tonumber(ARGV[2]) then return 0 end

local preview = key('preview', ARGV[1])
redis.call('HSET', preview, unpack(ARGV, 4))
redis.call('EXPIRE', preview, ARGV[3])
return 1

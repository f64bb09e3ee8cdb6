-- ARGV: job id, priorities (JSON, highest first). Answers how many jobs will be claimed before it, or false.
local stored = redis.call('HMGET', key('job', ARGV[1]), 'status', 'key_id', 'priority')
if stored[1] ~= 'queued' then return false end

local ahead = 0
for _, priority in ipairs(cjson.decode(ARGV[2])) do
  local ring = redis.call('ZRANGE', key('waiting', priority), 0, -1)
  if tostring(priority) ~= stored[3] then
    for _, key_id in ipairs(ring) do ahead = ahead + redis.call('ZCARD', key('waiting', priority, key_id)) end
  else
    local rank = redis.call('ZRANK', key('waiting', priority, stored[2]), ARGV[1])
    if not rank then return false end
    -- Each round serves every key once: `rank` whole rounds, then those who stand before it in the ring.
    local rounds = rank + 1
    for _, key_id in ipairs(ring) do
      if key_id == stored[2] then
        ahead = ahead + rank
        rounds = rank
      else
        ahead = ahead + math.min(redis.call('ZCARD', key('waiting', priority, key_id)), rounds)
      end
    end
    return ahead
  end
end
return false

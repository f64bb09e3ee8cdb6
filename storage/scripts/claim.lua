-- ARGV: now, lease seconds, patience seconds, resident models (JSON list), priorities (JSON, highest first),
-- models whose jobs are left where they are (JSON list).
-- Answers the job's hash as it was before, and the time of the claim.
local KEYS_LOOKED_AT, JOBS_LOOKED_AT = 64, 32
local now = now_or(ARGV[1])
local patience = tonumber(ARGV[3])
local resident = {}
for _, model in ipairs(cjson.decode(ARGV[4])) do resident[model] = true end
local full = {}
for _, model in ipairs(cjson.decode(ARGV[6])) do full[model] = true end

-- The ring's first job; or one near the front that needs no model to be loaded, while the first can be passed over.
-- It can for `patience` seconds from the first time: counted from when it was queued, all jobs of a backlog would have
-- waited too long already, and each would have its model loaded in the order of arrival.
local function choose(priority)
  local ring = redis.call('ZRANGE', key('waiting', priority), 0, KEYS_LOOKED_AT - 1)
  local first, first_key
  for _, key_id in ipairs(ring) do
    for _, job_id in ipairs(redis.call('ZRANGE', key('waiting', priority, key_id), 0, JOBS_LOOKED_AT - 1)) do
      local facts = redis.call('HMGET', key('job', job_id), 'model', 'passed_over_at')
      if not full[facts[1]] then
        if not first then
          first, first_key = job_id, key_id
          if next(resident) == nil or (facts[2] and now - tonumber(facts[2]) > patience) then return first, first_key end
        end
        if resident[facts[1]] then
          if job_id ~= first then redis.call('HSETNX', key('job', first), 'passed_over_at', tostring(now)) end
          return job_id, key_id
        end
      end
    end
  end
  return first, first_key
end

for _, priority in ipairs(cjson.decode(ARGV[5])) do
  local job_id, key_id = choose(priority)
  if job_id then
    local stored = key('job', job_id)
    local before = redis.call('HGETALL', stored)
    local turn = redis.call('INCR', key('turn'))
    redis.call('HSET', key('turns'), key_id, turn)
    redis.call('ZADD', key('waiting', priority), turn, key_id)
    leave_waiting(job_id, key_id, priority)
    redis.call('HINCRBY', stored, 'fence', 1)
    redis.call('HINCRBY', stored, 'attempts', 1)
    redis.call('HSET', stored, 'status', 'processing', 'started_at', tostring(now), 'step', 0, 'num_steps', 0)
    redis.call('HDEL', stored, 'marks', 'passed_over_at')
    redis.call('ZADD', key('leases'), now + tonumber(ARGV[2]), job_id)
    return { before, tostring(now) }
  end
end
return false

-- What every script starts with. Key names are built here: one Redis, no cluster.
-- Times are seconds since the epoch, by Redis' own clock unless the caller (a test) brings one.
local PREFIX = 'inpaintd:'

local function key(...)
  return PREFIX .. table.concat({ ... }, ':')
end

local function now_or(given)
  if given ~= '' then return tonumber(given) end
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

-- A key (a client) stands in the ring of its priority while it has jobs waiting; its place there is
-- the turn at which it was last served, so the one that waited longest comes first.
local function enter_waiting(job_id, key_id, priority, number)
  redis.call('ZADD', key('waiting', priority, key_id), number, job_id)
  redis.call('ZADD', key('waiting', priority), redis.call('HGET', key('turns'), key_id) or 0, key_id)
end

local function leave_waiting(job_id, key_id, priority)
  local jobs = key('waiting', priority, key_id)
  redis.call('ZREM', jobs, job_id)
  if redis.call('ZCARD', jobs) == 0 then redis.call('ZREM', key('waiting', priority), key_id) end
end

-- Pictures that came with a job are kept while it, or another that uses them, is not over.
local function hold_inputs(inputs)
  for _, object in ipairs(inputs) do redis.call('HINCRBY', key('inputs_in_use'), object, 1) end
end

local function release_inputs(inputs, keep_until)
  for _, object in ipairs(inputs) do
    if redis.call('HINCRBY', key('inputs_in_use'), object, -1) <= 0 then
      redis.call('HDEL', key('inputs_in_use'), object)
    end
    redis.call('ZADD', key('expiry', 'inputs'), 'GT', keep_until, object)
  end
end

-- What happens once, in the transaction in which a job ends.
local function conclude(job_id, ending, now)
  if ending.webhook then redis.call('ZADD', key('webhooks'), now, job_id) end
  if ending.inputs then release_inputs(ending.inputs, now + ending.input_ttl) end
  if ending.results_ttl then redis.call('ZADD', key('expiry', 'results'), now + ending.results_ttl, job_id) end
  redis.call('ZADD', key('expiry', 'records'), now + ending.record_ttl, job_id)
  redis.call('PUBLISH', key('done'), job_id)
end

-- How many jobs will be claimed before this one; false for one that does not wait. Priorities: highest first.
local function jobs_ahead(job_id, priorities)
  local stored = redis.call('HMGET', key('job', job_id), 'status', 'key_id', 'priority')
  if stored[1] ~= 'queued' then return false end
  local ahead = 0
  for _, priority in ipairs(priorities) do
    local ring = redis.call('ZRANGE', key('waiting', priority), 0, -1)
    if tostring(priority) ~= stored[3] then
      for _, key_id in ipairs(ring) do ahead = ahead + redis.call('ZCARD', key('waiting', priority, key_id)) end
    else
      local rank = redis.call('ZRANK', key('waiting', priority, stored[2]), job_id)
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
end

-- An equal submission finds this job no more; the one of another job under the same name stays.
local function forget_submission(job_id, key_id, name)
  local stored = key('idempotency', key_id, name)
  local known = name ~= '' and redis.call('GET', stored)
  if known and cjson.decode(known).job_id == job_id then redis.call('DEL', stored) end
end

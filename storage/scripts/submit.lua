-- ARGV: now, submission (JSON), record (JSON).
-- Answers {outcome, the new number, the id of a job that is known already, or how many wait}.
local now = now_or(ARGV[1])
local job = cjson.decode(ARGV[2])
local stored = key('job', job.job_id)

-- The caller gave up on this long ago, and told its client so.
if job.not_after and now > job.not_after then return { 'late', '' } end
if redis.call('EXISTS', stored) == 1 then return { 'known', job.job_id } end

local idempotency = job.idempotency and key('idempotency', job.key_id, job.idempotency.key)
if idempotency then
  local earlier = redis.call('GET', idempotency)
  if earlier then
    earlier = cjson.decode(earlier)
    if earlier.fingerprint ~= job.idempotency.fingerprint then return { 'conflict', '' } end
    if redis.call('EXISTS', key('job', earlier.job_id)) == 1 then return { 'known', earlier.job_id } end
  end
end

if job.max_waiting then
  local waiting = 0
  for _, priority in ipairs(job.priorities) do
    waiting = waiting + redis.call('ZCARD', key('waiting', priority, job.key_id))
  end
  if waiting >= job.max_waiting then return { 'full', tostring(waiting) } end
end

local number = redis.call('INCR', key('number'))
redis.call('HSET', stored, 'record', ARGV[3], 'number', number, 'status', job.status, 'fence', 0, 'attempts', 0,
  'key_id', job.key_id, 'priority', job.priority, 'model', job.model)
redis.call('SET', key('number', number), job.job_id)
redis.call('SET', key('image', job.image_id), job.job_id)
if idempotency then
  local claim = cjson.encode({ fingerprint = job.idempotency.fingerprint, job_id = job.job_id })
  redis.call('SET', idempotency, claim, 'EX', job.idempotency.seconds)
end
if job.ending then
  conclude(job.job_id, job.ending, now)
else
  hold_inputs(job.inputs)
  enter_waiting(job.job_id, job.key_id, job.priority, number)
  if job.start_by then redis.call('ZADD', key('starts'), job.start_by, job.job_id) end
end
return { 'created', tostring(number) }

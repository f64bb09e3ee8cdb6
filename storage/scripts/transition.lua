-- ARGV: now, change (JSON), record (JSON). Answers 1 when the job is now as asked, else 0.
-- The change holds only while status and fence are the expected ones: whoever lost the lease changes nothing.
local now = now_or(ARGV[1])
local change = cjson.decode(ARGV[2])
local stored = key('job', change.job_id)
local current = redis.call('HMGET', stored, 'status', 'fence', 'record')

-- The same change again (its first answer was lost on the way) is no other change.
if current[1] == change.status and current[3] == ARGV[3] then return 1 end
if current[1] ~= change.expected_status or tonumber(current[2]) ~= change.fence then return 0 end
if change.only_expired then
  local lease_until = redis.call('ZSCORE', key('leases'), change.job_id)
  if lease_until and tonumber(lease_until) > now then return 0 end
end

redis.call('HSET', stored, 'record', ARGV[3], 'status', change.status, 'attempts', change.attempts)
redis.call('HDEL', stored, 'images')
if change.expected_status == 'queued' then leave_waiting(change.job_id, change.key_id, change.priority) end
if change.expected_status == 'processing' then
  redis.call('ZREM', key('leases'), change.job_id)
  redis.call('DEL', key('preview', change.job_id))
end
if change.status == 'queued' then
  redis.call('HDEL', stored, 'started_at', 'step', 'num_steps')
  enter_waiting(change.job_id, change.key_id, change.priority, change.number)
end
if change.ending then conclude(change.job_id, change.ending, now) end
return 1

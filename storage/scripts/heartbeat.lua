-- ARGV: now, lease seconds, beats (JSON list of [job id, fence, step, num_steps]).
-- Answers, for each beat, 'lost', 'held' or 'cancel'.
local lease_until = now_or(ARGV[1]) + tonumber(ARGV[2])
local answers = {}
for index, beat in ipairs(cjson.decode(ARGV[3])) do
  local stored = key('job', beat[1])
  local current = redis.call('HMGET', stored, 'status', 'fence', 'cancel')
  if current[1] == 'processing' and tonumber(current[2]) == beat[2] then
    redis.call('HSET', stored, 'step', beat[3], 'num_steps', beat[4])
    redis.call('ZADD', key('leases'), lease_until, beat[1])
    answers[index] = current[3] and 'cancel' or 'held'
  else
    answers[index] = 'lost'
  end
end
return answers

-- ARGV: now, lease seconds, beats (JSON list of [job id, fence, step, num_steps]).
-- Answers, for each beat, 'lost', 'held' or 'cancel'.
local now = now_or(ARGV[1])
local lease_until = now + tonumber(ARGV[2])
local answers = {}
for index, beat in ipairs(cjson.decode(ARGV[3])) do
  local stored = key('job', beat[1])
  local current = redis.call('HMGET', stored, 'status', 'fence', 'cancel', 'step', 'marks')
  if current[1] == 'processing' and tonumber(current[2]) == beat[2] then
    redis.call('HSET', stored, 'step', beat[3], 'num_steps', beat[4])
    if beat[3] > tonumber(current[4] or 0) then
      local mark = beat[3] .. '@' .. string.format('%.3f', now)
      redis.call('HSET', stored, 'marks', current[5] and current[5] .. ' ' .. mark or mark)
    end
    redis.call('ZADD', key('leases'), lease_until, beat[1])
    answers[index] = current[3] and 'cancel' or 'held'
  else
    answers[index] = 'lost'
  end
end
return answers

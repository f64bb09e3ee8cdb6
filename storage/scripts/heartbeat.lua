-- ARGV: now, lease seconds, beats (JSON list of [job id, fence, step, num_steps]).
-- Answers, for each beat, 'lost', 'held' or 'cancel', and 1 while somebody watches the job's previews, else 0.
local now = now_or(ARGV[1])
local lease_until = now + tonumber(ARGV[2])
local answers = {}
for index, beat in ipairs(cjson.decode(ARGV[3])) do
  local stored = key('job', beat[1])
  local current = redis.call('HMGET', stored, 'status', 'fence', 'cancel', 'step', 'marks', 'previews_until')
  if current[1] == 'processing' and tonumber(current[2]) == beat[2] then
    redis.call('HSET', stored, 'step', beat[3], 'num_steps', beat[4])
    if beat[3] > tonumber(current[4] or 0) then
      local mark = beat[3] .. '@' .. string.format('%.3f', now)
      redis.call('HSET', stored, 'marks', current[5] and current[5] .. ' ' .. mark or mark)
    end
    redis.call('ZADD', key('leases'), lease_until, beat[1])
    local is_watched = tonumber(current[6] or 0) > now
    answers[index] = { current[3] and 'cancel' or 'held', is_watched and 1 or 0 }
  else
    answers[index] = { 'lost', 0 }
  end
end
return answers

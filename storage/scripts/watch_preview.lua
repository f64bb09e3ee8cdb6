-- ARGV: now, job id, seconds, mark of the preview that is known. Says that somebody wants to see the job's
-- previews, for so long. Answers the newest as its hash, or an empty list when there is none, or it is known.
local stored = key('job', ARGV[2])
local status = redis.call('HGET', stored, 'status')
if status ~= 'queued' and status ~= 'processing' then return {} end

redis.call('HSET', stored, 'previews_until', string.format('%.3f', now_or(ARGV[1]) + tonumber(ARGV[3])))
local preview = key('preview', ARGV[2])
if redis.call('HGET', preview, 'mark') == ARGV[4] then return {} end
return redis.call('HGETALL', preview)

-- ARGV: job id, priorities (JSON, highest first). Answers the job's hash and how many will be claimed before it.
return { redis.call('HGETALL', key('job', ARGV[1])), jobs_ahead(ARGV[1], cjson.decode(ARGV[2])) }

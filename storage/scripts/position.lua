-- ARGV: job id, priorities (JSON, highest first). Answers how many jobs will be claimed before it, or false.
return jobs_ahead(ARGV[1], cjson.decode(ARGV[2]))

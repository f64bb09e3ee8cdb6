-- ARGV: job id, key id, name of its submission or ''.
forget_submission(ARGV[1], ARGV[2], ARGV[3])
return 1

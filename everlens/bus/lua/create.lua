#!lua flags=allow-oom
-- Begin a log, once. KEYS: meta. ARGV: epoch. Answers the epoch that holds.
if redis.call('HSETNX', KEYS[1], 'epoch', ARGV[1]) == 1 then
  redis.call('HSET', KEYS[1], 'seq', 0, 'done', 0, 'kept', 0, 'bytes', 0, 'fence', 0, 'paused', '')
end
return redis.call('HGET', KEYS[1], 'epoch')

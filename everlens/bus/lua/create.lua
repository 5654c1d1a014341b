#!lua flags=allow-oom
-- Begin a log, once. KEYS: meta. ARGV: epoch. Answers the epoch that holds.
if redis.call('HSETNX', KEYS[1], 'epoch', ARGV[1]) == 1 then
  for _, field in ipairs({'seq', 'admitted', 'done', 'kept', 'bytes', 'fence'}) do
    redis.call('HSET', KEYS[1], field, 0)
  end
  redis.call('HSET', KEYS[1], 'paused', '')
end
return redis.call('HGET', KEYS[1], 'epoch')

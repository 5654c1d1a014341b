#!lua flags=allow-oom
-- Leave what the learner says of itself, or of samples, where the service shows it.
-- KEYS: learner, forgotten or reports. ARGV: field, value ...
redis.call('HSET', KEYS[1], unpack(ARGV))
return {'OK', ''}

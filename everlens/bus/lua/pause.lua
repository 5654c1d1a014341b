#!lua flags=allow-oom
-- Refuse new samples with a reason, or accept them again with none; not while somebody else learns.
-- KEYS: meta, lease. ARGV: holder, reason.
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then return {'HELD', ''} end
if redis.call('EXISTS', KEYS[1]) == 0 then return {'NONE', ''} end
redis.call('HSET', KEYS[1], 'paused', ARGV[2])
return {'OK', ''}

#!lua flags=allow-oom
-- Hold learning with a reason, or let it go on with none. Not `paused`, by which a learner refuses
-- what nobody would learn: here admission goes on, and the learner takes nothing up. Also over
-- maxmemory, since what waits could not be learnt and freed otherwise.
-- KEYS: meta. ARGV: epoch, reason.
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if epoch ~= ARGV[1] then return {'EPOCH', epoch or ''} end
redis.call('HSET', KEYS[1], 'held', ARGV[2])
return {'OK', ''}

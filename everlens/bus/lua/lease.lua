#!lua flags=allow-oom
-- Take or renew the lease. A new holder always gets a higher fence; publish and trim compare it.
-- Whoever held it last takes it up again with the same fence: nobody learnt in between.
-- A log that ends behind the holder's cursor is an older copy: what it takes now under numbers that
-- were learnt already would never be learnt.
-- KEYS: meta, lease. ARGV: epoch, holder, milliseconds, cursor.
local meta, lease = KEYS[1], KEYS[2]
local state = redis.call('HMGET', meta, 'epoch', 'fence', 'holder', 'seq', 'held')
if state[1] ~= ARGV[1] then return {'EPOCH', state[1] or ''} end
if tonumber(state[4]) < tonumber(ARGV[4]) then return {'BEHIND', state[4]} end
local holder = redis.call('GET', lease)
if holder and holder ~= ARGV[2] then return {'HELD', tostring(redis.call('PTTL', lease))} end
redis.call('SET', lease, ARGV[2], 'PX', ARGV[3])
local held = state[5] or ''  -- why nothing new may be taken up
if state[3] == ARGV[2] then return {'OK', state[2], held, state[4]} end
redis.call('HSET', meta, 'holder', ARGV[2])
return {'OK', tostring(redis.call('HINCRBY', meta, 'fence', 1)), held, state[4]}

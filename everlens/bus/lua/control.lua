#!lua flags=allow-oom
-- Append a control entry, but only behind the seq that its writer saw last: so the decision is in
-- the log once, and two writers cannot both make it.
-- KEYS: meta, log. ARGV: epoch, fence, seq seen, kind.
local state = redis.call('HMGET', KEYS[1], 'epoch', 'fence', 'seq')
if state[1] ~= ARGV[1] then return {'EPOCH', state[1] or ''} end
if tonumber(state[2]) > tonumber(ARGV[2]) then return {'FENCED', state[2]} end
if state[3] ~= ARGV[3] then return {'LATE', state[3]} end
local seq = tonumber(state[3]) + 1
redis.call('XADD', KEYS[2], string.format('%d-0', seq), 'kind', ARGV[4], 'payload', '')
redis.call('HSET', KEYS[1], 'seq', string.format('%d', seq))
return {'OK', string.format('%d', seq)}

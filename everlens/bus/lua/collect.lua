#!lua flags=allow-oom
-- Delete manifests and parts that no kept version names. Fenced: an old learner must not delete
-- what its successor just stored. KEYS: meta, then what goes. ARGV: epoch, fence.
local state = redis.call('HMGET', KEYS[1], 'epoch', 'fence')
if state[1] ~= ARGV[1] then return {'EPOCH', state[1] or ''} end
if tonumber(state[2]) > tonumber(ARGV[2]) then return {'FENCED', state[2]} end
for i = 2, #KEYS do redis.call('UNLINK', KEYS[i]) end
return {'OK', tostring(#KEYS - 1)}

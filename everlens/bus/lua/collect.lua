#!lua flags=allow-oom
-- Delete manifests and parts that no kept version names. Fenced: an old learner must not delete what
-- its successor just stored; nor may anything go that was pinned since it was looked at.
-- KEYS: meta, manifests, then what goes. ARGV: epoch, fence, pin as it was, then the versions.
local state = redis.call('HMGET', KEYS[1], 'epoch', 'fence', 'pin')
if state[1] ~= ARGV[1] then return {'EPOCH', state[1] or ''} end
if tonumber(state[2]) > tonumber(ARGV[2]) then return {'FENCED', state[2]} end
if (state[3] or '') ~= ARGV[3] then return {'OK', 'later'} end
for i = 3, #KEYS do redis.call('UNLINK', KEYS[i]) end
for i = 4, #ARGV do redis.call('ZREM', KEYS[2], ARGV[i]) end
return {'OK', tostring(#KEYS - 2)}

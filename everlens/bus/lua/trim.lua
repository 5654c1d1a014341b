#!lua flags=allow-oom
-- Free what a commit has behind it; keep the last `id_window` ids (by count: no clock in it).
-- KEYS: meta, log, ids, id-order, dead. ARGV: epoch, fence, cursor, id_window.
local meta, log, ids, id_order, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local state = redis.call('HMGET', meta, 'epoch', 'done', 'fence', 'seq')
if state[1] ~= ARGV[1] then return {'EPOCH', state[1] or ''} end
if tonumber(state[3]) > tonumber(ARGV[2]) then return {'FENCED', state[3]} end
local cursor, window = tonumber(ARGV[3]), tonumber(ARGV[4])
if cursor > tonumber(state[4]) then return {'AHEAD', state[4]} end
if cursor <= tonumber(state[2]) then return {'OK', '0'} end
local bytes = 0
local freed = redis.call('XRANGE', log, '-', string.format('%d-0', cursor))
for _, entry in ipairs(freed) do bytes = bytes + #entry[2][4] end
redis.call('XTRIM', log, 'MINID', '=', string.format('%d-0', cursor + 1))
local oldest = math.max(0, cursor - window)
for _, entry in ipairs(redis.call('XRANGE', id_order, '-', string.format('%d-0', oldest))) do
  redis.call('HDEL', ids, entry[2][2])
  redis.call('HDEL', dead, entry[1]:match('^(%d+)'))
  redis.call('XDEL', id_order, entry[1])
end
redis.call('HINCRBY', meta, 'bytes', -bytes)
redis.call('HSET', meta, 'done', string.format('%d', cursor))
return {'OK', tostring(#freed)}

#!lua flags=allow-oom
-- Two cursors. `done`: learnt and committed; what is before it waits for nobody. `kept`: what no copy
-- of the state would have to learn again; entries up to it are freed.
-- KEYS: meta, log, ids, id-order, dead, waiting, forgotten, reports. ARGV: epoch, fence, done, kept, id_window.
local meta, log, ids, id_order, dead, waiting = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local state = redis.call('HMGET', meta, 'epoch', 'done', 'fence', 'seq', 'kept')
if state[1] ~= ARGV[1] then return {'EPOCH', state[1] or ''} end
if tonumber(state[3]) > tonumber(ARGV[2]) then return {'FENCED', state[3]} end
local done, kept, window = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
if done > tonumber(state[4]) then return {'AHEAD', state[4]} end
local before, freed_before = tonumber(state[2]), tonumber(state[5] or '0')

if done > before then
  local bytes = 0
  local learnt = redis.call('XRANGE', log, string.format('%d-0', before + 1), string.format('%d-0', done))
  for _, entry in ipairs(learnt) do
    local fields = entry[2]
    bytes = bytes + #fields[4]
    local tenant = fields[6]
    if tenant and tenant ~= '' and redis.call('HINCRBY', waiting, tenant, -1) <= 0 then
      redis.call('HDEL', waiting, tenant)
    end
  end
  redis.call('HINCRBY', meta, 'bytes', -bytes)
  redis.call('HSET', meta, 'done', string.format('%d', done))
  local oldest = math.max(0, done - window)
  for _, entry in ipairs(redis.call('XRANGE', id_order, '-', string.format('%d-0', oldest))) do
    redis.call('HDEL', ids, entry[2][2])
    local seq = entry[1]:match('^(%d+)')
    for _, key in ipairs({dead, KEYS[7], KEYS[8]}) do redis.call('HDEL', key, seq) end
    redis.call('XDEL', id_order, entry[1])
  end
end
if kept > freed_before then
  redis.call('XTRIM', log, 'MINID', '=', string.format('%d-0', kept + 1))
  redis.call('HSET', meta, 'kept', string.format('%d', kept))
end
return {'OK', string.format('%d', done)}

#!lua
-- Number and append samples, all or none. One call decides epoch, idempotency, pause, quota, seq.
-- No `allow-oom`: a server over maxmemory refuses the whole script before its first command.
-- KEYS: meta, log, ids, id-order.
-- ARGV: epoch, samples_max, bytes_max, then for each sample: id, digest, payload.
-- Answers {'OK', {{seq, 'new'|'repeat'}, ...}} or {reason, detail}.
local meta, log, ids, id_order = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local samples_max, bytes_max = tonumber(ARGV[2]), tonumber(ARGV[3])
local state = redis.call('HMGET', meta, 'epoch', 'seq', 'done', 'bytes', 'paused')
if state[1] ~= ARGV[1] then return {'EPOCH', state[1] or ''} end

-- Look before writing: a repeat is never told that the queue is full.
local count = (#ARGV - 3) / 3
local receipts, added, added_bytes, first_seen = {}, 0, 0, {}
for i = 1, count do
  local id, digest, payload = ARGV[3 * i + 1], ARGV[3 * i + 2], ARGV[3 * i + 3]
  local known = redis.call('HGET', ids, id)
  if known then
    local seq, before = known:match('^(%d+):(.*)$')
    if before ~= digest then return {'CONFLICT', id} end
    receipts[i] = {seq, 'repeat'}
  elseif first_seen[id] then
    if first_seen[id] ~= digest then return {'CONFLICT', id} end
  else
    first_seen[id] = digest
    added, added_bytes = added + 1, added_bytes + #payload
  end
end
if added == 0 then return {'OK', receipts} end
if state[5] and state[5] ~= '' then return {'PAUSED', state[5]} end
local seq, done, bytes = tonumber(state[2]), tonumber(state[3]), tonumber(state[4])
if seq - done + added > samples_max or bytes + added_bytes > bytes_max then
  return {'FULL', tostring(seq - done)}
end

for i = 1, count do
  if not receipts[i] then
    local id, digest, payload = ARGV[3 * i + 1], ARGV[3 * i + 2], ARGV[3 * i + 3]
    local known = redis.call('HGET', ids, id)  -- the same id twice in this one call
    if known then
      receipts[i] = {known:match('^(%d+)'), 'repeat'}
    else
      seq = seq + 1
      local entry = string.format('%d-0', seq)
      redis.call('XADD', log, entry, 'kind', 'sample', 'payload', payload)
      redis.call('XADD', id_order, entry, 'id', id)
      redis.call('HSET', ids, id, string.format('%d:%s', seq, digest))
      receipts[i] = {string.format('%d', seq), 'new'}
    end
  end
end
redis.call('HSET', meta, 'seq', string.format('%d', seq))
redis.call('HINCRBY', meta, 'bytes', added_bytes)
return {'OK', receipts}

#!lua
-- Number and append entries, all or none. One call decides epoch, idempotency, pause, quota, seq.
-- No `allow-oom`: a server over maxmemory refuses the whole script before its first command.
-- KEYS: meta, log, ids, id-order, labels, waiting.
-- ARGV: epoch, seq that was acknowledged last, samples_max, bytes_max, classes_max, share, then for
--   each entry: kind, id, digest, tenant, label ('' for none), whether it may be a new one ('1'),
--   payload.
-- Answers {'OK', {{seq, 'new'|'repeat'}, ...}} or {reason, detail}.
local meta, log, ids, id_order, labels, waiting = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local HEADER, FIELDS = 6, 7
local samples_max, bytes_max = tonumber(ARGV[3]), tonumber(ARGV[4])
local classes_max, share = tonumber(ARGV[5]), tonumber(ARGV[6])
local state = redis.call('HMGET', meta, 'epoch', 'seq', 'done', 'bytes', 'paused', 'admitted')
if state[1] ~= ARGV[1] then return {'EPOCH', state[1] or ''} end
-- A witness beside the log remembers what was acknowledged; a log that admitted less lost entries.
-- Not `seq`: the learner's own entry may have taken the number of one that is lost.
if tonumber(state[6]) < tonumber(ARGV[2]) then return {'BEHIND', state[6]} end

local function field(i, k) return ARGV[HEADER + FIELDS * (i - 1) + k] end

-- Look before writing: a repeat is never told that the queue is full.
local count = (#ARGV - HEADER) / FIELDS
local receipts, added, added_bytes, first_seen = {}, 0, 0, {}
local added_of, is_class, new_count = {}, {}, 0  -- whether a label is one after the entries so far
for i = 1, count do
  local id, digest, tenant, label = field(i, 2), field(i, 3), field(i, 4), field(i, 5)
  local known = redis.call('HGET', ids, id)
  if known then
    local seq, before = known:match('^(%d+):(.*)$')
    if before ~= digest then return {'CONFLICT', id} end
    receipts[i] = {seq, 'repeat'}
  elseif first_seen[id] then
    if first_seen[id] ~= digest then return {'CONFLICT', id} end
  else
    first_seen[id] = digest
    added, added_bytes = added + 1, added_bytes + #field(i, 7)
    added_of[tenant] = (added_of[tenant] or 0) + 1
    if field(i, 1) == 'forget' then
      -- A class that is forgotten is new again to whoever names it next.
      if label ~= '' then is_class[label] = false end
    elseif label ~= '' then
      if is_class[label] == nil then
        is_class[label] = redis.call('SISMEMBER', labels, label) == 1
      end
      if not is_class[label] then
        if field(i, 6) ~= '1' then return {'NEWCLASS', label} end
        is_class[label], new_count = true, new_count + 1
      end
    end
  end
end
if added == 0 then return {'OK', receipts} end
if state[5] and state[5] ~= '' then return {'PAUSED', state[5]} end
if new_count > 0 and redis.call('SCARD', labels) + new_count > classes_max then
  return {'CLASSES', tostring(classes_max)}
end
local seq, done, bytes = tonumber(state[2]), tonumber(state[3]), tonumber(state[4])
if seq - done + added > samples_max or bytes + added_bytes > bytes_max then
  return {'FULL', tostring(seq - done)}
end
-- A tenant may have `share` times what is still free (dynamic thresholds, Choudhury and Hahne 1998):
-- however many fill the queue, there is always room for one who did not.
for tenant, more in pairs(added_of) do
  if tenant ~= '' then
    local has = tonumber(redis.call('HGET', waiting, tenant) or '0')
    if has + more > share * (samples_max - (seq - done)) then return {'SHARE', tenant} end
  end
end

for i = 1, count do
  if not receipts[i] then
    local id, digest, tenant, payload = field(i, 2), field(i, 3), field(i, 4), field(i, 7)
    local known = redis.call('HGET', ids, id)  -- the same id twice in this one call
    if known then
      receipts[i] = {known:match('^(%d+)'), 'repeat'}
    else
      seq = seq + 1
      local entry = string.format('%d-0', seq)
      redis.call('XADD', log, entry, 'kind', field(i, 1), 'payload', payload, 'tenant', tenant)
      redis.call('XADD', id_order, entry, 'id', id)
      redis.call('HSET', ids, id, string.format('%d:%s', seq, digest))
      receipts[i] = {string.format('%d', seq), 'new'}
    end
  end
end
for label, is in pairs(is_class) do redis.call(is and 'SADD' or 'SREM', labels, label) end
for tenant, more in pairs(added_of) do
  if tenant ~= '' then redis.call('HINCRBY', waiting, tenant, more) end
end
redis.call('HSET', meta, 'seq', string.format('%d', seq), 'admitted', string.format('%d', seq))
redis.call('HINCRBY', meta, 'bytes', added_bytes)
return {'OK', receipts}

#!lua flags=allow-oom
-- Move the head to the next version. Its parts were stored before under their digests.
-- KEYS: meta, head, manifest, lineage, learned, dead, manifests.
-- ARGV: epoch, fence, version, digest, parent digest, manifest, learned_through, line about it,
--       lineage_max, number of parts, their keys ..., then pairs: seq of a dead sample, reason.
local epoch, fence, version, digest, parent = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]
local state = redis.call('HMGET', KEYS[1], 'epoch', 'fence')
if state[1] ~= epoch then return {'EPOCH', state[1] or ''} end
if tonumber(state[2]) > fence then return {'FENCED', state[2]} end

local head_version, head_digest = 0, ''
local head = redis.call('GET', KEYS[2])
if head then
  local number, hash = head:match('^(%d+) (%x*)$')
  head_version, head_digest = tonumber(number), hash
end
if version == head_version then
  if digest == head_digest then
    redis.call('SET', KEYS[3], ARGV[6])  -- of a head that was set without it, by a reconciliation
    redis.call('ZADD', KEYS[7], ARGV[3], ARGV[3])
    return {'OK', 'repeat'}
  end
  return {'DIVERGED', head_digest}
end
if version < head_version then return {'OLD', tostring(head_version)} end
if version ~= head_version + 1 or parent ~= head_digest then return {'PARENT', head_digest} end

local parts = tonumber(ARGV[10])
for i = 1, parts do
  if redis.call('EXISTS', ARGV[10 + i]) == 0 then return {'PART', ARGV[10 + i]} end
end
for i = 11 + parts, #ARGV, 2 do redis.call('HSET', KEYS[6], ARGV[i], ARGV[i + 1]) end
redis.call('SET', KEYS[3], ARGV[6])
redis.call('ZADD', KEYS[7], ARGV[3], ARGV[3])
local now = redis.call('TIME')
redis.call('HSET', KEYS[4], ARGV[3], now[1] .. ' ' .. ARGV[8])
-- The first version that learnt through an entry is the one that learnt it.
if redis.call('ZCOUNT', KEYS[5], ARGV[7], ARGV[7]) == 0 then
  redis.call('ZADD', KEYS[5], ARGV[7], ARGV[3])
end
local forgotten = version - tonumber(ARGV[9])
if forgotten > 0 then
  redis.call('HDEL', KEYS[4], tostring(forgotten))
  redis.call('ZREM', KEYS[5], tostring(forgotten))
end
redis.call('SET', KEYS[2], ARGV[3] .. ' ' .. digest)
redis.call('PUBLISH', KEYS[2], ARGV[3])  -- a hint; readers poll for certainty
return {'OK', 'new'}

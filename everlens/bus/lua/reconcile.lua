#!lua flags=allow-oom
-- Go on from a state that the log does not match: a new epoch, which names the ones before it, with
-- numbers beyond all that were given. What waits between the two cursors is no longer there.
-- KEYS: meta, head, log, waiting, lease. ARGV: epoch, former epochs, seq, cursor, head.
-- Answers {'OK', head}, or {'HELD', ''} while a learner is at work.
local meta, head, log = KEYS[1], KEYS[2], KEYS[3]
if redis.call('EXISTS', KEYS[5]) == 1 then return {'HELD', ''} end
local cursor = tonumber(ARGV[4])
local bytes = 0
for _, entry in ipairs(redis.call('XRANGE', log, string.format('%d-0', cursor + 1), '+')) do
  bytes = bytes + #entry[2][4]
end
redis.call('XTRIM', log, 'MINID', '=', string.format('%d-0', cursor + 1))
redis.call('HSET', meta, 'epoch', ARGV[1], 'former', ARGV[2], 'seq', ARGV[3], 'admitted', ARGV[3], 'done', ARGV[4],
  'kept', ARGV[4], 'bytes', bytes, 'paused', '', 'pin', '', 'holder', '')
redis.call('HINCRBY', meta, 'fence', 1)
redis.call('UNLINK', KEYS[4])
if redis.call('EXISTS', head) == 0 and ARGV[5] ~= '' then redis.call('SET', head, ARGV[5]) end
return {'OK', redis.call('GET', head) or ''}

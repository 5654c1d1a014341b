#!lua flags=allow-oom
-- Serve a version in place of the head; an empty one serves the head again.
-- KEYS: manifest of the version, manifests, pin, head. ARGV: version, digest; or '', ''.
if ARGV[1] == '' then
  redis.call('DEL', KEYS[3])
elseif redis.call('EXISTS', KEYS[1]) == 0 then
  return {'GONE', ARGV[1]}
else
  redis.call('SET', KEYS[3], ARGV[1] .. ' ' .. ARGV[2])
end
redis.call('PUBLISH', KEYS[4], ARGV[1])  -- a hint, as for a new head
return {'OK', ARGV[1]}

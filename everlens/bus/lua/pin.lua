#!lua flags=allow-oom
-- Serve a version in place of the head; an empty one serves the head again.
-- Those who follow see it at their next look, within a second.
-- KEYS: manifest of the version, pin. ARGV: version, digest; or '', ''.
if ARGV[1] == '' then
  redis.call('DEL', KEYS[2])
elseif redis.call('EXISTS', KEYS[1]) == 0 then
  return {'GONE', ARGV[1]}
else
  redis.call('SET', KEYS[2], ARGV[1] .. ' ' .. ARGV[2])
end
return {'OK', ARGV[1]}

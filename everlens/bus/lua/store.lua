#!lua flags=allow-oom
-- Store parts under their digests, also over maxmemory: what waits could not be learnt and freed
-- otherwise. KEYS: parts. ARGV: their contents.
for i = 1, #KEYS do redis.call('SET', KEYS[i], ARGV[i]) end
return {'OK', tostring(#KEYS)}

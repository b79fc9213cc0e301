-- The operations of the redis store. Each is one step: nothing else runs in Redis meanwhile.
--
-- ARGV: the operation; the trust; the limits; then the operation's own arguments. KEYS: for each
-- group its hash and its stream; for "mark", "ring" and "changes" the set of changes; for "producing",
-- "lapsed" and "ended" the set of groups with a producer; for "newest", and for "append" and "check"
-- after those of all groups if some events have a key, the newest event of each key of a group, and
-- the set of these keys by number. If the number of keys of "append" is odd, it also marks the change,
-- and the last one is the set of changes. In a cluster, all keys of a call are in one slot.
--
-- The trust: "1" if Redis keeps all that it acknowledges. Otherwise what another run than the
-- server's own has written may be gone, so the group begins anew: "0". But in a cluster, another
-- server may have handed over the slot. "?" has the call refused with FOREIGN, so that the client
-- asks all servers for their runs, and calls again with these, separated by commas.
--
-- The limits: HISTORY_SIZE and MAX_KEYS, then HISTORY_AGE, GROUP_TTL, CANCEL_TTL and PRODUCER_KEEP in
-- milliseconds, "-" for none. They are one text, since each argument costs a client time, however
-- short it is. "run" is asked without them.
--
-- The hash: `first`, `head`, `cancelled`, `closing` (the wire of the close that cancelled the
-- group), `producer`, `renewed` (both as in `Numbering`) and `run`. The stream: an entry's id is its
-- number and the milliseconds of its append.

local operation, trust = ARGV[1], ARGV[2]
local durable = trust == '1'
local limits = {}
for limit in (ARGV[3] or ''):gmatch('%S+') do
  limits[#limits + 1] = tonumber(limit) or false
end
local history_size, most_keys, history_age, group_ttl, cancel_ttl, producer_keep = unpack(limits)

-- The most entries that one call drops because of their age.
local TRIM_STEPS = 100
-- How long changes are kept, in microseconds. A hub that asks less often must compare all groups.
local CHANGES_KEPT = 3600 * 1000000
-- The most changes that one call drops.
local CHANGES_STEPS = 100
-- Entries that are read together, to see how many fit into a page.
local READ_STEP = 10
-- How many keys of events one call forgets beyond those that it adds.
local KEY_STEPS = 100
-- By how many seconds the clocks of two servers may differ.
local SKEW = 2
-- Larger entries are read by those whom a doorbell tells of them: to sign them takes Redis as long as
-- to append them.
local MAX_CARRIED_BYTES = 8 * 1024
-- As in `producer_tokens`.
local HANDED_OVER = 1

local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2] -- microseconds

-- Without this Lua writes 1.7e+15. Numbers are exact up to 2^53, which is the year 2255.
local function text(number)
  return string.format('%.0f', number)
end

if operation == 'time' then
  return clock
end

local function last_change(changes)
  return tonumber(redis.call('ZREVRANGE', changes, 0, 0, 'WITHSCORES')[2] or 0)
end

-- Notes that groups have changed. Their names are in a list, from an index on.
local function mark(changes, names, from)
  local score = text(math.max(now, last_change(changes) + 1))
  for i = from, #names do
    redis.call('ZADD', changes, score, names[i])
  end
  local old = redis.call(
    'ZRANGEBYSCORE', changes, '-inf', text(now - CHANGES_KEPT), 'LIMIT', 0, CHANGES_STEPS
  )
  if #old > 0 then
    redis.call('ZREM', changes, unpack(old))
  end
end

if operation == 'mark' then
  mark(KEYS[1], ARGV, 4)
  return 0
end

-- Publishes a message. A replica may be the master of before a failover, whose channels are deaf.
if operation == 'ring' then
  if redis.call('INFO', 'replication'):find('role:slave', 1, true) then
    return redis.error_reply('READONLY This server is a replica.')
  end
  return redis.call(ARGV[4], ARGV[5], ARGV[6])
end

if operation == 'producing' then
  for i = 4, #ARGV do
    redis.call('ZADD', KEYS[1], text(now), ARGV[i])
  end
  return 0
end

if operation == 'lapsed' then
  return redis.call(
    'ZRANGEBYSCORE', KEYS[1], '-inf', text(now - tonumber(ARGV[4])), 'LIMIT', ARGV[5], ARGV[6]
  )
end

if operation == 'ended' then
  for i = 5, #ARGV do
    -- Another producer may have begun there meanwhile.
    if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[i]) or now) <= now - tonumber(ARGV[4]) then
      redis.call('ZREM', KEYS[1], ARGV[i])
    end
  end
  return 0
end

-- Returns the entries from a number on, until the page has `limit` entries or `room` bytes.
if operation == 'read' then
  local from, limit, room = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
  local page = {}
  while #page < limit do
    local some = redis.call(
      'XRANGE', KEYS[2], from, '+', 'COUNT', math.min(READ_STEP, limit - #page)
    )
    if #some == 0 then
      break
    end
    for _, entry in ipairs(some) do
      page[#page + 1] = entry
      room = room - #entry[2][2]
      if room <= 0 then
        return page
      end
    end
    from = text(tonumber(some[#some][1]:match('%d+')) + 1)
  end
  return page
end

-- Returns the newest event of each key from a number on, as "read" does.
if operation == 'newest' then
  local limit, room = tonumber(ARGV[5]), tonumber(ARGV[6])
  local page = {}
  local keys = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[4], '+inf', 'LIMIT', 0, limit)
  for _, key in ipairs(keys) do
    local kept = redis.call('HGET', KEYS[1], key)
    if kept then
      local id, wire, exclude = unpack(cmsgpack.unpack(kept))
      page[#page + 1] = {id, {'wire', wire, 'closes', '0', 'exclude', exclude}}
      room = room - #wire
      if room <= 0 then
        break
      end
    end
  end
  return page
end

-- The run changes after a restart or a failover: acknowledged events may be lost then. Its second
-- half identifies the server's last promotion, since the server may have been master before, with
-- other data.
local NEVER_PROMOTED = ('0'):rep(40)
local run, origin = '', 0
local info, promotion
if not durable then
  info = redis.call('INFO', 'server')
  local server, replication = info:match('run_id:(%x+)'), redis.call('INFO', 'replication')
  promotion = replication:match('master_replid2:(%x+)') or NEVER_PROMOTED
  run = server .. promotion
  origin = 1 + tonumber(server:sub(1, 8), 16) + tonumber(promotion:sub(1, 8), 16)
end

if operation == 'changes' or operation == 'run' then
  -- A replica may be behind, and may be the master of before a failover. Clients must reconnect.
  if redis.call('INFO', 'replication'):find('role:slave', 1, true) then
    return redis.error_reply('READONLY This server is a replica.')
  end
  if operation == 'run' then
    return run
  end
  local last, since, names = last_change(KEYS[1]), tonumber(ARGV[4]), false
  if since == last then
    names = {}
  elseif since and since >= now - CHANGES_KEPT then
    local most = tonumber(ARGV[5])
    names = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. ARGV[4], '+inf', 'LIMIT', 0, most + 1)
    -- More of them are not told: to ask for the few that a hub follows costs less.
    names = #names > most and #names or names
  end
  return {run, last, names}
end

-- Keeps nothing older, so that every earlier position shows that its history is lost.
local function begin_run(group, above)
  group.head = math.max(now, above + 1)
  group.first = group.first > 0 and group.first or group.head
  group.changed, group.starts_empty = true, true
end

-- Whether a slot was handed over with all that a run has written to a group. Only that run's server
-- writes its name, and `trust` says that it still runs, so it had everything. And this server has
-- lost nothing since: it has run since before the newest event, and was not promoted meanwhile.
local function was_handed_over(events, writer)
  if writer == '' or not trust:find(writer, 1, true) or promotion ~= NEVER_PROMOTED then
    return false
  end
  local newest = redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]
  local began = clock[1] - tonumber(info:match('uptime_in_seconds:(%d+)')) - 1
  return newest ~= nil and tonumber(newest[1]:match('-(%d+)')) / 1000 > began + SKEW
end

local FOREIGN = 'FOREIGN Another run has written to this group.'

local function load(index, count)
  local hash, events = KEYS[2 * index - 1], KEYS[2 * index]
  local kept = redis.call('HMGET', hash, 'first', 'head', 'cancelled', 'run', 'producer', 'renewed')
  local name = hash:match('([^:{}]*)}?:group$')
  local is_of_owner = name:sub(1, 1) == '~'
  local group = {
    hash = hash,
    events = events,
    name = name,
    -- Only for an append of events with keys.
    newest = count and KEYS[2 * (count + index) - 1],
    keys = count and KEYS[2 * (count + index)],
    first = tonumber(kept[1] or 0),
    head = tonumber(kept[2] or origin),
    cancelled = kept[3] == '1',
    producer = tonumber(kept[5] or 0),
    renewed = tonumber(kept[6] or 0),
    -- Whether this is the group of an owner: see OWNER_PREFIX.
    is_of_owner = is_of_owner,
    ttl = is_of_owner and cancel_ttl or group_ttl,
    -- A stream without a hash is the remainder of an eviction.
    starts_empty = not kept[1],
    added = {},
  }
  group.head_before = group.head
  if kept[1] and kept[4] ~= run then
    group.foreign = trust == '?'
    if was_handed_over(group.events, kept[4]) then
      group.changed = true
    else
      begin_run(group, group.head)
    end
  end
  return group
end

local function add(group, wire, closes, exclude)
  group.head = group.first > 0 and group.head + 1 or now
  group.first = group.first > 0 and group.first or group.head
  group.changed = true
  table.insert(group.added, {number = group.head, wire = wire, closes = closes, exclude = exclude})
  return group.head
end

-- Begins the group of an owner anew at a time: cancelled or, if the owner is let in again, not.
local function begin_anew(group, wire, at, cancelled)
  group.head = math.max(at, group.first + 1)
  group.first = group.head
  group.changed, group.starts_empty = true, true
  group.added = {{number = group.head, wire = wire, closes = cancelled}}
  group.cancelled, group.closing = cancelled, wire
  return group.head
end

-- Cancels the group, and records when its producer has ended.
local function close(group, wire)
  group.cancelled, group.closing = true, wire
  if group.producer > 0 then
    group.producer, group.renewed = 0, now
  end
  return add(group, wire, true)
end

-- Does what `Numbering.take` does, but that a REOPEN never has a time of its own: returns 0 for what
-- takes no number, and one of these for what is refused.
local CANCELLED, PRODUCING, MOVED = -1, -2, -3

local function take(group, kind, wire, exclude, at, producer, staged)
  if kind == 'EXPECT' then
    return at == group.head and 0 or MOVED
  elseif kind == 'LAPSE' then
    if producer ~= group.producer or at ~= group.renewed then
      return 0
    end
    return close(group, wire)
  elseif kind == 'BEGIN' then
    if group.cancelled then
      return CANCELLED
    elseif group.producer ~= 0 and group.producer ~= HANDED_OVER and group.producer ~= producer then
      return now - group.renewed < at and PRODUCING or close(group, wire)
    end
    group.producer, group.renewed, group.changed = producer, now, true
    return 0
  elseif producer ~= 0 and producer ~= group.producer then
    return CANCELLED
  elseif kind == 'RENEW' then
    group.renewed, group.changed = now, true
    return 0
  elseif kind == 'HAND_OVER' then
    group.producer, group.renewed, group.changed = HANDED_OVER, now, true
    return 0
  elseif kind == 'END' then
    if at > 0 and at <= group.first then
      return 0
    end
    return begin_anew(group, wire, at > 0 and at or now, true)
  elseif kind == 'REOPEN' and group.is_of_owner then
    begin_anew(group, wire, now, false)
    return 0
  elseif kind == 'REOPEN' then
    if group.cancelled then
      -- All that its last producer had published was kept.
      group.changed, group.has_surplus = true, group.renewed > 0
      group.cancelled, group.renewed = false, 0
    end
    return 0
  elseif kind == 'CLOSE' then
    return group.cancelled and 0 or close(group, wire)
  elseif group.cancelled and not staged then
    return CANCELLED
  end
  group.producer = group.producer + (producer ~= 0 and 1 or 0)
  return add(group, wire, false, exclude)
end

-- Does what `Numbering.finish` does, and returns the wire of the close that it added.
local function finish(group)
  local last = group.added[#group.added]
  if group.cancelled and last and not last.closes then
    local closing = group.closing or redis.call('HGET', group.hash, 'closing')
    add(group, closing, true)
    return closing
  end
  return ''
end

-- Whether the group has a producer, or had one until shortly.
local function keeps_all(group)
  return group.producer > 0 or group.renewed > now - producer_keep * 1000
end

-- Drops entries that are too old, and returns the number of the oldest entry kept.
local function trim_by_age(group)
  -- The reason for an owner's end is kept as long as the end itself.
  local of_age = history_age and not group.is_of_owner and not keeps_all(group)
  local expired = of_age and now / 1000 - history_age or 0
  for step = 0, TRIM_STEPS do
    local entry = redis.call('XRANGE', group.events, '-', '+', 'COUNT', 1)[1]
    if not entry then
      break
    end
    local number, time = entry[1]:match('(%d+)-(%d+)')
    if tonumber(time) >= expired or step == TRIM_STEPS then
      return tonumber(number)
    end
    redis.call('XDEL', group.events, entry[1])
  end
  return group.head + 1
end

local function expire(key, milliseconds)
  if milliseconds then
    redis.call('PEXPIRE', key, text(milliseconds))
  else
    redis.call('PERSIST', key)
  end
end

-- Forgets the keys of events that come first.
local function forget_keys(group, count)
  local keys = redis.call('ZPOPMIN', group.keys, text(count))
  for i = 1, #keys, 2 do
    redis.call('HDEL', group.newest, keys[i])
  end
end

-- Keeps events as the newest of their keys, and forgets keys that are too many or, now and then,
-- too old.
local function keep_newest(group, time, in_next)
  -- What is left of the two after an eviction.
  if redis.call('EXISTS', group.newest, group.keys) == 1 then
    redis.call('DEL', group.newest, group.keys)
  end
  for _, entry in ipairs(group.added) do
    local key = entry.wire:match('^key: ([^\n]*)\n')
    if key then
      local id = text(entry.number) .. '-' .. time
      redis.call('ZADD', group.keys, text(entry.number), key)
      redis.call('HSET', group.newest, key, cmsgpack.pack({id, entry.wire, entry.exclude or ''}))
    end
  end
  local surplus = redis.call('ZCARD', group.keys) - most_keys
  if surplus > 0 then
    forget_keys(group, math.min(surplus, #group.added + KEY_STEPS))
  end
  for _ = 1, group.ttl and in_next and KEY_STEPS or 0 do
    local oldest = redis.call('ZRANGE', group.keys, 0, 0)[1]
    local id = oldest and cmsgpack.unpack(redis.call('HGET', group.newest, oldest))[1]
    if not id or tonumber(id:match('-(%d+)')) >= now / 1000 - group.ttl then
      break
    end
    forget_keys(group, 1)
  end
  expire(group.keys, group.ttl)
  expire(group.newest, group.ttl)
end

local function save(group)
  if not group.changed then
    return
  end
  if group.starts_empty then
    redis.call('DEL', group.events)
  end
  redis.call(
    'HSET', group.hash, 'first', text(group.first), 'head', text(group.head),
    'cancelled', group.cancelled and '1' or '0', 'run', run,
    'producer', text(group.producer), 'renewed', text(group.renewed)
  )
  if group.closing then
    redis.call('HSET', group.hash, 'closing', group.closing)
  end
  local time = text(math.floor(now / 1000))
  for _, entry in ipairs(group.added) do
    redis.call(
      'XADD', group.events, text(entry.number) .. '-' .. time,
      'wire', entry.wire, 'closes', entry.closes and '1' or '0', 'exclude', entry.exclude or ''
    )
  end
  local in_bulk = math.max(math.floor(history_size / 10), 1)
  local in_next = math.floor(group.head / in_bulk) ~= math.floor(group.head_before / in_bulk)
  if group.keys then
    keep_newest(group, time, in_next)
  end
  if (in_next or group.has_surplus) and not keeps_all(group) then
    redis.call('XTRIM', group.events, 'MAXLEN', text(history_size))
  end
  trim_by_age(group)
  expire(group.hash, group.ttl)
  local shortest = math.min(
    group.ttl or math.huge, not group.is_of_owner and history_age or math.huge
  )
  if keeps_all(group) then
    shortest = math.max(shortest, producer_keep)
  end
  expire(group.events, shortest < math.huge and shortest or nil)
end

local function state(group)
  local oldest = group.first > 0 and trim_by_age(group) or group.head + 1
  return {group.first, group.head, oldest, group.cancelled and 1 or 0, origin, group.producer}
end

if operation == 'state' or operation == 'lease' or operation == 'new_run' then
  local group = load(1)
  if group.foreign then
    return redis.error_reply(FOREIGN)
  end
  local above = operation == 'new_run' and tonumber(ARGV[4]) or 0
  if group.head < above then
    begin_run(group, above)
  end
  save(group)
  return operation == 'lease' and {group.producer, group.renewed} or state(group)
end

-- Publishes where a group stands, and its new entries if they are small: see `doorbell_messages`.
local function ring(group, command, secret, channel)
  local head = table.concat({group.name, text(group.head), group.cancelled and '1' or '0'}, ' ')
  local message, size = '\n' .. head, 0
  for _, entry in ipairs(group.added) do
    size = size + #entry.wire
  end
  if secret ~= '' and size > 0 and size <= MAX_CARRIED_BYTES then
    local parts = {head, '\n\n'}
    for _, entry in ipairs(group.added) do
      local closes = entry.closes and ' 1 ' or ' 0 '
      parts[#parts + 1] = text(entry.number) .. closes .. (entry.exclude or '') .. '\n'
      parts[#parts + 1] = entry.wire
    end
    local signed = table.concat(parts)
    local inner = redis.sha1hex(secret:sub(1, 64) .. channel .. '\n' .. signed)
    message = redis.sha1hex(secret:sub(65) .. inner) .. '\n' .. signed
  end
  -- Hubs find in the store what could not be published.
  redis.pcall(command, channel, message)
end

-- The arguments: how many groups there are; whether the entries are staged; the command that
-- publishes; the secret to sign with; the channel of each group; then for each entry the index of its
-- group, its kind, `at`, `producer` and `exclude` in one text, and its wire. `exclude` may be empty.
-- "check" writes nothing, and says whether "append" would refuse an entry.
-- Returns a table of why an entry is refused, and the index of its group.
-- Otherwise, it returns one text, which clients parse faster than a table: the number of each entry (0 for none), then each group's head and whether it is cancelled.
-- If closes were added: a table of this text and, for each group, the wire of its close or ''.
if operation == 'append' or operation == 'check' then
  local count, staged = tonumber(ARGV[4]), ARGV[5] == '1'
  local groups, names, words, reply, closes = {}, {}, {}, {}, false
  local has_keys = #KEYS >= 4 * count
  for i = 1, count do
    groups[i] = load(i, has_keys and count)
    names[i] = groups[i].name
    if groups[i].foreign then
      return redis.error_reply(FOREIGN)
    end
  end
  -- Nothing is written before all entries are accepted.
  for i = 8 + count, #ARGV, 2 do
    local index, kind, at, producer, exclude = ARGV[i]:match('^(%S+) (%S+) (%S+) (%S+) (.*)$')
    local number = take(
      groups[tonumber(index)], kind, ARGV[i + 1], exclude, tonumber(at), tonumber(producer), staged
    )
    if number < 0 then
      return {number, tonumber(index)}
    end
    table.insert(words, text(number))
  end
  if operation == 'check' then
    return 0
  end
  for i, group in ipairs(groups) do
    local closing = finish(group)
    save(group)
    table.insert(words, text(group.head))
    table.insert(words, group.cancelled and '1' or '0')
    reply[i + 1] = closing
    closes = closes or closing ~= ''
  end
  if #KEYS % 2 == 1 then
    -- Before the ring, so that whoever is told of a change finds it.
    mark(KEYS[#KEYS], names, 1)
  end
  for i, group in ipairs(groups) do
    if group.changed then
      ring(group, ARGV[6], ARGV[7], ARGV[7 + i])
    end
  end
  reply[1] = table.concat(words, ' ')
  return closes and reply or reply[1]
end

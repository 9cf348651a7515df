package redislimit

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/redis/rueidis"

	"github.com/levee-net/levee/limit"
)

// Bans is a limit.SharedBans in Redis. Its methods may be called from several goroutines.
//
// Who watches looks every second whether anything has changed, for messages can be lost and
// a look cannot. A Redis that has lost the bans is given them back by those who know them
// still, and so is one that comes back with an old copy, as from a snapshot: then bans are in
// force again that were lifted since.
type Bans struct {
	// Client is the connection to Redis. It stays the caller's, who closes it after use.
	Client rueidis.Client

	// Reach connects, and is used if Client is nil: whenever one is needed. It may take until
	// ctx ends.
	Reach func(ctx context.Context) (rueidis.Client, error)

	// Prefix is what the keys begin with, in braces, for all machines alike. Empty means levee:limit.
	Prefix string

	// Most is how many bans there may be. With one more the one that would end first is over. Zero means
	// 10,000, which are 3 MB in Redis, and in every machine that watches.
	Most int

	// Every is the time between looks. Zero means a second.
	Every time.Duration

	// Changed is called by Watch when Redis begins to ail, and when it has recovered. It must not
	// block. It may be nil.
	Changed func(State)

	health    health
	displaced atomic.Int64
}

var _ limit.SharedBans = (*Bans)(nil)

const (
	banTimeout = 2 * time.Second
	longestBan = 10 * 365 * 24 * time.Hour
	longestWhy = 200 // bytes
)

// Two machines may tell the time differently, so what travels is how long a ban has to go yet.
//
// KEYS are the ends by prefix (a sorted set, in milliseconds), the reasons by prefix, the
// numbers of the bans by prefix (a sorted set), and the version. That has three parts: when
// the first one was made, how often a ban was taken away before its end, and the number of the last
// ban. So who watches need only ask for bans with higher numbers, unless the second part has
// changed. The version outlives every ban that there ever was, lifted ones too: so when it is
// missing, or was made anew, the bans were lost and not lifted.
//
// A script puts in or reads a few hundred at most, for while it runs nobody else is served.
const bansLua = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i, kind in ipairs({'zset', 'hash', 'zset', 'string'}) do
	local is = redis.call('TYPE', KEYS[i]).ok
	if is ~= kind and is ~= 'none' then redis.call('DEL', KEYS[i]) end
end
local function whole(n) return string.format('%d', n) end
local made, lifted, last = string.match(redis.call('GET', KEYS[4]) or '', '^(%d+)%.(%d+)%.(%d+)$')
if not made then made, lifted, last = time[1] .. string.format('%06d', time[2]), 0, 0 end

local function forget(prefixes)
	for _, prefix in ipairs(prefixes) do
		redis.call('ZREM', KEYS[1], prefix)
		redis.call('HDEL', KEYS[2], prefix)
		redis.call('ZREM', KEYS[3], prefix)
	end
	return #prefixes
end
local function change()
	local left = math.max(redis.call('PTTL', KEYS[4]), 60000)
	local final = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]
	if final then
		left = math.max(left, final - now)
		for i = 1, 3 do redis.call('PEXPIREAT', KEYS[i], final) end
	end
	redis.call('SET', KEYS[4], made .. '.' .. whole(lifted) .. '.' .. whole(last), 'PX', whole(left))
end
`

var (
	// banScript puts in triples of prefix, milliseconds and reason, and returns how many had to go
	// for that. ARGV[1] is how many there may be. With ARGV[2] it puts in what is missing only.
	banScript = rueidis.NewLuaScript(bansLua + `
forget(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 200))
for i = 3, #ARGV, 3 do
	local prefix = ARGV[i]
	if ARGV[2] == '' or not redis.call('ZSCORE', KEYS[1], prefix) then
		last = last + 1
		redis.call('ZADD', KEYS[1], whole(now + ARGV[i + 1]), prefix)
		redis.call('HSET', KEYS[2], prefix, ARGV[i + 2])
		redis.call('ZADD', KEYS[3], last, prefix)
	end
end
local over = math.min(redis.call('ZCARD', KEYS[1]) - ARGV[1], 200)
local gone = 0
if over > 0 then
	gone = forget(redis.call('ZRANGE', KEYS[1], 0, over - 1))
	lifted = lifted + 1
end
change()
return gone`)

	liftScript = rueidis.NewLuaScript(bansLua + `
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
forget({ARGV[1]})
lifted = lifted + 1
change()
return 1`)

	// readScript returns the version, the number that it has come to, and triples as above, of at
	// most ARGV[2] bans whose numbers are higher than ARGV[1].
	readScript = rueidis.NewLuaScript(bansLua + `
local all = {redis.call('GET', KEYS[4]) or '', ''}
local some = redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
for i = 1, #some, 2 do
	local ends = redis.call('ZSCORE', KEYS[1], some[i])
	if ends and tonumber(ends) > now then
		table.insert(all, some[i])
		table.insert(all, whole(ends - now))
		table.insert(all, redis.call('HGET', KEYS[2], some[i]) or '')
	end
	all[2] = some[i + 1]
end
return all`)
)

func (b *Bans) keys() []string {
	return []string{tagged(b.Prefix, "bans"), tagged(b.Prefix, "bans:why"), tagged(b.Prefix, "bans:numbers"), b.versionKey()}
}

func (b *Bans) versionKey() string { return tagged(b.Prefix, "bans:version") }

// Ban is limit.SharedBans'. A ban of the same prefix is replaced. Of the reason the first 200 bytes are kept.
// After an error it may be in force all the same: what Redis reads late it does late.
func (b *Bans) Ban(ctx context.Context, ban limit.Ban) error {
	if !ban.Prefix.IsValid() || time.Until(ban.Until) <= 0 {
		return fmt.Errorf("ban %s until %s: that is nobody, or over", ban.Prefix, ban.Until.Format(time.RFC3339))
	}
	return failed("ban", ban.Prefix, b.put(ctx, "", ban))
}

func failed(what string, prefix netip.Prefix, err error) error {
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, prefix, err)
	}
	return nil
}

func (b *Bans) put(ctx context.Context, missingOnly string, bans ...limit.Ban) error {
	args := []string{strconv.Itoa(positive(b.Most, 10_000)), missingOnly}
	for _, ban := range bans {
		left := min(max(time.Until(ban.Until), time.Millisecond), longestBan)
		args = append(args, ban.Prefix.Masked().String(), milliseconds(left), oneLine(ban.Why))
	}
	return b.with(ctx, func(ctx context.Context, client rueidis.Client) error {
		displaced, err := banScript.Exec(ctx, client, b.keys(), args).AsInt64()
		b.displaced.Add(max(displaced, 0))
		return err
	})
}

// Displaced is how many bans had to end early because this machine put in others, and there
// were Most.
func (b *Bans) Displaced() int64 { return b.displaced.Load() }

// oneLine is short, and does nothing to a terminal.
func oneLine(why string) string {
	why = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, why[:min(len(why), longestWhy)])
	return strings.TrimSpace(why)
}

// Lift is limit.SharedBans'. To lift what is not banned is no error.
func (b *Bans) Lift(ctx context.Context, prefix netip.Prefix) error {
	return failed("lift the ban of", prefix, b.with(ctx, func(ctx context.Context, client rueidis.Client) error {
		return liftScript.Exec(ctx, client, b.keys(), []string{prefix.Masked().String()}).Error()
	}))
}

// with has a command run within two seconds.
func (b *Bans) with(ctx context.Context, command func(context.Context, rueidis.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, banTimeout)
	defer cancel()
	client, err := reached(ctx, b.Client, b.Reach)
	if err != nil {
		return err
	}
	return command(ctx, client)
}

// State says whether the last look of Watch succeeded.
func (b *Bans) State() State { return b.health.now() }

// Watch is limit.SharedBans'. While Redis ails the bans that are known stay until they end.
// What another machine bans it tells of a second later.
func (b *Bans) Watch(ctx context.Context, tell func(bans []limit.Ban, asOf time.Time)) {
	defer b.health.end()
	w := &watch{Bans: b}
	look := time.NewTicker(positive(b.Every, time.Second))
	defer look.Stop()
	for {
		ended := w.expire()
		changed, err := w.look(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			err = fmt.Errorf("redislimit: bans: %w", err)
		}
		b.health.set(err, b.Changed)
		if w.expire() || ended || changed {
			tell(w.inForce(), w.asOf)
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
	}
}

// A watch is what one who watches knows.
type watch struct {
	*Bans
	looked  bool
	asOf    time.Time // of the last look that succeeded: when it began
	version version
	known   map[netip.Prefix]limit.Ban
}

// A version is what bansLua says.
type version struct {
	text         string
	made         string // empty if there is none
	lifted, last int64
}

func versionOf(text string) version {
	v := version{text: text}
	if _, err := fmt.Sscanf(strings.ReplaceAll(text, ".", " "), "%s %d %d", &v.made, &v.lifted, &v.last); err != nil {
		return version{text: text} // somebody else's
	}
	return v
}

// extends returns whether there are only more bans than in the other version.
func (v version) extends(other version) bool {
	return v.made == other.made && v.lifted == other.lifted && v.last >= other.last
}

// follows returns whether nothing has been lost since the other version.
func (v version) follows(other version) bool {
	return v.made != "" && v.made == other.made && v.lifted >= other.lifted && v.last >= other.last
}

// look returns whether the bans have changed.
func (w *watch) look(ctx context.Context) (changed bool, err error) {
	began := time.Now()
	var now version
	err = w.with(ctx, func(ctx context.Context, client rueidis.Client) error {
		s, err := client.Do(ctx, client.B().Get().Key(w.versionKey()).Build()).ToString()
		if now = versionOf(s); rueidis.IsRedisNil(err) {
			return nil
		}
		return err
	})
	if err != nil {
		return false, err
	}
	lost := len(w.known) > 0 && !now.follows(w.version)
	if w.looked && !lost && now == w.version {
		w.asOf = began
		return false, nil
	}
	if lost {
		if err := w.restore(ctx); err != nil {
			return false, err
		}
		now = version{} // of which nothing is known
	}
	if changed, err = w.read(ctx, now); changed {
		w.asOf = began
	}
	return changed, err
}

const (
	mostRestored = 100 // bans in a round trip
	mostRead     = 500
)

// restore gives Redis what it has forgotten.
func (w *watch) restore(ctx context.Context) error {
	for bans := range slices.Chunk(w.inForce(), mostRestored) {
		if err := w.put(ctx, "missing only", bans...); err != nil {
			return err
		}
	}
	return nil
}

// read brings what is known up to date. If a ban is taken away meanwhile it is of no avail,
// and the next look will try again.
func (w *watch) read(ctx context.Context, now version) (done bool, err error) {
	known, after := make(map[netip.Prefix]limit.Ban), "0"
	if w.looked && now.made != "" && now.extends(w.version) {
		known, after = maps.Clone(w.known), strconv.FormatInt(w.version.last, 10)
	}
	for first := true; after != ""; first = false {
		began := time.Now()
		words, err := w.page(ctx, after)
		if err != nil {
			return false, err
		}
		v := versionOf(words[0])
		if !first && !v.extends(now) {
			return false, nil
		}
		now, after = v, words[1]
		for ban := range slices.Chunk(words[2:], 3) {
			take(known, ban, began)
		}
	}
	w.looked, w.version, w.known = true, now, known
	return true, nil
}

// page returns what readScript does.
func (w *watch) page(ctx context.Context, after string) (words []string, err error) {
	err = w.with(ctx, func(ctx context.Context, client rueidis.Client) (err error) {
		words, err = readScript.Exec(ctx, client, w.keys(), []string{after, strconv.Itoa(mostRead)}).AsStrSlice()
		return err
	})
	if err == nil && (len(words) < 2 || len(words)%3 != 2) {
		err = fmt.Errorf("it gives %d words for a version and bans", len(words))
	}
	return words, err
}

// take takes a ban in, unless somebody else has put it into Redis.
func take(known map[netip.Prefix]limit.Ban, words []string, began time.Time) {
	prefix, err := netip.ParsePrefix(words[0])
	if err != nil {
		return
	}
	left, err := strconv.ParseInt(words[1], 10, 64)
	if err != nil {
		return
	}
	left = min(left, longestBan.Milliseconds())
	known[prefix] = limit.Ban{Prefix: prefix, Until: began.Add(time.Duration(left) * time.Millisecond), Why: oneLine(words[2])}
}

// expire forgets the bans that are over, and returns whether there were any.
func (w *watch) expire() bool {
	before, now := len(w.known), time.Now()
	maps.DeleteFunc(w.known, func(_ netip.Prefix, b limit.Ban) bool { return !b.Until.After(now) })
	return len(w.known) < before
}

// inForce returns the bans in the order of their ends.
func (w *watch) inForce() []limit.Ban {
	return slices.SortedFunc(maps.Values(w.known), func(a, b limit.Ban) int {
		return cmp.Or(a.Until.Compare(b.Until), a.Prefix.Compare(b.Prefix))
	})
}

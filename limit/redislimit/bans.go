package redislimit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
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
// still. One that comes back with an old copy of them, as from a snapshot, is believed.
type Bans struct {
	// Client is the connection to Redis. It stays the caller's, who closes it after use.
	Client rueidis.Client

	// Reach connects, and is used if Client is nil: whenever one is needed. It may take until
	// ctx ends.
	Reach func(ctx context.Context) (rueidis.Client, error)

	// Prefix is what the keys begin with, in braces, for all machines alike. Empty means levee:limit.
	Prefix string

	// Most is how many bans there may be. One more takes the place of the one that would end first. Zero means
	// 10,000, which are 2 MB in Redis, and in every machine that watches.
	Most int

	// Every is the time between looks. Zero means a second.
	Every time.Duration

	// Changed is called by Watch when Redis begins to ail, and when it has recovered. It may be nil.
	Changed func(State)

	health health
}

var _ limit.SharedBans = (*Bans)(nil)

// ErrFull is returned for a ban that would end before all others, of which there are as many
// as there may be.
var ErrFull = errors.New("redislimit: there are too many bans")

const (
	banTimeout = 2 * time.Second
	longestBan = 10 * 365 * 24 * time.Hour
	longestWhy = 200 // bytes
)

// Two machines may tell the time differently, so what travels is how long a ban has to go yet.
//
// KEYS are the ends by prefix (a sorted set, in milliseconds), the reasons by prefix, and the
// version, which is another one after every change: when the first one of it was made, and
// how many there were since. It outlives every ban that there ever was, lifted ones too: so
// when it is missing, or was made anew, the bans were lost and not lifted.
const bansLua = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i, kind in ipairs({'zset', 'hash', 'string'}) do
	local is = redis.call('TYPE', KEYS[i]).ok
	if is ~= kind and is ~= 'none' then redis.call('DEL', KEYS[i]) end
end
local function forget(prefixes)
	for _, prefix in ipairs(prefixes) do
		redis.call('ZREM', KEYS[1], prefix)
		redis.call('HDEL', KEYS[2], prefix)
	end
end
local function change()
	local version = redis.call('GET', KEYS[3])
	local made, n = string.match(version or '', '^(%d+)%.(%d+)$')
	if not made then made, n = time[1] .. string.format('%06d', time[2]), 0 end
	local left = redis.call('PTTL', KEYS[3])
	local last = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]
	if last then
		left = math.max(left, last - now)
		redis.call('PEXPIREAT', KEYS[1], last)
		redis.call('PEXPIREAT', KEYS[2], last)
	end
	redis.call('SET', KEYS[3], made .. '.' .. string.format('%d', n + 1), 'PX', string.format('%d', math.max(left, 60000)))
end
`

var (
	// banScript puts in triples of prefix, milliseconds and reason, and returns how many are in
	// force then. ARGV[1] is how many there may be. With ARGV[2] it puts in what is missing only.
	banScript = rueidis.NewLuaScript(bansLua + `
forget(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 1000))
local done, changed = 0, false
for i = 3, #ARGV, 3 do
	local prefix, till = ARGV[i], string.format('%d', now + ARGV[i + 1])
	if ARGV[2] == '' or not redis.call('ZSCORE', KEYS[1], prefix) then
		redis.call('ZADD', KEYS[1], till, prefix)
		redis.call('HSET', KEYS[2], prefix, ARGV[i + 2])
		changed = true
	end
end
local over = redis.call('ZCARD', KEYS[1]) - tonumber(ARGV[1])
if over > 0 then forget(redis.call('ZRANGE', KEYS[1], 0, over - 1)) end
if changed then change() end
for i = 3, #ARGV, 3 do
	if redis.call('ZSCORE', KEYS[1], ARGV[i]) then done = done + 1 end
end
return done`)

	liftScript = rueidis.NewLuaScript(bansLua + `
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
forget({ARGV[1]})
change()
return 1`)

	// readScript returns the version, and triples as above.
	readScript = rueidis.NewLuaScript(bansLua + `
local all = {redis.call('GET', KEYS[3]) or ''}
local ends = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf', 'WITHSCORES')
for i = 1, #ends, 2 do
	table.insert(all, ends[i])
	table.insert(all, string.format('%d', ends[i + 1] - now))
	table.insert(all, redis.call('HGET', KEYS[2], ends[i]) or '')
end
return all`)
)

func (b *Bans) keys() []string {
	return []string{tagged(b.Prefix, "bans"), tagged(b.Prefix, "bans:why"), b.versionKey()}
}

func (b *Bans) versionKey() string { return tagged(b.Prefix, "bans:version") }

// Ban is limit.SharedBans'. A ban of the same prefix is replaced. Of the reason the first 200 bytes are kept.
// After an error it may be in force all the same: what Redis reads late it does late.
func (b *Bans) Ban(ctx context.Context, ban limit.Ban) error {
	if !ban.Prefix.IsValid() || time.Until(ban.Until) <= 0 {
		return fmt.Errorf("ban %s until %s: that is nobody, or over", ban.Prefix, ban.Until.Format(time.RFC3339))
	}
	done, err := b.put(ctx, "", ban)
	if err == nil && done == 0 {
		err = ErrFull
	}
	return failed("ban", ban.Prefix, err)
}

func failed(what string, prefix netip.Prefix, err error) error {
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, prefix, err)
	}
	return nil
}

func (b *Bans) put(ctx context.Context, missingOnly string, bans ...limit.Ban) (done int64, err error) {
	args := []string{strconv.Itoa(positive(b.Most, 10_000)), missingOnly}
	for _, ban := range bans {
		left := min(max(time.Until(ban.Until), time.Millisecond), longestBan)
		args = append(args, ban.Prefix.Masked().String(), milliseconds(left), oneLine(ban.Why))
	}
	err = b.with(ctx, func(ctx context.Context, client rueidis.Client) (err error) {
		done, err = banScript.Exec(ctx, client, b.keys(), args).AsInt64()
		return err
	})
	return done, err
}

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
func (b *Bans) Watch(ctx context.Context, tell func([]limit.Ban)) {
	defer b.health.end()
	w := &watch{Bans: b}
	look := time.NewTicker(positive(b.Every, time.Second))
	defer look.Stop()
	for {
		changed, err := w.look(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			err = fmt.Errorf("redislimit: bans: %w", err)
		}
		b.health.set(err, b.Changed)
		if changed || w.expire() {
			tell(slices.Clone(w.known))
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
	version string      // empty until there was a look
	known   []limit.Ban // by their ends
	looked  bool
}

// look returns whether the bans have changed.
func (w *watch) look(ctx context.Context) (changed bool, err error) {
	var version string
	err = w.with(ctx, func(ctx context.Context, client rueidis.Client) error {
		var err error
		if version, err = client.Do(ctx, client.B().Get().Key(w.versionKey()).Build()).ToString(); rueidis.IsRedisNil(err) {
			return nil
		}
		return err
	})
	if err != nil || w.looked && version == w.version && (version != "" || len(w.known) == 0) {
		return false, err
	}
	if w.lost(version) {
		if err := w.restore(ctx); err != nil {
			return false, err
		}
	}
	if err := w.read(ctx); err != nil {
		return false, err
	}
	return true, nil
}

// lost returns whether Redis has forgotten bans that are in force.
func (w *watch) lost(version string) bool {
	w.expire()
	made, _, _ := strings.Cut(version, ".")
	before, _, _ := strings.Cut(w.version, ".")
	return len(w.known) > 0 && made != before
}

const mostRestored = 128 // bans in a round trip

// restore gives Redis what it has forgotten.
func (w *watch) restore(ctx context.Context) error {
	for bans := range slices.Chunk(w.known, mostRestored) {
		if _, err := w.put(ctx, "missing only", bans...); err != nil {
			return err
		}
	}
	return nil
}

func (w *watch) read(ctx context.Context) error {
	var all []string
	began := time.Now()
	err := w.with(ctx, func(ctx context.Context, client rueidis.Client) (err error) {
		all, err = readScript.Exec(ctx, client, w.keys(), nil).AsStrSlice()
		return err
	})
	if err != nil {
		return err
	}
	if len(all)%3 != 1 {
		return fmt.Errorf("it gives %d words for a version and bans", len(all))
	}
	w.looked, w.version, w.known = true, all[0], nil
	for ban := range slices.Chunk(all[1:], 3) {
		prefix, err := netip.ParsePrefix(ban[0])
		left, leftErr := strconv.ParseInt(ban[1], 10, 64)
		if err != nil || leftErr != nil {
			continue // somebody else's
		}
		w.known = append(w.known, limit.Ban{Prefix: prefix, Until: began.Add(time.Duration(left) * time.Millisecond), Why: oneLine(ban[2])})
	}
	slices.SortFunc(w.known, func(a, b limit.Ban) int { return cmp.Or(a.Until.Compare(b.Until), a.Prefix.Compare(b.Prefix)) })
	return nil
}

// expire forgets the bans that are over, and returns whether there were any.
func (w *watch) expire() bool {
	n, _ := slices.BinarySearchFunc(w.known, time.Now(), func(b limit.Ban, now time.Time) int { return b.Until.Compare(now) })
	w.known = w.known[n:]
	return n > 0
}

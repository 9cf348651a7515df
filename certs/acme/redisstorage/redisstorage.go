// Package redisstorage keeps what ACME has brought in Redis, so that machines share it.
//
//	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{"10.0.0.5:6379"}, DisableCache: true})
//	if err != nil {
//		return err
//	}
//	defer client.Close()
//	source := &acme.Source{
//		Domains: []string{"db.example.com"},
//		Agreed:  true,
//		Storage: &redisstorage.Storage{Client: client},
//	}
//
// Its secret is a lock that outlives nobody. It expires unless its holder keeps renewing it,
// so one that has died is waited for half a minute and not for ever. And it is fenced: a
// holder that was only away, and whose lock somebody else has by now, can write no more,
// which Redis itself decides together with the write.
//
// Who can read that Redis has the private keys. Have it ask for a password, and talk to it
// over TLS where the network is not yours.
package redisstorage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/redis/rueidis"
)

// Storage is a certmagic.Storage in Redis 6 or later. Its methods may be called from
// several goroutines. What Redis does not answer within 5 seconds is an error.
type Storage struct {
	// Client is the connection to Redis. It stays the caller's, who closes it after use.
	Client rueidis.Client

	// Prefix is what the keys begin with, for all machines alike. They are in one slot of
	// a cluster. Empty means levee:acme.
	Prefix string

	// Lease is how long a lock lives that its holder does not renew; it does so three
	// times as often. Zero means 30 seconds.
	Lease time.Duration

	mu   sync.Mutex
	held map[string]*lock // by name
}

var (
	_ certmagic.Storage          = (*Storage)(nil)
	_ certmagic.TryLocker        = (*Storage)(nil)
	_ certmagic.LockLeaseRenewer = (*Storage)(nil)
)

// ErrLockLost is what is written with after somebody else has taken over a lock that this
// Storage held, and was away for longer than its lease. Until its Unlock nothing is written
// at all: Redis does not know what belongs to which lock.
var ErrLockLost = errors.New("redisstorage: a lock was lost to another holder")

const (
	timeout  = 5 * time.Second // for one answer
	lastPoll = time.Second     // the longest pause between looks at a lock that somebody holds
)

func (s *Storage) key(kind string) string {
	return "{" + cmp.Or(s.Prefix, "levee:acme") + "}:" + kind // a hash tag: one slot
}

// tree is the keys of what is stored: values and times by file, and an index of files in
// the order of their bytes, for folders are ranges of it.
func (s *Storage) tree() []string {
	return []string{s.key("values"), s.key("times"), s.key("index")}
}

func (s *Storage) lease() time.Duration {
	if s.Lease > 0 {
		return s.Lease
	}
	return 30 * time.Second
}

// fenced is the beginning of whatever writes: every lock that is held has to be so still.
// Its keys follow the tree's, and its numbers come first among the arguments.
const fenced = `
for i = 4, #KEYS do
	if redis.call('GET', KEYS[i]) ~= ARGV[i - 3] then return -1 end
end
local at = #KEYS - 3
`

// The files below a folder are those from "folder/" up to "folder0": 0 follows / in ASCII.
var (
	storeScript = rueidis.NewLuaScript(fenced + `
local key, now = ARGV[at + 1], redis.call('TIME')
redis.call('HSET', KEYS[1], key, ARGV[at + 2])
redis.call('HSET', KEYS[2], key, now[1] * 1000 + math.floor(now[2] / 1000))
redis.call('ZADD', KEYS[3], 0, key)
return 1`)

	deleteScript = rueidis.NewLuaScript(fenced + `
local key = ARGV[at + 1]
local files = redis.call('ZRANGEBYLEX', KEYS[3], '[' .. key .. '/', '(' .. key .. '0')
table.insert(files, key)
for _, file in ipairs(files) do
	redis.call('HDEL', KEYS[1], file)
	redis.call('HDEL', KEYS[2], file)
	redis.call('ZREM', KEYS[3], file)
end
return 1`)

	// statScript returns a file's size and time, or for a folder -1.
	statScript = rueidis.NewLuaScriptReadOnly(`
local time = redis.call('HGET', KEYS[2], ARGV[1])
if time then return {redis.call('HSTRLEN', KEYS[1], ARGV[1]), tonumber(time)} end
if redis.call('ZLEXCOUNT', KEYS[3], '[' .. ARGV[1] .. '/', '(' .. ARGV[1] .. '0') > 0 then return {-1, 0} end
return {}`)

	// lockScript returns the number that whoever has taken the lock is known by, or 0 if
	// somebody has it. Numbers only grow.
	lockScript = rueidis.NewLuaScript(`
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local number = redis.call('HINCRBY', KEYS[2], ARGV[1], 1)
redis.call('SET', KEYS[1], number, 'PX', ARGV[2])
return number`)

	// keepScript renews a lease. One that has run out is taken up again if nobody else has
	// had the lock meanwhile.
	keepScript = rueidis.NewLuaScript(`
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[3] then
	if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
	return 1
end
if holder or redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[3] then return 0 end
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[2])
return 1`)

	unlockScript = rueidis.NewLuaScript(`
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1`)
)

// Store is certmagic's.
func (s *Storage) Store(ctx context.Context, key string, value []byte) error {
	return s.write(ctx, "store", storeScript, key, rueidis.BinaryString(value))
}

// Delete is certmagic's.
func (s *Storage) Delete(ctx context.Context, key string) error {
	return s.write(ctx, "delete", deleteScript, key)
}

func (s *Storage) write(ctx context.Context, what string, script *rueidis.Lua, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		locks := s.locks()
		keys, numbers := s.tree(), make([]string, 0, len(locks)+len(args))
		for name, number := range locks {
			keys = append(keys, s.lockKey(name))
			numbers = append(numbers, number)
		}
		done, err := script.Exec(ctx, s.Client, keys, append(numbers, args...)).AsInt64()
		if err == nil && done < 0 {
			now := s.locks()
			maps.DeleteFunc(locks, func(name, number string) bool { return now[name] == number })
			if len(locks) > 0 {
				continue // another goroutine has given it back meanwhile: that one was not lost
			}
			err = ErrLockLost
		}
		return s.failed(what, args[0], err)
	}
}

// locks returns the numbers of the locks that are held, by name.
func (s *Storage) locks() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	locks := make(map[string]string, len(s.held))
	for name, l := range s.held {
		if l.number != "" {
			locks[name] = l.number
		}
	}
	return locks
}

// Load is certmagic's.
func (s *Storage) Load(ctx context.Context, key string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	value, err := s.Client.Do(ctx, s.Client.B().Hget().Key(s.key("values")).Field(key).Build()).AsBytes()
	return value, s.failed("load", key, err)
}

// failed names what has failed, and a missing key as certmagic does. A socket of Redis that
// is missing is another matter: who took that for a missing account would open a new one.
func (s *Storage) failed(what, key string, err error) error {
	switch {
	case err == nil:
		return nil
	case rueidis.IsRedisNil(err):
		err = fs.ErrNotExist
	case err != fs.ErrNotExist && errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s %s: %v", what, key, err) //nolint:errorlint // on purpose
	}
	return fmt.Errorf("%s %s: %w", what, key, err)
}

// Exists is certmagic's.
func (s *Storage) Exists(ctx context.Context, key string) bool {
	_, err := s.Stat(ctx, key)
	return err == nil
}

// Stat is certmagic's. A folder has no time.
func (s *Storage) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	found, err := statScript.Exec(ctx, s.Client, s.tree(), []string{key}).AsIntSlice()
	if err == nil && len(found) < 2 {
		err = fs.ErrNotExist
	}
	if err != nil {
		return certmagic.KeyInfo{}, s.failed("stat", key, err)
	}
	if found[0] < 0 {
		return certmagic.KeyInfo{Key: key}, nil
	}
	return certmagic.KeyInfo{Key: key, Modified: time.UnixMilli(found[1]), Size: found[0], IsTerminal: true}, nil
}

// List is certmagic's. Like its folders it names folders too.
func (s *Storage) List(ctx context.Context, folder string, recursive bool) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	folder = strings.Trim(folder, "/")
	from, to := "-", "+"
	if folder != "" {
		from, to = "["+folder+"/", "("+folder+"0"
	}
	files, err := s.Client.Do(ctx, s.Client.B().Zrangebylex().Key(s.key("index")).Min(from).Max(to).Build()).AsStrSlice()
	if err == nil && len(files) == 0 {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, s.failed("list", folder, err)
	}
	found := make(map[string]bool)
	for _, file := range files {
		for at := file; at != folder && at != "."; at = path.Dir(at) {
			if parent := path.Dir(at); recursive || parent == folder || folder == "" && parent == "." {
				found[at] = true
			}
		}
	}
	keys := make([]string, 0, len(found))
	for key := range found {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys, nil
}

// A lock is one that is held here, or asked for.
type lock struct {
	number string             // empty until it is held
	stop   context.CancelFunc // ends the renewing
	ended  chan struct{}      // closed when it is renewed no more
}

func (s *Storage) lockKey(name string) string { return s.key("lock:" + name) }

func (s *Storage) lockKeys(name string) []string {
	return []string{s.lockKey(name), s.key("fence")}
}

// Lock is certmagic's. It waits as long as ctx lets it.
func (s *Storage) Lock(ctx context.Context, name string) error {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, lastPoll) {
		if taken, err := s.TryLock(ctx, name); taken || err != nil {
			return err
		}
		timer := time.NewTimer(wait/2 + rand.N(wait/2)) //nolint:gosec // not a secret
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("lock %s: %w", name, ctx.Err())
		}
	}
}

// TryLock is certmagic's.
func (s *Storage) TryLock(ctx context.Context, name string) (bool, error) {
	l := s.claim(name)
	if l == nil {
		return false, nil
	}
	asking, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	number, err := lockScript.Exec(asking, s.Client, s.lockKeys(name), []string{name, milliseconds(s.lease())}).AsInt64()
	if err != nil || number == 0 {
		s.release(name)
		return false, s.failed("lock", name, err)
	}
	renewing, stop := context.WithCancel(context.Background())
	s.mu.Lock()
	l.number, l.stop = strconv.FormatInt(number, 10), stop
	s.mu.Unlock()
	go s.renew(renewing, name, l) // until Unlock
	return true, nil
}

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// claim has one goroutine at a time ask for a lock, and none while it is held here, or was
// lost and is to be unlocked first: then it is nil.
func (s *Storage) claim(name string) *lock {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[name] != nil {
		return nil
	}
	if s.held == nil {
		s.held = make(map[string]*lock)
	}
	l := &lock{ended: make(chan struct{})}
	s.held[name] = l
	return l
}

func (s *Storage) release(name string) {
	s.mu.Lock()
	delete(s.held, name)
	s.mu.Unlock()
}

// holding returns a lock that is held, nil if it is not.
func (s *Storage) holding(name string) *lock {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.held[name]; l != nil && l.number != "" {
		return l
	}
	return nil
}

// renew keeps a lock until it is lost, or ctx ends. While Redis cannot be reached there
// may be a chance yet.
func (s *Storage) renew(ctx context.Context, name string, l *lock) {
	defer close(l.ended)
	every := time.NewTicker(s.lease() / 3)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
		if kept, err := s.keep(ctx, name, l, s.lease()); err == nil && !kept {
			return
		}
	}
}

func (s *Storage) keep(ctx context.Context, name string, l *lock, lease time.Duration) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, min(timeout, lease))
	defer cancel()
	kept, err := keepScript.Exec(ctx, s.Client, s.lockKeys(name), []string{name, milliseconds(lease), l.number}).AsInt64()
	return kept == 1, err
}

// RenewLockLease is certmagic's. A lease that is longer than Storage's is one that a holder
// who dies is waited for.
func (s *Storage) RenewLockLease(ctx context.Context, name string, lease time.Duration) error {
	l := s.holding(name)
	if l == nil {
		return fmt.Errorf("renew lock %s: it is not held", name)
	}
	kept, err := s.keep(ctx, name, l, max(lease, s.lease()))
	if err == nil && !kept {
		err = ErrLockLost
	}
	return s.failed("renew lock", name, err)
}

// Unlock is certmagic's. A lock that was lost is somebody else's, and stays.
func (s *Storage) Unlock(ctx context.Context, name string) error {
	l := s.holding(name)
	if l == nil {
		return fmt.Errorf("unlock %s: it is not held", name)
	}
	l.stop()
	<-l.ended
	s.mu.Lock()
	number := l.number
	l.number = "" // from here on no write insists on it; the claim stays until the lock is free
	s.mu.Unlock()
	defer s.release(name)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	return s.failed("unlock", name, unlockScript.Exec(ctx, s.Client, []string{s.lockKey(name)}, []string{number}).Error())
}

package redislimit_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/levee-net/levee/limit"
	"github.com/levee-net/levee/limit/redislimit"
)

func TestMachinesLetInAsManyTogetherAsTheLimitSays(t *testing.T) {
	redis := startRedis(t)
	for machines := 1; machines <= 3; machines++ {
		t.Run(fmt.Sprint(machines), func(t *testing.T) {
			var all []*redislimit.Limits
			for range machines {
				all = append(all, machine(t, redis.socket()))
			}
			for _, c := range []limit.Claim{open(100, fmt.Sprint(machines)), rate(100, fmt.Sprint(machines))} {
				granted := make(chan int, machines)
				for _, l := range all {
					go func() {
						n, failed := claimAll(l, 200, c)
						if failed > 0 {
							t.Errorf("%s: %d errors: %+v", c.Limit, failed, l.State())
						}
						granted <- n
					}()
				}
				sum := 0
				for range machines {
					sum += <-granted
				}
				if sum != 100 {
					t.Errorf("%s: %d were let in, the limit is 100", c.Limit, sum)
				}
			}
		})
	}
}

func TestWhatIsGivenBackOnOneMachineIsFreeOnAnother(t *testing.T) {
	redis := startRedis(t)
	a, b := machine(t, redis.socket()), machine(t, redis.socket())
	if n := claimed(t, a, 20, open(10, "x")); n != 10 {
		t.Fatalf("%d were let in", n)
	}
	for range 4 {
		a.Release([]limit.Claim{open(10, "x")})
	}
	got := 0
	eventually(t, "four are free", func() bool {
		got += claimed(t, b, 1, open(10, "x"))
		return got == 4
	})
	if n := claimed(t, a, 5, open(10, "x")) + claimed(t, b, 5, open(10, "x")); n != 0 {
		t.Errorf("%d more were let in", n)
	}
}

func TestNothingIsLeftOfConnectionsThatAreGone(t *testing.T) {
	redis := startRedis(t)
	a, b := machine(t, redis.socket()), machine(t, redis.socket())
	var all sync.WaitGroup
	for i := range 1000 {
		all.Go(func() {
			l, claims := a, []limit.Claim{open(1000, "x"), open(5, fmt.Sprint("k", i%50))}
			if i%2 > 0 {
				l = b
			}
			if refused, err := l.Claim(context.Background(), claims); err != nil {
				t.Error(err)
			} else if refused < 0 {
				l.Release(claims)
			}
		})
	}
	all.Wait()
	eventually(t, "no counts are left", func() bool {
		keys, err := redis.do("KEYS", "{levee:limit}:open:*").AsStrSlice()
		return err == nil && len(keys) == 0 && a.Stats().Keys == 0 && b.Stats().Keys == 0
	})
}

func TestAConnectionGetsAllOfItsClaimsOrNone(t *testing.T) {
	redis := startRedis(t)
	l := machine(t, redis.socket())
	all := []limit.Claim{open(100, "a"), rate(100, "b"), open(1, "c")}
	if n := claimed(t, l, 50, all...); n != 1 {
		t.Fatalf("%d were let in", n)
	}
	refused, err := l.Claim(t.Context(), all)
	if refused != 2 || err != nil {
		t.Errorf("claim %d was refused, %v", refused, err)
	}
	if n := claimed(t, l, 200, open(100, "a")); n != 99 {
		t.Errorf("the first limit had %d of 99 left", n)
	}
	if n := claimed(t, l, 200, rate(100, "b")); n != 99 {
		t.Errorf("the second limit had %d of 99 left", n)
	}
}

func TestOneConnectionMayClaimTheSameTwice(t *testing.T) {
	l := machine(t, startRedis(t).socket())
	if n := claimed(t, l, 20, open(10, "x"), open(10, "x")); n != 5 {
		t.Errorf("%d were let in, two of 10 each", n)
	}
	if n := claimed(t, l, 20, rate(10, "x"), rate(10, "x")); n != 5 {
		t.Errorf("%d were let in, two of a burst of 10 each", n)
	}
}

func TestARateIsKeptOverTime(t *testing.T) {
	redis := startRedis(t)
	a, b := machine(t, redis.socket()), machine(t, redis.socket())
	c := limit.Claim{Limit: "l", Key: "k", Rate: 100, Burst: 10}
	began, granted := time.Now(), 0
	for time.Since(began) < time.Second {
		for _, l := range []*redislimit.Limits{a, b} {
			refused, err := l.Claim(t.Context(), []limit.Claim{c})
			if err != nil {
				t.Fatal(err)
			}
			if refused < 0 {
				granted++
			}
		}
	}
	most := 10 + int(100*time.Since(began).Seconds()) + 1
	if granted > most || granted < most/2 { // a machine that stands still for long loses some
		t.Errorf("%d were let in, %d is the limit", granted, most)
	}
	t.Logf("%d of %d, %+v", granted, most, a.Stats())
}

func TestWhomARateRefusesIsRefusedWithoutAskingForAWhile(t *testing.T) {
	redis := startRedis(t)
	l := machine(t, redis.socket())
	claimed(t, l, 2, rate(1, "x"))
	before := l.Stats()
	if n := claimed(t, l, 1000, open(5000, "y"), rate(1, "x")); n != 0 {
		t.Fatalf("%d were let in", n)
	}
	after := l.Stats()
	if after.RoundTrips > before.RoundTrips || after.RefusedHere-before.RefusedHere != 1000 {
		t.Errorf("Redis was asked: %+v, then %+v", before, after)
	}
	if n := claimed(t, l, 1, rate(1, "z")); n != 1 {
		t.Error("another one is refused too")
	}
}

func TestManyConnectionsShareARoundTrip(t *testing.T) {
	l := machine(t, startRedis(t).socket())
	const n = 4000
	began := time.Now()
	if granted := claimed(t, l, n, open(n, "x"), limit.Claim{Limit: "r", Key: "y", Rate: 1e6, Burst: n}); granted != n {
		t.Errorf("%d were let in", granted)
	}
	took := time.Since(began)
	if trips := l.Stats().RoundTrips; trips > n/10 {
		t.Errorf("%d connections took %d round trips", n, trips)
	}
	t.Logf("%d connections with 2 claims each: %d round trips, %s", n, l.Stats().RoundTrips, took)
}

func TestWhoCannotWaitAnyMoreIsLetGoAtOnce(t *testing.T) {
	redis := startRedis(t)
	l := &redislimit.Limits{Client: connect(t, redis.socket()), MaxWaiting: 5, Timeout: patience}
	run(t, l)
	eventually(t, "limits are shared", func() bool { return l.State().Err == nil })
	redis.do("CLIENT", "PAUSE", "400")
	var all sync.WaitGroup
	claim := func() { l.Claim(context.Background(), []limit.Claim{open(100, "x")}) }
	before := l.Stats().RoundTrips
	all.Go(claim)
	eventually(t, "Redis is being asked", func() bool { return l.Stats().RoundTrips > before })
	for range 5 {
		all.Go(claim)
	}
	eventually(t, "as many wait as may", func() bool { return l.Stats().Waiting == 5 })
	if _, err := l.Claim(t.Context(), []limit.Claim{open(100, "x")}); !errors.Is(err, redislimit.ErrBusy) {
		t.Errorf("one more: %v", err)
	}
	if n := l.Stats().Busy; n != 1 {
		t.Errorf("%d are counted", n)
	}
	all.Wait()
}

func TestClaimEndsWithItsContext(t *testing.T) {
	redis := startRedis(t)
	l := machine(t, redis.socket())
	redis.do("CLIENT", "PAUSE", "300")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := l.Claim(ctx, []limit.Claim{open(1, "x")}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Claim returned %v", err)
	}
	// What was granted to nobody is given back.
	eventually(t, "the one place is free", func() bool { return claimed(t, l, 1, open(1, "x")) == 1 })
}

func TestWithoutRunTheMachineDecidesAlone(t *testing.T) {
	l := new(redislimit.Limits)
	if _, err := l.Claim(t.Context(), []limit.Claim{open(1, "x")}); !errors.Is(err, redislimit.ErrNotRunning) {
		t.Errorf("Claim returned %v", err)
	}
	l.Release([]limit.Claim{open(1, "x")})
	if err := l.State().Err; !errors.Is(err, redislimit.ErrNotRunning) {
		t.Errorf("the state is %v", err)
	}
}

func TestWhatEndsGivesItsConnectionsBackAtOnce(t *testing.T) {
	redis := startRedis(t)
	a := &redislimit.Limits{Client: connect(t, redis.socket())}
	stop := run(t, a)
	eventually(t, "limits are shared", func() bool { return a.State().Err == nil })
	b := machine(t, redis.socket())
	claimed(t, a, 10, open(10, "x"))
	if n := claimed(t, b, 1, open(10, "x")); n != 0 {
		t.Fatal("one too many was let in")
	}
	stop()
	if n := claimed(t, b, 20, open(10, "x")); n != 10 {
		t.Errorf("%d of 10 were free", n)
	}
	if _, err := a.Claim(t.Context(), []limit.Claim{open(1, "y")}); !errors.Is(err, redislimit.ErrNotRunning) {
		t.Errorf("afterwards Claim returns %v", err)
	}
}

func TestHostileKeysAreKeysOfTheirOwn(t *testing.T) {
	redis := startRedis(t)
	l := machine(t, redis.socket())
	long := strings.Repeat("x", 1<<16)
	claims := []limit.Claim{
		{Limit: "a", Key: "b:c"},
		{Limit: "a:b", Key: "c"},
		{Limit: "1:a", Key: "b"},
		{Limit: "a", Key: ""},
		{Limit: "", Key: "a"},
		{Limit: "a", Key: "\r\n*1\r\n$8\r\nFLUSHALL\r\n"},
		{Limit: "a", Key: "\x00"},
		{Limit: "a", Key: "}{"},
		{Limit: "a", Key: "*"},
		{Limit: "a", Key: long},
		{Limit: "a", Key: long + "x"},
		{Limit: "ax", Key: long},
		{Limit: long, Key: "a"},
		{Limit: "a", Key: "\xff\xfe"},
	}
	for _, c := range claims {
		c.Most, c.Rate, c.Burst = 1, 0.001, 1
		if n := claimed(t, l, 1, c); n != 1 {
			t.Errorf("%.20q of %.20q has met with another one", c.Key, c.Limit)
		}
		if n := claimed(t, l, 1, c); n != 0 {
			t.Errorf("%.20q of %.20q was let in twice", c.Key, c.Limit)
		}
	}
	keys, err := redis.do("KEYS", "*").AsStrSlice()
	if err != nil || len(keys) != 2*len(claims)+1 {
		t.Errorf("there are %d keys, %v", len(keys), err)
	}
	for _, key := range keys {
		if !strings.HasPrefix(key, "{levee:limit}:") || len(key) > 100 {
			t.Errorf("a key is %q", key)
		}
		if left, err := redis.do("PTTL", key).AsInt64(); err != nil || left <= 0 || left > time.Hour.Milliseconds() {
			t.Errorf("%q expires in %d ms, %v", key, left, err)
		}
	}
}

func TestSenselessLimitsDoNoHarm(t *testing.T) {
	l := machine(t, startRedis(t).socket())
	for _, test := range []struct {
		c    limit.Claim
		want int // of 3
	}{
		{limit.Claim{Limit: "nothing"}, 3},
		{limit.Claim{Limit: "negative", Most: -1, Rate: -1, Burst: -1}, 3},
		{limit.Claim{Limit: "NaN", Rate: math.NaN(), Burst: 1}, 3},
		{limit.Claim{Limit: "infinite", Rate: math.Inf(1), Burst: 1}, 3},
		{limit.Claim{Limit: "no burst", Rate: 0.001}, 1},
		{limit.Claim{Limit: "slow", Rate: math.SmallestNonzeroFloat64, Burst: 2}, 2},
		{limit.Claim{Limit: "much", Rate: 0.001, Burst: math.MaxInt}, 3},
		{limit.Claim{Limit: "most", Most: math.MaxInt}, 3},
	} {
		if n := claimed(t, l, 3, test.c); n != test.want {
			t.Errorf("%s: %d were let in", test.c.Limit, n)
		}
	}
	if refused, err := l.Claim(t.Context(), nil); refused != -1 || err != nil {
		t.Errorf("no claims: %d, %v", refused, err)
	}
	if _, err := l.Claim(t.Context(), make([]limit.Claim, 65)); !errors.Is(err, redislimit.ErrTooMany) {
		t.Errorf("65 claims: %v", err)
	}
}

func TestLimitsWaitForAClient(t *testing.T) {
	redis := startRedis(t)
	client := connect(t, redis.socket())
	tries := make(chan int, 100)
	l := &redislimit.Limits{Timeout: patience, Reach: func(context.Context) (rueidis.Client, error) {
		if tries <- 1; len(tries) < 3 {
			return nil, errors.New("not yet")
		}
		return client, nil
	}}
	run(t, l)
	eventually(t, "there is an error", func() bool { err := l.State().Err; return err != nil && strings.Contains(err.Error(), "not yet") })
	eventually(t, "limits are shared", func() bool { return l.State().Err == nil })
	if n := claimed(t, l, 2, open(1, "x")); n != 1 {
		t.Errorf("%d were let in", n)
	}
}

// What a client costs in Redis is in the package's documentation.
func TestMemoryOfAClientIsAsDocumented(t *testing.T) {
	redis := startRedis(t)
	a, b := machine(t, redis.socket()), machine(t, redis.socket())
	c := limit.Claim{Limit: "per_client", Key: "2001:db8:1234:5678::/64", Most: 256, Rate: 50, Burst: 100}
	usage := func(kind string) int64 {
		n, err := redis.do("MEMORY", "USAGE", "{levee:limit}:"+kind+":10:per_client:2001:db8:1234:5678::/64").AsInt64()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	claimed(t, a, 1, c)
	one := usage("open")
	claimed(t, b, 1, c)
	rate, two := usage("rate"), usage("open")
	t.Logf("a rate is %d bytes, open connections of one machine are %d, of two %d", rate, one, two)
	if rate > 160 || one > 180 || two-one > 40 {
		t.Error("that is more than is documented")
	}
}

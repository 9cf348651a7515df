//go:build unix

package redislimit_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/levee-net/levee/limit"
	"github.com/levee-net/levee/limit/redislimit"
)

// A cluster refuses scripts whose keys are in different slots.
func TestAClusterHasThemInOneSlot(t *testing.T) {
	port := freePort(t)
	redis := startRedis(t, "--port", port, "--bind", "127.0.0.1", "--cluster-enabled", "yes", "--cluster-announce-ip", "127.0.0.1")
	redis.do("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
	eventually(t, "the cluster is complete", func() bool {
		return rueidis.IsRedisNil(redis.client.Do(t.Context(), redis.client.B().Get().Key("x").Build()).Error())
	})
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{"127.0.0.1:" + port}, DisableCache: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	if mode := client.Mode(); mode != rueidis.ClientModeCluster {
		t.Fatalf("the client is for a %s", mode)
	}
	l := &redislimit.Limits{Client: client, Timeout: patience}
	run(t, l)
	eventually(t, "limits are shared", func() bool { return l.State().Err == nil })
	for i := range 20 {
		key := fmt.Sprint("}{", i)
		if n := claimed(t, l, 10, open(5, key), rate(8, key), open(100, "all")); n != 5 {
			t.Errorf("%d were let in", n)
		}
	}
	for range 100 {
		l.Release([]limit.Claim{open(100, "all")})
	}
	eventually(t, "all are free", func() bool { return claimed(t, l, 1, open(1, "all")) == 1 })

	bans := &redislimit.Bans{Client: client, Every: 20 * time.Millisecond}
	w := startWatcher(t, bans)
	ban(t, bans, "192.0.2.7/32", time.Hour)
	w.knows(t, "192.0.2.7/32")
	redis.do("FLUSHALL")
	eventually(t, "Redis has it again", func() bool {
		n, err := redis.do("ZCARD", "{levee:limit}:bans").AsInt64()
		return err == nil && n == 1
	})
}

// freePort returns a port below those that connections are given. Redis uses the one that is
// 10,000 higher too.
func freePort(t *testing.T) string {
	t.Helper()
	for range 100 {
		port := 12_000 + rand.IntN(8000)
		if isFree(port) && isFree(port+10_000) {
			return fmt.Sprint(port)
		}
	}
	t.Fatal("no port is free")
	return ""
}

func isFree(port int) bool {
	l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", port))
	if err != nil {
		return false
	}
	l.Close()
	return true
}

package attack

import (
	"context"
	"crypto/rand"
)

func hold(_ context.Context, a *attacker) error { return a.stay() }

// churn leaves in an orderly way, which leaves an address of its own in TIME_WAIT.
func churn(_ context.Context, a *attacker) error { return a.Close() }

// reset leaves as every attacker does: by a reset.
func reset(context.Context, *attacker) error { return nil }

func halfClose(_ context.Context, a *attacker) error {
	if err := a.raw.CloseWrite(); err != nil {
		return err
	}
	return a.stay()
}

func slowHello(ctx context.Context, a *attacker) error {
	return a.drip(ctx, a.force.target.hello(""))
}

// garbageSize is more than any first message is, and than what is peeked at.
const garbageSize = 64 << 10

// garbage begins with 64 KiB of it, and goes on as long as it is listened to.
func garbage(ctx context.Context, a *attacker) error {
	noise := make([]byte, garbageSize)
	for {
		_, _ = rand.Read(noise) // never fails
		if err := a.send(noise); err != nil {
			return err
		}
		if err := a.listen(ctx, a.force.beat/10); err != nil {
			return err
		}
	}
}

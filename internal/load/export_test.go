package load

import (
	"context"
	"time"
)

// Engines are what runs a load: the first is this system's.
var Engines = map[string]func(Load, context.Context) (*Result, error){
	"engine": Load.Run,
	"twin": func(l Load, ctx context.Context) (*Result, error) {
		l, err := l.checked()
		if err != nil {
			return nil, err
		}
		return l.runTwin(ctx)
	},
}

// OpenWithin is l with less patience.
func (l Load) OpenWithin(d time.Duration) Load {
	l.openBudget = d
	return l
}

// Responses reads HTTP responses that come in the pieces, and says what became of
// each: whole, refused or last.
func Responses(pieces ...[]byte) (states []string, err error) {
	r := &httpReply{length: unknown}
	for _, p := range pieces {
		for len(p) > 0 {
			n, state, err := r.take(p)
			if err != nil {
				return states, err
			}
			p = p[n:]
			if state != partial {
				states = append(states, map[replyState]string{whole: "whole", refused: "refused", last: "last"}[state])
			}
		}
	}
	return states, nil
}

package discover_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/levee-net/levee/upstream"
	"github.com/levee-net/levee/upstream/discover"
)

// A file of servers that is watched until somebody adds a second one.
func Example() {
	folder, err := os.MkdirTemp("", "levee")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(folder)
	path := filepath.Join(folder, "servers")
	replace := func(text string) {
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			fmt.Println(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			fmt.Println(err)
		}
	}
	replace("10.0.0.7:5432\n")

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	where := &discover.File{Path: path}
	err = where.Run(ctx, func(servers []upstream.Server) { // a pool's Update, mostly
		for _, s := range servers {
			fmt.Println(s.Name, "tier", s.Tier)
		}
		fmt.Println()
		if len(servers) == 2 {
			cancel()
			return
		}
		replace("10.0.0.7:5432\n10.0.0.8:5432 tier=1\n")
	})
	fmt.Println(err)
	// Output:
	// 10.0.0.7:5432 tier 0
	//
	// 10.0.0.7:5432 tier 0
	// 10.0.0.8:5432 tier 1
	//
	// context canceled
}

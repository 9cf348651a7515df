// Command levee is a hardened TCP and TLS front door. Without arguments it serves
// its built-in configuration on 127.0.0.1:8080; levee help tells the rest.
package main

import (
	"context"
	"os"

	"github.com/levee-net/levee/internal/app"
)

func main() {
	os.Exit(app.Run(context.Background(), os.Args, app.Process()))
}

//go:build !unix

package admin

import "io/fs"

// readableByAll: access is not a matter of mode bits here.
func readableByAll(fs.FileInfo) bool { return false }

//go:build !unix

package certs

import "io/fs"

// readableByOthers: access is not a matter of mode bits here.
func readableByOthers(fs.FileInfo) bool { return false }

func readableByAll(fs.FileInfo) bool { return false }

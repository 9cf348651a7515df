//go:build unix

package certs

import "io/fs"

func readableByOthers(info fs.FileInfo) bool { return info.Mode().Perm()&0o077 != 0 }

// readableByAll leaves a group alone: it is how a server that is not root reads its key.
func readableByAll(info fs.FileInfo) bool { return info.Mode().Perm()&0o007 != 0 }

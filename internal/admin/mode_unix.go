//go:build unix

package admin

import "io/fs"

// readableByAll leaves a group alone: it is how a server that is not root reads its token.
func readableByAll(info fs.FileInfo) bool { return info.Mode().Perm()&0o007 != 0 }

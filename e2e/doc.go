// Package e2e tests the levee binary as its users have it: a process, on a port,
// with clients that are not ours.
//
// What has no word in the configuration yet is tested with the library, in this process.
//
//	go test ./...
//
// The exception is ACME: there the library is tested, against a real authority.
//
// A test whose client is not installed is skipped, and says so.
package e2e

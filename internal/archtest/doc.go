// Package archtest holds the house's import rule, as tests that give each "no" its reason:
//
//   - Arrows point at the root. The root package imports nothing of ours.
//   - Leaves import nothing of ours either.
//   - Neighbours never import each other. They meet through plain types (*tls.Config, net.Listener, a dial function).
//   - Only internal/app knows everybody.
//   - Heavy dependencies stay in the few rooms that are named for them, so that a user of the library links little.
//
// A room is a folder with the folders below it. The table of rooms is in rooms_test.go; a new room is one line there.
package archtest

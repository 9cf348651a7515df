//go:build race

package route_test

const raceEnabled = true // under which all of this takes ten times as long

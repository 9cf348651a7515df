//go:build race

package limit

const raceEnabled = true // whose runtime drops what is pooled, at random

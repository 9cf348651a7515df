package e2e

import "testing"

func TestGuideToAdmin(t *testing.T) {
	g := newGuide(t, "admin.md", "nobody", "nobody", "no.example.com", "8080")
	g.has = map[string]int{"console": 1, "yaml": 1}
	g.play()
}

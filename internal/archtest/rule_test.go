package archtest

import (
	"strings"
	"testing"
)

// The rule is held against a house of its own here, so that a new room cannot change what is tested.
var madeUpHouse = []room{
	{".", &heart},
	{"limit", &neighbour},
	{"limit/shared", &neighbour},
	{"pipe", &neighbour},
	{"paper", &leaf},
	{"leveetest", &bench},
	{"internal/wires", &neighbour},
	{"internal/app", &hub},
	{"cmd/levee", &door},
	{"examples", &visitor},
}

var madeUpDependencies = []dependency{
	{path: "anvil.example", rooms: []string{"internal/app"}, why: "it is heavy"},
}

func TestRuleNamesEveryViolationAndItsReason(t *testing.T) {
	const inOrder = "" // no complaint
	tests := []struct {
		name   string
		file   string
		kind   fileKind
		target string
		want   string // part of the complaint
	}{
		{"arrows point at the root", "pipe/a.go", code, module, inOrder},
		{"the root imports a leaf", "a.go", code, module + "/paper", "every room stands on the root"},
		{"the root imports a neighbour", "a.go", code, module + "/pipe", "every room stands on the root"},
		{"the root's own test imports a neighbour", "a_test.go", internalTest, module + "/pipe", "every room stands on the root"},
		{"the root's example imports a neighbour", "example_test.go", externalTest, module + "/pipe", inOrder},
		{"the root's example imports something internal", "example_test.go", externalTest, module + "/internal/wires", "every room stands on the root"},
		{"a leaf imports the root", "paper/a.go", code, module, "a leaf serves everybody"},
		{"a neighbour imports a neighbour", "pipe/a.go", code, module + "/limit", "join the two in internal/app"},
		{"a neighbour's test imports a neighbour", "pipe/a_test.go", externalTest, module + "/limit", "join the two in internal/app"},
		{"a neighbour imports a leaf", "pipe/a.go", code, module + "/paper", "join the two in internal/app"},
		{"a room's folders may import each other", "pipe/inner/a.go", code, module + "/pipe", inOrder},
		{"a room inside a room imports the outer one", "limit/shared/a.go", code, module + "/limit", inOrder},
		{"a room imports a room inside it", "limit/a.go", code, module + "/limit/shared", "join the two in internal/app"},
		{"the hub imports everybody", "internal/app/a.go", code, module + "/internal/wires", inOrder},
		{"the hub imports its caller", "internal/app/a.go", code, module + "/cmd/levee", "is its caller"},
		{"a command imports the hub", "cmd/levee/main.go", code, module + "/internal/app", inOrder},
		{"a command imports a room", "cmd/levee/main.go", code, module + "/pipe", "calls internal/app"},
		{"an example imports a public room", "examples/echo/main.go", code, module + "/pipe", inOrder},
		{"an example imports something internal", "examples/echo/main.go", code, module + "/internal/wires", "public rooms only"},

		{"a test imports leveetest", "pipe/a_test.go", internalTest, module + "/leveetest", inOrder},
		{"code imports leveetest", "internal/app/a.go", code, module + "/leveetest", "for tests"},
		{"the root's external test imports leveetest", "a_test.go", externalTest, module + "/leveetest", inOrder},
		{"the root's internal test imports leveetest", "a_test.go", internalTest, module + "/leveetest", "package levee_test"},
		{"leveetest imports the root", "leveetest/a.go", code, module, inOrder},
		{"leveetest imports a room", "leveetest/a.go", code, module + "/pipe", "every room's tests lean on leveetest"},

		{"the root imports the standard library", "a.go", code, "crypto/tls", inOrder},
		{"the root imports what it may", "a.go", code, "feather.example/light/v2", inOrder},
		{"the root imports what it may not", "a.go", code, "brick.example/small", "the standard library and feather.example/light"},
		{"the root imports a module whose name begins like ours", "a.go", code, module + "-tools", "a.go:7: the root package may not import"},
		{"the root's test imports a test library", "a_test.go", internalTest, "brick.example/small", inOrder},
		{"a room imports a small dependency", "pipe/a.go", code, "brick.example/small", inOrder},
		{"a room imports a heavy dependency", "pipe/a.go", code, "anvil.example/iron", "it is heavy (allowed in internal/app)"},
		{"a test imports a heavy dependency", "pipe/a_test.go", externalTest, "anvil.example/iron", "it is heavy"},
		{"a heavy dependency where it belongs", "internal/app/a.go", code, "anvil.example/iron", inOrder},

		{"a folder that is no room", "cellar/a.go", code, "fmt", "internal/archtest/rooms_test.go"},
		{"a folder whose name begins like a room", "pipeline/a.go", code, "fmt", "pipeline is in no known room"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			files := []file{{name: test.file, kind: test.kind, imports: []imported{{test.target, 7}}}}
			found := violations(files, madeUpHouse, madeUpDependencies, []string{"feather.example/light"})
			got := strings.Join(found, "\n")
			if len(found) > 1 || (got == "") != (test.want == inOrder) || !strings.Contains(got, test.want) {
				t.Errorf("%s imports %s:\n got %q\nwant %q", test.file, test.target, got, test.want)
			}
		})
	}
}

func TestUnknownRoomIsComplainedAboutOnce(t *testing.T) {
	files := []file{{name: "cellar/a.go"}, {name: "cellar/b.go"}, {name: "attic/a.go"}}
	if found := violations(files, madeUpHouse, nil, nil); len(found) != 2 {
		t.Errorf("got %d complaints about two unknown rooms:\n%s", len(found), strings.Join(found, "\n"))
	}
}

//go:build !failpoints

package handover

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The processes that come to harm are another build of this package.
func TestWhateverDiesExactlyOneServes(t *testing.T) {
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Skip("there is no go command to build with the tag failpoints: ", err)
	}
	binary := filepath.Join(t.TempDir(), "failpoints.test")
	build := exec.CommandContext(t.Context(), goTool, "test", "-c", "-tags=failpoints", "-o", binary, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	run := exec.CommandContext(t.Context(), binary, "-test.run=^TestWhateverDiesExactlyOneServes$")
	run.Env = os.Environ()
	if out, err := run.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// buildLevee builds the binary of this checkout.
func buildLevee(ctx context.Context) (path string, remove func(), err error) {
	dir, err := os.MkdirTemp("", "levee-site-")
	if err != nil {
		return "", nil, err
	}
	remove = func() { _ = os.RemoveAll(dir) }
	path = filepath.Join(dir, "levee")
	build := exec.CommandContext(ctx, "go", "build", "-o", path, "./cmd/levee")
	build.Dir = repository
	if out, err := build.CombinedOutput(); err != nil {
		remove()
		return "", nil, fmt.Errorf("go build ./cmd/levee: %w\n%s", err, out)
	}
	return path, remove, nil
}

// referencePages are the pages that levee's own words make, by their names.
func referencePages(ctx context.Context, levee string) (map[string][]byte, error) {
	pages := make(map[string][]byte)
	for name, write := range map[string]func(context.Context, string) (string, error){
		"docs/reference/configuration.md": configuration,
		"docs/reference/cli.md":           commandLine,
		"docs/reference/metrics.md":       metrics,
	} {
		text, err := write(ctx, levee)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		pages[name] = []byte(made + text)
	}
	return pages, nil
}

const made = "<!-- Made by `make reference`. Change what it is made from: the key table of internal/config, a command's help, a metric's help. -->\n\n"

// said is what a levee's command writes.
func said(ctx context.Context, levee string, args ...string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, levee, args...).Output()
	if err != nil {
		return nil, fmt.Errorf("levee %s: %w", strings.Join(args, " "), err)
	}
	return out, nil
}

// cell is text that stands in a table.
func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }

// code is text as it is typed, in a table.
func code(text string) string {
	if text == "" {
		return ""
	}
	return "`" + cell(text) + "`"
}

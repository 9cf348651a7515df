// Command site makes the documentation into pages for a browser: the README, what is in docs, and the papers beside them.
//
//	go run -C docs/site . [-out FOLDER]    the site
//	go run -C docs/site . -reference       docs/reference, from levee's own schema, help and metrics
//
// What it makes needs no server: it works from a folder, loads nothing from elsewhere, and finds words without a network.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

const repository = "../.." // from this folder, where go run -C and go test stand

func main() {
	out := flag.String("out", "../.build", "the `FOLDER` for the site, which is made anew")
	reference := flag.Bool("reference", false, "write docs/reference instead")
	flag.Parse()
	if err := run(*out, *reference); err != nil {
		fmt.Fprintln(os.Stderr, "site:", err)
		os.Exit(1)
	}
}

func run(out string, reference bool) error {
	if reference {
		return writeReference()
	}
	s, err := readSite()
	if err != nil {
		return err
	}
	if err := s.write(out); err != nil {
		return err
	}
	index, err := filepath.Abs(filepath.Join(out, "index.html"))
	if err != nil {
		return err
	}
	fmt.Printf("%d pages: file://%s\n", len(s.pages), filepath.ToSlash(index))
	return nil
}

// writeReference has a levee of this checkout tell of itself, and writes it down.
func writeReference() error {
	levee, remove, err := buildLevee(context.Background())
	if err != nil {
		return err
	}
	defer remove()
	pages, err := referencePages(context.Background(), levee)
	if err != nil {
		return err
	}
	for name, text := range pages {
		if err := os.WriteFile(filepath.Join(repository, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

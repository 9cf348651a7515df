package main

import (
	"cmp"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/yuin/goldmark/ast"
)

// contents is the page that lists all others, and so says in which order they are.
const contents = "docs/README.md"

// A page is a Markdown file and what has become of it.
type page struct {
	source string // of the repository, slash-separated
	target string // of the site
	title  string
	text   []byte
	tree   ast.Node
	ids    []string // its anchors
}

// A chapter is some pages that stand together in the navigation.
type chapter struct {
	title string
	pages []*page
}

type site struct {
	chapters []chapter
	pages    []*page // in the order in which they are read
	bySource map[string]*page
}

// papers are the Markdown files beside docs that are pages too.
var papers = []string{"README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "deploy/README.md"}

// readSite reads every page, and puts them in the order of the contents.
func readSite() (*site, error) {
	sources, err := sources()
	if err != nil {
		return nil, err
	}
	s := &site{bySource: make(map[string]*page, len(sources))}
	for _, source := range sources {
		text, err := os.ReadFile(filepath.Join(repository, source))
		if err != nil {
			return nil, err
		}
		s.bySource[source] = parse(source, text)
	}
	s.order()
	for _, source := range sources {
		if p := s.bySource[source]; !slices.Contains(s.pages, p) {
			return nil, fmt.Errorf("%s does not name %s", contents, source)
		}
	}
	return s, nil
}

func sources() ([]string, error) {
	all := slices.Clone(papers)
	for _, pattern := range []string{"docs/*.md", "docs/*/*.md"} {
		found, err := filepath.Glob(filepath.Join(repository, pattern))
		if err != nil {
			return nil, err
		}
		for _, name := range found {
			relative, err := filepath.Rel(repository, name)
			if err != nil {
				return nil, err
			}
			all = append(all, filepath.ToSlash(relative))
		}
	}
	return all, nil
}

// order takes chapters and pages from the headings and links of the contents.
func (s *site) order() {
	c := s.bySource[contents]
	s.chapters = []chapter{{title: "Start", pages: []*page{s.bySource["README.md"], c}}}
	s.pages = slices.Clone(s.chapters[0].pages)
	for node := range c.nodes() {
		switch n := node.(type) {
		case *ast.Heading:
			if n.Level == 2 {
				s.chapters = append(s.chapters, chapter{title: c.plain(n)})
			}
		case *ast.Link:
			file, _, _ := strings.Cut(string(n.Destination), "#")
			p := s.bySource[path.Join(path.Dir(contents), file)]
			if p == nil || slices.Contains(s.pages, p) || len(s.chapters) == 1 { // what stands above the first heading is for newcomers
				continue
			}
			last := &s.chapters[len(s.chapters)-1]
			last.pages = append(last.pages, p)
			s.pages = append(s.pages, p)
		}
	}
	s.chapters = slices.DeleteFunc(s.chapters, func(c chapter) bool { return len(c.pages) == 0 })
}

// target is where a source's page stands in the site. Names are in lower case, as some file systems know no other.
func target(source string) string {
	name := strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(source, "docs/"), ".md"))
	switch source {
	case "README.md":
		name = "index"
	case contents:
		name = "contents"
	case "SECURITY.md":
		name = "reporting" // docs/security.md is about something else
	case "deploy/README.md":
		name = "deploy"
	}
	return name + ".html"
}

// anchor is the name that a heading has on GitHub, so that links lead to the same place here and there.
func anchor(heading string) string {
	kept := unanchored.ReplaceAllString(strings.ToLower(heading), "")
	return cmp.Or(strings.ReplaceAll(strings.TrimSpace(kept), " ", "-"), "section")
}

var unanchored = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)

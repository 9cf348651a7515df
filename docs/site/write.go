package main

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/yuin/goldmark/ast"
)

//go:embed assets
var assets embed.FS

var frame = template.Must(template.New("page.html").ParseFS(assets, "assets/page.html"))

// A view is what the frame around a page is filled with.
type view struct {
	Title, Source  string
	Root           string // the way to the site's root: "" or "../"
	Body           template.HTML
	Chapters       []menu
	Sections       []link
	Previous, Next link
}

type menu struct {
	Title string
	Links []link
}

type link struct {
	Title, Target string
	Here          bool
}

// write makes the folder anew, with all of the site in it.
func (s *site) write(out string) error {
	if err := forget(out); err != nil {
		return err
	}
	for i := range s.pages {
		content, err := s.framed(i)
		if err != nil {
			return fmt.Errorf("%s: %w", s.pages[i].source, err)
		}
		if err := put(out, s.pages[i].target, content); err != nil {
			return err
		}
	}
	if err := s.copyPictures(out); err != nil {
		return err
	}
	index, err := s.searchIndex()
	if err != nil {
		return err
	}
	if err := put(out, "assets/index.js", index); err != nil {
		return err
	}
	return fs.WalkDir(assets, "assets", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || name == "assets/page.html" {
			return err
		}
		content, err := assets.ReadFile(name)
		if err != nil {
			return err
		}
		return put(out, name, content)
	})
}

// forget removes a site that was here, and nothing else.
func forget(out string) error {
	entries, err := os.ReadDir(out)
	switch {
	case os.IsNotExist(err) || err == nil && len(entries) == 0:
		return nil
	case err != nil:
		return err
	}
	if _, err := os.Stat(filepath.Join(out, "assets", "minisearch.js")); err != nil {
		return fmt.Errorf("%s holds something that is not the site; name a folder of its own", out)
	}
	return os.RemoveAll(out)
}

func put(out, name string, content []byte) error {
	file := filepath.Join(out, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, content, 0o644)
}

// framed is a page with all that stands around it.
func (s *site) framed(i int) ([]byte, error) {
	p := s.pages[i]
	body, err := s.html(p)
	if err != nil {
		return nil, err
	}
	v := view{
		Title: p.title, Source: p.source, Root: relative(p.target, ""),
		Body: template.HTML(body), // the pages are our own
	}
	for _, c := range s.chapters {
		m := menu{Title: c.title}
		for _, other := range c.pages {
			m.Links = append(m.Links, link{Title: other.title, Target: relative(p.target, other.target), Here: other == p})
		}
		v.Chapters = append(v.Chapters, m)
	}
	v.Sections = p.sections()
	if i > 0 {
		v.Previous = link{Title: s.pages[i-1].title, Target: relative(p.target, s.pages[i-1].target)}
	}
	if i+1 < len(s.pages) {
		v.Next = link{Title: s.pages[i+1].title, Target: relative(p.target, s.pages[i+1].target)}
	}
	var b bytes.Buffer
	err = frame.Execute(&b, v)
	return b.Bytes(), err
}

// sections are the page's second headings.
func (p *page) sections() (all []link) {
	for node := range p.nodes() {
		if h, ok := node.(*ast.Heading); ok && h.Level == 2 {
			all = append(all, link{Title: p.plain(h), Target: "#" + idOf(h)})
		}
	}
	return all
}

func idOf(h *ast.Heading) string {
	id, _ := h.AttributeString("id")
	name, _ := id.([]byte)
	return string(name)
}

// named is a picture that some page names.
var named = regexp.MustCompile(`[\w./-]+\.(?:png|svg)`)

func (s *site) copyPictures(out string) error {
	for _, p := range s.pages {
		for _, name := range named.FindAllString(string(p.text), -1) {
			if isElsewhere(name) || strings.HasPrefix(name, "/") {
				continue
			}
			source := path.Join(path.Dir(p.source), name)
			content, err := os.ReadFile(filepath.Join(repository, source))
			if os.IsNotExist(err) {
				continue // a file of somebody's that a page speaks of; links are another matter, and tested
			}
			if err != nil {
				return err
			}
			if err := put(out, picture(source), content); err != nil {
				return err
			}
		}
	}
	return nil
}

// isPackage reports whether a folder of the repository is a Go package that others may import.
func isPackage(folder string) bool {
	found, err := filepath.Glob(filepath.Join(repository, folder, "*.go"))
	return err == nil && len(found) > 0 && !strings.Contains(folder, "internal/") && !strings.HasPrefix(folder, "examples/")
}

// A passage is what is found by its words: a page from one heading to the next.
type passage struct {
	ID      int    `json:"id"`
	Page    string `json:"p"`
	Heading string `json:"h"`
	Target  string `json:"a"`
	Text    string `json:"t"`
}

// searchIndex is a script and no JSON, because a page that is a file may not fetch another.
func (s *site) searchIndex() ([]byte, error) {
	var all []passage
	for _, p := range s.pages {
		all = append(all, p.passages(len(all))...)
	}
	text, err := json.Marshal(all)
	if err != nil {
		return nil, err
	}
	return append(append([]byte("window.leveePassages = "), text...), ";\n"...), nil
}

func (p *page) passages(first int) []passage {
	all := []passage{{ID: first, Page: p.title, Heading: p.title, Target: p.target}}
	for node := p.tree.FirstChild(); node != nil; node = node.NextSibling() {
		switch n := node.(type) {
		case *ast.Heading:
			if n.Level > 1 {
				all = append(all, passage{ID: first + len(all), Page: p.title, Heading: p.plain(n), Target: p.target + "#" + idOf(n)})
			}
		case *ast.HTMLBlock:
		default:
			last := &all[len(all)-1]
			last.Text = strings.TrimSpace(last.Text + " " + strings.Join(strings.Fields(p.plain(n)), " "))
		}
	}
	return all
}

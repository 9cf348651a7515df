package main

import (
	"bytes"
	"path"
	"regexp"
	"strings"

	"github.com/alecthomas/chroma/v2"
	"github.com/alecthomas/chroma/v2/formatters/html"
	"github.com/alecthomas/chroma/v2/lexers"
	"github.com/alecthomas/chroma/v2/styles"
	"github.com/yuin/goldmark/ast"
	east "github.com/yuin/goldmark/extension/ast"
	"github.com/yuin/goldmark/renderer"
	"github.com/yuin/goldmark/util"
)

// ours renders what the site has otherwise than goldmark: code in colours, and tables that are scrolled by themselves.
type ours struct{}

func (ours) RegisterFuncs(r renderer.NodeRendererFuncRegisterer) {
	r.Register(ast.KindFencedCodeBlock, fenced)
	r.Register(ast.KindHTMLBlock, htmlBlock)
	r.Register(east.KindTable, table)
	r.Register(ast.KindHeading, heading)
}

var formatter = html.New(html.WithClasses(true), html.ClassPrefix("c-"), html.PreventSurroundingPre(true))

func fenced(w util.BufWriter, source []byte, n ast.Node, entering bool) (ast.WalkStatus, error) {
	if !entering {
		return ast.WalkContinue, nil
	}
	block := n.(*ast.FencedCodeBlock)
	language := string(block.Language(source))
	lexer := lexers.Get(language)
	if lexer == nil {
		lexer = lexers.Fallback
	}
	tokens, err := chroma.Coalesce(lexer).Tokenise(nil, outdented(string(lines(n, source))))
	if err != nil {
		return ast.WalkStop, err
	}
	_, _ = w.WriteString(`<pre tabindex="0" data-language="` + string(util.EscapeHTML([]byte(language))) + `"><code>`)
	if err := formatter.Format(w, styles.Fallback, tokens); err != nil {
		return ast.WalkStop, err
	}
	_, _ = w.WriteString("</code></pre>\n")
	return ast.WalkSkipChildren, nil
}

// outdented is code without the tabs that all of its lines begin with: some are lines from the middle of a function.
func outdented(text string) string {
	for strings.HasPrefix(text, "\t") && !outdent.MatchString(text) {
		text = strings.TrimPrefix(strings.ReplaceAll("\n"+text, "\n\t", "\n"), "\n")
	}
	return text
}

// outdent is a line that begins with no tab.
var outdent = regexp.MustCompile(`(?m)^[^\t\n]`)

// comment is for those who read the source: how a block is tested, for one.
var comment = regexp.MustCompile(`(?s)<!--.*?-->\n?`)

func htmlBlock(w util.BufWriter, source []byte, n ast.Node, entering bool) (ast.WalkStatus, error) {
	if entering {
		block := n.(*ast.HTMLBlock)
		content := lines(n, source)
		if block.HasClosure() {
			content = append(content, block.ClosureLine.Value(source)...)
		}
		_, _ = w.Write(comment.ReplaceAll(content, nil))
	}
	return ast.WalkSkipChildren, nil
}

// table goes into a box that can be scrolled, by the keyboard too.
func table(w util.BufWriter, _ []byte, _ ast.Node, entering bool) (ast.WalkStatus, error) {
	if entering {
		_, _ = w.WriteString("<div class=\"table\" tabindex=\"0\" role=\"group\" aria-label=\"table\"><table>\n")
	} else {
		_, _ = w.WriteString("</table></div>\n")
	}
	return ast.WalkContinue, nil
}

// heading has a link to itself.
func heading(w util.BufWriter, _ []byte, n ast.Node, entering bool) (ast.WalkStatus, error) {
	tag := "h" + string('0'+rune(n.(*ast.Heading).Level))
	id, _ := n.AttributeString("id")
	name, _ := id.([]byte)
	if entering {
		_, _ = w.WriteString("<" + tag + ` id="` + string(util.EscapeHTML(name)) + `">`)
	} else {
		_, _ = w.WriteString(` <a class="self" href="#` + string(util.EscapeHTML(name)) + `" aria-label="link to this section">#</a></` + tag + ">\n")
	}
	return ast.WalkContinue, nil
}

// html renders the page, with its links as they have to be in the site.
func (s *site) html(p *page) (string, error) {
	for node := range p.nodes() {
		switch n := node.(type) {
		case *ast.Link:
			n.Destination = []byte(s.there(p, string(n.Destination)))
		case *ast.Image:
			n.Destination = []byte(s.there(p, string(n.Destination)))
		}
	}
	var b bytes.Buffer
	if err := markdown.Renderer().Render(&b, p.text, p.tree); err != nil {
		return "", err
	}
	return rawLink.ReplaceAllStringFunc(b.String(), func(attribute string) string {
		m := rawLink.FindStringSubmatch(attribute)
		return m[1] + s.there(p, m[2]) + `"`
	}), nil
}

// rawLink is a picture's in the HTML that some pages have for the sake of light and dark; nothing else names a file of docs.
var rawLink = regexp.MustCompile(`((?:srcset|src)=")(docs/[^"]+)"`)

const (
	files  = "https://github.com/levee-net/levee/blob/main/"
	onward = "https://pkg.go.dev/github.com/levee-net/levee/"
)

// there is where a link of the page leads in the site: to another page, to a picture, or to the repository.
func (s *site) there(p *page, link string) string {
	if isElsewhere(link) || strings.HasPrefix(link, "#") {
		return link
	}
	file, fragment, hasFragment := strings.Cut(link, "#")
	source := path.Join(path.Dir(p.source), file)
	if hasFragment {
		fragment = "#" + fragment
	}
	switch to := s.bySource[source]; {
	case to != nil:
		return relative(p.target, to.target) + fragment
	case isPicture(source):
		return relative(p.target, picture(source))
	case s.bySource[source+"/README.md"] != nil:
		return relative(p.target, s.bySource[source+"/README.md"].target) + fragment
	case source == "docs/decisions":
		return relative(p.target, "contents.html") + "#decisions"
	case strings.HasSuffix(file, "/") && isPackage(source):
		return onward + source + fragment
	}
	return files + source + fragment
}

func isElsewhere(link string) bool {
	return strings.Contains(link, "://") || strings.HasPrefix(link, "mailto:")
}

func isPicture(source string) bool {
	return strings.HasSuffix(source, ".png") || strings.HasSuffix(source, ".svg")
}

// picture is where a picture stands in the site.
func picture(source string) string { return "images/" + path.Base(source) }

// relative is the way from one page to another.
func relative(from, to string) string {
	return strings.Repeat("../", strings.Count(from, "/")) + to
}

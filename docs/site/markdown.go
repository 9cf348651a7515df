package main

import (
	"bytes"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/parser"
	"github.com/yuin/goldmark/renderer"
	"github.com/yuin/goldmark/renderer/html"
	"github.com/yuin/goldmark/text"
	"github.com/yuin/goldmark/util"
)

// The pages are our own, so HTML in them is as it was meant.
var markdown = goldmark.New(
	goldmark.WithExtensions(extension.GFM),
	goldmark.WithRendererOptions(html.WithUnsafe(), renderer.WithNodeRenderers(util.Prioritized(ours{}, 100))),
)

// parse reads a page, and gives its headings the anchors that they have on GitHub.
func parse(source string, content []byte) *page {
	p := &page{source: source, target: target(source), text: content}
	p.tree = markdown.Parser().Parse(text.NewReader(content), parser.WithContext(parser.NewContext()))
	for node := range p.nodes() {
		h, ok := node.(*ast.Heading)
		if !ok {
			continue
		}
		heading := p.plain(h)
		if p.title == "" {
			p.title = heading
		}
		id := anchor(heading)
		for n := 1; slices.Contains(p.ids, id); n++ {
			id = fmt.Sprintf("%s-%d", anchor(heading), n)
		}
		p.ids = append(p.ids, id)
		h.SetAttributeString("id", []byte(id))
	}
	return p
}

// nodes are all of the page's, in the order in which they are read.
func (p *page) nodes() iter.Seq[ast.Node] {
	return func(yield func(ast.Node) bool) {
		_ = ast.Walk(p.tree, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
			if entering && !yield(n) {
				return ast.WalkStop, nil
			}
			return ast.WalkContinue, nil
		})
	}
}

// plain is what a node says, without how it looks.
func (p *page) plain(n ast.Node) string {
	var b strings.Builder
	_ = ast.Walk(n, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		if !entering {
			return ast.WalkContinue, nil
		}
		switch n := n.(type) {
		case *ast.Text:
			b.Write(n.Segment.Value(p.text))
			if n.SoftLineBreak() || n.HardLineBreak() {
				b.WriteByte(' ')
			}
		case *ast.String:
			b.Write(n.Value)
		case *ast.AutoLink:
			b.Write(n.Label(p.text))
		case *ast.FencedCodeBlock, *ast.CodeBlock:
			b.Write(lines(n, p.text))
		}
		if n.Type() == ast.TypeBlock {
			b.WriteByte(' ')
		}
		return ast.WalkContinue, nil
	})
	return strings.TrimSpace(b.String())
}

func lines(n ast.Node, source []byte) []byte {
	var b bytes.Buffer
	for i := range n.Lines().Len() {
		line := n.Lines().At(i)
		b.Write(line.Value(source))
	}
	return b.Bytes()
}

// Package dashboard is the page at / of the admin address: how it goes with a levee, each second.
//
// Its secret is that it knows nothing. It is files, and what they show the browser asks the admin API for, as anybody may
// (GET /api/v1/..., and server-sent events). So the page cannot show what the API does not tell, and costs nothing unless
// somebody looks.
//
// All of it is in the binary, and the browser is told to load nothing else, nor run what stands between the lines: what a
// stranger may have written, such as a server's name, is text and nothing more.
package dashboard

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"html/template"
	"io/fs"
	"net/http"
)

// The page's files. uplot.min.js and uplot.min.css are uPlot's, as its package on npm has them; assets/uplot.txt says which.
//
//go:embed assets
var files embed.FS

// policy is the page's Content-Security-Policy: its own files and the API it came with. Pictures may be in a style sheet.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// A Page answers with the dashboard. It may be used by several goroutines.
type Page struct {
	html   []byte
	build  string // changes whenever a file does, so that browsers may keep the files for good
	assets http.Handler
}

// New makes the page. It panics if the binary's own files are not as they should be, which no test would let pass.
func New() *Page {
	assets, err := fs.Sub(files, "assets")
	if err != nil {
		panic(err)
	}
	build := fingerprint(assets)
	var html bytes.Buffer
	if err := template.Must(template.ParseFS(assets, "index.html")).Execute(&html, "dashboard/"+build); err != nil {
		panic(err)
	}
	return &Page{html: html.Bytes(), build: build, assets: http.FileServerFS(assets)}
}

func fingerprint(assets fs.FS) string {
	sum := sha256.New()
	err := fs.WalkDir(assets, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := fs.ReadFile(assets, name)
		sum.Write([]byte(name))
		sum.Write(text)
		return err
	})
	if err != nil {
		panic(err)
	}
	return hex.EncodeToString(sum.Sum(nil)[:6])
}

// Routes adds the page to mux: / and what is below /dashboard/.
func (p *Page) Routes(mux *http.ServeMux) {
	mux.HandleFunc("GET /{$}", p.serve)
	mux.Handle("GET /dashboard/"+p.build+"/{file}", http.StripPrefix("/dashboard/"+p.build, http.HandlerFunc(p.serveAsset)))
}

func (p *Page) serve(w http.ResponseWriter, _ *http.Request) {
	protect(w.Header())
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", policy)
	w.Header().Set("Cross-Origin-Opener-Policy", "same-origin")
	w.Header().Set("Cache-Control", "no-cache")
	_, _ = w.Write(p.html) // who asked is gone, or gets it
}

func (p *Page) serveAsset(w http.ResponseWriter, r *http.Request) {
	protect(w.Header())
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	p.assets.ServeHTTP(w, r)
}

func protect(h http.Header) {
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
}

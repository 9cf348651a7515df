// Command sbom says of a Go binary what is in it, as CycloneDX 1.6 in JSON on standard output: the modules that its build information
// names, with their checksums as go.sum has them. The same binary gives the same bytes.
//
//	sbom FILE VERSION TIME    (TIME in seconds since 1970)
package main

import (
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

type bom struct {
	Format       string       `json:"bomFormat"`
	SpecVersion  string       `json:"specVersion"`
	Version      int          `json:"version"`
	Metadata     metadata     `json:"metadata"`
	Components   []component  `json:"components"`
	Dependencies []dependency `json:"dependencies"`
}

type metadata struct {
	Timestamp string    `json:"timestamp"`
	Component component `json:"component"`
}

type component struct {
	Type       string     `json:"type"`
	Ref        string     `json:"bom-ref"`
	Name       string     `json:"name"`
	Version    string     `json:"version"`
	PURL       string     `json:"purl"`
	Properties []property `json:"properties,omitempty"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type dependency struct {
	Ref       string   `json:"ref"`
	DependsOn []string `json:"dependsOn"`
}

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	if len(args) != 3 {
		return fmt.Errorf("usage: sbom FILE VERSION TIME")
	}
	info, err := buildinfo.ReadFile(args[0])
	if err != nil {
		return err
	}
	seconds, err := strconv.ParseInt(args[2], 10, 64)
	if err != nil {
		return err
	}
	b, err := describe(info, args[1], time.Unix(seconds, 0))
	if err != nil {
		return err
	}
	indented := json.NewEncoder(out)
	indented.SetIndent("", "  ")
	indented.SetEscapeHTML(false)
	return indented.Encode(b)
}

func describe(info *debug.BuildInfo, version string, at time.Time) (*bom, error) {
	main := named("application", info.Main.Path, version)
	for _, s := range info.Settings {
		main.Properties = append(main.Properties, property{"cdx:gomod:build:" + s.Key, s.Value})
	}
	std := named("library", "std", strings.TrimPrefix(info.GoVersion, "go"))
	b := &bom{
		Format: "CycloneDX", SpecVersion: "1.6", Version: 1,
		Metadata:   metadata{Timestamp: at.UTC().Format(time.RFC3339), Component: main},
		Components: []component{std},
	}
	needs := dependency{Ref: main.Ref, DependsOn: []string{std.Ref}}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		c := named("library", m.Path, m.Version)
		sum, err := sumOf(m)
		if err != nil {
			return nil, err
		}
		c.Properties = []property{{"cdx:gomod:h1", sum}}
		b.Components = append(b.Components, c)
		needs.DependsOn = append(needs.DependsOn, c.Ref)
	}
	b.Dependencies = []dependency{needs}
	return b, nil
}

// named is a module as package URLs have it.
func named(kind, path, version string) component {
	segments := strings.Split(path, "/")
	for i, s := range segments {
		segments[i] = url.PathEscape(s)
	}
	purl := "pkg:golang/" + strings.Join(segments, "/") + "@" + url.QueryEscape(version)
	return component{Type: kind, Ref: purl, Name: path, Version: version, PURL: purl}
}

// sumOf is the checksum of a module's files (h1:, a dirhash), in hex. It is no checksum of any one archive, which is what CycloneDX means by hashes.
func sumOf(m *debug.Module) (string, error) {
	sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.Sum, "h1:"))
	if err != nil || len(sum) == 0 {
		return "", fmt.Errorf("%s: its checksum %q is none", m.Path, m.Sum)
	}
	return hex.EncodeToString(sum), nil
}

// The Go programs that the checks use, pinned here and built into .tools/bin by `make tools`.
// A module of its own, so that none of this reaches the programs that import levee.
// golangci-lint is not among them: it supports only its own set of dependencies, so the Makefile pins it.
module github.com/levee-net/levee/tools

go 1.26.0

tool (
	github.com/levee-net/levee/tools/vetsource
	golang.org/x/perf/cmd/benchstat
	golang.org/x/tools/cmd/deadcode
	golang.org/x/vuln/cmd/govulncheck
	mvdan.cc/gofumpt
)

require golang.org/x/tools v0.52.0

require (
	github.com/aclements/go-moremath v0.0.0-20210112150236-f10218a38794 // indirect
	golang.org/x/mod v0.42.0 // indirect
	golang.org/x/perf v0.0.0-20260908200009-22c9c6c9d4da // indirect
	golang.org/x/sync v0.24.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/telemetry v0.0.0-20261010193011-f71dc92da45e // indirect
	golang.org/x/vuln v1.9.0 // indirect
	mvdan.cc/gofumpt v0.12.0 // indirect
)

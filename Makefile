# `make help` lists the targets. A first `make test` also builds the tools it needs into .tools/bin, which takes
# a few minutes; after that they are only rebuilt when their version or Go's changes.

SHELL       := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

GOLANGCI_LINT         := github.com/golangci/golangci-lint/v2/cmd/golangci-lint
GOLANGCI_LINT_VERSION := v2.15.0

GO_VERSION  := $(shell go env GOVERSION)
TOOLS_STAMP := .tools/tools-$(GO_VERSION)
LINT_STAMP  := .tools/golangci-lint-$(GOLANGCI_LINT_VERSION)-$(GO_VERSION)

FUZZTIME ?= 30s

# A nested module is invisible to ./... of the one around it, so they are found and visited one by one.
MODULES := $(sort $(patsubst %/go.mod,%,$(shell find . -name go.mod -not -path '*/.*' -not -path '*/testdata/*')))
LIBRARY := $(filter-out ./tools ./e2e,$(MODULES))

# What runs nowhere but in this repository need not compile on other systems.
PORTABLE := $(filter-out ./bench ./docs/site ./deploy/kubernetes/check,$(LIBRARY))

# One step after the other: side by side they would take the processors from tests that measure time.
.NOTPARALLEL:

# The pinned tools win over whatever else is installed.
export PATH := $(CURDIR)/.tools/bin:$(PATH)

STEP := @scripts/step

##@ Every day

.PHONY: test
test: debian-packages tools format tidy vet lint deadcode vulnerabilities unit e2e packages ## everything a change must pass; `make -k test` goes on after a failure

.PHONY: fmt
fmt: $(TOOLS_STAMP) ## rewrite the Go files the way gofumpt wants them
	gofumpt -w .

.PHONY: build
build: ## build the binary into bin/levee
	go build -trimpath -o bin/levee ./cmd/levee

.PHONY: docs
docs: ## make the documentation into a site, docs/.build/index.html
	@go run -C docs/site .

.PHONY: reference
reference: ## make docs/reference anew, from the schema, the commands' help and the metrics
	@go run -C docs/site . -reference

.PHONY: cover
cover: ## measure test coverage, into coverage.html
	go test -coverpkg=./... -coverprofile=coverage.out ./...
	go tool cover -html=coverage.out -o coverage.html
	@go tool cover -func=coverage.out | tail -n 1

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (30s) each
	@FUZZTIME=$(FUZZTIME) scripts/fuzz

# BENCH="--quick" takes about a minute; BENCH="--help" lists what else there is.
.PHONY: bench
bench: ## run levee beside its peers on this machine, which takes about half an hour
	@scripts/install-debian-packages bench
	go build -C bench -o .build/bench .
	@cd bench && .build/bench $(BENCH)

# FLOOD="--duration 3s" takes a quarter of that.
.PHONY: flood
flood: ## attack levee and its peers on this machine, which takes about half an hour
	@scripts/install-debian-packages bench
	go build -C bench -o .build/bench .
	@cd bench && .build/bench --flood $(FLOOD)

# What `make test` tries on a small scale: upgrades, deaths in the middle of them, floods, three machines. STRESS=Upgrade takes
# a part.
STRESS ?= .
.PHONY: stress
stress: ## the tests' promises on their full scale, which takes about an hour
	@scripts/install-debian-packages
	LEVEE_CRASH=full go test -tags failpoints -count=1 -timeout=30m ./handover
	LEVEE_E2E_UPGRADE=full LEVEE_E2E_FLOOD=full go test -C e2e -count=1 -timeout=60m -run '$(STRESS)' .

# SOAK="--duration 2m" takes less, SOAK="--seed 7" repeats the one that has printed it. The results go to e2e/results.
.PHONY: soak
soak: ## half an hour of traffic while upgrades, faults and floods come at random, and a verdict
	go test -C e2e -count=1 -timeout=0 -v -run '^TestSoak$$' . -args --duration 30m --out results $(SOAK)

# VERSION=v1.2.3 where git does not say it. PLATFORMS="linux/amd64 darwin/arm64" builds a part.
.PHONY: release
release: ## build what is released, into dist/
	@scripts/release $(PLATFORMS)

.PHONY: release-test
release-test: ## packages: all platforms, and two builds of each are compared, which takes half an hour
	@scripts/install-debian-packages
	$(STEP) $@ scripts/packages-check --full

.PHONY: clean
clean: ## remove everything that was built, the tools too
	rm -rf bin dist .tools bench/.build docs/.build coverage.out coverage.html

.PHONY: help
help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##@ The steps of `make test`, each of which runs alone too

.PHONY: format
format: $(TOOLS_STAMP) ## is every Go file formatted?
	$(STEP) $@ scripts/format-check

.PHONY: tidy
tidy: ## do go.mod and go.sum of every module say what the code imports?
	$(STEP) $@ scripts/in-each "$(MODULES)" go mod tidy -diff

# What a package imports has to be compiled before it is vetted or linted. With -race that serves the unit tests as well;
# e2e is tested without, and so are the packages that have tests for when there is no race detector.
RACED   := env GOFLAGS=-race
UNRACED := $(sort $(dir $(shell grep -rlE --include='*_test.go' '^//go:build (.*[^a-z])?!race' . | grep -v '^\./\.')))
LINT    := golangci-lint run --config "$(CURDIR)/.golangci.yml"

# What go vet says of Linux is among what golangci-lint does.
.PHONY: vet vet-darwin vet-windows
vet: vet-darwin vet-windows ## go vet for the other operating systems that the library compiles on
vet-darwin vet-windows: vet-%: $(TOOLS_STAMP)
	$(STEP) $@ env GOOS=$* scripts/in-each --at-once "$(PORTABLE)" vetsource ./...

.PHONY: lint
lint: $(LINT_STAMP) ## golangci-lint, as .golangci.yml says
	$(STEP) $@ $(RACED) scripts/in-each --at-once "$(LIBRARY)" $(LINT) --allow-parallel-runners ./...
	$(STEP) $@-unraced $(LINT) $(UNRACED)
	$(STEP) $@-e2e scripts/in-each ./e2e $(LINT) ./...

# Where there are tests only, every function is reached from one; and that module has all of Kubernetes.
.PHONY: deadcode
deadcode: $(TOOLS_STAMP) ## is every function reached from a command or a test?
	$(STEP) $@ scripts/in-each --at-once "$(filter-out ./deploy/kubernetes/check,$(LIBRARY))" "$(CURDIR)/scripts/deadcode-check"

.PHONY: vulnerabilities
vulnerabilities: $(TOOLS_STAMP) ## govulncheck; skipped with a reason when its database is out of reach
	$(STEP) $@ scripts/in-each "$(LIBRARY)" "$(CURDIR)/scripts/vulnerability-check"

# -shuffle also keeps go test from answering out of its cache. Vetting is vet's. What waits in real time does so beside
# other tests: those of a large package in several processes, and as many at once as -parallel says of those that may. The race
# detector would let each process, and each that a test starts, sleep for a second at its end.
.PHONY: unit
unit: ## tests, examples and fuzz seeds, in random order, under the race detector
	$(STEP) $@-unraced go test -shuffle=on -timeout=15m $(UNRACED)
	$(STEP) $@ env GORACE=atexit_sleep_ms=50 scripts/in-each "$(LIBRARY)" \
		go test -race -shuffle=on -parallel=4 -timeout=15m -vet=off -exec="$(CURDIR)/scripts/in-shares" ./...

# -count=1 because what these tests look at (a binary, other servers) is invisible to go test's cache. Those that run in
# parallel mostly wait, so that there may be more of them than processors.
.PHONY: e2e
e2e: ## the binary against real clients and servers
	$(STEP) $@ scripts/in-each ./e2e go test -count=1 -parallel=4 -timeout=20m -vet=off ./...

.PHONY: packages
packages: ## the Debian package and the container: installed, upgraded while it serves, removed
	$(STEP) $@ scripts/packages-check

##@ What the steps need

.PHONY: tools
tools: $(TOOLS_STAMP) $(LINT_STAMP) ## build the pinned Go tools into .tools/bin

.PHONY: debian-packages
debian-packages: ## install the Debian packages whose commands the tests use, where that is possible
	$(STEP) $@ scripts/install-debian-packages

# golangci-lint downloads two hundred modules and names each of them.
QUIETLY := 2>&1 | grep --line-buffered -v '^go: downloading'

# A tool that was built by an older Go cannot read a newer one's packages, so the stamps carry Go's version too. The
# stamps of other versions go, or coming back to one of them would find a stamp beside the wrong binary.
$(TOOLS_STAMP): tools/go.mod tools/go.sum $(wildcard tools/*/*.go)
	$(STEP) $(@F) env GOBIN="$(CURDIR)/.tools/bin" scripts/in-each ./tools go install tool $(QUIETLY)
	@rm -f .tools/tools-*
	@touch $@

$(LINT_STAMP):
	$(STEP) $(@F) env GOBIN="$(CURDIR)/.tools/bin" go install $(GOLANGCI_LINT)@$(GOLANGCI_LINT_VERSION) $(QUIETLY)
	@rm -f .tools/golangci-lint-*
	@touch $@

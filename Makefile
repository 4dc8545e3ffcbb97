# Godwit: `make help` lists what there is to do.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

RUN ?= .
COUNT ?= 1
# The older version of test-upgrade: without the hand-over of connections.
FROM ?= e3889e9711828222b69cdabae3f3a2e3d9a766df
# Empty for what a lab that is up has, and for 3, dual and pods in a new one.
NODES ?=
FAMILY ?=
OVN ?=
CONTAINERD ?=
LAB_FLAGS = $(if $(NODES),--nodes $(NODES)) $(if $(FAMILY),--ip-family $(FAMILY)) $(if $(OVN),--ovn $(OVN)) $(if $(CONTAINERD),--containerd $(CONTAINERD))
TOOLS := out/tools
LAB := out/bin/godwit-lab
# Packages whose tests need root and real programs: Open vSwitch, OVN, an API server. Those of WAITING mostly wait, each for a world of its own: they run beside each other, PARALLEL
# tests of a package at a time.
WAITING := ./test/integration ./pkg/ovnpod ./test/lab/kubevirt
REAL := ./test/lab/{packages,binaries,netns,cgroup,supervise,ovntest,prometheus,traffic,guest,guest/bundle,guest/initramfs} ./pkg/{agent,conntrack,frame,netdev,ovs}
PARALLEL ?= 4

# Other tests measure time, and most of what is here builds or uses the same things: one at a time, whatever -j says.
.NOTPARALLEL:

# A checkout may be another user's than the one who builds, as with sudo: git does not tell its commit then, and go build, which asks it, fails.
export GOFLAGS := $(strip $(shell go env GOFLAGS 2>/dev/null) -buildvcs=false)

.PHONY: help
help: ## this list
	@awk -F':.*## ' '/^[a-z0-9%-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: preflight $(LAB) ## a cluster on this machine, a VM that migrates under traffic, a timeline, out/demo/migration.svg; cleans up after itself
	@$(LAB) demo $(LAB_FLAGS) --picture out/demo/migration.svg

.PHONY: test
test: preflight ## every test there is, and how long each stage took
	+@test/tools/stages.sh "$(MAKE)" lint unit integration test-kernel e2e test-install
	@echo "make test: all passed"

.PHONY: unit
unit: go ## the fast tests
	go test $$(go list ./cmd/... ./dist/... ./pkg/... ./test/house ./test/lab/... ./test/bench/... ./test/policy/... ./test/service/... | grep -v -E '/pkg/(agent|conntrack|frame|netdev|ovnpod|ovs)$$|/test/lab($$|/(binaries|netns|ovntest|packages|cgroup|supervise|traffic|kubevirt|prometheus|guest|guest/bundle|guest/initramfs|libvirt)$$)')

.PHONY: measures
measures: ## the code against the style guide, into docs/measures.md
	go test -count=1 -run TestMeasures ./test/house -args -o=$(CURDIR)/docs/measures.md

.PHONY: integration
integration: preflight ## tests on real OVN, Open vSwitch and API server, without a lab
	go test -count=1 -timeout 90m -p 2 -parallel $(PARALLEL) $(WAITING)
	go test -count=1 -timeout 90m -p 1 $(REAL)

.PHONY: test-libvirt
test-libvirt: preflight ## the agent's ear for libvirt against libvirt itself, on an idle machine; not a part of make test
	go test -v -count=$(COUNT) -timeout 10m ./test/lab/libvirt

.PHONY: test-kernel
test-kernel: preflight ## tests on the kernel's datapath, in a virtual machine that has one: RUN=regexp COUNT=n
	go test -v -timeout 90m -p 1 -run '$(RUN)' -count=$(COUNT) ./test/kernel/...

.PHONY: e2e
e2e: preflight ## end-to-end tests in the lab: RUN=regexp COUNT=n; a lab that is up is used and stays up
	go test -v -timeout 180m -p 1 -run '$(RUN)' -count=$(COUNT) ./test/lab ./test/e2e

.PHONY: test-install
test-install: preflight $(TOOLS)/helm ## OVN and Open vSwitch as pods of yamls/, in a lab of its own: RUN=regexp COUNT=n
	go test -v -timeout 90m -p 1 -run '$(RUN)' -count=$(COUNT) ./test/install

.PHONY: test-upgrade
test-upgrade: preflight ## from an older version to this one and back under traffic, in a lab of its own: FROM=revision; it needs the history, and is not a part of make test
	go test -v -count=1 -timeout 30m ./test/upgrade -args -from='$(FROM)'

.PHONY: lint
lint: $(TOOLS)/golangci-lint ## static checks
	@test -z "$$(gofmt -l cmd pkg test)" || { echo "gofmt would change:"; gofmt -l cmd pkg test; exit 1; }
	$(TOOLS)/golangci-lint run --allow-parallel-runners ./...

.PHONY: lab-up
lab-up: preflight $(LAB) ## a cluster that stays: NODES=3 FAMILY=dual|ipv4|ipv6 OVN=pods|processes CONTAINERD=package|new
	@$(LAB) up $(LAB_FLAGS)

.PHONY: lab-down
lab-down: $(LAB) ## remove the cluster and all that belongs to it
	@$(LAB) down

.PHONY: images
images: preflight $(LAB) ## build the container images into out/images
	@$(LAB) images --output out/images --release "$$(git describe --always --dirty 2>/dev/null || echo dev)"

.PHONY: kubectl-ovn
kubectl-ovn: go ## kubectl's plugin, out/bin/kubectl-ovn: put it into your PATH
	@test/tools/build.sh -o out/bin/kubectl-ovn -ldflags "-X main.version=$$(git describe --always --dirty 2>/dev/null || echo dev)" ./cmd/kubectl-ovn

.PHONY: krew
krew: go ## archives of kubectl's plugin for all platforms, and krew's manifest of them, out/krew: VERSION=v1.2.3
	go test -v -count=1 -timeout 30m -run TestRelease ./dist/krew -args -release='$(VERSION)' -o='$(CURDIR)/out/krew'

bench-%: preflight ## a benchmark: bench-cni, bench-migration, bench-drain, bench-policy, bench-services, bench-paths, bench-scale, bench-ipam; a table, and out/bench/NAME.json
	@test -d test/bench/$* || { echo "no benchmark $*: there are $$(cd test/bench && ls -d */main.go | xargs -n1 dirname | tr '\n' ' ')"; exit 2; }
	go run ./test/bench/$*

.PHONY: generate
generate: $(TOOLS)/controller-gen ## rewrite what is generated from the API types
	$(TOOLS)/controller-gen object paths=./pkg/api/...
	$(TOOLS)/controller-gen crd paths=./pkg/api/... output:crd:dir=yamls/crds

# modelgen needs the schemas of OVN and Open vSwitch, which the lab's packages bring.
.PHONY: generate-models
generate-models: $(TOOLS)/modelgen $(LAB) ## rewrite pkg/nbdb, pkg/sbdb and pkg/vswitchdb
	$(TOOLS)/modelgen -p nbdb -o pkg/nbdb "$$($(LAB) packages)/usr/share/ovn/ovn-nb.ovsschema"
	$(TOOLS)/modelgen -p sbdb -o pkg/sbdb "$$($(LAB) packages)/usr/share/ovn/ovn-sb.ovsschema"
	$(TOOLS)/modelgen -p vswitchdb -o pkg/vswitchdb "$$($(LAB) packages)/usr/share/openvswitch/vswitch.ovsschema"

.PHONY: preflight
preflight:
	@test/tools/preflight.sh lab

.PHONY: go
go:
	@test/tools/preflight.sh go

$(LAB): go FORCE
	@test -x $@ || echo "building godwit-lab (a minute or two the first time)"
	@test/tools/build.sh -o $@ ./cmd/godwit-lab

# A module of its own: beside the other tools it would raise the versions of what those are built with.
$(TOOLS)/helm: test/tools/helm/go.sum | go
	@echo "building helm (once, a minute or more)"; mkdir -p $(TOOLS)
	@cd test/tools/helm && ../build.sh -o ../../../$(TOOLS)/helm helm.sh/helm/v3/cmd/helm

$(TOOLS)/%: test/tools/go.sum | go
	@echo "building $* (once, a minute or more)"; mkdir -p $(TOOLS)
	@cd test/tools && ./build.sh -o ../../$(TOOLS)/ "$$(awk '/\/$*$$/ {print $$NF; exit}' go.mod)"

.PHONY: FORCE
FORCE:

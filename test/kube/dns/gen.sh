#!/bin/sh
# Pins another CoreDNS release: ./gen.sh 1.15.0. Rewrites go.mod and go.sum beside it; `go build` of its tool checks it.
#
# A module of its own: in Kubernetes' it would raise the versions of what Kubernetes is built with.
set -eu
cd "$(dirname "$0")"
version=${1:?usage: gen.sh COREDNS-VERSION, for example 1.15.0}
coredns=github.com/coredns/coredns
upstream=$(go mod download -json "$coredns@v$version" | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p')

rm -f go.mod go.sum
{
	echo "// The CoreDNS that is the lab's cluster DNS. Nothing of it is linked into Godwit."
	echo "module github.com/godwit-cni/godwit/test/kube/dns"
	echo
	grep '^go ' "$upstream"
} >go.mod
go get -tool "$coredns@v$version"

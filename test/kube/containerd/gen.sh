#!/bin/sh
# Pins another containerd release: ./gen.sh 2.4.2. Rewrites go.mod and go.sum beside it; `go build` of its tools checks it.
#
# A module of its own: in Kubernetes' it would raise the versions of what Kubernetes is built with, or be raised by them.
set -eu
cd "$(dirname "$0")"
version=${1:?usage: gen.sh CONTAINERD-VERSION, for example 2.4.2}
containerd=github.com/containerd/containerd/v2
upstream=$(go mod download -json "$containerd@v$version" | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p')

rm -f go.mod go.sum
{
	echo "// The containerd of today that the lab's nodes can have in place of the packages'. Nothing of it is linked into Godwit."
	echo "module github.com/godwit-cni/godwit/test/kube/containerd"
	echo
	grep '^go ' "$upstream"
} >go.mod
for command in containerd containerd-shim-runc-v2 ctr; do
	go get -tool "$containerd/cmd/$command@v$version"
done

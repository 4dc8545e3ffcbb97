#!/bin/sh
# Pins another Multus release: ./gen.sh 4.2.4. Rewrites go.mod and go.sum beside it; `go build` of its tool checks it.
#
# A module of its own: in Kubernetes' it would raise the versions of what Kubernetes is built with, or be raised by them.
set -eu
cd "$(dirname "$0")"
version=${1:?usage: gen.sh MULTUS-VERSION, for example 4.2.4}
multus=gopkg.in/k8snetworkplumbingwg/multus-cni.v4
upstream=$(go mod download -json "$multus@v$version" | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p')

rm -f go.mod go.sum
{
	echo "// The Multus that the lab's nodes can have. Nothing of it is linked into Godwit."
	echo "module github.com/godwit-cni/godwit/test/kube/multus"
	echo
	grep '^go ' "$upstream"
} >go.mod
go get -tool "$multus/cmd/multus@v$version"

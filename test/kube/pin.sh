#!/bin/sh
# Pins a release of a program beside Kubernetes: pin.sh DIRECTORY WHAT MODULE VERSION COMMAND…, as gen.sh in each directory calls it. Rewrites go.mod and go.sum there; `go build` of its tools checks them.
#
# Each is a Go module of its own: in Kubernetes' it would raise the versions of what Kubernetes is built with, or be raised by them.
set -eu
directory=$1 what=$2 module=$3 version=$4
shift 4
cd "$(dirname "$0")/$directory"
upstream=$(go mod download -json "$module@v$version" | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p')

rm -f go.mod go.sum
{
	echo "// $what Nothing of it is linked into Godwit."
	echo "module github.com/godwit-cni/godwit/test/kube/$directory"
	echo
	grep '^go ' "$upstream"
} >go.mod
for command; do
	go get -tool "$command@v$version"
done

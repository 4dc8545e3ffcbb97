#!/bin/sh
# Pins another containerd release: ./gen.sh 2.4.2.
set -eu
version=${1:?usage: gen.sh CONTAINERD-VERSION, for example 2.4.2}
containerd=github.com/containerd/containerd/v2
exec "$(dirname "$0")/../pin.sh" containerd "The containerd of today that the lab's nodes can have in place of the packages'." "$containerd" "$version" "$containerd/cmd/containerd" "$containerd/cmd/containerd-shim-runc-v2" "$containerd/cmd/ctr"

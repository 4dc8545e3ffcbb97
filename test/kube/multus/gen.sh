#!/bin/sh
# Pins another Multus release: ./gen.sh 4.2.4.
set -eu
version=${1:?usage: gen.sh MULTUS-VERSION, for example 4.2.4}
multus=gopkg.in/k8snetworkplumbingwg/multus-cni.v4
exec "$(dirname "$0")/../pin.sh" multus "The Multus that the lab's nodes can have." "$multus" "$version" "$multus/cmd/multus"

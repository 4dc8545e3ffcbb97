#!/bin/sh
# Pins another CoreDNS release: ./gen.sh 1.15.0.
set -eu
version=${1:?usage: gen.sh COREDNS-VERSION, for example 1.15.0}
coredns=github.com/coredns/coredns
exec "$(dirname "$0")/../pin.sh" dns "The CoreDNS that is the lab's cluster DNS." "$coredns" "$version" "$coredns"

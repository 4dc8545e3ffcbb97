#!/bin/bash
# go build for make, with its arguments. A first build fetches some hundred modules: that is not said, only what fails, and each failure of the network
# not a hundred times. go build leaves its temporary files when it is interrupted; this does not.
set -eu -o pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
if GOTMPDIR=$tmp go build "$@" 2>"$tmp/all"; then exit 0; fi

grep -v '^go: downloading ' "$tmp/all" >"$tmp/said" || true
head -n 20 "$tmp/said" >&2
lines=$(wc -l <"$tmp/said")
if test "$lines" -gt 20; then echo "… and $((lines - 20)) lines more" >&2; fi
if grep -q -E 'dial (tcp|udp)|proxyconnect|TLS handshake|i/o timeout' "$tmp/said"; then
  echo "Go's modules could not be fetched: check that this machine reaches GOPROXY=$(go env GOPROXY) and GOSUMDB=$(go env GOSUMDB)" >&2
fi
if grep -q 'no space left on device' "$tmp/said"; then
  echo "Space is needed in GOCACHE=$(go env GOCACHE), GOMODCACHE=$(go env GOMODCACHE) or ${TMPDIR:-/tmp}: each can be set to another directory" >&2
fi
exit 1

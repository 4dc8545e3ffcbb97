#!/bin/bash
# What `make` needs before it begins, all that is missing at once: `preflight.sh go` to build, `preflight.sh lab` to run labs and real programs too.
set -eu
missing=()

# Debian 12's own Go does not even read this go.mod, and sudo's PATH often does not lead to one that would serve: both are said, instead of the
# compiler's or the shell's words in the middle of something.
go_serves() {
  local go said dir
  if ! go=$(command -v go); then
    missing+=("Go 1.26 or newer in PATH: https://go.dev/dl (PATH is $PATH)")
    for dir in /usr/local/go/bin /usr/lib/go/bin /snap/bin; do
      if test -x "$dir/go"; then missing+=("  there is one in $dir: sudo env PATH=$dir:\$PATH make …"); fi
    done
  elif ! said=$(go list -m 2>&1); then
    missing+=("Go 1.26 or newer: https://go.dev/dl; $go says: ${said//$'\n'/ }")
  fi
}

lab_runs() {
  test "$(uname -s)" = Linux || missing+=("Linux: this is $(uname -s)")
  test "$(id -u)" = 0 || missing+=("root: run it as root, or sudo env PATH=\$PATH make … (the lab makes namespaces, control groups and mounts)")
  # Elsewhere all that it would unpack has to be installed; godwit-lab says what is not.
  command -v apt-get ovn-northd >/dev/null || missing+=("apt-get: the lab unpacks Debian or Ubuntu packages (OVN, Open vSwitch, containerd) for itself")
}

go_serves
if test "${1:-lab}" = lab; then lab_runs; fi
if test ${#missing[@]} -gt 0; then
  echo "missing on this machine:" >&2
  printf '  %s\n' "${missing[@]}" >&2
  exit 1
fi

#!/bin/bash
# Makes targets one after another, up to the first that fails, and says in the end how long each took, and again what the tests said that failed: `stages.sh MAKE TARGET…`.
set -u
make=$1; shift
table=()
said=$(mktemp)

tell() {
  rm -f "$said"
  test ${#table[@]} -gt 0 || return 0
  echo "how long it took:"
  printf '  %s\n' "${table[@]}" "$(line total "$SECONDS")"
}
line() { printf '%-14s %3d:%02d' "$1" $(($2 / 60)) $(($2 % 60)); }
trap tell EXIT

for target; do
  begin=$SECONDS
  # Who interrupts ends make, which cleans up and says so: tee stays until then.
  "$make" --no-print-directory "$target" 2>&1 | tee -i "$said"
  status=${PIPESTATUS[0]}
  test "$status" -eq 0 || failed=failed
  table+=("$(line "$target" $((SECONDS - begin)))${failed:+  failed}")
  test "$status" -eq 0 || { awk -f "$(dirname "$0")/failed.awk" "$said"; exit "$status"; }
done

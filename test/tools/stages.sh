#!/bin/bash
# Makes targets one after another, up to the first that fails, and says in the end how long each took: `stages.sh MAKE TARGET…`.
set -u
make=$1; shift
table=()

tell() {
  test ${#table[@]} -gt 0 || return 0
  echo "how long it took:"
  printf '  %s\n' "${table[@]}" "$(line total "$SECONDS")"
}
line() { printf '%-14s %3d:%02d' "$1" $(($2 / 60)) $(($2 % 60)); }
trap tell EXIT

for target; do
  begin=$SECONDS
  "$make" --no-print-directory "$target" || status=$?
  table+=("$(line "$target" $((SECONDS - begin)))${status:+  failed}")
  test -z "${status:-}" || exit "$status"
done

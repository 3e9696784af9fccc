#!/bin/sh
# Shows that the store's simulation finds faults: puts all of store/mutations/*.patch into a copy of what is committed, each
# behind a switch, and lets the simulation run with one after the other, until it fails.
#
#   tests/mutations.sh [NAME...]     FIRST_SEED=n and SEEDS=n: with which seeds
#
# A fault counts as found where the simulation says which seed failed and why; anything else that ends a run does not.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git -C "$root" archive HEAD | tar x -C "$copy"
for fault in "$root"/store/mutations/*.patch; do
    patch --quiet --directory "$copy" --strip 1 --input "$fault"
done
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$root/target}" SEEDS="${SEEDS:-100}" FAILURES=1
cd "$copy"
cargo test --locked --quiet -p store --lib --no-run
names=${*:-$(ls store/mutations | sed -n 's/\.patch$//p' | grep -v '^0-')}
missed=0
for name in $names; do
    began=$(date +%s)
    found=$(FAULT=$name cargo test --locked --quiet -p store --lib -- --nocapture what_users_were_told 2>&1) || true
    if failed=$(echo "$found" | grep -m 1 ' failed after '); then
        echo "$name: found in $(($(date +%s) - began)) s, $(echo "$failed" | cut -c 1-200)"
    else
        echo "$name: NOT FOUND in $SEEDS seeds: $(echo "$found" | tail -n 1)"
        missed=1
    fi
done
exit $missed

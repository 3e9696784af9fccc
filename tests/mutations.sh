#!/bin/sh
# Shows that the store's simulation finds faults: puts all of store/mutations/*.patch into a copy of what is committed, each
# behind a switch, and lets the simulation run with one after the other, until it fails.
#
#   tests/mutations.sh [NAME...]     FIRST_SEED=n and SEEDS=n: with which seeds
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git -C "$root" archive HEAD | tar x -C "$copy"
for fault in "$root"/store/mutations/*.patch; do
    patch --quiet --directory "$copy" --strip 1 --input "$fault"
done
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$root/target}" SEEDS="${SEEDS:-100}"
cd "$copy"
cargo test --locked --quiet -p store --lib --no-run
names=${*:-$(ls store/mutations | sed 's/\.patch$//' | grep -v '^0-')}
missed=0
for name in $names; do
    began=$(date +%s)
    if found=$(FAULT=$name cargo test --locked --quiet -p store --lib -- --nocapture what_users_were_told 2>&1); then
        echo "$name: NOT FOUND in $SEEDS seeds"
        missed=1
    else
        echo "$name: found in $(($(date +%s) - began)) s, $(echo "$found" | grep -m 1 ' failed after ' | cut -c 1-200)"
    fi
done
exit $missed

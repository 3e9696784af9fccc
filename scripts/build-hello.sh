#!/usr/bin/env bash
# Builds the example's web server, linked statically, and prints where it is.
set -euo pipefail
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
# A target directory of its own: with other flags than the rest, it would have everything built anew.
target=${CARGO_TARGET_DIR:-target}/static
RUSTFLAGS="-C target-feature=+crt-static" \
    cargo build --quiet --locked --release -p hello --target "$host" --target-dir "$target" >&2
realpath "$target/$host/release/hello"

#!/usr/bin/env bash
# Runs each fuzzer for so many seconds: `hack/fuzz.sh SECONDS [TARGET …]`. Inputs that found
# something new stay in target/fuzz/corpus and are where the next run begins; an input that fails
# is written to target/fuzz/found, and its path printed.
set -euo pipefail

cd "$(dirname "$0")/.."
seconds=$1
shift
targets=("$@")
if ((${#targets[@]} == 0)); then
    targets=(archive layer manifest image_config hosts_file reference config
        spdy spdy_connection websocket)
fi
corpus=target/fuzz/corpus found=target/fuzz/found
mkdir -p "$found" "$corpus"
# A unit test has what to begin with, and leaves it where it is told.
QUILT_FUZZ_SEEDS=$PWD/$corpus cargo test --locked --quiet --features fault-points --lib -- fuzz:: >/dev/null
RUSTC_WORKSPACE_WRAPPER=$PWD/hack/fuzz-rustc.sh cargo build --locked --quiet -p quilt-fuzz
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for target in "${targets[@]}"; do
    log=$scratch/$target.log
    echo "fuzz: $target for $seconds s"
    mkdir -p "$corpus/$target"
    if ! TMPDIR=$scratch "target/debug/$target" "$corpus/$target" -max_total_time="$seconds" \
        -max_len=16384 -rss_limit_mb=1024 -malloc_limit_mb=256 -timeout=20 \
        -artifact_prefix="$found/$target-" -print_final_stats=1 >"$log" 2>&1; then
        tail -n 60 "$log"
        echo "fuzz: $target failed; the input is in $found"
        exit 1
    fi
    grep -E 'stat::number_of_executed_units|DONE' "$log" | tail -n 2
done

#!/bin/sh
# Compiles our own crates for libFuzzer: counters at every edge, comparisons traced. cargo calls it
# instead of rustc for the members of the workspace (RUSTC_WORKSPACE_WRAPPER), so what they depend on
# is not built again. Works with a stable compiler.
case " $* " in
*" --crate-name build_script_"* | *" --crate-type proc-macro "*) exec "$@" ;;
esac
exec "$@" --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares

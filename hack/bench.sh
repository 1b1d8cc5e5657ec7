#!/usr/bin/env bash
# Measures a CRI endpoint and prints JSON. Without ENDPOINT it measures a release build of our daemon, on
# a temporary root, with a registry on loopback:
#
#   bench.sh [ARGUMENTS OF THE BENCH]
#   ENDPOINT=unix:///run/containerd/containerd.sock IMAGE=docker.io/library/busybox bench.sh \
#       --processes containerd-shim-runc-v2,pause
set -euo pipefail

cd "$(dirname "$0")/.."

if [[ -n ${ENDPOINT:-} ]]; then
    exec cargo run --quiet --release --example bench -- --endpoint "$ENDPOINT" \
        --image "${IMAGE:?name an image with busybox that this runtime can pull}" "$@"
fi

# shellcheck source=hack/node.sh
source hack/node.sh
# Built outside of the network that has no way out.
if [[ -z ${QUILT_OWN_NETWORK:-} ]]; then
    cargo build --quiet --release
    cargo build --quiet --release --example bench
fi
node_own_network "$@"
NODE_QUILTD=target/release/quiltd
images=(quilt-test/busybox)
pull=()
if [[ " $* " != *" --restart "* && " $* " != *" --stats "* ]]; then
    images+=(quilt-test/large)
fi
# As configured by default: a measure of pods is one of what is prepared for them, too.
NODE_PREPARED=8
node_start "${images[@]}"
if [[ ${#images[@]} -gt 1 ]]; then
    pull=(--pull-image "$NODE_REGISTRY/quilt-test/large:latest")
fi
daemon=()
if [[ " $* " == *" --restart "* ]]; then
    daemon=(-- "$NODE_QUILTD" serve --config "$NODE_DIR/config.toml" --root "$NODE_DIR/root"
        --state "$NODE_DIR/state" --listen "unix://$NODE_SOCKET")
fi
cargo run --quiet --release --example bench -- --endpoint "unix://$NODE_SOCKET" \
    --image "$NODE_REGISTRY/quilt-test/busybox:latest" ${pull[@]+"${pull[@]}"} "$@" ${daemon[@]+"${daemon[@]}"}
# The bench may have killed our daemon, and ended the one that it had put in its place. One that wants
# no prepared networks gives them back.
[[ ${#daemon[@]} -gt 0 ]] || node_stop
sed -i 's/^prepared = .*/prepared = 0/' "$NODE_DIR/config.toml"
node_daemon
left=$(node_wait_clean) || node_fail "left behind: $left"

#!/usr/bin/env bash
# Runs critest, the conformance tests of the CRI, against a daemon of our own.
#
#   critest.sh all            everything; prints what fails, and checks how many passed of the groups that
#                             may skip nothing on any machine
#   critest.sh vm             the same where nothing is lacking: in the machine of `make test-vm`
#   critest.sh focus REGEX    what matches
#   critest.sh websocket      streaming once more, over WebSocket
#
# The images come from a registry on loopback, in a network that has nothing but loopback.
set -euo pipefail

cd "$(dirname "$0")/.."
# shellcheck source=hack/node.sh
source hack/node.sh
node_own_network "$@"

# Group (a regular expression over a test's full name), and how many tests of it must pass.
readonly GROUPS_ALL=(
    'Runtime info=2'
    'PodSandbox runtime should support basic operations on PodSandbox=4'
    'Container runtime should support basic operations on container=14'
    'Idempotence=7'
    'Image Manager=9'
    'Image Consistency=3'
    'Image Identifier Consistency=2'
    'Streaming=5'
    'Image Volume=5'
    'SeccompProfilePath=7'
)
# The same for what only that machine can do, so that it is not skipped there unseen.
readonly GROUPS_VM=("${GROUPS_ALL[@]}" 'AppArmor=9')
# It wants an image by the digest it has upstream, whose bytes cannot be made here; our own end-to-end
# tests pull by digest instead.
readonly IMPOSSIBLE='public image with digest should be pulled and removed'

# A test's full name, as ginkgo matches it, from its entry in the report.
# shellcheck disable=SC2016 # jq's variables
readonly JQ='
def name: ((.ContainerHierarchyTexts // []) + [.LeafNodeText]) | join(" ");
def specs: .[].SpecReports[] | select(.LeafNodeType == "It");
'

usage() { node_fail "usage: critest.sh all | vm | focus REGEX | websocket"; }

focus=() counted=()
case ${1:-} in
all) counted=("${GROUPS_ALL[@]}") ;;
vm) counted=("${GROUPS_VM[@]}") ;;
websocket)
    focus=(--ginkgo.focus Streaming --websocket-exec --websocket-attach --websocket-portforward)
    ;;
focus)
    [[ -n ${2:-} ]] || usage
    focus=(--ginkgo.focus "$2")
    ;;
*) usage ;;
esac

# shellcheck disable=SC2119 # all images
node_start
echo "critest $1: daemon unix://$NODE_SOCKET, images from $NODE_REGISTRY"
report=$NODE_WORK/report.json
began=$SECONDS
status=0
hack/critest/bin/critest --config "$NODE_WORK/crictl.yaml" --runtime-endpoint "unix://$NODE_SOCKET" \
    --ginkgo.no-color --ginkgo.timeout=50m --ginkgo.json-report="$report" \
    --ginkgo.skip "$IMPOSSIBLE" "${focus[@]}" >"$NODE_WORK/critest.log" 2>&1 || status=$?
[[ -s $report ]] || {
    tail -n 40 "$NODE_WORK/critest.log" >&2
    node_fail "critest ended with $status and without a report"
}

# Each failure with the first lines of its message.
jq -r "$JQ"'
specs | select(.State | IN("passed", "skipped", "pending") | not) |
"FAIL \(name)\n     \((.Failure.Message // .State) | split("\n")[:8] | join("\n     "))"' "$report"

tally() { jq -r "$JQ [specs | select(.State == \"$1\")] | length" "$report"; }
passed=$(tally passed)
failed=$(jq -r "$JQ"'[specs | select(.State | IN("passed", "skipped", "pending") | not)] | length' "$report")

for group in ${counted[@]+"${counted[@]}"}; do
    got=$(jq -r --arg group "${group%=*}" \
        "$JQ"'[specs | select(.State == "passed" and (name | test($group)))] | length' "$report")
    printf '  %3d of %3d passed   %s\n' "$got" "${group##*=}" "${group%=*}"
    [[ $got -eq ${group##*=} ]] || status=1
done
# Skipped by a test itself, with its reason, not by the focus.
jq -r "$JQ"'specs | select(.State == "skipped" and (.Failure.Message // "") != "") |
    "skip \(name): \(.Failure.Message | split("\n")[0])"' "$report" | sort

# What critest pulled is its own; then nothing may be left of its pods.
node_crictl rmi --all >/dev/null 2>&1 || true
left=$(node_wait_clean) || {
    printf 'left behind:\n%s\n' "$left"
    status=1
}
node_stop
running=$(node_own_processes)
[[ -z $running ]] || {
    printf 'still running:\n%s\n' "$running"
    status=1
}
echo "critest: $passed passed, $failed failed, in $((SECONDS - began)) s, seed $(jq '.[0].SuiteConfig.RandomSeed' "$report")"
[[ $failed -eq 0 ]] || status=1
[[ $status -ne 0 ]] && [[ -n ${QUILT_KEEP:-} ]] && echo "the whole output: $NODE_WORK/critest.log"
exit "$status"

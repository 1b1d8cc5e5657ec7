#!/usr/bin/env bash
# A pod from nothing to nothing: a real image from a real registry, two containers, and a proof that
# all of it is gone afterwards. `make demo` builds the daemon and calls this.
set -euo pipefail

cd "$(dirname "$0")/.."
# shellcheck source=hack/node.sh
source hack/node.sh
node_own_network "$@"

if [[ -t 1 ]]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; else bold="" dim="" plain=""; fi

step() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
# Prints a crictl command as one could type it, then runs it.
show() {
    printf '%s$ crictl %s%s\n' "$dim" "$*" "$plain"
    node_crictl "$@" | sed '/^$/d; s/^/  /'
}
indent() { sed 's/^/  /'; }

pod_json() {
    cat <<JSON
{
  "metadata": {"name": "demo", "namespace": "default", "uid": "demo-$$", "attempt": 0},
  "hostname": "demo",
  "log_directory": "$NODE_WORK/logs",
  "linux": {"security_context": {"namespace_options": {"pid": 1}}}
}
JSON
}

# container_json NAME COMMAND: a shell command as a container of the pod.
container_json() {
    cat <<JSON
{
  "metadata": {"name": "$1", "attempt": 0},
  "image": {"image": "$image"},
  "command": ["sh", "-c", "$2"],
  "log_path": "$1.log",
  "linux": {"resources": {"memory_limit_in_bytes": 67108864, "cpu_shares": 102}}
}
JSON
}

# Waits until the log of a container has a line, which it writes when it is up.
wait_for_log() {
    local tries
    for ((tries = 0; tries < NODE_BOUND; tries++)); do
        if [[ -s $NODE_WORK/logs/$1.log ]]; then return; fi
        sleep 0.05
    done
    node_fail "container $1 has written nothing"
}

count() { grep -c "^$1 " <<<"$2" || true; }

step "A registry and a daemon of our own, in a network of our own"
node_start quilt-test/busybox
image=$NODE_REGISTRY/quilt-test/busybox:latest
echo "  registry  http://$NODE_REGISTRY   (docker-registry, filled from Debian's busybox-static)"
echo "  daemon    unix://$NODE_SOCKET"
"$NODE_QUILTD" info --state "$NODE_DIR/state" | indent

step "Pull"
show pull "$image"
show images

step "A pod"
pod_json >"$NODE_WORK/pod.json"
pod=$(node_crictl runp "$NODE_WORK/pod.json" 2>"$NODE_WORK/runp.err") || node_fail "$(<"$NODE_WORK/runp.err")"
echo "  $pod"

step "Two containers in it"
container_json web "mkdir -p /srv && echo hello from the pod >/srv/index.html && httpd -p 8080 -h /srv && echo serving on port 8080 && exec sleep 1000000" \
    >"$NODE_WORK/web.json"
container_json clock "while :; do echo it is \$(date +%T); sleep 1; done" >"$NODE_WORK/clock.json"
web=$(node_crictl create "$pod" "$NODE_WORK/web.json" "$NODE_WORK/pod.json")
clock=$(node_crictl create "$pod" "$NODE_WORK/clock.json" "$NODE_WORK/pod.json")
node_crictl start "$web" >/dev/null
node_crictl start "$clock" >/dev/null
show pods
show ps

step "Addresses"
address=$(node_crictl inspectp "$pod" | jq -er .status.network.ip)
echo "  the pod     $address"
echo "  the node    $(ip -4 -o address show quilt0 | awk '{ print $4 }') on bridge quilt0"

step "What they say"
wait_for_log web
wait_for_log clock
show logs "$web"
show logs "$clock"

step "A command in one of them, which asks the other over the pod's own loopback"
show exec -s "$clock" wget -q -O - http://127.0.0.1:8080/
step "The same page, asked for from the node"
/bin/busybox wget -q -O - "http://$address:8080/" | indent

step "Where the time of the start went"
for id in "$pod" "$web" "$clock"; do
    "$NODE_QUILTD" explain "$id" --state "$NODE_DIR/state" | indent
done

during=$(node_leftovers)
for kind in process namespace link cgroup snapshot; do
    [[ $(count "$kind" "$during") -gt 0 ]] || node_fail "there is no $kind while the pod runs: the proof below would be empty"
done

step "Stop and remove all of it"
show stopp "$pod"
show rmp "$pod"
show rmi "$image"

step "The proof"
clean=yes
left=$(node_wait_clean) || clean=no
printf '  %-22s %14s %6s\n' "" "while it ran" now
for kind in process mount namespace link cgroup snapshot layer row; do
    printf '  %-22s %14d %6d\n' "$kind" "$(count "$kind" "$during")" "$(count "$kind" "$left")"
done
node_stop
running=$(node_own_processes)
printf '  %-22s %14d %6d\n' "daemon and shim" 2 "$(grep -c . <<<"$running" || true)"
if [[ $clean == no || -n $running ]]; then
    printf '\n%sleft behind:%s\n%s\n%s\n' "$bold" "$plain" "$left" "$running"
    exit 1
fi
printf '\n%sNothing is left.%s\n' "$bold" "$plain"

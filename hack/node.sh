# shellcheck shell=bash
# Sourced by demo.sh, critest.sh and bench.sh: a daemon of one's own, and a look at what it leaves.
#
# A node lives in NODE_DIR (configuration, root, state, socket, log) and has its own cgroup. With
# node_own_network it has a network of its own too, in which there is nothing but loopback: nothing
# of this machine's network is touched, and no packet can leave.
#
# Kernel objects are listed one per line, as `kind what`, so that two lists can be compared: what is in
# the later one only was left behind.

NODE_QUILTD=${QUILTD:-target/debug/quiltd}
NODE_CRICTL=hack/critest/bin/crictl
NODE_WORK="" # everything of this run
NODE_DIR=""  # the node's part of it
NODE_SOCKET=""
NODE_PID=""
NODE_CGROUP=""
NODE_REGISTRY=""

# How long the daemon may take to answer or to end, and leftovers to go away, in tenths of a second.
readonly NODE_BOUND=200

node_fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# Starts this script again in a network (and System V IPC) namespace of its own; it ends with it.
node_own_network() {
    [[ $EUID -eq 0 ]] || node_fail "must be root: it creates namespaces, mounts and cgroups"
    if [[ -z ${QUILT_OWN_NETWORK:-} ]]; then
        QUILT_OWN_NETWORK=1 exec unshare --net --ipc -- "hack/${0##*/}" "$@"
    fi
    ip link set lo up
}

# An overlay cannot be the upper layer of another, so a container's own /tmp may not do.
node_make_dir() {
    local base=${TMPDIR:-/tmp}
    [[ $(stat -f -c %T "$base") == overlayfs ]] && base=/dev/shm
    mktemp -d "$base/quilt-XXXXXX"
}

# node_start [REPOSITORY...]: the registry with these test images (all, if none), then the daemon.
node_start() {
    NODE_WORK=$(node_make_dir)
    NODE_DIR=$NODE_WORK/node
    NODE_CGROUP=${NODE_WORK##*/}
    # In the name of a slice a dash means something.
    [[ ${QUILT_CGROUPS:-cgroupfs} != systemd ]] || NODE_CGROUP=${NODE_CGROUP//-/}.slice
    NODE_SOCKET=$NODE_DIR/cri.sock
    mkdir -p "$NODE_DIR" "$NODE_WORK/registry"
    trap node_end EXIT
    trap 'exit 130' INT TERM
    # shellcheck disable=SC2034 # used by those who source this
    NODE_REGISTRY=$(hack/registry.sh start "$NODE_WORK/registry" "$@")
    cat >"$NODE_DIR/config.toml" <<TOML
[cgroup]
root = "/$NODE_CGROUP"
driver = "${QUILT_CGROUPS:-cgroupfs}"

[network]
bridge = "quilt0"
subnet = "10.88.0.0/16"
# Whoever looks for what pods leave behind wants none that are made before a pod asks.
prepared = ${NODE_PREPARED:-0}

[image]
certs_d = "$NODE_WORK/registry/certs.d"
TOML
    cat >"$NODE_WORK/crictl.yaml" <<YAML
runtime-endpoint: unix://$NODE_SOCKET
image-endpoint: unix://$NODE_SOCKET
timeout: 30
YAML
    node_daemon
    node_objects >"$NODE_WORK/before"
}

# Starts the daemon and waits until it answers.
node_daemon() {
    local tries
    "$NODE_QUILTD" serve --config "$NODE_DIR/config.toml" --root "$NODE_DIR/root" \
        --state "$NODE_DIR/state" --listen "unix://$NODE_SOCKET" \
        </dev/null >>"$NODE_WORK/daemon.log" 2>&1 &
    NODE_PID=$!
    for ((tries = 0; tries < NODE_BOUND; tries++)); do
        if node_crictl version >/dev/null 2>&1; then return; fi
        kill -0 "$NODE_PID" 2>/dev/null || node_fail "the daemon ended at its start"
        sleep 0.1
    done
    node_fail "the daemon does not answer"
}

node_crictl() { "$NODE_CRICTL" --config "$NODE_WORK/crictl.yaml" "$@"; }

# Everything in the kernel, on disk and in the database that belongs to this node's pods and images.
node_objects() {
    node_processes | sed 's/^/process /'
    # The directory of the namespaces' pins may be a mount of its own, which is the node's and no pod's.
    awk -v dir="$NODE_DIR/" 'index($5, dir) == 1 && $5 != dir "state/sandboxes" {
        print ($0 ~ / - nsfs / ? "namespace " : "mount ") $5 }' /proc/self/mountinfo
    [[ -z ${QUILT_OWN_NETWORK:-} ]] ||
        ip -o link | awk '{ sub(/[@:].*/, "", $2); if ($2 != "quilt0") print "link " $2 }'
    node_cgroups | awk -F/ -v root="$NODE_CGROUP" '$NF != root { print "cgroup " $0 }'
    node_entries snapshot root/snapshots
    node_entries layer root/layers
    node_entries staging root/staging
    node_entries sandbox-directory state/sandboxes
    node_entries container-directory state/containers
    node_rows
}

node_entries() {
    [[ ! -d $NODE_DIR/$2 ]] || find "$NODE_DIR/$2" -mindepth 1 -maxdepth 1 -printf "$1 %f\n"
}

# Containers' processes, by their cgroup, as "PID NAME".
node_processes() {
    local dir pid
    node_cgroups | while read -r dir; do
        cat "$dir/cgroup.procs" 2>/dev/null || true
    done | sort -un | while read -r pid; do
        echo "$pid $(cat "/proc/$pid/comm" 2>/dev/null || true)"
    done
}

node_cgroups() {
    local top
    find /sys/fs/cgroup -maxdepth 3 -type d -name "$NODE_CGROUP" 2>/dev/null | while read -r top; do
        find "$top" -type d
    done
}

# Rows that stand for something that exists; events, operations and finished pulls and clean-ups are history.
node_rows() {
    [[ -n $NODE_PID ]] || return 0
    "$NODE_QUILTD" inventory --state "$NODE_DIR/state" | awk '
        $1 ~ /^(sandboxes|containers|images|image_references|layers|snapshots|network_allocations|process_monitors|jobs)$/ {
            for (i = 1; i <= $2; i++) print "row " $1 " " i
        }'
}

# Prints what is there now and was not there when the daemon had just started.
node_leftovers() {
    node_objects | sort >"$NODE_WORK/now"
    sort "$NODE_WORK/before" | comm -13 - "$NODE_WORK/now"
}

# Waits until nothing is left (what may be slow is done off the path); prints what stays all the same.
node_wait_clean() {
    local tries left=""
    for ((tries = 0; tries < NODE_BOUND; tries++)); do
        left=$(node_leftovers)
        [[ -n $left ]] || return 0
        sleep 0.1
    done
    echo "$left"
    return 1
}

# The daemon and its shim: processes that name this node's directory, as "PID COMMAND".
node_own_processes() {
    local file pid command
    for file in /proc/[0-9]*/cmdline; do
        pid=${file#/proc/}
        pid=${pid%/cmdline}
        if command=$({ tr '\0' ' ' <"$file" | grep -F "$NODE_DIR/"; } 2>/dev/null); then
            echo "$pid $command"
        fi
    done
}

# Ends the daemon as systemd would; its shim has nothing to keep and ends with it.
node_stop() {
    local tries
    [[ -n $NODE_PID && -n $NODE_DIR ]] || return 0
    kill "$NODE_PID" 2>/dev/null || true
    for ((tries = 0; tries < NODE_BOUND; tries++)); do
        [[ -n $(node_own_processes) ]] || break
        sleep 0.1
    done
    if kill -0 "$NODE_PID" 2>/dev/null; then
        echo "the daemon does not end on SIGTERM" >&2
        kill -9 "$NODE_PID"
    fi
    wait "$NODE_PID" 2>/dev/null || true
    NODE_PID=""
}

# Removes all of the node, whatever state it is in. Ends only processes of this node, by their id.
node_end() {
    local status=$? pid path
    trap - EXIT
    set +e
    [[ -n $NODE_DIR && -n $NODE_CGROUP ]] || exit "$status"
    if [[ $status -ne 0 && -s $NODE_WORK/daemon.log ]]; then
        echo "--- the end of the daemon's log" >&2
        tail -n "${QUILT_LOG_LINES:-40}" "$NODE_WORK/daemon.log" >&2
    fi
    node_stop
    # A process of another PID namespace shows as 0, which for kill means the whole group.
    { node_own_processes; node_processes; } | while read -r pid _; do
        [[ $pid -gt 1 ]] && kill -9 "$pid"
    done 2>/dev/null
    hack/registry.sh stop "$NODE_WORK/registry"
    awk -v dir="$NODE_DIR/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | tac |
        while read -r path; do umount --lazy "$path"; done
    node_cgroups | sort -r | while read -r path; do
        for _ in 1 2 3 4 5; do
            rmdir "$path" 2>/dev/null && break
            sleep 0.1
        done
    done
    [[ -n ${QUILT_OWN_NETWORK:-} ]] && ip link delete quilt0 2>/dev/null
    if [[ -n ${QUILT_KEEP:-} ]]; then
        echo "kept: $NODE_WORK" >&2
    else
        rm -rf --one-file-system "$NODE_WORK"
    fi
    exit "$status"
}

#!/usr/bin/env bash
# A real registry on a free loopback port, filled with the test images, for as long as it is wanted.
#
#   registry.sh start DIR [REPOSITORY...]   prints the address, as 127.0.0.1:PORT
#   registry.sh stop DIR
#
# DIR holds all of it: the storage, the log, the process id, and certs.d/, which sends every image
# name to this registry, so that no test ever speaks to a host on the internet.
set -euo pipefail

cd "$(dirname "$0")/.."

# The hosts whose names critest has built in, and `_default` for every other.
readonly HOSTS=(registry.k8s.io k8s.gcr.io gcr.io docker.io public.ecr.aws _default)

fail() {
    echo "registry: $*" >&2
    exit 1
}

# Whether the process that DIR names is still the registry that was started for DIR.
alive() {
    local pid=$1 dir=$2
    tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF "serve $dir/config.yml"
}

write_certs() {
    local dir=$1 address=$2 host
    for host in "${HOSTS[@]}"; do
        mkdir -p "$dir/certs.d/$host"
        cat >"$dir/certs.d/$host/hosts.toml" <<TOML
server = "http://$address"

[host."http://$address"]
capabilities = ["pull", "resolve"]
TOML
    done
}

start() {
    local dir=$1 pid address="" tries
    shift
    mkdir -p "$dir/storage"
    cat >"$dir/config.yml" <<YAML
version: 0.1
log: {level: info, formatter: json}
storage: {filesystem: {rootdirectory: $dir/storage}}
http: {addr: "127.0.0.1:0", secret: loopback}
YAML
    # There before it is read: the shell opens a background job's files in the job.
    : >"$dir/log"
    setsid docker-registry serve "$dir/config.yml" </dev/null >>"$dir/log" 2>&1 &
    pid=$!
    echo "$pid" >"$dir/pid"
    # Port 0 means a free one; the log says which.
    for ((tries = 0; tries < 200; tries++)); do
        address=$(sed -n 's/.*"listening on \([0-9.:]*\)".*/\1/p' "$dir/log")
        [[ -n $address ]] && break
        kill -0 "$pid" 2>/dev/null || fail "docker-registry ended: $(tail -n 3 "$dir/log")"
        sleep 0.05
    done
    [[ -n $address ]] || fail "docker-registry does not say where it listens: $(tail -n 3 "$dir/log")"
    write_certs "$dir" "$address"
    PATH=$PATH:/usr/sbin target/hack/images --registry "http://$address" --programs target/hack/programs \
        --shell target/hack/busybox/bin/busybox "$@" >&2 || {
        stop "$dir"
        fail "the images could not be pushed"
    }
    echo "$address" | tee "$dir/address"
}

stop() {
    local dir=$1 pid
    [[ -f $dir/pid ]] || return 0
    pid=$(<"$dir/pid")
    if alive "$pid" "$dir"; then
        kill "$pid" 2>/dev/null || true
        while alive "$pid" "$dir"; do sleep 0.05; done
    fi
    rm -f "$dir/pid"
}

[[ $# -ge 2 && $2 == /* ]] || fail "usage: registry.sh start|stop DIR, DIR absolute"
case $1 in
start | stop) "$@" ;;
*) fail "unknown command $1" ;;
esac

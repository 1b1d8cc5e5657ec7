#!/usr/bin/env bash
# Installs what a fresh Debian 12 with Rust, Go, gcc and make still lacks, and builds the test tools.
# It does nothing, quickly, where all is present; where it may not install, it says what to install.
# `deps.sh vm` also sees to what `make test-vm` needs.
set -euo pipefail

cd "$(dirname "$0")/.."
readonly CRI_TOOLS=v1.37.0
readonly OUT=target/hack

# What must be there (a path, or a command in PATH), and the Debian package that brings it.
needs=(
    /bin/busybox:busybox-static
    docker-registry:docker-registry
    nginx:nginx-light
    protoc:protobuf-compiler
    jq:jq
    ip:iproute2
    runc:runc
    crun:crun
    openssl:openssl
    /usr/lib/cni/bridge:containernetworking-plugins
    iptables:iptables
    nft:nftables
    /usr/share/doc/python3-venv:python3-venv
    /etc/ssl/certs/ca-certificates.crt:ca-certificates
)

[[ ${1:-} != vm ]] || needs+=(
    qemu-system-x86_64:qemu-system-x86
    mmdebstrap:mmdebstrap
    mke2fs:e2fsprogs
)

fail() {
    echo "deps: $*" >&2
    exit 1
}

present() {
    case $1 in
    # Only the static busybox runs in an image that has nothing else.
    /bin/busybox) [[ -x $1 ]] && ! ldd "$1" >/dev/null 2>&1 ;;
    /*) [[ -e $1 ]] ;;
    *) PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null ;;
    esac
}

may_install() { [[ $EUID -eq 0 ]] && command -v apt-get >/dev/null; }

# Debian starts a service as soon as its package is installed. Ours are only run by the tests, on
# ports of their own, so a policy (invoke-rc.d(8)) keeps these packages from starting anything.
install_packages() {
    local policy=/usr/sbin/policy-rc.d unit
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
        # shellcheck disable=SC2064 # the value of now is meant
        trap "rm -f $policy" EXIT
    fi
    export DEBIAN_FRONTEND=noninteractive
    # Called where errexit does not hold, hence the chain.
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@" || return 1
    for unit in docker-registry nginx; do
        if [[ " $* " == *" $unit"* && -d /run/systemd/system ]]; then
            systemctl disable --quiet "$unit.service"
        fi
    done
}

# Sets `missing` to the packages of what is not there.
look() {
    local need
    missing=()
    for need in "${needs[@]}"; do
        present "${need%%:*}" || missing+=("${need##*:}")
    done
}

packages() {
    local missing
    look
    [[ ${#missing[@]} -eq 0 ]] && return
    may_install || fail "as root: apt-get install ${missing[*]}"
    echo "deps: installing ${missing[*]}"
    install_packages "${missing[@]}" </dev/null >"$OUT/apt.log" 2>&1 ||
        fail "apt-get could not install ${missing[*]}: $(tail -n 3 "$OUT/apt.log")"
    look
    [[ ${#missing[@]} -eq 0 ]] || fail "installed, and still not there: ${missing[*]}"
}

# The shell of the package busybox, which looks commands up in PATH, as critest expects. The package
# cannot be installed beside busybox-static, so it is only unpacked.
shell() {
    local deb=$OUT/busybox
    [[ -x $deb/bin/busybox ]] && return
    command -v apt-get >/dev/null ||
        fail "unpack Debian's package 'busybox' (not busybox-static) into $deb"
    rm -rf "$deb.part" && mkdir -p "$deb.part"
    (cd "$deb.part" && { apt-get download -qq busybox || { apt-get update -qq && apt-get download -qq busybox; }; }) \
        >"$OUT/apt.log" 2>&1 || fail "apt-get could not download busybox: $(tail -n 3 "$OUT/apt.log")"
    dpkg-deb -x "$deb.part"/busybox_*.deb "$deb.part"
    mv "$deb.part" "$deb"
}

# containerd's own client. The package would bring the daemon as well, so it is only unpacked.
ctr() {
    local deb=$OUT/containerd
    [[ -x $deb/usr/bin/ctr ]] && return
    command -v apt-get >/dev/null || fail "unpack usr/bin/ctr of Debian's package 'containerd' into $deb"
    rm -rf "$deb.part" && mkdir -p "$deb.part"
    (cd "$deb.part" && { apt-get download -qq containerd || { apt-get update -qq && apt-get download -qq containerd; }; }) \
        >"$OUT/apt.log" 2>&1 || fail "apt-get could not download containerd: $(tail -n 3 "$OUT/apt.log")"
    dpkg-deb --fsys-tarfile "$deb.part"/containerd_*.deb | tar -x -C "$deb.part" ./usr/bin/ctr
    rm "$deb.part"/containerd_*.deb
    mv "$deb.part" "$deb"
}

# The programs of the test images, and the program that makes the images.
images() {
    (cd hack/images && CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o "../../$OUT/programs/" ./nnp ./pause &&
        CGO_ENABLED=0 go build -trimpath -o "../../$OUT/images" .)
}

# What kubelet finds pods and containers with.
cadvisor() {
    [[ $OUT/cadvisor -nt hack/cadvisor/go.mod && $OUT/cadvisor -nt hack/cadvisor/main.go ]] ||
        (cd hack/cadvisor && CGO_ENABLED=0 go build -trimpath -o "../../$OUT/cadvisor" .) ||
        fail "cadvisor could not be built"
}

# `go install …/cmd/crictl@…` would do for crictl; critest is a Go test package and cannot be
# installed, so a module of ours names both, and its go.sum pins what they are made of.
cri_tools() {
    local bin=hack/critest/bin version="-X sigs.k8s.io/cri-tools/pkg/version.Version=$CRI_TOOLS"
    mkdir -p "$bin"
    [[ $bin/crictl -nt hack/critest/go.mod ]] ||
        (cd hack/critest && go build -trimpath -ldflags "$version" -o bin/crictl sigs.k8s.io/cri-tools/cmd/crictl) ||
        fail "crictl could not be built"
    [[ $bin/critest -nt hack/critest/go.mod ]] ||
        (cd hack/critest && go test -c -trimpath -ldflags "$version" -o bin/critest sigs.k8s.io/cri-tools/cmd/critest) ||
        fail "critest could not be built"
    [[ $bin/sessions -nt hack/critest/sessions/main.go ]] ||
        (cd hack/critest && go build -trimpath -o bin/sessions ./sessions) ||
        fail "the client of sessions could not be built"
}

# Kubernetes' library for Python, in an environment of its own.
python_client() {
    local venv=$OUT/python wanted=hack/python/requirements.txt
    [[ $venv/complete -nt $wanted ]] && return
    rm -rf "$venv"
    { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --requirement "$wanted"; } >"$OUT/pip.log" 2>&1 ||
        fail "pip could not install what $wanted names: $(tail -n 3 "$OUT/pip.log")"
    touch "$venv/complete"
}

for tool in cargo:'Rust (rustup.rs)' go:'Go 1.26 or newer' cc:'gcc and libc6-dev'; do
    command -v "${tool%%:*}" >/dev/null || fail "install ${tool#*:} first: there is no ${tool%%:*} in PATH"
done
mkdir -p $OUT
packages
shell
ctr
images
cadvisor
cri_tools
python_client

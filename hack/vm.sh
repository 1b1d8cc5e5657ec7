#!/usr/bin/env bash
# Runs tests in a virtual machine: Debian's kernel, systemd, nothing but cgroup v2, AppArmor.
#
#   vm.sh [unit [FILTER]] [e2e [FILTER]] [critest [REGEX]] [systemd [FILTER]] [conform [REGEX]]
#         [run COMMAND]
#
# All but the last, if nothing is said. `systemd` are end-to-end tests and `conform` is critest with
# systemd to make the cgroups ([cgroup] driver).
#
# The machine has no network. Its root file system is made once, of Debian's packages, into
# target/hack/vm, and is never written: what a run changes is thrown away. It sees this directory
# read-only, at the same path, so that it runs what has been built here. KVM is used where there is
# one; without, everything takes some ten times as long (VM_MINUTES is how long it may).
#
# On this machine nothing is mounted, and nothing stays but target/hack/vm.
set -euo pipefail

cd "$(dirname "$0")/.."
readonly OUT=$PWD/target/hack/vm
readonly MINUTES=${VM_MINUTES:-60}
readonly DEBIAN=bookworm
readonly MEMORY_MB=${VM_MEMORY_MB:-4096}
readonly DISK=12G

# What the machine consists of, what the tests need, and what a node may have.
readonly PACKAGES=(
    linux-image-amd64 systemd-sysv dbus udev kmod apparmor
    busybox-static ca-certificates containernetworking-plugins docker-registry iproute2 iptables jq
    nginx-light nftables openssl procps sudo xz-utils
    crun runc
)
# Drivers of what a virtual machine does not have are most of a kernel's package.
readonly LEFT_OUT=(
    /usr/share/doc/ /usr/share/man/ /usr/share/locale/ /usr/share/info/
    /lib/modules/*/kernel/drivers/{gpu,media,infiniband,iio,staging,isdn,hwmon,usb,input,mmc,bluetooth}/
    /lib/modules/*/kernel/drivers/net/{wireless,ethernet,usb,can,wwan}/ /lib/modules/*/kernel/sound/
)

fail() {
    echo "vm: $*" >&2
    exit 1
}

# Makes target/hack/vm/{root.img,vmlinuz,initrd.img}, unless they are there and made by these files.
machine() {
    local stamp packages options=() path root=$OUT/root.part
    stamp=$(cat hack/vm.sh hack/vm/* | sha256sum)
    [[ -s $OUT/root.img && $(cat "$OUT/stamp" 2>/dev/null) == "$stamp" ]] && return
    echo "vm: making the root file system"
    rm -rf --one-file-system "$OUT"
    mkdir -p "$OUT"
    packages=$(IFS=,; echo "${PACKAGES[*]}")
    for path in "${LEFT_OUT[@]}"; do options+=(--dpkgopt="path-exclude=${path}*"); done
    # In a mount namespace of its own: what is mounted for it ends with it.
    unshare --mount -- mmdebstrap --quiet --mode=root --variant=minbase --include="$packages" \
        "${options[@]}" "$DEBIAN" "$root" </dev/null >"$OUT/mmdebstrap.log" 2>&1 ||
        fail "Debian could not be unpacked: $(tail -n 5 "$OUT/mmdebstrap.log")"
    settle "$root"
    mv "$root"/boot/vmlinuz-* "$OUT/vmlinuz"
    mv "$root"/boot/initrd.img-* "$OUT/initrd.img"
    # A file system in a file, without mounting one.
    mke2fs -q -t ext4 -d "$root" "$OUT/root.img" "$DISK"
    rm -rf --one-file-system "$root"
    echo "$stamp" >"$OUT/stamp"
}

# What makes a Debian this machine.
settle() {
    local root=$1 unit
    echo quilt-vm >"$root/etc/hostname"
    echo '127.0.0.1 localhost quilt-vm' >"$root/etc/hosts"
    : >"$root/etc/fstab"
    install -m 755 hack/vm/boot.sh "$root/usr/local/sbin/quilt-vm"
    install -m 644 hack/vm/quilt-vm.service "$root/etc/systemd/system/"
    mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
    ln -s ../quilt-vm.service "$root/etc/systemd/system/multi-user.target.wants/"
    # The tests start their own; and nobody logs in.
    for unit in docker-registry.service nginx.service getty@.service serial-getty@.service \
        apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer; do
        ln -sf /dev/null "$root/etc/systemd/system/$unit"
    done
}

# Puts what has been built into DIR, where the next build does not change it: the daemon, and the
# test programs by the names of their targets.
programs() {
    local dir=$1 name path
    mkdir "$dir"
    cargo test --locked --features fault-points --no-run --message-format=json 2>/dev/null |
        jq -r 'select(.profile.test? and .executable != null)
            | select(.target.kind | any(. == "lib" or . == "test"))
            | "\(.target.name) \(.executable)"' |
        while read -r name path; do ln "$path" "$dir/$name"; done
    ln target/debug/quiltd "$dir/quiltd"
    [[ -x $dir/quilt && -x $dir/e2e ]] || fail "build the tests first: make test-build"
}

# Writes the machine's jobs, a name and a command a line.
jobs() {
    local bin=$1 word filter words="unit|e2e|critest|systemd|conform|run"
    shift
    [[ $# -gt 0 ]] || set -- unit "" e2e "" critest "" systemd "" conform ""
    while [[ $# -gt 0 ]]; do
        word=$1 && shift
        filter=""
        if [[ $# -gt 0 && ! $1 =~ ^($words)$ ]]; then filter=$1 && shift; fi
        case $word in
        unit) echo "unit $bin/quilt $filter" ;;
        e2e) echo "e2e $bin/e2e $filter" ;;
        critest) echo "critest hack/critest.sh ${filter:+focus }${filter:-vm}" ;;
        systemd) echo "systemd QUILT_CGROUPS=systemd $bin/e2e $filter" ;;
        conform) echo "conform QUILT_CGROUPS=systemd hack/critest.sh ${filter:+focus }${filter:-vm}" ;;
        run) echo "run $filter" ;;
        *) fail "unknown part $word: $words" ;;
        esac
    done
}

boot() {
    local run=$1 status=0
    # Some machines have /dev/kvm and no virtualisation beneath it: it boots no common kernel.
    local accelerator="tcg,thread=multi,tb-size=512"
    ! { grep -qwE 'vmx|svm' /proc/cpuinfo && [[ -w /dev/kvm ]]; } || accelerator=kvm
    echo "vm: booting with ${accelerator%%,*}"
    # What the guest writes to its disk goes to a file of qemu's that has no name.
    TMPDIR=$OUT timeout --foreground --kill-after=10 "${MINUTES}m" qemu-system-x86_64 \
        -no-user-config -nodefaults -display none -no-reboot -nic none \
        -machine q35 -accel "$accelerator" -cpu max,-arch-capabilities,-la57 -smp 2 -m "$MEMORY_MB" \
        -kernel "$OUT/vmlinuz" -initrd "$OUT/initrd.img" \
        -append "root=/dev/vda rw console=ttyS0 quiet panic=-1 security=apparmor apparmor=1" \
        -drive "file=$OUT/root.img,if=virtio,format=raw,cache=unsafe,snapshot=on" \
        -virtfs "local,path=$PWD,mount_tag=tree,security_model=none,readonly=on,multidevs=remap" \
        -virtfs "local,path=$run,mount_tag=run,security_model=none" \
        -device virtio-rng-pci -serial "file:$run/console.log" </dev/null \
        >"$run/qemu.log" 2>&1 &
    local qemu=$!
    # shellcheck disable=SC2064 # the values of now are meant
    trap "kill $qemu 2>/dev/null || true" INT TERM
    tail --quiet --lines=+1 --pid=$qemu --sleep-interval=0.5 -f "$run/log"
    wait "$qemu" || status=$?
    [[ $status -ne 124 && $status -ne 137 ]] || echo "vm: not through after $MINUTES minutes" >&2
}

[[ $EUID -eq 0 ]] || fail "must be root, as mmdebstrap and the tests"
machine
run=$OUT/run
rm -rf "$run" && mkdir -p "$run"
programs "$run/bin"
jobs "$run/bin" "$@" >"$run/jobs"
echo "$PWD" >"$run/tree"
: >"$run/log"
began=$SECONDS
boot "$run"
echo "vm: through in $((SECONDS - began)) s"
[[ -s $run/status ]] || {
    tail -n 30 "$run/console.log" "$run/qemu.log" >&2
    fail "the machine did not get to the end of its jobs"
}
cat "$run/results"
exit "$(<"$run/status")"

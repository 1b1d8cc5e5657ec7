#!/usr/bin/env bash
# In the machine of hack/vm.sh: does the jobs in DIR/jobs, a name and a command a line, one after the
# other. DIR/results has a line for each, DIR/status 0 if all were well.
set -uo pipefail

cd "$(dirname "$0")/../.."
readonly DIR=$1
export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export CRICTL=$PWD/hack/critest/bin/crictl QUILTD=$PWD/target/hack/vm/run/bin/quiltd
# Tests of what only such a machine has must not be passed over here.
export QUILT_VM=1
# Without KVM the processor is a program.
[[ $(systemd-detect-virt) != qemu ]] || export QUILT_SLOW=10

# What is to be proven here is proven nowhere, if the machine is another one than it should be.
machine() {
    local as_it_should_be=0
    expect() { [[ $2 == "$3" ]] || { echo "vm: $1 is $2, not $3"; as_it_should_be=1; }; }
    expect "process 1" "$(</proc/1/comm)" systemd
    expect /sys/fs/cgroup "$(stat -f -c %T /sys/fs/cgroup)" cgroup2fs
    expect AppArmor "$(cat /sys/module/apparmor/parameters/enabled 2>/dev/null)" Y
    echo "vm: Linux $(uname -r), $(systemctl --version | head -n 1)," \
        "controllers $(cat /sys/fs/cgroup/cgroup.controllers)," \
        "up since $(cut -d ' ' -f 1 /proc/uptime) s, $(systemd-detect-virt)"
    return $as_it_should_be
}

status=0
machine || status=1
while read -r name command; do
    echo "vm: $name: $command"
    began=$SECONDS
    bash -c "$command" </dev/null 2>&1
    ended=$?
    [[ $ended -eq 0 ]] || status=1
    echo "vm: $name ended with $ended after $((SECONDS - began)) s" | tee -a "$DIR/results"
done <"$DIR/jobs"
echo "$status" >"$DIR/status"
sync

#!/bin/sh
# In the machine of hack/vm.sh: mounts what the host shows, and does the jobs that lie there.
set -eu

mkdir -p /run/quilt-vm
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 run /run/quilt-vm
tree=$(cat /run/quilt-vm/tree)
mkdir -p "$tree"
# It does not change while the machine runs.
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=262144,cache=loose tree "$tree"
exec "$tree/hack/vm/jobs.sh" /run/quilt-vm >>/run/quilt-vm/log 2>&1

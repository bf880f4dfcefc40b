#!/bin/sh
# The first program of the lab's emulated PC: loads KVM and runs the jobs that lab.jobs= names.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
ip link set lo up
while read -r module; do
    insmod "/lib/$module.ko" || echo "lab: cannot load $module"
done </lib/order
read -r words </proc/cmdline
jobs=
for word in $words; do
    case $word in
    lab.jobs=*) jobs=$(echo "${word#*=}" | tr , ' ') ;;
    esac
done
echo "lab: $(uname -r) on $(nproc) CPUs, $(ls /dev/kvm 2>&1)"
. /jobs.sh
for job in $jobs; do
    run_job "$job"
done
poweroff -f

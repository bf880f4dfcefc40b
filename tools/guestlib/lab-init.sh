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

# The kernel patches its scheduler's code when the first VM comes and when the last one goes, and QEMU's
# software CPU now and then goes on with the old code for ever. So one VM stays, halted, all the time.
parat run --name stays --kernel /flat/idle.elf --memory 16M --console none --engine kvm </dev/null >/dev/null 2>/tmp/stays &
stays=$!
. /jobs.sh
for job in $jobs; do
    run_job "$job"
done
kill -0 $stays || {
    echo "lab: the VM that stays has ended"
    cat /tmp/stays
}
poweroff -f

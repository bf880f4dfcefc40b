#!/bin/sh
# /init of parat's guest initrd. The marker comes first of all: benchmarks time the boot up to it.
echo "parat-guest: init"
# What it does then is said by words on the kernel command line:
#   root=/dev/vda        load the virtio drivers, mount that disk and go on with its /sbin/init
#   parat.do=TASK,TASK   play these tasks in order (see tasks.sh), then power off
#   neither              a shell on the console
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev

root= rootflags=rw tasks= url= disk=/dev/vda port=7000 size=8 seconds=10
read -r words </proc/cmdline
for word in $words; do
    case $word in
    root=*) root=${word#root=} ;;
    ro | rw) rootflags=$word ;;
    parat.do=*) tasks=$(echo "${word#*=}" | tr , ' ') ;;
    parat.url=*) url=${word#*=} ;;
    parat.disk=*) disk=${word#*=} ;;
    parat.port=*) port=${word#*=} ;;
    parat.size=*) size=${word#*=} ;;
    parat.seconds=*) seconds=${word#*=} ;;
    esac
done

# Prints why there is no boot, then gives a shell.
rescue() {
    echo "parat-guest: $1"
    setsid cttyhack sh
    poweroff -f
}

# Waits for a device node, at most 10 s.
await() {
    tries=0
    while [ ! -e "$1" ]; do
        tries=$((tries + 1))
        [ $tries -lt 500 ] || return 1
        usleep 20000
    done
}

boot_disk() {
    modprobe -a virtio_pci virtio_blk virtio_net virtio_rng button evdev
    await "$root" || rescue "there is no disk $root"
    mount -t ext4 -o "$rootflags" "$root" /root || rescue "cannot mount $root"
    mount --move /dev /root/dev
    mount --move /sys /root/sys
    mount --move /proc /root/proc
    exec switch_root /root /sbin/init
}

if [ -n "$tasks" ]; then
    . /tasks.sh
    for task in $tasks; do
        run_task "$task"
    done
    poweroff -f
fi
[ -z "$root" ] || boot_disk
setsid cttyhack sh
poweroff -f

# Tasks of parat's guest initrd, named by parat.do= on the kernel command line; /init sources this.
# Each prints what it found; run_task adds one line "parat-guest: TASK ok" or "parat-guest: TASK FAILED".

say() {
    echo "parat-guest: $*"
}

run_task() {
    if ! type "do_$1" >/dev/null 2>&1; then
        say "$1 FAILED: there is no such task"
    elif "do_$1"; then
        say "$1 ok"
    else
        say "$1 FAILED"
    fi
}

need() {
    modprobe -a "$@" || {
        say "cannot load: $*"
        return 1
    }
}

need_disk() {
    need virtio_pci virtio_blk && await "$disk"
}

# What the kernel found.
do_info() {
    uname -a
    say "cpus $(nproc)"
    say "memory $(sed -n 's/^MemTotal: *//p' /proc/meminfo)"
    say "clocksource $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
    say "flags $(sed -n '/^flags/{s/.*: //p;q}' /proc/cpuinfo)"
    cat /proc/interrupts
}

# The kernel's own messages.
do_dmesg() {
    dmesg
}

# Runs something on each CPU and asks the kernel where it ran.
do_smp() {
    cpu=0
    while [ $cpu -lt "$(nproc)" ]; do
        ran=$(taskset -c $cpu sh -c 'cut -d" " -f39 /proc/self/stat')
        say "cpu $cpu ran on $ran"
        [ "$ran" = $cpu ] || return 1
        cpu=$((cpu + 1))
    done
}

# Takes every CPU but the first off line and back.
do_hotplug() {
    count=$(nproc)
    for online in /sys/devices/system/cpu/cpu[1-9]*/online; do
        [ -e "$online" ] || continue
        echo 0 >"$online" && echo 1 >"$online" || return 1
    done
    [ "$(nproc)" = "$count" ]
}

# Many processes on all CPUs at once: fork, exec, pipes, page faults and the scheduler's interrupts.
do_stress() {
    (
        for job in 1 2 3 4; do
            (
                turn=0
                while [ $turn -lt 20 ]; do
                    seq 1 200 | sort -rn | md5sum
                    turn=$((turn + 1))
                done
            ) &
        done
        wait
    ) >/tmp/stress
    [ "$(sort -u /tmp/stress | wc -l)" = 1 ] && [ "$(wc -l </tmp/stress)" = 80 ]
}

# The program churn for parat.seconds= beside a disk that is written and read back and what a server on
# the host (port parat.port=) sends, the same each time. All three go on until the end.
do_churn() {
    need_disk && do_net && fetch_from_host /tmp/churn.first || return 1
    churn_disk &
    churn_net &
    churn "$seconds"
    result=$?
    touch /tmp/churn.stop
    wait
    say "churn: $(cat /tmp/churn.disk) blocks to the disk and back, $(cat /tmp/churn.net) fetches"
    [ $result = 0 ] && [ ! -e /tmp/churn.bad ]
}

churn_disk() {
    dd if=/dev/urandom of=/tmp/churn.pattern bs=64k count=4 2>/dev/null
    turn=0
    while [ ! -e /tmp/churn.stop ]; do
        at=$((turn % 64))
        dd if=/tmp/churn.pattern of="$disk" bs=64k seek=$((at * 4)) conv=fsync 2>/dev/null
        blockdev --flushbufs "$disk"
        dd if="$disk" of=/tmp/churn.back bs=64k skip=$((at * 4)) count=4 2>/dev/null
        cmp /tmp/churn.pattern /tmp/churn.back || touch /tmp/churn.bad
        turn=$((turn + 1))
        echo $turn >/tmp/churn.disk
    done
}

# Debian's static busybox has a wget that crashes.
fetch_from_host() {
    echo fetch | nc -w 60 10.0.2.2 "$port" >"$1" && [ -s "$1" ]
}

churn_net() {
    turn=0
    while [ ! -e /tmp/churn.stop ]; do
        fetch_from_host /tmp/churn.fetched && cmp /tmp/churn.first /tmp/churn.fetched ||
            touch /tmp/churn.bad
        turn=$((turn + 1))
        echo $turn >/tmp/churn.net
    done
}

# Fills memory in a tmpfs and reads it twice.
do_memory() {
    dd if=/dev/urandom of=/tmp/block bs=64k count=1 2>/dev/null
    filled=0
    while [ $filled -lt $((size * 16)) ]; do
        cat /tmp/block
        filled=$((filled + 1))
    done >/tmp/fill
    [ "$(md5sum </tmp/fill)" = "$(md5sum </tmp/fill)" ] && rm /tmp/fill
}

# One second by the clock is one second by the timer.
do_time() {
    before=$(cut -d. -f1 /proc/uptime)
    clock=$(date +%s)
    sleep 2
    say "clock $(($(date +%s) - clock)) uptime $(($(cut -d. -f1 /proc/uptime) - before))"
    say "date $(date +%s)"
}

# Random bytes from the virtio device.
do_rng() {
    need virtio_pci virtio_rng && await /dev/hwrng || return 1
    say "rng $(cat /sys/class/misc/hw_random/rng_current)"
    [ "$(dd if=/dev/hwrng bs=64 count=1 2>/dev/null | wc -c)" = 64 ]
}

# Writes to the disk past the caches and reads it back. Destroys what is on it.
do_disk() {
    need_disk || return 1
    say "disk $disk $(blockdev --getsize64 "$disk") bytes, serial $(cat /sys/block/"${disk##*/}"/serial)"
    dd if=/dev/urandom of=/tmp/pattern bs=64k count=16 2>/dev/null
    dd if=/tmp/pattern of="$disk" bs=64k conv=fsync 2>/dev/null || return 1
    blockdev --flushbufs "$disk"
    echo 3 >/proc/sys/vm/drop_caches
    dd if="$disk" of=/tmp/back bs=64k count=16 2>/dev/null || return 1
    cmp /tmp/pattern /tmp/back
}

# The checksum of the whole disk.
do_disksum() {
    need_disk && say "disksum $(md5sum <"$disk" | cut -d' ' -f1)"
}

# Tells the disk that its first megabyte is not needed.
do_discard() {
    need_disk && blkdiscard -o 0 -l 1048576 "$disk"
}

# A write that must fail: the host's disk is full, or this one is read-only.
do_diskfull() {
    need_disk || return 1
    dd if=/dev/urandom of="$disk" bs=64k conv=fsync 2>&1 | tail -n 1
    dmesg | grep -iE 'I/O error|read-only' | head -n 3
    return 0
}

# A file system workload on a disk that has an ext4; the host runs e2fsck afterwards.
do_files() {
    need_disk && mount -t ext4 "$disk" /mnt || return 1
    dd if=/dev/urandom of=/tmp/pattern bs=16k count=1 2>/dev/null
    count=0
    while [ $count -lt 100 ]; do
        mkdir -p /mnt/d$((count % 10))
        cat /tmp/pattern >/mnt/d$((count % 10))/f$count
        [ $((count % 7)) != 0 ] || rm /mnt/d$((count % 10))/f$count
        count=$((count + 1))
    done
    dd if=/dev/zero of=/mnt/zero bs=64k count=$((size * 16)) 2>/dev/null || return 1
    find /mnt -type f -print0 | sort -z | xargs -0 md5sum >/tmp/sums
    umount /mnt && mount -t ext4 "$disk" /mnt || return 1
    md5sum -c -s /tmp/sums
    result=$?
    umount /mnt
    return $result
}

# An address by DHCP; then, when parat.url= is given, a file by HTTP.
do_net() {
    need virtio_pci virtio_net && await /sys/class/net/eth0 || return 1
    ip link set lo up
    ip link set eth0 up
    udhcpc -i eth0 -n -q -t 5 -T 2 -s /udhcpc.sh || return 1
    say "address $(ip -4 -o addr show eth0 | sed 's/.*inet \([^ ]*\).*/\1/')"
    say "mac $(cat /sys/class/net/eth0/address)"
    [ -z "$url" ] || do_fetch
}

do_fetch() {
    timeout 20 wget -q -O /tmp/fetched "$url" || return 1 # its own -T crashes
    say "fetched $(wc -c </tmp/fetched) bytes md5 $(md5sum </tmp/fetched | cut -d' ' -f1)"
}

# The gateway answers.
do_ping() {
    ping -c 3 -W 5 10.0.2.2
}

# The name server that DHCP named answers.
do_dns() {
    nslookup "${url:-localhost}"
}

# Sends back what one TCP connection to port parat.port= sends.
do_echo() {
    say "listening on $port"
    nc -l -p "$port" -e /bin/cat
}

# A line through the virtio console.
do_console() {
    need virtio_pci virtio_console && await /dev/hvc0 && echo "parat-guest: hvc0" >/dev/hvc0
}

# Waits for the power button. A press that comes before somebody listens is lost, so it opens first.
do_button() {
    need button evdev && await /dev/input/event0 || return 1
    for event in /sys/class/input/event*; do
        [ "$(cat "$event"/device/name)" != "Power Button" ] || exec 3<"/dev/input/${event##*/}"
    done
    say "waiting for the power button"
    dd bs=24 count=1 of=/dev/null <&3 2>/dev/null
}

# Does nothing for ever, without using the CPU; and the same, using it.
do_sleep() {
    say "sleeping"
    while :; do sleep 1000; done
}

do_spin() {
    say "spinning"
    while :; do :; done
}

do_shell() {
    setsid cttyhack sh
}

do_poweroff() {
    poweroff -f
}

do_reboot() {
    reboot -f
}

# A kernel crash; with panic=-1 on the command line the kernel then resets the machine.
do_crash() {
    echo c >/proc/sysrq-trigger
}

# The lab's jobs; lab-init.sh sources this. The comment behind a job's name is its time limit.

# Runs a job with its limit; what it printed is shown when it fails.
run_job() {
    start=$(cut -d. -f1 /proc/uptime)
    echo "lab: $1 begins"
    case $1 in
    flat_*) run_flat "${1#flat_}" >/tmp/out 2>&1 ;;
    *)
        limit=$(sed -n "s/^job_$1() { # \([0-9]*\) s$/\1/p" /jobs.sh)
        "job_$1" >/tmp/out 2>&1
        ;;
    esac
    status=$?
    grep '^lab-says: ' /tmp/out | head -n 30
    case $status in
    0) result=ok ;;
    77) result=skipped ;;
    *)
        result=FAILED
        sed 's/^/    | /' /tmp/out | tail -n 80
        ;;
    esac
    echo "lab: $1 $result ($(($(cut -d. -f1 /proc/uptime) - start)) s)"
}

say() {
    echo "lab-says: $*"
}

# Each line that the guest printed ($1) must be the expected one ($2), or the one that the emulated CPU
# itself gives ($3), where that is not what the manuals say (QEMU knows no segment limits).
same_lines() {
    [ -e "$3" ] || : >"$3"
    awk -v expected="$2" -v cpu="$3" '
        { wanted = own = "(nothing)"; getline wanted <expected; getline own <cpu }
        $0 == wanted { next }
        $0 == own { print "lab-says: as the emulated CPU itself: " $0; next }
        { print "printed " $0; print "expected " wanted; print "the emulated CPU itself " own; bad = 1 }
        END { if ((getline wanted <expected) > 0) { print "missing " wanted; bad = 1 } exit bad }' "$1"
}

# parat run with a flat guest: its output must be the expected text, its status the one given.
flat() {
    name=$1 wanted=$2
    shift 2
    timeout 60 parat run --kernel "/flat/$name.elf" --memory 128M --console stdio --debug-exit 0xf4 \
        --net none --cpu host --engine kvm "$@" </dev/null >/tmp/flat.out 2>/tmp/flat.err
    status=$?
    tr -d '\r' </tmp/flat.out >/tmp/flat.txt
    if [ $status = "$wanted" ] && same_lines /tmp/flat.txt "/flat/$name.txt" "/flat/$name.cpu"; then
        return 0
    fi
    echo "status $status, wanted is $wanted; its output ends so:"
    tail -n 5 /tmp/flat.txt
    cat /tmp/flat.err
    return 1
}

run_flat() {
    case $1 in
    cross | smp) flat "$1" 1 --cpus 4 ;;
    hot) # switches PCIDs
        grep -qw invpcid /proc/cpuinfo || {
            say "the emulated CPU has no INVPCID"
            return 77
        }
        flat "$1" 1
        ;;
    triple) flat "$1" 4 --on-triple-fault exit ;;
    dma) code_disk && flat "$1" 1 --disk /tmp/code.img,ro ;;
    *) flat "$1" 1 ;;
    esac
}

# Boots the guest's Linux, which plays tasks; the console goes to /tmp/console.
boot() {
    tasks=$1 words=$2
    shift 2
    timeout "$limit" parat run --name lab --memory 160M --kernel /guest/kernel --initrd /guest/initrd \
        --append "console=ttyS0 quiet panic=-1 parat.do=$tasks $words" --engine kvm --cpu host \
        --stats /tmp/stats "$@" </dev/null >/tmp/console 2>/tmp/errors
    status=$?
    tr -d '\r' </tmp/console >/tmp/console.txt
    say "exits: $(sed -n '/"exits"/,/}/p' /tmp/stats | tr -d '\n {}' | sed 's/"exits"://')"
    cat /tmp/console.txt /tmp/errors
    return $status
}

# The guest said that these tasks went well.
tasks_ok() {
    for task in "$@"; do
        grep -q "^parat-guest: $task ok" /tmp/console.txt || {
            echo "task $task did not say ok"
            return 1
        }
    done
}

job_doctor() { # 30 s
    parat doctor && parat doctor --json | grep -q '"auto": "kvm"'
}

job_unit() { # 120 s
    timeout "$limit" test_kvm
}

# A disk whose sector i holds the code "mov $i, %eax; ret".
code_disk() {
    i=0
    while [ $i -lt 256 ]; do
        printf "\\270\\$(printf %03o $i)\\0\\0\\0\\303"
        head -c 506 /dev/zero
        i=$((i + 1))
    done >/tmp/code.img
}

job_boot1() { # 120 s
    boot info,time,smp,rng clocksource=kvm-clock && tasks_ok info time smp rng &&
        grep -q 'clocksource kvm-clock' /tmp/console.txt
}

job_boot2() { # 180 s
    boot info,smp,stress "" --cpus 2 && tasks_ok info smp stress && grep -q 'cpus 2' /tmp/console.txt
}

job_disk() { # 150 s
    head -c 67108864 /dev/zero >/tmp/disk.img
    boot disk,disksum "parat.size=4" --disk /tmp/disk.img --cpus 2 && tasks_ok disk disksum || return 1
    sum=$(md5sum </tmp/disk.img | cut -d' ' -f1)
    rm /tmp/disk.img
    grep -q "disksum $sum" /tmp/console.txt
}

job_net() { # 150 s
    mkdir -p /tmp/www
    head -c 1000000 /dev/urandom >/tmp/www/file
    httpd -p 127.0.0.1:8000 -h /tmp/www
    boot net "parat.url=http://10.0.2.2:8000/file" --net user,host-loopback=on && tasks_ok net || return 1
    grep -q "md5 $(md5sum </tmp/www/file | cut -d' ' -f1)" /tmp/console.txt
}

# Waits until the console has said something; false when parat has ended before.
await_text() {
    until grep -q "$1" /tmp/console; do
        kill -0 "$pid" 2>/dev/null || return 1
        usleep 100000
    done
}

# Debian from its disk to a login, a command there, and the power button.
job_debian() { # 300 s
    mkfifo /tmp/keys
    timeout "$limit" parat run --cpus 2 --memory 256M --kernel /guest/kernel --initrd /guest/initrd \
        --append "console=ttyS0 quiet root=/dev/vda" --disk /dev/vda --engine kvm --cpu host \
        </tmp/keys >/tmp/console 2>/tmp/errors &
    pid=$!
    exec 3>/tmp/keys
    await_text login: && echo root >&3 && await_text Password: && echo parat >&3 &&
        await_text 'root@' && echo 'echo "$(nproc) CPUs, $((40 + 2))"' >&3 && await_text '2 CPUs, 42' &&
        kill -TERM $pid
    wait $pid
    status=$?
    exec 3>&-
    cat /tmp/console /tmp/errors
    [ $status = 0 ]
}

job_reboot() { # 200 s
    # The guest reboots for ever: two starts of its init are enough.
    timeout "$limit" parat run --memory 160M --kernel /guest/kernel --initrd /guest/initrd --cpus 2 \
        --append "console=ttyS0 quiet panic=-1 parat.do=reboot" --engine kvm --cpu host \
        </dev/null >/tmp/console 2>/tmp/errors &
    pid=$!
    while kill -0 $pid 2>/dev/null && [ "$(grep -c 'parat-guest: init' /tmp/console)" -lt 2 ]; do
        usleep 200000
    done
    count=$(grep -c 'parat-guest: init' /tmp/console)
    kill -KILL $pid
    cat /tmp/console /tmp/errors
    [ "$count" -ge 2 ]
}

# From soft to kvm and back, with one CPU and with two.
job_moves() { # 300 s
    timeout "$limit" moves --kernel /guest/kernel --initrd /guest/initrd --engine soft --other kvm --cpu v2 \
        --moves 6 --mean-us 600000 --seed 7 &&
        timeout "$limit" moves --kernel /guest/kernel --initrd /guest/initrd --engine soft --other kvm \
            --cpu v2 --cpus 2 --moves 4 --mean-us 800000 --seed 8
}

# Runs jobs in a bed, and kills those that hang: a job hangs if it prints nothing and leaves the CPU idle, or if it uses
# very much CPU time. No job is killed for being slow. busybox sh.

JOBS=/jobs CONSOLE=/tmp/out PORT=/dev/ttyS0 LIFE=/dev/ttyS1
PAUSE=5 LOOKS=12

# The bed's CPU time so far, in hundredths of a second: busy, and total.
usage() {
    read -r _ user nice system idle wait irq soft _ </proc/stat
    busy=$((user + nice + system + irq + soft))
    all=$((busy + idle + wait))
}

# Changes when a job prints: the bytes on the first serial port, and the console file of a Linux boot.
said() {
    grep '^0:' /proc/tty/driver/serial
    ls -l $CONSOLE
} 2>/dev/null

# Kills mini-vmm, also under the name by which clients start it. Fails if there is none.
kill_vmm() {
    killall -q -9 mini-vmm || killall -q -9 firecracker
}

# The job $1 has $2 s of CPU time. It hangs if the bed is silent and at least four fifths idle at LOOKS checks in a row,
# PAUSE s apart. Then mini-vmm is killed, so that the job can show its output; if there is none, the job is killed.
watch() {
    usage
    limit=$((busy + $2 * 100)) idle_looks=0 now=$(said)
    while sleep "$PAUSE"; do
        # A sign of life from the bed.
        echo . >$LIFE
        busy_before=$busy all_before=$all before=$now
        usage
        now=$(said)
        if [ "$now" != "$before" ] || [ $(((busy - busy_before) * 5)) -gt $((all - all_before)) ]; then
            idle_looks=0
        else
            idle_looks=$((idle_looks + 1))
        fi
        [ $idle_looks -lt "$LOOKS" ] && [ $busy -lt $limit ] && continue
        echo "HUNG: idle at $idle_looks looks, $((busy / 100)) s of CPU time in all" >$PORT
        kill_vmm || kill -9 "-$1"
        limit=$((busy + $2 * 100)) idle_looks=0
    done
}

# Runs job $1 within $2 s of CPU time; returns its status.
run() {
    rm -f $CONSOLE
    setsid sh "$JOBS/$1" </dev/null 2>&1 &
    job=$!
    # The watch may outlive the job, so it must not have the serial port open: the last close waits until all is sent.
    watch $job "$2" </dev/null >/dev/null 2>&1 &
    watch=$!
    wait $job
    status=$?
    kill $watch
    wait $watch 2>/dev/null
    kill_vmm
    return $status
}

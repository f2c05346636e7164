
# The console logs root in. There is no other way.
mkdir /etc/systemd/system/serial-getty@ttyS0.service.d
cat >/etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf <<'END'
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --keep-baud 115200 ttyS0 $TERM
END
rm /etc/systemd/system/getty.target.wants/*

# The login on the console runs a job, if a disk with this serial number has one.
cat >>/root/.profile <<'END'

job=$(grep -lx xtask-job /sys/block/*/serial 2>/dev/null)
if [ "$(tty)" = /dev/ttyS0 ] && [ -n "$job" ]; then
    job=${job#/sys/block/}
    export PAGER=cat SYSTEMD_PAGER=cat
    sh "/dev/${job%/serial}"
    systemctl poweroff
fi
END

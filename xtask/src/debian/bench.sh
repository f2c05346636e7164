
# After the login, the third disk has a job for the shell. Not all VMMs have serial numbers for disks.
cat >>/root/.profile <<'END'

if [ "$(tty)" = /dev/ttyS0 ] && [ -b /dev/vdc ]; then
    sh /dev/vdc
fi
END

# Configures the new root file system; runs in it, as its root. Without root rights that is only fakeroot, which can't
# write to files without write permission, and systemctl would change the host.
set -e
echo debian >/etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost\n' >/etc/hosts
echo 'LABEL=debian / ext4 errors=remount-ro 0 1' >/etc/fstab
# An empty one is filled at the first boot, without questions.
rm -f /etc/machine-id
touch /etc/machine-id

# Every network card has DHCP and DNS.
cat >/etc/systemd/network/80-dhcp.network <<'END'
[Match]
Name=en* eth*

[Network]
DHCP=yes
END
ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
ln -s ../../../../lib/systemd/system/systemd-networkd.service /etc/systemd/system/multi-user.target.wants/

# Nothing works in the background by itself.
rm /etc/systemd/system/timers.target.wants/*

# Debian's root has no valid password, and no server runs.
grep -q '^root:\*:' /etc/shadow

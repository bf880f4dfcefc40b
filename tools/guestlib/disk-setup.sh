# Makes a Debian tree ($1) the root disk of a VM; mmdebstrap runs this when the packages are installed.
#
# The system is Debian's, started by Debian's sysvinit; only the boot script is ours. Debian's own runs
# some 700 processes, a minute and more on an interpreted CPU; this one runs about twenty.
set -eu
root=$1

write() {
    mkdir -p "$(dirname "$root$1")"
    cat >"$root$1"
}

write /etc/hostname <<'END'
parat
END
write /etc/hosts <<'END'
127.0.0.1 localhost parat
::1 localhost
END
write /etc/fstab <<'END'
/dev/vda / ext4 rw,relatime 0 0
END
write /etc/network/interfaces <<'END'
auto lo eth0
iface lo inet loopback
iface eth0 inet dhcp
END
write /etc/inittab <<'END'
# Runlevel 2 is the system at work; 0 powers off, 6 reboots.
id:2:initdefault:
si::sysinit:/etc/init.d/parat-boot
ca:12345:ctrlaltdel:/sbin/shutdown -r now
l2:2:once:/etc/init.d/parat-services
l0:0:wait:/etc/init.d/parat-halt poweroff
l6:6:wait:/etc/init.d/parat-halt reboot
S0:2:respawn:/sbin/agetty --noclear --keep-baud 115200 ttyS0 vt220
pb:2:once:/etc/init.d/parat-button
END
write /etc/init.d/parat-boot <<'END'
#!/bin/sh
# Brings up what a login needs. The initrd has mounted /, /dev, /proc and /sys.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs /run
mkdir -p /run/lock /run/shm /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620 devpts /dev/pts
mount -t tmpfs -o nosuid,nodev tmpfs /dev/shm
read -r name </etc/hostname
echo "$name" >/proc/sys/kernel/hostname
: >/run/utmp
END
write /etc/init.d/parat-services <<'END'
#!/bin/sh
# Network and services come up while the login prompt is already there.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
ifup -a >/run/ifup.log 2>&1
for service in /etc/rc2.d/S*; do
    [ -x "$service" ] && "$service" start
done
END
write /etc/init.d/parat-button <<'END'
#!/bin/sh
# Shuts the system down when the power button is pressed (the initrd has loaded its driver).
for event in /sys/class/input/event*; do
    read -r name <"$event/device/name"
    [ "$name" = "Power Button" ] || continue
    dd if="/dev/input/${event##*/}" of=/dev/null bs=24 count=1 2>/dev/null && exec /sbin/shutdown -h now
done
END
write /etc/init.d/parat-halt <<'END'
#!/bin/sh
# Ends the system: $1 is poweroff or reboot.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
for service in /etc/rc2.d/S*; do
    [ -x "$service" ] && "$service" stop
done
killall5 -15
sleep 0.5
killall5 -9
mount -o remount,ro /
exec "$1" -d -f
END
chmod 755 "$root"/etc/init.d/parat-*

# Plain text on the serial console: readline's escape sequences would end up in logs.
write /etc/inputrc <<'END'
set enable-bracketed-paste off
END

# The boot scripts of initscripts are not used; services that are installed later are started.
find "$root"/etc/rc?.d -name '[SK]*' -delete
# Password parat, hashed with few rounds: the default hash is made to be slow.
chroot "$root" usermod -p '@PASSWORD@' root
rm -f "$root"/etc/motd "$root"/etc/update-motd.d/* "$root"/etc/apt/apt.conf.d/99mmdebstrap
rm -f "$root"/var/log/*.log "$root"/var/log/apt/* "$root"/var/cache/debconf/*-old

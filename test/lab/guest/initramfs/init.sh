#!/bin/busybox sh
# The guest's init: a NIC by DHCP and router advertisements, a traffic server, a shell on the console.
export PATH=/bin HOME=/root
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
# A server without a client may not hold back what it wants to say.
while read -r module; do
	insmod "/lib/modules/$module" || echo "lab: module $module does not load"
done </lib/modules/order

hostname guest
for word in $(cat /proc/cmdline); do
	case $word in
	hostname=*) hostname "${word#hostname=}" ;;
	esac
done

ip link set lo up
for link in /sys/class/net/eth*; do
	nic "${link##*/}"
done
# Those that come later, and go.
uevent /bin/nic &

{
	traffic serve -second 8081 -desk 8008
	echo "lab: traffic has ended with status $?" # what it says itself, and what the kernel says of it, is before this
} &

# The power button, by ACPI.
acpid -d -f >/dev/null 2>&1 &

# What there is to know of the network, when it changes: for the reader of the console, while it settles.
(
	for _ in $(seq 60); do
		now=$(ip -o addr show scope global | awk '{print $2, $4}'; ip -6 route show default | awk '{print $5, "default via", $3}')
		[ "$now" != "$before" ] && echo "$now" | sed 's/^/lab: /'
		before=$now
		sleep 1
	done
) &

echo "lab: $(hostname) is up after $(cut -d' ' -f1 /proc/uptime) s"
while :; do
	setsid cttyhack sh
done

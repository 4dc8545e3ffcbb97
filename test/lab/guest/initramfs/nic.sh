#!/bin/busybox sh
# Looks after a NIC: one that is named, which the guest was started with, or that of a kernel's event, which comes or goes while the guest runs.
export PATH=/bin
if [ $# -eq 0 ]; then
	[ "$SUBSYSTEM" = net ] || exit 0
	set -- "$INTERFACE" "$ACTION"
fi
nic=$1
case $nic/${2:-add} in
eth*/add)
	# The network makes no second claim on an address that it has itself given out.
	echo 0 >"/proc/sys/net/ipv6/conf/$nic/accept_dad"
	ip link set "$nic" up
	echo "lab: $nic is $(cat "/sys/class/net/$nic/address")" >/dev/console
	udhcpc -i "$nic" -p "/run/udhcpc.$nic" -s /bin/lease -x "hostname:$(hostname)" -O mtu -O staticroutes -t 10 -T 1 -A 5 -b >/dev/null 2>&1 &
	dhcp6 "$nic" &
	echo $! >"/run/dhcp6.$nic"
	;;
eth*/remove)
	kill "$(cat "/run/udhcpc.$nic")" "$(cat "/run/dhcp6.$nic")"
	echo "lab: $nic is gone" >/dev/console
	;;
esac

#!/bin/busybox sh
# What busybox's udhcpc calls at every change of its lease.
export PATH=/bin
case $1 in
deconfig)
	ip -4 addr flush dev "$interface"
	;;
bound | renew)
	[ -n "$mtu" ] && ip link set "$interface" mtu "$mtu"
	ip addr replace "$ip/$mask" dev "$interface"
	# Classless routes take the place of the router (RFC 3442).
	set -- $staticroutes
	[ $# -eq 0 ] && [ -n "$router" ] && set -- 0.0.0.0/0 "${router%% *}"
	while [ $# -gt 1 ]; do
		if [ "$2" = 0.0.0.0 ]; then
			ip route replace "$1" dev "$interface"
		else
			# A gateway may be outside the network, as with a mask of 32 bits.
			ip route replace "$1" via "$2" dev "$interface" onlink
		fi
		shift 2
	done
	: >/etc/resolv.conf
	[ -n "$domain" ] && echo "search $domain" >>/etc/resolv.conf
	for server in $dns; do
		echo "nameserver $server" >>/etc/resolv.conf
	done
	echo "lab: $interface has $ip/$mask, mtu ${mtu:-unchanged}, router ${router:-none}, routes ${staticroutes:-none}, dns ${dns:-none}, lease $lease s" >/dev/console
	;;
esac

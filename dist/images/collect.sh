#!/bin/sh
# Copies programs, the loader and libraries that they need, and other files, into a directory that becomes an image's root:
#   collect.sh PROGRAMS FILES ROOT        the first two are lists, a name or a path a line
set -eu
programs=$1 files=$2 root=$3
copy() { # follows links, and keeps the path under which a file is asked for
	mkdir -p "$root$(dirname "$1")"
	cp -L "$1" "$root$1"
	touch -d @0 "$root$1"
}
while read -r name; do
	path=$(command -v "$name")
	mkdir -p "$root/usr/bin"
	cp -L "$path" "$root/usr/bin/$name"
	touch -d @0 "$root/usr/bin/$name"
	ldd "$path" | awk '/=> \// {print $3} $1 ~ /^\// {print $1}' | while read -r library; do copy "$library"; done
done < "$programs"
while read -r file; do copy "$file"; done < "$files"
mkdir -p "$root/tmp" "$root/run" "$root/var" && chmod 1777 "$root/tmp" && ln -sfn /run "$root/var/run"

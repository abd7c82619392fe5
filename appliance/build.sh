#!/bin/bash
# Builds the appliance (kernel, initrd, root) from this host's packages below CACHE and prints its directory:
#
#   CACHE/appliance-KEY/{kernel,initrd,root}
#
# KEY covers the versions of the packages, the kernel and the files beside this script, so an update of the host makes a
# new appliance and an unchanged host answers at once. Older ones are removed. Needs no privileges.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C.UTF-8

die() {
	printf 'appliance: %s\n' "$*" >&2
	exit 1
}

case ${1-} in
-h | --help)
	echo "usage: appliance/build.sh CACHE"
	echo "build the appliance below CACHE unless it is there already, and print its directory"
	exit 0
	;;
esac
[[ $# -eq 1 && $1 != -* ]] || { echo "usage: appliance/build.sh CACHE" >&2; exit 2; }

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
mkdir -p -- "$1"
cache=$(cd -- "$1" && pwd)

packages=(bash coreutils util-linux mount kmod lvm2 mdadm cryptsetup-bin e2fsprogs xfsprogs btrfs-progs
	gzip bzip2 lz4 zstd xz-utils grep sed)

for tool in supermin qemu-img dpkg-query tar; do
	command -v "$tool" >/dev/null || die "cannot find '$tool' (install it, or run tools/deps runtime)"
done

exec 9>"$cache/.appliance.lock"
flock 9

# The kernel: what SUPERMIN_* names, else the newest of this host, else one fetched for the purpose.
find_kernel() {
	local image version newest=
	[[ -n ${SUPERMIN_KERNEL-} && -n ${SUPERMIN_MODULES-} ]] && return 0
	while read -r image; do
		version=${image#/boot/vmlinuz-}
		[[ -r $image && -f /lib/modules/$version/modules.dep ]] && newest=$version
	done < <(find /boot -maxdepth 1 -name 'vmlinuz-*' | sort -V)
	if [[ -n $newest ]]; then
		export SUPERMIN_KERNEL=/boot/vmlinuz-$newest SUPERMIN_KERNEL_VERSION=$newest
		export SUPERMIN_MODULES=/lib/modules/$newest
		return 0
	fi
	for tool in "$here/appliance-kernel" "$here/../tools/appliance-kernel"; do
		[[ -x $tool ]] || continue
		"$tool" "$cache/kernel" >&2 || return 1
		# shellcheck source=/dev/null
		source "$cache/kernel/env"
		return 0
	done
	return 1
}
find_kernel || die "no kernel for the appliance (install linux-image-cloud-amd64, or set SUPERMIN_KERNEL and SUPERMIN_MODULES)"

versions=$(dpkg-query -W -f '${Package} ${Version} ${db:Status-Abbrev}\n' "${packages[@]}") ||
	die "a package is missing (needed: ${packages[*]})"
key=$({
	printf '%s\n' "$versions" "${SUPERMIN_KERNEL_VERSION-}"
	stat -c '%s %Y' "$SUPERMIN_KERNEL"
	cat "$here/init" "$here/lvmlocal.conf" "${BASH_SOURCE[0]}"
} | sha256sum | cut -c1-16)
final=$cache/appliance-$key

if [[ -f $final/root ]]; then
	echo "$final"
	exit 0
fi

work=$(mktemp -d "$cache/.appliance.XXXXXX")
trap 'rm -rf -- "$work"' EXIT
mkdir -p "$work/files/etc/lvm"
install -m 755 "$here/init" "$work/files/init"
install -m 644 "$here/lvmlocal.conf" "$work/files/etc/lvm/lvmlocal.conf"
supermin --prepare --use-installed "${packages[@]}" -o "$work/prepared" >&2
tar -C "$work/files" --owner=0 --group=0 -czf "$work/prepared/init.tar.gz" init etc
supermin --build --copy-kernel -f ext2 -o "$work/built" "$work/prepared" >&2
chmod 755 "$work/built"
chmod 644 "$work/built"/*
for old in "$cache"/appliance-*; do
	[[ $old == *.log ]] || rm -rf -- "$old"
done
mv -- "$work/built" "$final"
echo "$final"

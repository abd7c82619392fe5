# shellcheck shell=sh
# Runs in the new server's tree (chroot) while it is built: one of everything a
# copy of files tends to lose. $1 is the folder to fill.
set -eu
umask 022
mkdir -p "$1"
cd "$1"

echo attributes >with-xattr
setfattr -n user.lab.text -v "hello world" with-xattr
setfattr -n user.lab.binary -v 0x00ff0a0d with-xattr
setfattr -n trusted.lab -v root-only with-xattr
echo acl >with-acl
setfacl -m u:33:rw,g:4:r,m::rw with-acl
mkdir -p default-acl
setfacl -d -m u:33:rwx default-acl
cp /bin/true with-capability
setcap cap_net_bind_service,cap_net_raw+ep with-capability

echo one body, three names >hard-1
ln hard-1 hard-2
mkdir -p elsewhere
ln hard-1 elsewhere/hard-3
ln -s ../special/hard-1 link
ln -s /nowhere/at/all broken-link

# 1 GiB long, 12 KiB of it there
truncate -s 1G sparse
printf 'start' | dd of=sparse conv=notrunc status=none
printf 'middle' | dd of=sparse conv=notrunc status=none bs=1M seek=512
printf 'end' | dd of=sparse conv=notrunc status=none bs=1 seek=1073741821
# allocated, never written: reads as zeroes
fallocate -l 4M preallocated

echo odd >'white  space'
echo odd >"$(printf 'new\nline')"
echo odd >"$(printf 'latin1-\344\366\374')"
echo odd >'grüße-日本語'
echo odd >'-rf'
echo odd >'quote"and'\''quote'
echo odd >"$(printf '%0255d' 0)"

mkfifo fifo
mknod null-device c 1 3
: >empty
install -m 4755 /bin/true setuid
install -m 2755 -g 50 /bin/true setgid
mkdir -p sticky
chmod 1777 sticky
echo old >old
touch -d '1999-12-31 23:59:59.123456789' old
chown 12345:54321 old

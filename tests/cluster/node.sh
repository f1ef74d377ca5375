#!/bin/bash
# Becomes a machine of a test: its own processes, files under /tmp, /run and home, and ssh server.
# It is started as the first process of new pid, mount, uts and ipc namespaces, in a network
# namespace that has nothing but loopback. Arguments: NAME ADDRESS BASE REPOSITORY; with "-" as
# the address it has no ssh server.
set -eu
name=$1 address=$2 base=$3 repository=$4

hostname "$name"
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd /run/base /run/repository
mount --bind "$base" /run/base
mount --rbind "$repository" /run/repository
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
chmod 1777 /tmp
# The environment is the repository's own, at the path that is written into its scripts.
mkdir -p "$repository"
mount --rbind /run/repository "$repository"

home=/run/base/$name
mkdir -p "$home"
sed "s|^root:.*|root:x:0:0::$home:/bin/bash|" /etc/passwd > /run/passwd
mount --bind /run/passwd /etc/passwd

if [ "$address" = - ]; then
    ip link set lo up
    echo ready
    exec sleep infinity
fi
cat > /run/sshd_config <<CONFIG
ListenAddress $address:22
HostKey /run/base/keys/host
AuthorizedKeysFile /run/base/keys/user.pub
PidFile /run/sshd.pid
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
CONFIG
echo ready
exec /usr/sbin/sshd -D -e -f /run/sshd_config

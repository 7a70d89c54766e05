#!/usr/bin/env bash
#
# Builds a Debian 12 disk image for virtual machines from Debian's packages, for machines that
# cannot download the published cloud images. Runs as root; needs no loop device, no network block
# device and no virtual machine. README.md beside this file says what is in it.
#
#   build.sh [--out DIR] [--refresh | --check]
#
#   --out DIR   where the image goes (default: ${XDG_CACHE_HOME:-~/.cache}/golem-provider/images/debian-12)
#   --refresh   build again, with today's packages, although no input changed
#   --check     build nothing; exit 0 when the image is up to date, 1 when it is not
#
# Packages come from where this machine's apt gets Debian's; GOLEM_IMAGE_MIRROR and
# GOLEM_IMAGE_SECURITY_MIRROR name other places.
#
# Result: DIR/catalog.toml, which names the disk, the kernel and the initrd in DIR/builds/…/. The
# build before stays, for a provider whose configuration still names it.
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

readonly SUITE=bookworm
readonly ALIAS=debian-12
readonly DISK_MIB=2048       # of the sparse disk; a machine's root file system grows to its own size
readonly BOOT_START_MIB=1    # partition 1: GRUB's core, for machines booted through the firmware
readonly ROOT_START_MIB=2    # partition 2: the root file system
readonly KERNEL_ARGUMENTS="root=/dev/vda2 ro console=ttyS0 quiet cryptomgr.notests"
# What the initrd for a direct boot loads before it mounts the root file system. The network card is
# among it because cloud-init looks for it by its address, perhaps before udev has loaded a driver.
readonly INITRD_MODULES=(virtio_pci virtio_mmio virtio_blk ext4 virtio_net)
readonly GRUB_DIR=/usr/lib/grub/i386-pc
readonly GRUB_MODULES=(biosdisk part_gpt ext2 normal linux search search_label serial terminal echo test boot configfile)

here=$(dirname "$(readlink -f "$0")")
out=${XDG_CACHE_HOME:-$HOME/.cache}/golem-provider/images/$ALIAS
mode=build

fail() { echo "build.sh: $*" >&2; exit 1; }

while [ $# -gt 0 ]; do
  case $1 in
    --out) [ $# -ge 2 ] || fail "--out needs a directory"; out=$2; shift ;;
    --refresh) mode=refresh ;;
    --check) mode=check ;;
    -h | --help) sed -n '3,/^set -/{/^set -/d;s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    *) fail "unknown argument $1 (try --help)" ;;
  esac
  shift
done

# --- What the image is made of, and whether it is there already -------------------------------

# The address of a suite as this machine's apt knows it.
apt_site() {
  command -v apt-get >/dev/null || return 0
  apt-get indextargets --format '$(SITE)|$(RELEASE)|$(CODENAME)' 'Created-By: Packages' |
    awk -F'|' -v suite="$1" '$2 == suite || $3 == suite { print $1; exit }'
}

# Names of files and what is in them; not their times or owners.
digest_of() { (cd "$here" && find "$@" -type f ! -name '*.md' -print0 | sort -z | xargs -0 sha256sum) | sha256sum | cut -c1-12; }

packages=$(sed 's/#.*//' "$here/packages.txt" | xargs | tr ' ' ',')
packages_key=$(digest_of packages.txt bootstrap)
key=$(digest_of .)

mkdir -p "$out"
out=$(readlink -f "$out")
catalog=$out/catalog.toml

up_to_date() {
  local directory
  directory=$(sed -n "s|^source = \"\($out/builds/[0-9]*-$key\)/disk.qcow2\"\$|\1|p" "$catalog" 2>/dev/null)
  [ -n "$directory" ] && [ -s "$directory/disk.qcow2" ] && [ -s "$directory/vmlinux" ] && [ -s "$directory/initrd" ]
}

if [ "$mode" = check ]; then up_to_date; exit; fi

exec 9>"$out/.lock"
flock -n 9 || { echo "another build is under way in $out: waiting for it"; flock 9; }
if [ "$mode" = build ] && up_to_date; then
  echo "up to date: $catalog"
  exit 0
fi

[ "$(uname -m)" = x86_64 ] || fail "builds x86_64 images on x86_64 machines, and this is $(uname -m)"
[ "$(id -u)" = 0 ] || fail "has to run as root: Debian's packages are installed into a directory with chroot"
missing=()
for tool in mmdebstrap mke2fs sfdisk qemu-img grub-mkimage cpio lz4 gcc python3; do
  command -v "$tool" >/dev/null || missing+=("$tool")
done
[ -e "$GRUB_DIR/boot.img" ] || missing+=("$GRUB_DIR/boot.img")
[ ${#missing[@]} = 0 ] || fail "needs ${missing[*]}; on Debian and Ubuntu:
  apt-get install mmdebstrap e2fsprogs fdisk qemu-utils grub-pc-bin grub-common cpio lz4 zstd xz-utils gcc libc6-dev python3"

# --- Progress and scratch space ---------------------------------------------------------------

work=$(mktemp -d "$out/.work.XXXXXX")
log=$out/build.log
: >"$log"
finish() {
  local status=$?
  rm -rf --one-file-system "$work"
  if [ "$status" != 0 ]; then
    echo "build.sh: failed. The end of $log:" >&2
    tail -n 20 "$log" >&2
  fi
}
trap finish EXIT
trap 'exit 130' INT TERM

step() { echo "$*"; echo "== $*" >>"$log"; }

root=$work/root

# Copies a tree of this directory into the root file system, owned by root.
copy_tree() { tar -C "$here/$1" --owner=0 --group=0 --mode='u=rwX,go=rX' -c . | tar -x -C "$root" --no-overwrite-dir; }

# --- The steps --------------------------------------------------------------------------------

# Installs the packages; the slow part, so its result is kept for as long as the list is the same.
install_packages() {
  local mirror security archive=$out/packages-$packages_key.tar.zst
  if [ "$mode" = refresh ] || [ ! -s "$archive" ]; then
    mirror=${GOLEM_IMAGE_MIRROR:-$(apt_site "$SUITE")}
    [ -n "$mirror" ] || fail "this machine's apt has no source for Debian's $SUITE: set GOLEM_IMAGE_MIRROR (and GOLEM_IMAGE_SECURITY_MIRROR)"
    security=${GOLEM_IMAGE_SECURITY_MIRROR:-$(apt_site "$SUITE-security")}
    local sources=("deb $mirror $SUITE main" "deb $mirror $SUITE-updates main")
    [ -z "$security" ] || sources+=("deb $security $SUITE-security main")
    step "installing Debian packages into a directory (about a minute)"
    mmdebstrap --mode=root --variant=minbase --include="$packages" --format=tar \
      --aptopt='APT::Install-Recommends "0"' --aptopt='Acquire::Languages "none"' \
      --dpkgopt=force-unsafe-io \
      --setup-hook="tar -C '$here/bootstrap' --owner=0 --group=0 --mode='u=rwX,go=rX' -c . | tar -x -C \"\$1\" --no-overwrite-dir" \
      --skip=check/empty \
      "$SUITE" - "${sources[@]}" 2>>"$log" | zstd -q -3 -T0 -f -o "$archive.partial"
    rm -f "$out"/packages-*.tar.zst
    mv "$archive.partial" "$archive"
  fi
  step "unpacking them (seconds)"
  mkdir "$root"
  zstd -dcq "$archive" | tar -x -C "$root" --numeric-owner --xattrs --xattrs-include='*'
}

configure() {
  local unit
  step "configuring the system (seconds)"
  # What must differ between machines: made at the first boot of each. The machine id has to be
  # empty; a missing one makes systemd think that this is not its first boot.
  rm -f "$root"/etc/ssh/ssh_host_* "$root"/var/lib/dbus/machine-id "$root"/etc/resolv.conf
  : >"$root/etc/machine-id"

  rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/*.log "$root"/var/log/apt "$root"/tmp/* \
    "$root"/usr/share/{man,info,locale,lintian}/*
  find "$root/usr/share/doc" -type f ! -name copyright -delete
  find "$root/usr/share/doc" -depth -type d -empty -delete
  mkdir -p "$root/var/cache/apt/archives/partial" "$root/var/lib/apt/lists/partial"

  copy_tree files
  ln -s /run/systemd/resolve/resolv.conf "$root/etc/resolv.conf"

  chroot "$root" systemctl enable -q systemd-networkd systemd-resolved ssh qemu-guest-agent \
    serial-getty@ttyS0 golem-cloud-init >>"$log" 2>&1
  chroot "$root" systemctl set-default -q multi-user.target >>"$log" 2>&1
  for unit in $(sed 's/#.*//' "$here/units-off.txt"); do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
  done

  mkdir -p "$root/etc/systemd/system-generators"
  for unit in $(sed 's/#.*//' "$here/generators-off.txt"); do
    ln -sf /dev/null "$root/etc/systemd/system-generators/$unit"
  done

  # Names and the time after sshd, which needs neither.
  for unit in systemd-resolved.service systemd-timesyncd.service; do
    sed -e '/^Before=/d' -e 's/^After=.*/& ssh.service/' "$root/lib/systemd/system/$unit" >"$root/etc/systemd/system/$unit"
    grep -q 'ssh.service' "$root/etc/systemd/system/$unit" || sed -i 's/^\[Unit\]/&\nAfter=ssh.service/' "$root/etc/systemd/system/$unit"
    rm -f "$root/etc/systemd/system/sysinit.target.wants/$unit"
    ln -sf "../$unit" "$root/etc/systemd/system/multi-user.target.wants/$unit"
  done

  # No user manager (systemd --user) for every login.
  sed -i 's/^session.*pam_systemd.so.*/# slim: &/' "$root/etc/pam.d/common-session"

  [ -e "$root/vmlinuz" ] || ln -s "boot/vmlinuz-$kernel_version" "$root/vmlinuz"
  [ -e "$root/initrd.img" ] || ln -s "boot/initrd.img-$kernel_version" "$root/initrd.img"
}

# The kernel and an initrd outside of the disk, for direct boots.
extract_kernel() {
  local initrd=$work/initrd
  step "extracting the kernel and building an initrd (seconds)"
  python3 "$here/tools/extract-vmlinux.py" "$root/boot/vmlinuz-$kernel_version" "$work/vmlinux" 2>>"$log"
  mkdir -p "$initrd/mod"
  python3 "$here/tools/copy-modules.py" "$root/lib/modules/$kernel_version" "$initrd/mod" "${INITRD_MODULES[@]}" 2>>"$log"
  gcc -Os -s -static -Wall -Wextra -Werror -o "$initrd/init" "$here/initrd/init.c" 2>>"$log"
  (cd "$initrd" && find . | sort | cpio -o -H newc --quiet --owner=0:0) >"$work/initrd.cpio"
}

make_disk() {
  local disk=$work/disk.raw boot_start root_start
  step "writing the disk (about 10 seconds)"
  boot_start=$((BOOT_START_MIB * 2048)) root_start=$((ROOT_START_MIB * 2048))
  truncate -s "${DISK_MIB}M" "$disk"
  sfdisk -q "$disk" >>"$log" 2>&1 <<TABLE
label: gpt
start=$boot_start, size=$((root_start - boot_start)), type=21686148-6449-6E6F-744E-656564454649, name=bios
start=$root_start, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=root
TABLE
  # The last MiB is left for the second copy of the partition table. No features that the GRUB
  # and the e2fsprogs of Debian 12 do not know.
  mke2fs -q -t ext4 -L vmroot -m 1 -O ^metadata_csum_seed,^orphan_file \
    -E "offset=$((ROOT_START_MIB * 1024 * 1024)),lazy_itable_init=1,discard" \
    -d "$root" "$disk" "$((DISK_MIB - ROOT_START_MIB - 1))M" >>"$log" 2>&1
  grub-mkimage -O i386-pc -d "$GRUB_DIR" -o "$work/core.img" -p "(hd0,gpt2)/boot/grub" "${GRUB_MODULES[@]}" 2>>"$log"
  python3 "$here/tools/install-grub.py" "$disk" "$GRUB_DIR/boot.img" "$work/core.img" \
    "$boot_start" "$((root_start - boot_start))" 2>>"$log"
  qemu-img convert -f raw -O qcow2 "$disk" "$work/disk.qcow2" >>"$log" 2>&1
}

sha256_of() { sha256sum "$1" | cut -d' ' -f1; }

publish() {
  local build
  step "computing checksums and writing the catalog (seconds)"
  build=$out/builds/$(date +%Y%m%d%H%M%S)-$key
  mkdir -p "$build"
  # Read-only: the catalog states their checksums.
  install -m 444 "$work/vmlinux" "$build/vmlinux"
  install -m 444 "$work/initrd.cpio" "$build/initrd"
  chmod 444 "$work/disk.qcow2"
  mv "$work/disk.qcow2" "$build/disk.qcow2"
  cat >"$work/catalog.toml" <<TOML
[images."$ALIAS"]
description = "Debian 12 (bookworm), built on this machine"
source = "$build/disk.qcow2"
sha256 = "$(sha256_of "$build/disk.qcow2")"
[images."$ALIAS".direct-boot]
kernel = "$build/vmlinux"
kernel-sha256 = "$(sha256_of "$build/vmlinux")"
initrd = "$build/initrd"
initrd-sha256 = "$(sha256_of "$build/initrd")"
append = "$KERNEL_ARGUMENTS"
TOML
  local file
  for file in disk.qcow2 vmlinux initrd; do ln -sfn "$build/$file" "$out/$file"; done
  mv "$work/catalog.toml" "$catalog"
  # The names begin with the time, so the last two are the newest.
  find "$out/builds" -mindepth 1 -maxdepth 1 -type d | sort | head -n -2 | xargs -r rm -r
}

install_packages
kernel_version=$(basename "$(find "$root/lib/modules" -mindepth 1 -maxdepth 1 | sort -V | tail -n 1)")
configure
extract_kernel
make_disk
publish
echo "built: $catalog ($(du -m "$out/builds/"*"-$key/disk.qcow2" | tail -n 1 | cut -f1) MB, Linux $kernel_version)"

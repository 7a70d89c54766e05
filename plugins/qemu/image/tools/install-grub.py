#!/usr/bin/env python3
"""Puts GRUB for BIOS machines on a raw disk, as grub-bios-setup would, without a loop device.

usage: install-grub.py DISK BOOT_IMG CORE_IMG FIRST_SECTOR SECTORS

CORE_IMG is written to the BIOS boot partition, which begins at FIRST_SECTOR and is SECTORS long.
"""

import struct
import sys

SECTOR = 512


def main() -> None:
    disk, boot_path, core_path, first, sectors = sys.argv[1:]
    first, sectors = int(first), int(sectors)
    with open(boot_path, "rb") as file:
        boot = bytearray(file.read())
    with open(core_path, "rb") as file:
        core = bytearray(file.read())
    core += b"\0" * (-len(core) % SECTOR)
    used = len(core) // SECTOR
    if used > sectors:
        raise SystemExit(f"GRUB's core is {used} sectors, the partition for it {sectors}")

    struct.pack_into("<Q", boot, 0x5C, first)  # where the core's first sector is
    boot[0x66:0x68] = b"\x90\x90"  # no jump to the floppy drive's code, as on any hard disk
    # The core's first sector loads the rest of it: sector, count, segment.
    struct.pack_into("<QHH", core, 0x1F4, first + 1, used - 1, 0x820)

    with open(disk, "r+b") as file:
        table = file.read(SECTOR)
        file.seek(0)
        file.write(bytes(boot[:440]) + table[440:])  # keep the disk's id and protective table
        file.seek(first * SECTOR)
        file.write(core)


main()

#!/usr/bin/env python3
"""Takes the uncompressed kernel (an ELF file with a PVH entry) out of a bzImage.

An uncompressed kernel spares the guest its own decompression, which takes seconds when the
processor is emulated.

usage: extract-vmlinux.py BZIMAGE VMLINUX
"""

import struct
import subprocess
import sys

# How a compressed payload begins, and what unpacks it from standard input. (The kernel writes
# LZ4's legacy format, which the lz4 program reads as well.)
UNPACKERS = {
    b"\x02\x21\x4c\x18": ["lz4", "-dcq"],
    b"\xfd7zX": ["xz", "-dcq"],
    b"\x28\xb5\x2f\xfd": ["zstd", "-dcq"],
    b"\x1f\x8b": ["gzip", "-dcq"],
}


def payload(image: bytes) -> bytes:
    """The compressed kernel, by the fields of the x86 boot protocol's set-up header."""
    if image[0x202:0x206] != b"HdrS":
        raise SystemExit("not a bzImage")
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    # The last four bytes are the unpacked size, appended by the kernel's build.
    return image[start : start + length - 4]


def main() -> None:
    source, target = sys.argv[1:]
    with open(source, "rb") as file:
        packed = payload(file.read())
    for magic, command in UNPACKERS.items():
        if packed.startswith(magic):
            break
    else:
        raise SystemExit(f"{source}: packed in a way this tool does not know: {packed[:4].hex()}")
    kernel = subprocess.run(command, input=packed, stdout=subprocess.PIPE).stdout
    if kernel[:4] != b"\x7fELF":
        raise SystemExit(f"{source}: {command[0]} did not give an ELF file")
    with open(target, "wb") as file:
        file.write(kernel)


main()

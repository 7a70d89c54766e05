#!/usr/bin/env python3
"""Copies kernel modules and what they depend on, numbered in the order they have to be loaded.

usage: copy-modules.py /path/lib/modules/VERSION TARGET MODULE...

A module that is built into the kernel needs no file and is passed over; one that is neither a
file nor built in is an error.
"""

import os
import shutil
import sys


def name_of(path: str) -> str:
    return os.path.basename(path).split(".ko")[0].replace("-", "_")


def main() -> None:
    base, target, *wanted = sys.argv[1:]
    with open(f"{base}/modules.dep") as file:
        dependencies = {
            module: rest.split() for module, rest in (line.rstrip().split(":", 1) for line in file)
        }
    with open(f"{base}/modules.builtin") as file:
        built_in = {name_of(line.strip()) for line in file}
    by_name = {name_of(path): path for path in dependencies}

    order: list[str] = []
    for module in wanted:
        if module in by_name:
            path = by_name[module]
            # modules.dep lists the deepest dependency last.
            for part in reversed([path, *dependencies[path]]):
                if part not in order:
                    order.append(part)
        elif module not in built_in:
            raise SystemExit(f"{base}: there is no module {module}")
    for number, path in enumerate(order):
        shutil.copy(f"{base}/{path}", f"{target}/{number:02}-{os.path.basename(path)}")


main()

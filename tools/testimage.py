#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""testimage.py FOLDER: builds the image `base` with the programs of $KELPIE_BUILD and leaves its kernel and initramfs
in FOLDER, for tests that boot a guest without a daemon. Packages come from the builder's cache, else from Debian.
Status 77 and the reason, one line on standard error, when there are no package tools or no packages."""

import json
import os
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests", "e2e"))
import kit  # noqa: E402


def part_copy(world, digest, target):
    """A store's objects lie under their digests."""
    shutil.copyfile(os.path.join(world.store, "blobs", digest[:2], digest), target + ".new")
    os.rename(target + ".new", target)


def main():
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    with kit.World(backend="mock", seeded=False) as world:
        node = world.node("image")
        built = node.cli("image", "build", "base", "--arch", "x86_64", "-q", timeout=600)
        if built.status in (12, 14):
            print(built.err.strip().splitlines()[0], file=sys.stderr)
            return 77
        built.ok("image build")
        image = node.cli("image", "inspect", "base", "--json").ok("image inspect").json()["images"][0]
        digest = image["digest"]
        with open(os.path.join(world.store, "blobs", digest[:2], digest), encoding="utf-8") as file:
            description = json.load(file)
        for part in ("kernel", "initramfs"):
            part_copy(world, description[part]["digest"], os.path.join(folder, part))
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""kills.py over real guests under QEMU."""

import os
import sys

os.environ["KELPIE_TEST_BACKEND"] = "qemu"
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import kills  # noqa: E402

if __name__ == "__main__":
    sys.exit(kills.run_tests(kills))

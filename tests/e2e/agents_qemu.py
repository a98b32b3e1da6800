#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""agents_mock.py over real guests under QEMU."""

import os
import sys

os.environ["KELPIE_TEST_BACKEND"] = "qemu"
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import agents_mock  # noqa: E402

if __name__ == "__main__":
    sys.exit(agents_mock.run_tests(agents_mock))

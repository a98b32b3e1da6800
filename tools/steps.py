#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The steps of the Makefile that run something and judge it: test, test-vm, test-dst, matrix, fuzz, sanitize, coverage.
What they run was built before, but for the matrix's own. Each ends with `N passed, N failed, N skipped`; a step with
nothing behind it says so and ends with status 2."""

import argparse
import collections
import glob
import gzip
import json
import os
import re
import shutil
import subprocess
import sys

import runtests
from runtests import TOP, Program

SEEDS = 500  # of `make test` and `make test-dst`
MATRIX_SECONDS = 3600
SKIPPED = [0, 0, 1]


def add(*sums):
    return [sum(parts) for parts in zip(*sums)]


def nothing(text):
    print(text, file=sys.stderr)
    sys.exit(2)


def programs_of(build, suites, only=None):
    found = [p for suite in suites for p in runtests.suite_programs(suite, build)]
    return [p for p in found if not only or re.search(only, p.name)]


# ---- the simulator


def known_seeds(program):
    """tests/dst/seeds.txt: seeds that once failed, a line each: seed, options, `#`, what was wrong."""
    totals = [0, 0, 0]
    with open(os.path.join(TOP, "tests", "dst", "seeds.txt"), encoding="utf-8") as file:
        lines = [line.partition("#") for line in file if line.strip() and not line.startswith("#")]
    for words, _, what in lines:
        seed, *options = words.split()
        result = subprocess.run([program, *options], env=dict(os.environ, DST_SEED=seed), stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True)
        if result.returncode != 0:
            print(f"fail: seed {seed} ({what.strip()}): status {result.returncode}\n{result.stdout[-2000:]}")
        totals[0 if result.returncode == 0 else 1] += 1
    return totals


def simulator(build, seeds):
    """One seed, twice, where DST_SEED names it; else a row of them. Then the planted mistakes, where they are built."""
    program = os.path.join(build, "kelpie-dst")
    named = os.environ.get("DST_SEED")
    environment = dict(os.environ, DST_SEED=named if named is not None else "1")
    command = [program] if named is not None else [program, "--seeds", str(seeds)]
    last = []
    totals = [0, 0, 0]
    for _ in range(2 if named is not None else 1):
        result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
        print(result.stdout, end="", flush=True)
        if result.returncode == 2:
            sys.exit(2)
        last.append((result.stdout.strip().splitlines() or [""])[-1])
        good = result.returncode == 0 and re.fullmatch(r"seed=\d+ hash=[0-9a-f]{16} verdict=pass", last[-1])
        totals[0 if good else 1] += 1
    if len(set(last)) != 1:
        print("fail: the same seed did not repeat")
        totals[1] += 1
    if named is None:
        totals = add(totals, known_seeds(program))
    mutants = glob.glob(os.path.join(build, "mutants", "*"))
    if named is None and mutants:
        result = subprocess.run([program, "--mutants"], env=environment, stdout=subprocess.PIPE, text=True)
        print(result.stdout, end="")
        killed = sum(1 for line in result.stdout.splitlines() if re.search(r" killed seeds=\d+$", line))
        totals = add(totals, [killed, max(len(mutants) - killed, int(result.returncode != 0)), 0])
    return totals


def matrix(options):
    """The same seeds, built and run otherwise. Alone: it builds, too."""
    if not os.path.exists(os.path.join(options.build, "kelpie-dst")):
        nothing("matrix: this build has no simulator")
    programs = programs_of(options.build, ("dst",), "^dst/matrix$")
    for program in programs:
        program.command += ["--all"] if options.all else []
        program.seconds = MATRIX_SECONDS
    return runtests.conclude(runtests.run_all(options.build, programs, jobs=1, verbose=True))


def test_dst(options):
    if not os.path.exists(os.path.join(options.build, "kelpie-dst")):
        nothing("test-dst: this build has no simulator")
    return runtests.conclude(simulator(options.build, options.seeds or SEEDS))


# ---- tests


def test(options):
    programs = programs_of(options.build, ("unit", "corpus", "model", "e2e", "crash"), options.only)
    has_simulator = os.path.exists(os.path.join(options.build, "kelpie-dst"))
    simulating = programs_of(options.build, ("dst",), options.only) if has_simulator else []
    if not programs and not simulating:
        nothing("test: no program matches")
    totals = runtests.run_all(options.build, programs)
    totals = add(totals, runtests.run_all(options.build, simulating, jobs=1))
    if options.only is None:
        if has_simulator:
            totals = add(totals, simulator(options.build, options.seeds or SEEDS))
        else:
            print("  skip simulator: this build has no kelpie-dst")
            totals = add(totals, SKIPPED)
    return runtests.conclude(totals)


def test_vm(options):
    """Programs of the VM interface over one backend, and the end-to-end scripts of that backend."""
    backend = options.backend
    if backend in ("firecracker", "vz"):
        nothing(f"test-vm: the backend '{backend}' is not written yet")
    if backend not in ("mock", "qemu"):
        nothing(f"test-vm: no backend is called '{backend}': mock, qemu, firecracker, vz")
    other = {"mock": "qemu", "qemu": "mock"}[backend]
    # Where the kernel keeps a page (vm_private_pages) is a question to the host, not to a backend: `make test` asks it.
    programs = [p for p in programs_of(options.build, ("unit", "e2e"))
                if (p.name.startswith("unit/vm_") and other not in p.name and "private_pages" not in p.name)
                or p.name.endswith("_" + backend)]
    if not programs:
        nothing(f"test-vm: there is no test of the backend '{backend}' yet")
    for program in programs:
        program.environment = {"KELPIE_TEST_BACKEND": backend}
    return runtests.conclude(runtests.run_all(options.build, programs))


# ---- sanitizers


def without_random_layout():
    """ThreadSanitizer's map of the address space does not fit a kernel that spreads mappings over more than 28 bits."""
    try:
        with open("/proc/sys/vm/mmap_rnd_bits") as file:
            return ["setarch", "-R"] if int(file.read()) > 28 else []
    except (OSError, ValueError):
        return []


def sanitize(options):
    asan, tsan = (os.path.join(options.build, name) for name in ("asan", "tsan"))
    guest = os.path.join(options.build, "kelpie-guest")
    memory = programs_of(asan, ("unit", "corpus"), options.only)
    threads = programs_of(tsan, ("threaded",), options.only)
    for program in memory:
        program.environment = {"KELPIE_GUEST": guest, "ASAN_OPTIONS": "detect_leaks=1:strict_string_checks=1",
                               "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}
        program.seconds *= 3
    for program in threads:
        program.environment = {"KELPIE_GUEST": guest, "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1"}
        program.command = without_random_layout() + program.command
        program.seconds *= 3
    print("address and undefined behaviour:")
    first = runtests.run_all(asan, memory)
    print("threads:")
    return runtests.conclude(add(first, runtests.run_all(tsan, threads)))


# ---- fuzzing


def fuzz_program(build, path, seconds):
    name = os.path.basename(path)[len("fuzz_"):]
    corpus = os.path.join(TOP, "tests", "fuzz", "corpus", name)
    found = os.path.join(build, "found", name)
    os.makedirs(found, exist_ok=True)
    command = ["tap", path, f"-max_total_time={seconds}", "-timeout=25", "-rss_limit_mb=2048", "-print_final_stats=1",
               f"-artifact_prefix={found}-crash-", found, corpus]
    return Program("fuzz/" + name, command, seconds + 120)


def fuzz(options):
    paths = [p for p in sorted(glob.glob(os.path.join(options.build, "tests", "fuzz", "fuzz_*")))
             if os.path.isfile(p) and os.access(p, os.X_OK)]
    programs = [fuzz_program(options.build, path, options.seconds) for path in paths]
    programs = [p for p in programs if not options.only or re.search(options.only, p.name)]
    if not programs:
        nothing("fuzz: no target matches")
    return runtests.conclude(runtests.run_all(options.build, programs))


# ---- coverage


def lines_seen(build):
    """file -> line -> times, over all objects of the build (gcov's JSON)."""
    seen = collections.defaultdict(lambda: collections.defaultdict(int))
    folder = os.path.join(build, "gcov")
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    data = glob.glob(os.path.join(build, "**", "*.gcda"), recursive=True)
    for start in range(0, len(data), 64):
        subprocess.run(["gcov", "--json-format", "--hash-filenames", *data[start:start + 64]], cwd=folder,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    for path in glob.glob(os.path.join(folder, "*.gcov.json.gz")):
        with gzip.open(path, "rt") as file:
            document = json.load(file)
        for unit in document["files"]:
            name = os.path.relpath(os.path.join(document["current_working_directory"], unit["file"]), TOP)
            for line in unit["lines"]:
                seen[name][line["line_number"]] += line["count"]
    return seen


def coverage(options):
    for path in glob.glob(os.path.join(options.build, "**", "*.gcda"), recursive=True):
        os.remove(path)
    totals = runtests.run_all(options.build, programs_of(options.build, ("unit", "corpus", "e2e", "crash")))
    folders = collections.defaultdict(lambda: [0, 0])
    for name, lines in lines_seen(options.build).items():
        if name.startswith(("src/", "sim/")):
            for key in (os.path.dirname(name), "all"):
                folders[key][0] += sum(1 for count in lines.values() if count)
                folders[key][1] += len(lines)
    for key in sorted(folders, key=lambda k: (k == "all", k)):
        hit, count = folders[key]
        print(f"{100 * hit / count:5.1f} %  {hit:6} of {count:6} lines  {key}")
    return runtests.conclude(totals)


STEPS = {"test": test, "test-vm": test_vm, "test-dst": test_dst, "matrix": matrix, "sanitize": sanitize, "fuzz": fuzz,
         "coverage": coverage}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--build", default=os.path.join(TOP, "build"))
    parser.add_argument("--backend", default="mock")
    parser.add_argument("--only", metavar="REGEX")
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--all", action="store_true", help="matrix: every configuration")
    options = parser.parse_args()
    options.build = os.path.abspath(options.build)
    return STEPS[options.step](options)


if __name__ == "__main__":
    sys.exit(main())

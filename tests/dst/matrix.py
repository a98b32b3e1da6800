#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The same seeds come to the same hash, however the simulator was built and run: compilers, optimisation, ways to
switch fibers, sanitizers, address layouts, architectures. Compared is the last line of `kelpie-dst --seeds N`, which folds
the hashes of all N runs, with that of the normal build ($KELPIE_BUILD). A difference is looked for: the seed, and
the first line of its trace that differs.

Without options what CI has time for, with --all everything. Builds lie in $KELPIE_BUILD/matrix and $KELPIE_BUILD/asan.
Words name the configurations to run: those whose name contains one."""

import argparse
import concurrent.futures
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.abspath(os.environ.get("KELPIE_BUILD", os.path.join(TOP, "build")))
SEEDS = 300
SEEDS_AARCH64 = 100  # in the quick form: an instruction there costs about ten
SEEDS_VALGRIND = 20  # and about fifty here
RUN_SECONDS = 600
LAST_LINE = re.compile(r"seed=\d+ hash=[0-9a-f]{16} verdict=\w+")
SANITIZER_OPTIONS = {"ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1",
                     "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}


class Failed(Exception):
    pass


class Build:
    """A folder with a kelpie-dst, and how it came to be."""

    def __init__(self, folder, compiler=None, options=None, needs=(), wrap=()):
        self.folder = os.path.join(BUILD, folder)
        self.compiler, self.options, self.needs, self.wrap = compiler, options, tuple(needs), list(wrap)

    def missing(self):
        if "qemu-aarch64" in self.needs and os.uname().machine != "x86_64":
            return f"the cross compiler is for x86-64 hosts, this is one of {os.uname().machine}"
        gone = [name for name in self.needs if shutil.which(name) is None]
        return f"{' and '.join(gone)} not installed" if gone else None

    def make(self):
        """Only the simulator and core."""
        environment = dict(os.environ, **({"CC": self.compiler} if self.compiler else {}))
        if not os.path.exists(os.path.join(self.folder, "build.ninja")):
            command_run(["meson", "setup", self.folder, *self.options], environment)
        command_run(["ninja", "-j2", "-C", self.folder, "kelpie-dst"], environment)

    def command(self):
        return [*self.wrap, os.path.join(self.folder, "kelpie-dst")]


class Configuration:
    def __init__(self, name, build, fibers="asm", wrap=(), seeds=SEEDS, environment=None):
        self.name, self.build, self.fibers, self.wrap = name, build, fibers, list(wrap)
        self.seeds, self.environment = seeds, environment or {}

    def missing(self):
        if self.wrap and shutil.which(self.wrap[0]) is None:
            return f"{self.wrap[0]} not installed"
        if self.wrap and subprocess.run([*self.wrap, "true"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                        check=False).returncode != 0:
            return f"{' '.join(self.wrap)} is not allowed here"
        return self.build.missing()

    def simulate(self, seed, count=None, trace=None):
        """The last line of what it prints."""
        command = [*self.wrap, *self.build.command(), "--fibers", self.fibers]
        command += ["--seeds", str(count)] if count else []
        command += ["--trace", trace] if trace else []
        result = subprocess.run(command, env=dict(os.environ, DST_SEED=str(seed), **self.environment), cwd=TOP,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                errors="replace", timeout=RUN_SECONDS, check=False)
        last = (result.stdout.strip().splitlines() or [""])[-1]
        # Tools that find something say so by the status, behind a line that looks good.
        good = last.endswith("verdict=pass")
        if not LAST_LINE.fullmatch(last) or good != (result.returncode == 0) or good and result.stderr:
            raise Failed(f"{' '.join(command)}: status {result.returncode}\n{result.stdout[-2000:]}{result.stderr[-6000:]}")
        return last


def command_run(command, environment):
    result = subprocess.run(command, env=environment, cwd=TOP, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
    if result.returncode != 0:
        wrong = result.stdout.find("FAILED:")  # ninja's word; what was built before it is of no interest
        text = result.stdout[wrong:][:4000] if wrong >= 0 else result.stdout[-4000:]
        raise Failed(f"{' '.join(command)}: status {result.returncode}\n{text}")


# ---- the list

NORMAL = Build("")
ASAN = Build("asan", options=["-Db_sanitize=address,undefined"])  # that of `make sanitize`
ONE_CPU = ("taskset", "-c", str(min(os.sched_getaffinity(0))))  # a baton goes round faster where it need not travel
REFERENCE = Configuration("the normal build", NORMAL)


def compiled(compiler, optimization):
    return Build(f"matrix/{compiler}-O{optimization}", compiler, needs=[compiler],
                 options=["-Donly_simulator=true", f"-Doptimization={optimization}"])


def crossed(optimization):
    """Linked as a native program is; the emulator finds loader and libraries where the packages put them."""
    return Build(f"matrix/aarch64-O{optimization}", needs=["aarch64-linux-gnu-gcc", "qemu-aarch64"], wrap=["qemu-aarch64"],
                 options=["--cross-file", "tools/aarch64.ini", "-Donly_simulator=true", f"-Doptimization={optimization}"])


def quick():
    yield Configuration("gcc -O2, ucontext", NORMAL, "ucontext")
    yield Configuration("gcc -O2, threads", NORMAL, "thread", wrap=ONE_CPU)
    yield Configuration("gcc -O2, fixed addresses", NORMAL, wrap=["setarch", "-R"])
    yield Configuration("clang -O2", compiled("clang", 2))
    yield Configuration("gcc ASan and UBSan", ASAN, environment=SANITIZER_OPTIONS)
    yield Configuration("aarch64 gcc -O2", crossed(2), seeds=SEEDS_AARCH64)


def everything():
    for compiler, optimization in itertools.product(("gcc", "clang"), (0, 2, 3)):
        build, name = compiled(compiler, optimization), f"{compiler} -O{optimization}"
        yield Configuration(name, build)
        yield Configuration(name + ", fixed addresses", build, wrap=["setarch", "-R"])
        yield Configuration(name + ", ucontext", build, "ucontext")
        yield Configuration(name + ", threads", build, "thread", wrap=ONE_CPU)
    yield Configuration("the normal build, threads on every processor", NORMAL, "thread")
    clang_asan = Build("matrix/clang-asan", "clang", needs=["clang"],
                       options=["-Donly_simulator=true", "-Db_lundef=false", "-Db_sanitize=address,undefined"])
    for name, build in (("gcc", ASAN), ("clang", clang_asan)):
        yield Configuration(name + " ASan and UBSan", build, environment=SANITIZER_OPTIONS)
        yield Configuration(name + " ASan and UBSan, threads", build, "thread", wrap=ONE_CPU, environment=SANITIZER_OPTIONS)
    # A hash that depends on bytes nobody wrote might come out equal everywhere.
    yield Configuration("valgrind", NORMAL, wrap=["valgrind", "-q", "--error-exitcode=9"], seeds=SEEDS_VALGRIND)
    yield Configuration("valgrind, threads", NORMAL, "thread", wrap=["valgrind", "-q", "--error-exitcode=9"],
                        seeds=SEEDS_VALGRIND)
    for optimization in (0, 2, 3):
        yield Configuration(f"aarch64 gcc -O{optimization}", crossed(optimization))
    for fibers in ("ucontext", "thread"):
        yield Configuration(f"aarch64 gcc -O2, {fibers}", crossed(2), fibers)


# ---- comparing


class Reference:
    """What the normal build says, asked once for each number of seeds."""

    def __init__(self, first):
        self.first, self.answers, self.lock = first, {}, threading.Lock()

    def line(self, count):
        with self.lock:
            if count not in self.answers:
                self.answers[count] = REFERENCE.simulate(self.first, count)
            return self.answers[count]


def different_seed(configuration, first, count):
    """The fold over n seeds differs from the first one on that does."""
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        same = configuration.simulate(first, middle) == REFERENCE.simulate(first, middle)
        low, high = (middle, high) if same else (low, middle)
    return first + low


def difference(configuration, first, count):
    seed = different_seed(configuration, first, count)
    with tempfile.TemporaryDirectory() as folder:
        lines = []
        for number, side in enumerate((REFERENCE, configuration)):
            path = os.path.join(folder, str(number))
            side.simulate(seed, trace=path)
            with open(path, encoding="utf-8", errors="replace") as file:
                lines.append(file.read().splitlines())
    for at, (ours, theirs) in enumerate(itertools.zip_longest(*lines, fillvalue="(the end)"), 1):
        if ours != theirs:
            before = "".join(f"\n  {line}" for line in lines[0][max(0, at - 4):at - 1])
            return f"DST_SEED={seed}, line {at} of the trace:{before}\n  {REFERENCE.name}: {ours}\n  {configuration.name}: {theirs}"
    return f"DST_SEED={seed}: equal traces, so something is folded of which the trace does not hear"


def judge(configuration, reference):
    """(verdict, text)"""
    begin = time.monotonic()
    line = configuration.simulate(reference.first, configuration.seeds)
    took = time.monotonic() - begin
    wanted = reference.line(configuration.seeds)
    if line != wanted:
        return False, f"{line}\ninstead of {wanted}\n{difference(configuration, reference.first, configuration.seeds)}"
    if not line.endswith("verdict=pass"):
        return False, f"{line}\nas the normal build says, but of a seed that fails nothing more is compared"
    return True, f"{configuration.seeds} seeds in {took:.1f} s: {line}"


def build_all(configurations):
    """The folders where that failed."""
    failed = set()
    for build in {c.build.folder: c.build for c in configurations}.values():
        begin = time.monotonic()
        try:
            build.make()
            print(f"# {os.path.relpath(build.folder, BUILD)}: built in {time.monotonic() - begin:.1f} s", flush=True)
        except Failed as error:
            failed.add(build.folder)
            print("# " + str(error).replace("\n", "\n# "), flush=True)
    return failed


def attempt(configuration, reference, unbuilt):
    try:
        if configuration.build.folder in unbuilt:
            raise Failed("not built, as said above")
        return judge(configuration, reference)
    except (Failed, OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)


def run_tests(configurations, first):
    print(f"1..{len(configurations)}")
    missing = {c.name: c.missing() for c in configurations}
    present = [c for c in configurations if not missing[c.name]]
    unbuilt = build_all(present)
    reference, failed = Reference(first), 0
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        pending = {c.name: pool.submit(attempt, c, reference, unbuilt) for c in present}
        for number, configuration in enumerate(configurations, 1):
            if missing[configuration.name]:
                print(f"ok {number} - {configuration.name} # SKIP {missing[configuration.name]}", flush=True)
                continue
            good, text = pending[configuration.name].result()
            failed += not good
            print(f"{'ok' if good else 'not ok'} {number} - {configuration.name}")
            print("#   " + text.replace("\n", "\n#   "), flush=True)
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="every configuration: what `make nightly` runs")
    parser.add_argument("--seeds", type=int, help="instead of 300, everywhere")
    parser.add_argument("--first", type=int, default=1, metavar="SEED")
    parser.add_argument("words", nargs="*", help="configurations whose name contains one")
    options = parser.parse_args()
    found = list(everything() if options.all else quick())
    found = [c for c in found if not options.words or any(word in c.name for word in options.words)]
    for configuration in found:
        configuration.seeds = options.seeds or configuration.seeds
    return run_tests(found, options.first)


if __name__ == "__main__":
    sys.exit(main())

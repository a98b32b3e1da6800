#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs test programs that print TAP, two at a time, each with a time limit; shows what failed and why anything was
skipped, and ends with `N passed, N failed, N skipped`, counted in test cases.

A program that dies by a signal, prints no plan, or fewer cases than its plan has failed, whatever it printed."""

import argparse
import concurrent.futures
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CASE = re.compile(r"^(not )?ok\b(?: +(\d+))?(?: +- +| +(?=#)|$)(.*)$")
PLAN = re.compile(r"^1\.\.(\d+)\s*(#\s*SKIP\s*(.*))?$", re.I)
GRACE_SECONDS = 20  # after an interrupt, for a script to end its daemons
# Programs in which several threads meet; these run under ThreadSanitizer.
THREADED = r"^(env_posix|store|registry|snapshot|teleport|node|vm|daemon)_"
# Programs that boot a guest without a daemon: they are given the parts of an image.
BARE_GUEST = r"^unit/vm_qemu_hypervisor$"


class Program:
    def __init__(self, name, command, seconds, environment=None):
        self.name, self.command, self.seconds, self.environment = name, command, seconds, environment or {}


class Verdict:
    def __init__(self, program, passed, failed, skipped, output, took):
        self.program, self.passed, self.failed, self.skipped = program, passed, failed, skipped
        self.output, self.took = output, took


def unit_programs(build):
    """Those that the build knows: a program left over from a removed test is not run."""
    with open(os.path.join(build, "meson-info", "intro-targets.json")) as file:
        targets = json.load(file)
    found = []
    for target in targets:
        path = target["filename"][0]
        if target["type"] == "executable" and os.path.basename(os.path.dirname(path)) == "unit":
            found.append(Program("unit/" + target["name"], [path], 180))
    return found


def corpus_programs(build):
    """The driver over each corpus: one case a target."""
    found = []
    for path in sorted(glob.glob(os.path.join(build, "tests", "fuzz", "fuzz_*"))):
        name = os.path.basename(path)[len("fuzz_"):]
        corpus = os.path.join(TOP, "tests", "fuzz", "corpus", name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            found.append(Program("corpus/" + name, ["tap", path, corpus], 180))
    return found


def script_programs(folder, seconds):
    found = []
    for path in sorted(glob.glob(os.path.join(TOP, "tests", folder, "*.py"))):
        with open(path, encoding="utf-8") as file:
            if "run_tests(" in file.read().replace("def run_tests(", ""):
                name = os.path.splitext(os.path.basename(path))[0]
                found.append(Program(f"{folder}/{name}", [sys.executable, path], seconds))
    return found


def suite_programs(suite, build):
    if suite == "unit":
        return unit_programs(build)
    if suite == "threaded":
        return [p for p in unit_programs(build) if re.match(THREADED, p.name[len("unit/"):])]
    if suite == "corpus":
        return corpus_programs(build)
    if suite == "model":
        return [Program("model/teleport", [sys.executable, os.path.join(TOP, "tests", "model", "run.py")], 900)]
    return script_programs(suite, 900)


def environment_for(build, program):
    environment = dict(os.environ, CMOCKA_MESSAGE_OUTPUT="TAP", KELPIE_BUILD=build)
    for key in ("KELPIE_HOST", "KELPIE_STATE", "KELPIE_POINT", "KELPIE_KEEPER", "KELPIE_GUEST"):
        environment.pop(key, None)
    environment.update(program.environment)
    environment.setdefault("KELPIE_KEEPER", os.path.join(build, "kelpie-keeper"))
    environment.setdefault("KELPIE_GUEST", os.path.join(build, "kelpie-guest"))
    return environment


def end_group(process):
    """An interrupt first: scripts end their daemons in it."""
    for number, seconds in ((signal.SIGINT, GRACE_SECONDS), (signal.SIGKILL, 5)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            continue


def guest_image(build):
    """What tells programs where kernel and initramfs are, or why there are none; False when the image builder failed."""
    if "KELPIE_TEST_KERNEL" in os.environ or shutil.which("qemu-system-x86_64") is None:
        return {}
    # The builds with sanitizers have no programs but the tests'.
    programs = build if os.path.exists(os.path.join(build, "kelpied")) else os.path.dirname(build)
    folder = os.path.join(programs, "test-image")
    result = subprocess.run([sys.executable, os.path.join(TOP, "tools", "testimage.py"), folder], stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env=dict(os.environ, KELPIE_BUILD=programs))
    if result.returncode == 77:
        return {"KELPIE_TEST_NO_IMAGE": result.stdout.strip()}
    if result.returncode != 0:
        print("fail the image for tests:\n    | " + result.stdout.strip().replace("\n", "\n    | "), flush=True)
        return False
    return {"KELPIE_TEST_KERNEL": os.path.join(folder, "kernel"),
            "KELPIE_TEST_INITRAMFS": os.path.join(folder, "initramfs")}


def execute(build, program):
    """(exit status or None when the time ran out, output)"""
    command = program.command
    wrap = command[0] == "tap"
    process = subprocess.Popen(command[1:] if wrap else command, cwd=TOP, env=environment_for(build, program),
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               start_new_session=True)
    timer_hit = threading.Event()

    def expire():
        timer_hit.set()
        end_group(process)

    timer = threading.Timer(program.seconds, expire)
    timer.start()
    output = process.stdout.read().decode("utf-8", "replace")
    status = process.wait()
    timer.cancel()
    if wrap:
        output += f"1..1\n{'ok' if status == 0 else 'not ok'} 1 - {program.name}\n"
        status = 0 if not timer_hit.is_set() and 0 <= status else status
    return (None if timer_hit.is_set() else status), output


def skip_reason(text, lines, at):
    """TAP has it behind SKIP; cmocka has the name there, and the test said why on the line before."""
    before = lines[at - 1] if at > 0 else ""
    if before and not CASE.match(before) and not PLAN.match(before) and not before.startswith("#"):
        return re.sub(r"^skipped: ", "", before)
    match = re.search(r"#\s*SKIP\s*(.*)$", text, re.I)
    return match.group(1) if match and not text.startswith("#") else ""


def judge(program, status, output, took):
    lines = output.splitlines()
    planned, passed, failed, skipped = None, [], [], []
    for at, line in enumerate(lines):
        plan, case = PLAN.match(line), CASE.match(line)
        if plan:
            planned = (planned or 0) + int(plan.group(1))
            if plan.group(2):
                skipped.append((program.name, plan.group(3) or ""))
        elif case:
            text = case.group(3)
            if re.search(r"#\s*SKIP", text, re.I):
                name = re.sub(r"\s*#\s*SKIP.*$", "", text, flags=re.I) or text.split("SKIP", 1)[1].strip()
                skipped.append((name, skip_reason(text, lines, at)))
            else:
                (failed if case.group(1) else passed).append(text)
    failed += [f"{name}: skipped without a reason" for name, reason in skipped if not reason]
    skipped = [(name, reason) for name, reason in skipped if reason]
    counted = len(passed) + len(failed) + len(skipped)
    if status is None:
        failed.append(f"ran longer than {program.seconds} s")
    elif status < 0:
        failed.append(f"died by signal {signal.Signals(-status).name}")
    elif planned is None:
        failed.append(f"printed no plan (status {status})")
    elif counted < planned:
        failed.append(f"{planned - counted} of {planned} cases were never run")
    elif status != 0 and not failed:
        failed.append(f"ended with status {status} though no case failed")
    return Verdict(program, passed, failed, skipped, output, took)


def run(build, program):
    start = time.monotonic()
    try:
        status, output = execute(build, program)
    except OSError as error:
        status, output = 127, f"{error}\n"
    return judge(program, status, output, time.monotonic() - start)


def show(verdict, verbose):
    word = "FAIL" if verdict.failed else "ok  "
    print(f"{word} {verdict.program.name}: {len(verdict.passed)} passed, {len(verdict.failed)} failed, "
          f"{len(verdict.skipped)} skipped ({verdict.took:.1f} s)")
    for name, reason in verdict.skipped:
        print(f"  skip {verdict.program.name} {name}: {reason}")
    for what in verdict.failed:
        print(f"  fail {verdict.program.name}: {what}")
    if verdict.failed or verbose:
        for line in verdict.output.splitlines()[-400:]:
            print("    | " + line)
    sys.stdout.flush()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default=os.path.join(TOP, "build"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", action="append", default=[], metavar="REGEX", help="programs whose name matches")
    parser.add_argument("--list", action="store_true", help="names only")
    parser.add_argument("--verbose", action="store_true", help="show all output")
    parser.add_argument("--env", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("suites", nargs="+", choices=["unit", "threaded", "corpus", "e2e", "crash", "dst", "model"])
    return parser.parse_args()


def run_all(build, programs, jobs=2, verbose=False):
    """Shows each program's verdict as it comes; answers the sums."""
    totals = [0, 0, 0]
    bare = [program for program in programs if re.search(BARE_GUEST, program.name)]
    image = guest_image(build) if bare else {}
    if image is False:
        totals[1] += 1
    for program in bare:
        program.environment = dict(program.environment, **(image or {}))
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for future in concurrent.futures.as_completed([pool.submit(run, build, p) for p in programs]):
            verdict = future.result()
            show(verdict, verbose)
            for i, cases in enumerate((verdict.passed, verdict.failed, verdict.skipped)):
                totals[i] += len(cases)
    return totals


def conclude(totals):
    print("{} passed, {} failed, {} skipped".format(*totals))
    return 1 if totals[1] else 0


def main():
    options = arguments()
    build = os.path.abspath(options.build)
    extra = dict(pair.split("=", 1) for pair in options.env)
    programs = [p for suite in options.suites for p in suite_programs(suite, build)]
    programs = [p for p in programs if not options.only or any(re.search(o, p.name) for o in options.only)]
    for program in programs:
        program.environment = extra
    if options.list:
        print("\n".join(p.name for p in programs))
        return 0
    if not programs:
        print("no test matches", file=sys.stderr)
        return 2
    return conclude(run_all(build, programs, options.jobs, options.verbose))


if __name__ == "__main__":
    sys.exit(main())

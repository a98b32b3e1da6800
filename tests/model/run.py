#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks docs/model/teleport.pml with SPIN, exhaustively: what must hold holds, every run ends, every place of interest
is reached, and with any one rule left out (-DNO_...) something breaks. TAP on standard output; a word after the
script's name runs the cases whose name contains it; --trail shows the steps that lead there."""

import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MODEL = os.path.join(TOP, "docs", "model", "teleport.pml")
DEPTH = int(os.environ.get("KELPIE_MODEL_DEPTH", "20000"))  # steps of the longest run; a longer one is an error
MEMORY_MIB = 2000
SECONDS = 300  # of one case
JOBS = int(os.environ.get("KELPIE_MODEL_JOBS", "2"))

# Parts of the model and numbers of faults. Each is searched to its end.
HOLDS = {
    "one move": "",
    "one move, two crashes": "-DCRASHES=2",
    "one move, the registry silent twice": "-DUNKNOWNS=2",
    "two moves, an order twice": "-DMOVES=2 -DDUPS=1 -DUNKNOWNS=0",
    "two moves, no crash": "-DMOVES=2 -DDUPS=1 -DCRASHES=0",
    "two orders at the same time": "-DTWICE -DDUPS=1 -DUNKNOWNS=0",
    "two orders at the same time, no crash": "-DTWICE -DDUPS=1 -DCRASHES=0 -DUNKNOWNS=2",
    "a later start at the destination": "-DLATER",
    "lease and claim": "-DLEASES -DUNKNOWNS=0",
    "lease and claim, no crash": "-DLEASES -DCRASHES=0",
}

SLOW = (HOLDS["one move, two crashes"], HOLDS["lease and claim"])

# What an assertion of the model says, by what its text begins with.
COPIES = "two copies run"
HISTORY = "work is lost or done twice"
DURABLE = "a record names what is not durable"
ENDLESS = "a move never ends"
NOBODY = "nobody runs the agent any more"
SHUT = "it runs, and its gate stays shut"
SAYS = [("0", COPIES), ("(ver[", HISTORY), ("snap_durable", DURABLE), ("((r_state!=1)&&", ENDLESS),
        ("(((r_state==0)||excused)", NOBODY), ("((r_state!=0)||((((", NOBODY), ("(((r_state!=0)||(r_owner!=0))", SHUT),
        ("(((r_state!=0)||(r_owner!=1))", NOBODY)]

# A rule, the parts that show it, what breaks without it.
RULES = [
    ("NO_CLAIM_CAS", "", HISTORY),
    ("NO_TAKE_CAS", "", HISTORY),
    ("NO_ABORT_CAS", "", HISTORY),
    ("NO_MOVE_CHECK", "-DMOVES=2", HISTORY),
    ("NO_RUNNING_FIRST", "", HISTORY),
    ("NO_UNKNOWN", "", HISTORY),
    ("NO_READ_BACK", "", NOBODY),
    ("NO_ASK_AGAIN", "", NOBODY),
    ("NO_INTENT_BACK", "-DUNKNOWNS=2 -DCRASHES=0", ENDLESS),
    ("NO_GATE_FOLLOW", "-DUNKNOWNS=2 -DCRASHES=0", SHUT),
    ("NO_KEEP_COPY", "", NOBODY),
    ("NO_SAME_MOVE", "-DLATER", HISTORY),
    ("NO_QUIESCE", "", HISTORY),
    ("NO_DURABLE", "", DURABLE),
    ("NO_NOTE", "", NOBODY),
    ("NO_NOTE_FIRST", "", NOBODY),
    ("NO_RECOVERY_READ", "", None),
    ("NO_RECOVERY_ANSWER", "", NOBODY),
    ("NO_ARRIVAL_BACK", "-DUNKNOWNS=2 -DCRASHES=0 -DFAILS=0", NOBODY),
    ("NO_RUN_IS_RUN", "", None),
    ("NO_ONE_AT_A_TIME", "-DTWICE -DDUPS=1", None),
    ("NO_FENCE", "-DLEASES", COPIES),
    ("NO_SENT", "-DLEASES -DUNKNOWNS=0 -DCRASHES=0 -DMOVES=0", COPIES),
    ("NO_RENEW_FIRST", "-DLEASES -DUNKNOWNS=0 -DCRASHES=0", HISTORY),
    ("NO_PATIENCE", "-DLEASES", COPIES),
    ("NO_BEAT_CAS", "-DLEASES -DUNKNOWNS=0 -DCRASHES=0 -DMOVES=0", COPIES),
]

REACHED = [
    (1, "the source sees its agent run at the destination, and ends its copy", ""),
    (2, "the source takes it back", ""),
    (3, "the source takes it back from a destination that claimed and is silent", ""),
    (4, "the source takes back what the destination parked", ""),
    (5, "a source that starts again finds its note and settles", ""),
    (6, "the destination refuses an order of a move that is over", ""),
    (7, "the agent runs at the destination", ""),
    (8, "an operator's claim runs", "-DLEASES"),
    (9, "a run comes to its end", ""),
    (10, "a change comes when nobody waits for it any more", ""),
]


def cases():
    found = [(f"holds: {name}", options, "holds") for name, options in HOLDS.items()]
    found.append(("every run ends", "", "ends"))
    found += [(f"reached: {name}", f"{options} -DREACH={number}", "reached") for number, name, options in REACHED]
    found += [(f"rule {rule}", f"{options} -D{rule}", ("breaks", what)) for rule, options, what in RULES]
    return found


class Broken(Exception):
    pass


def call(command, folder, seconds=SECONDS):
    try:
        result = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise Broken(f"{command[0]} ran longer than {seconds} s") from error
    return result.returncode, result.stdout


def search(folder, options, kind):
    """Builds the verifier and runs it; its output."""
    status, output = call(["spin", "-a", *options.split(), MODEL], folder)
    if status != 0 or "Error" in output or not os.path.exists(os.path.join(folder, "pan.c")):
        raise Broken("spin: " + output)
    # A long search is worth the compiler's time.
    level = "-O1" if options in SLOW else "-O0"
    kinds = ["-DNP"] if kind == "ends" else ["-DSAFETY"]
    status, output = call(["cc", "-w", level, "-DCOLLAPSE", "-DNOFAIR", f"-DMEMLIM={MEMORY_MIB}", *kinds,
                           "-o", "pan", "pan.c"], folder)
    if status != 0:
        raise Broken("cc: " + output)
    # -E: that a task waits for ever is no error by itself; Watch says what the end must look like.
    return call(["./pan", "-E", f"-m{DEPTH}", *(["-l"] if kind == "ends" else [])], folder)[1]


def figures(output):
    states = re.search(r"^\s*([\d.e+]+) states, stored", output, re.M)
    seconds = re.search(r"elapsed time ([\d.]+) seconds", output)
    return f"{states.group(1) if states else '?'} states, {seconds.group(1) if seconds else '?'} s"


def judge(output, kind):
    """What is said of it; Broken when that is not what was to be shown."""
    errors = re.search(r"errors: (\d+)", output)
    cut_short = r"max search depth too small|reached -DMEMLIM|out of memory"
    if errors is None or re.search(cut_short, output, re.I):
        raise Broken("the search did not come to its end:\n" + output)
    found = re.search(r"^pan:\d+: (.*) \(at depth (\d+)\)", output, re.M)
    if kind in ("holds", "ends"):
        if errors.group(1) != "0" or "Search not completed" in output:
            raise Broken(output)
        return figures(output)
    if found is None:
        why = "was never reached" if kind == "reached" else "nothing breaks without it"
        raise Broken(f"{why}:\n{output}")
    text = found.group(1).replace("assertion violated ", "").replace(" ", "")
    if kind == "reached":
        if text != "0":
            raise Broken(output)
        return f"after {found.group(2)} steps"
    said = next((words for start, words in SAYS if text == start or (start != "0" and text.startswith(start))), text)
    if kind[1] is not None and said != kind[1]:
        raise Broken(f"breaks otherwise: {said}, not: {kind[1]}\n" + output)
    return f"{said}, after {found.group(2)} steps; {figures(output)}"


def trail(folder, options):
    path = os.path.join(folder, "teleport.pml.trail")
    print(call(["spin", "-t", "-p", "-g", "-k", path, *options.split(), MODEL], folder)[1])


def execute(case, show_trail):
    name, options, kind = case
    with tempfile.TemporaryDirectory(prefix="kelpie-model-") as folder:
        try:
            said = judge(search(folder, options, kind), kind)
            return True, f"{name}: {said}", ""
        except Broken as error:
            return False, name, f"{options}\n{error}"
        finally:
            if show_trail and os.path.exists(os.path.join(folder, "teleport.pml.trail")):
                trail(folder, options)


def main():
    words = [word for word in sys.argv[1:] if word != "--trail"]
    chosen = [case for case in cases() if not words or any(word in case[0] for word in words)]
    missing = [program for program in ("spin", "cc") if shutil.which(program) is None]
    if missing:
        print(f"1..0 # SKIP no {missing[0]} here: tools/deps.sh installs it")
        return 0
    print(f"1..{len(chosen)}", flush=True)
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        results = pool.map(lambda case: execute(case, "--trail" in sys.argv), chosen)
        for number, (good, text, why) in enumerate(results, 1):
            print(f"{'ok' if good else 'not ok'} {number} - {text}", flush=True)
            if not good:
                failed += 1
                print("# " + why.strip().replace("\n", "\n# "), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

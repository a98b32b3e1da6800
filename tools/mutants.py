#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Builds the planted mistakes of tests/mutants/*.toml, each a kelpie-dst of its own in BUILD/mutants/NAME: one source
file of the core with one text replaced, compiled as the core is and linked with the rest of the same archive. Never
part of a shipped program. --table prints, a line each, the mistake and the median of the seeds that five rows of seeds
took to find it."""

import argparse
import concurrent.futures
import glob
import hashlib
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tomllib

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STARTS = (1, 100_000, 200_000, 300_000, 400_000)  # of the table's rows of seeds
KINDS = {"gate", "verify", "fence", "order"}


class Broken(Exception):
    """A mutant that is not what it says."""


def load():
    mutants = []
    for path in sorted(glob.glob(os.path.join(TOP, "tests", "mutants", "*.toml"))):
        with open(path, "rb") as file:
            mutants += tomllib.load(file)["mutant"]
    for mutant in mutants:
        if set(mutant) != {"name", "kind", "file", "what", "before", "after"} or mutant["kind"] not in KINDS:
            raise Broken(f"{mutant.get('name')}: wants name, kind ({', '.join(sorted(KINDS))}), file, what, before, after")
    names = [mutant["name"] for mutant in mutants]
    for name in sorted({name for name in names if names.count(name) > 1}):
        raise Broken(f"{name}: two mutants of that name")
    return mutants


def mutated(mutant):
    """The source with the mistake in it. Where its lines are broken does not matter: only words are compared."""
    with open(os.path.join(TOP, mutant["file"]), encoding="utf-8") as file:
        text = file.read()
    words = r"\s+".join(re.escape(word) for word in mutant["before"].split())
    places = list(re.finditer(r"[ \t]*" + words, text))
    if len(places) != 1:
        raise Broken(f"{mutant['name']}: its text stands {len(places)} times in {mutant['file']}, not once")
    return text[:places[0].start()] + mutant["after"] + text[places[0].end():]


def check(mutants):
    """All that do not fit their source, before anything is built."""
    wrong = []
    for mutant in mutants:
        try:
            mutated(mutant)
        except Broken as why:
            wrong.append(str(why))
    return wrong


def compile_command(build, source):
    with open(os.path.join(build, "compile_commands.json"), encoding="utf-8") as file:
        commands = json.load(file)
    for entry in commands:
        if entry["output"].startswith("libcore.a.p/") and os.path.realpath(
                os.path.join(entry["directory"], entry["file"])) == os.path.realpath(os.path.join(TOP, source)):
            return shlex.split(entry["command"])
    raise Broken(f"{source} is no part of the core")


def link_command(build):
    text = subprocess.run(["ninja", "-C", build, "-t", "commands", "kelpie-dst"], check=True, stdout=subprocess.PIPE,
                          text=True).stdout
    return [word for word in shlex.split(text.strip().splitlines()[-1]) if not word.startswith("-Wl,-Map=")]


def with_output(words, output, **replaced):
    out = []
    for word in words:
        out.append(output if out and out[-1] == "-o" else replaced.get(word, word))
    return out


def state_of(build, text):
    """What a mutant is made of: it is built anew when that changes."""
    digest = hashlib.sha256(text.encode())
    for path in sorted(glob.glob(os.path.join(build, "libcore.a.p", "*.o")) +
                       glob.glob(os.path.join(build, "kelpie-dst.p", "*.o"))):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def run(words, build, name):
    result = subprocess.run(words, cwd=build, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != 0:
        raise Broken(f"{name}: {result.stdout[-1500:]}")


def make(build, mutant, core_state):
    name, text = mutant["name"], mutated(mutant)
    folder = os.path.join(build, "mutants.p", name)
    program, stamp = os.path.join(build, "mutants", name), os.path.join(folder, "state")
    state = hashlib.sha256((core_state + text).encode()).hexdigest()
    if os.path.exists(stamp) and os.path.exists(program):
        with open(stamp, encoding="utf-8") as file:
            if file.read() == state:
                return False
    os.makedirs(folder, exist_ok=True)
    source = os.path.join(folder, os.path.basename(mutant["file"]))
    with open(source, "w", encoding="utf-8") as file:
        file.write(text)
    made = os.path.join(folder, "mutant.o")
    words = compile_command(build, mutant["file"])
    source_at = words.index("-c") + 1
    words = words[:source_at] + [source]
    words = with_output([word for word in words if word not in ("-MD",)], made)
    for flag in ("-MQ", "-MF"):
        at = words.index(flag)
        del words[at:at + 2]
    # Without warnings: a mistake may leave something unused.
    run(words + ["-w", "-iquote", os.path.dirname(os.path.join(TOP, mutant["file"]))], build, name)
    words = with_output(link_command(build), program)
    words.insert(words.index(program) + 1, made)
    run(words, build, name)
    with open(stamp, "w", encoding="utf-8") as file:
        file.write(state)
    return True


def build_all(build, mutants):
    os.makedirs(os.path.join(build, "mutants"), exist_ok=True)
    names = {mutant["name"] for mutant in mutants}
    for stale in os.listdir(os.path.join(build, "mutants")):
        if stale not in names:
            os.unlink(os.path.join(build, "mutants", stale))
    core_state = state_of(build, "")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda mutant: make(build, mutant, core_state), mutants))
    print(f"{len(mutants)} mutants, {sum(made)} built")


def seeds_needed(build, name, start, most):
    result = subprocess.run([os.path.join(build, "kelpie-dst"), "--mutant", name, "--seeds", str(most)],
                            env=dict(os.environ, DST_SEED=str(start)), stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, text=True)
    found = re.search(r" killed seeds=(\d+)$", result.stdout, re.M)
    return int(found.group(1)) if found else None


def table(build, mutants, most):
    print("| mutant | kind | mistake | median of seeds |\n|---|---|---|---|")
    for mutant in mutants:
        needed = [seeds_needed(build, mutant["name"], start, most) for start in STARTS]
        text = "survives" if None in needed else str(int(statistics.median(needed)))
        print(f"| {mutant['name']} | {mutant['kind']} | {mutant['what']} | {text} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default=os.path.join(TOP, "build"))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--most", type=int, default=5000, help="seeds of a row")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    build = os.path.abspath(options.build)
    try:
        mutants = [mutant for mutant in load() if not options.names or mutant["name"] in options.names]
        wrong = check(mutants)
        if wrong:
            raise Broken("\nmutants: ".join(wrong))
        if not options.names:
            build_all(build, mutants)
    except Broken as why:
        print(f"mutants: {why}", file=sys.stderr)
        return 1
    if options.table:
        table(build, mutants, options.most)
    return 0


if __name__ == "__main__":
    sys.exit(main())

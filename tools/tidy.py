#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`make lint`: what the compiler does not check, as TAP, a case a check. Needs a build (--build) for the objects and the
compile commands. --quick leaves clang-tidy and cppcheck out. Files that clang-tidy found clean are remembered in the
build folder until they, a header or the settings change."""

import argparse
import concurrent.futures
import glob
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

import mutants

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 620
SHOWN_MAX = 40
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)
# A line that must be able to name what it forbids says so with this word.
EXEMPT = "tidy:allow"
# What tools/analyzer.h speaks of is defined there.
DEFINES_FAILURES = ("src/base/error.c", "src/env/posix/env.c")


class Skip(Exception):
    pass


def run(command, **options):
    return subprocess.run(command, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                          **options)


def files(*patterns):
    names = run(["git", "ls-files", "-co", "--exclude-standard", "--", *patterns]).stdout.split("\n")
    return sorted({name for name in names if name and os.path.isfile(os.path.join(TOP, name))})


def text(name):
    with open(os.path.join(TOP, name), encoding="utf-8", errors="replace") as file:
        return file.read()


def settings(name):
    """Lines of tools/NAME without comments."""
    lines = (line.split("#", 1)[0].strip() for line in text("tools/" + name).splitlines())
    return [line for line in lines if line]


def code_only(source):
    """Comments and literals blanked, line numbers kept."""
    def blank(match):
        word = match.group(0)
        return ('""' if word[0] == '"' else "''" if word[0] == "'" else " ") + "\n" * word.count("\n")
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', blank, source, flags=re.S)


# ---- layers


class Layers:
    def __init__(self):
        self.order, self.allowed, self.denied = [], set(), set()
        for line in settings("layers.txt"):
            words = line.split()
            if words[0] == "layer":
                self.order.append(words[1])
            else:
                {"allow": self.allowed, "deny": self.denied}[words[0]].add((words[1], words[2]))

    def permits(self, path, folder, target):
        top = folder.split("/")[0]
        if any((who, target) in self.allowed for who in ("*", path, folder, top)):
            return True
        if (folder, target) in self.denied or (top, target) in self.denied:
            return False
        if target == folder or folder.startswith(target + "/"):
            return True
        if "/" in target or target not in self.order or top not in self.order:
            return False
        return self.order.index(target) < self.order.index(top)


def check_layers():
    layers = Layers()
    for name in files("src/*.c", "src/*.h"):
        folder = os.path.dirname(name)[len("src/"):]
        if folder == "":
            continue
        for include in INCLUDE.findall(text(name)):
            target = os.path.dirname(include)
            if target != "kelpie" and not layers.permits(name, folder, target):
                yield f'{name}: includes "{include}": {folder} may not use {target or "a header by its bare name"}'
    for name in files("include/*.h"):
        for include in INCLUDE.findall(text(name)):
            if not include.startswith("kelpie/"):
                yield f'{name}: a public header includes "{include}"'


# ---- words


def check_bans():
    bans = {}
    for line in settings("bans.txt"):
        name, scope, instead = line.split(None, 2)
        bans[name] = (scope, instead)
    call = re.compile(r"(?<![\w.>])(" + "|".join(bans) + r")\s*\(")
    for name in files("*.c", "*.h"):
        is_product = name.startswith(("src/", "include/", "sim/"))
        for number, line in enumerate(code_only(text(name)).split("\n"), 1):
            for word in call.findall(line):
                scope, instead = bans[word]
                if word == "signal" and re.search(r"\bsignal\(\w+, SIG_(IGN|DFL)\)", line):
                    continue
                if scope == "all" or is_product:
                    yield f"{name}:{number}: {word}() is not used here: {instead}"


def lines_matching(pattern, names, exempt=()):
    for name in names:
        if name in exempt:
            continue
        for number, line in enumerate(text(name).split("\n"), 1):
            if pattern.search(line) and EXEMPT not in line:
                yield f"{name}:{number}: {line.strip()[:120]}"


def written_files():
    return files("*.c", "*.h", "*.py", "*.sh", "*.md", "*.txt", "*.build", "Makefile", ".ci/run")


def check_leftovers():
    return lines_matching(re.compile(r"\b(TODO|FIXME|XXX|HACK)\b"), written_files())  # tidy:allow


def check_machine_paths():
    return lines_matching(re.compile(r"(^|[^\w.])/(work|root|home|farm)/"), written_files())  # tidy:allow


def check_licence():
    for name in files("*.c", "*.h", "*.py", "*.sh"):
        if "SPDX-License-Identifier: Apache-2.0" not in "\n".join(text(name).split("\n")[:3]):
            yield f"{name}: no SPDX line at its top"


# ---- lengths


def functions_of(source):
    """(name, lines) of each function: a brace in column 0 to the next closing one, named by the line before it."""
    lines = source.split("\n")
    begin = None
    for at, line in enumerate(lines):
        if line == "{":
            begin = at
        elif line == "}" and begin is not None:
            head = " ".join(lines[max(0, begin - 6):begin])
            names = re.findall(r"(\w+)\s*\(", head.rsplit(";", 1)[-1].rsplit("}", 1)[-1])
            yield (next((n for n in names if n != "__attribute__"), "?"), at - begin + 1)
            begin = None


def check_lengths():
    excused = {line.split()[0] for line in settings("long.txt")}
    used = set()
    for name in files("*.c", "*.h"):
        source = text(name)
        long = [(name, source.count("\n"))] if source.count("\n") > FILE_LINES_MAX else []
        long += [(f"{name}:{f}", n) for f, n in functions_of(source) if n > FUNCTION_LINES_MAX]
        for key, lines in long:
            used.add(key)
            if key not in excused:
                yield f"{key}: {lines} lines (a function {FUNCTION_LINES_MAX}, a file {FILE_LINES_MAX}, or tools/long.txt)"
    for key in excused - used:
        yield f"tools/long.txt: {key} is not long any more"


def check_test_lists():
    """A test that no build names is a test that never runs."""
    listed = text("tests/unit/meson.build") + text("tests/fuzz/meson.build")
    for name in files("tests/unit/*.c", "tests/fuzz/*.c"):
        stem = os.path.splitext(os.path.basename(name))[0]
        stem = re.sub(r"^vm_[a-z]+_contract$", "vm_@0@_contract", stem)
        if re.search(r"\bint main\(|LLVMFuzzerTestOneInput\(const", text(name)) and f"'{stem}'" not in listed \
                and f"'{stem}.c'" not in listed:
            yield f"{name}: not in the meson.build beside it"


def check_mutants():
    """One that no longer fits its source stops the build of all of them."""
    yield from mutants.check(mutants.load())


# ---- objects


def core_archive(build):
    path = os.path.join(build, "libcore.a")
    if not os.path.exists(path):
        raise Skip("the core archive is not built")
    # A thin archive names objects relative to itself.
    return path


def nm(arguments, path):
    result = run(["nm", *arguments, path])
    if result.returncode != 0:
        raise RuntimeError(result.stdout[:400])
    return result.stdout.split("\n")


def check_symbols(build):
    archive = core_archive(build)
    allowed = set(settings("symbols.txt"))
    defined = {line.split()[-1] for line in nm(["--defined-only"], archive) if len(line.split()) == 3}
    member = ""
    for line in nm(["-u"], archive):
        if line.endswith(":"):
            member = os.path.basename(line[:-1])
        elif line.strip() and not member.startswith("src_base_ext_"):
            name = line.split()[-1]
            if name not in allowed and name not in defined and not re.match(r"(klp|kelpie)_", name):
                yield f"{member}: {name} is not in tools/symbols.txt"


def check_globals(build):
    member = ""
    for line in nm(["-f", "sysv"], core_archive(build)):
        if line.startswith("Symbols from "):
            member = line.split("[")[-1].split("]")[0]
        columns = [column.strip() for column in line.split("|")]
        if len(columns) == 7 and (columns[2] in ("B", "b", "C") or
                                  columns[2] in ("D", "d") and not columns[6].startswith(".data.rel.ro")):
            yield f"{os.path.basename(member)}: {columns[0]} is a mutable global"


def check_exports(build):
    path = os.path.join(build, "libkelpie.so")
    if not os.path.exists(path):
        raise Skip("libkelpie.so is not built")
    names = [line.split()[-1].split("@")[0] for line in nm(["-D", "--defined-only"], path) if line.strip()]
    for name in names:
        if not name.startswith("kelpie_"):
            yield f"libkelpie.so exports {name}"
    for wanted in ("kelpie_error_message", "kelpie_vm_start"):
        if wanted not in names:
            yield f"libkelpie.so does not export {wanted}"


def same_code(build, program, members):
    """Core objects in a link map that come from elsewhere than the archive; how many come from there."""
    path = os.path.join(build, program + ".map")
    if not os.path.exists(path):
        raise Skip(f"{program} is not built")
    with open(path, encoding="utf-8") as file:
        objects = set(re.findall(r"(\S+/)?(src_\w\S*\.o)\b", file.read()))
    strangers = [folder + name for folder, name in objects if name in members and folder != "libcore.a.p/"]
    return strangers, {name for folder, name in objects if folder == "libcore.a.p/"}


def check_same_code(build):
    """What the simulator runs is what the daemon and the keeper are made of."""
    members = {os.path.basename(line[:-1]) for line in nm(["--defined-only"], core_archive(build)) if line.endswith(":")}
    taken = {}
    for program in ("kelpied", "kelpie-keeper", "kelpie-dst"):
        strangers, taken[program] = same_code(build, program, members)
        yield from (f"{program}: {stranger} is not the archive's" for stranger in strangers)
    simulated = re.compile(r"src_(teleport|node|snapshot|vm|vm_keeper|store|store_local|registry)_[a-z_0-9]+\.c\.o")
    for name in sorted((taken["kelpied"] | taken["kelpie-keeper"]) - taken["kelpie-dst"]):
        if simulated.fullmatch(name):
            yield f"kelpie-dst runs without {name}"
    defined = {line.split()[-1] for line in nm(["--defined-only"], core_archive(build)) if len(line.split()) == 3
               and line.split()[1].isupper()}
    for path in sorted(glob.glob(os.path.join(build, "kelpie-dst.p", "sim_*.o"))):
        for line in nm(["-g", "--defined-only"], path):
            if line.split() and line.split()[-1] in defined:
                yield f"{os.path.basename(path)} defines {line.split()[-1]}, which is the core's"
    if not taken["kelpie-dst"]:
        yield "kelpie-dst takes nothing from the core archive"


def core_digest(build):
    """Over the archive's objects, in the order of their names: what every program was linked with."""
    digest = hashlib.sha256()
    for path in sorted(glob.glob(os.path.join(build, "libcore.a.p", "*.o"))):
        with open(path, "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


# ---- compilers


def compile_alone(job):
    compiler, flags, header, language = job
    with tempfile.NamedTemporaryFile("w", suffix=".c" if language == "c" else ".cc") as file:
        file.write(f'#include "{header}"\n' * 2)
        file.flush()
        result = run([compiler, "-fsyntax-only", "-x", language, *flags, "-Iinclude", "-Isrc", "-D_GNU_SOURCE", file.name])
    said = result.stdout.strip().split("\n")
    return f"{compiler} {' '.join(flags)}: {header} alone: {said[0]}" if result.returncode != 0 else None


def in_parallel(function, jobs):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        yield from (answer for answer in pool.map(function, jobs) if answer)


def check_public_headers():
    strict = ["-Wall", "-Wextra", "-pedantic", "-Werror"]
    jobs = []
    for name in files("include/kelpie/*.h"):
        header = name[len("include/"):]
        jobs += [(c, ["-std=c17", *strict], header, "c") for c in ("gcc", "clang") if shutil.which(c)]
        jobs += [(c, ["-std=c++17", *strict], header, "c++") for c in ("g++", "clang++") if shutil.which(c)]
    return in_parallel(compile_alone, jobs)


def check_own_headers():
    # Headers of one backend need what only it needs; all of ours need nothing but the include folders.
    jobs = [("gcc", ["-std=gnu17", "-Wall", "-Wextra", "-Werror"], name[len("src/"):], "c") for name in files("src/*.h")]
    return in_parallel(compile_alone, jobs)


def check_format():
    if not shutil.which("clang-format"):
        raise Skip("clang-format is not installed")
    names = files("*.c", "*.h")
    answers = in_parallel(lambda part: run(["clang-format", "--dry-run", *part]).stdout,
                          [names[at:at + 20] for at in range(0, len(names), 20)])
    wrong = {}
    for answer in answers:
        for line in answer.split("\n"):
            match = re.match(r"([^:]+):\d+:\d+: warning:", line)
            if match:
                wrong[match.group(1)] = wrong.get(match.group(1), 0) + 1
    return [f"{name}: {count} places (make format)" for name, count in sorted(wrong.items())]


def tidy_file(job):
    build, name, digest = job
    mark = os.path.join(build, "tidy", name.replace("/", "_"))
    if os.path.exists(mark) and open(mark).read() == digest:
        return None
    command = ["clang-tidy", "--quiet", "-p", build]
    if name not in DEFINES_FAILURES:
        command += ["--extra-arg=-include", "--extra-arg=" + os.path.join(TOP, "tools", "analyzer.h")]
    result = run([*command, "--extra-arg=-Wno-unknown-warning-option", name])
    complaints = [line for line in result.stdout.split("\n") if re.search(r": (error|warning): ", line)]
    if result.returncode == 0 and not complaints:
        os.makedirs(os.path.dirname(mark), exist_ok=True)
        with open(mark, "w") as file:
            file.write(digest)
        return None
    return "\n".join(os.path.normpath(line) for line in complaints) or f"{name}: {result.stdout.strip()[:300]}"


def check_clang_tidy(build):
    if not shutil.which("clang-tidy"):
        raise Skip("clang-tidy is not installed")
    with open(os.path.join(build, "compile_commands.json")) as file:
        known = {os.path.relpath(os.path.normpath(os.path.join(c["directory"], c["file"])), TOP) for c in json.load(file)}
    names = [name for name in files("src/*.c", "sim/*.c") if name in known]
    shared = hashlib.sha256()
    for name in files("src/*.h", "include/*.h", "sim/*.h", ".clang-tidy", "tools/analyzer.h", "meson.build"):
        shared.update(text(name).encode())
    jobs = [(build, name, hashlib.sha256(shared.digest() + text(name).encode()).hexdigest()) for name in names]
    known_wrong = [tuple(line.split()[:2]) for line in settings("tidy-known.txt")]
    met = set()
    for answer in in_parallel(tidy_file, jobs):
        for line in answer.split("\n"):
            entries = [(path, check) for path, check in known_wrong if path in line and check in line]
            met.update(entries)
            if not entries:
                yield line
    for path, check in set(known_wrong) - met:
        yield f"tools/tidy-known.txt: {path} {check}: is not complained of any more"


def check_cppcheck(build):
    if not shutil.which("cppcheck"):
        raise Skip("cppcheck is not installed")
    cache = os.path.join(build, "cppcheck")
    os.makedirs(cache, exist_ok=True)
    result = run(["cppcheck", "--quiet", "-j2", "--std=c11", "--error-exitcode=1", "--inline-suppr",
                  "--enable=warning,portability", "--library=posix", "--suppressions-list=tools/cppcheck.txt",
                  "--template={file}:{line}: {id}: {message}", "--cppcheck-build-dir=" + cache, "-D__GNUC__=12",
                  "-D__linux__=1", "-D_GNU_SOURCE=1", "-Iinclude", "-Isrc", "src", *(["sim"] if files("sim/*.c") else [])])
    return [line for line in result.stdout.split("\n") if line.strip()] if result.returncode != 0 else []


# ---- the list


def checks(build, quick):
    yield "layers: includes only go up", check_layers
    yield "banned calls", check_bans
    yield "core objects call nothing but the allow-list", lambda: check_symbols(build)
    yield "core objects hold no mutable global", lambda: check_globals(build)
    yield "libkelpie.so exports kelpie_* only", lambda: check_exports(build)
    yield f"daemon, keeper and simulator link one core (SHA-256 {core_digest(build)})", lambda: check_same_code(build)
    yield "public headers compile alone, as C and as C++", check_public_headers
    yield "own headers compile alone", check_own_headers
    yield "lengths of functions and files", check_lengths
    yield "no leftovers", check_leftovers
    yield "no paths of one machine", check_machine_paths
    yield "licence lines", check_licence
    yield "every test program is built", check_test_lists
    yield "every planted mistake fits its source", check_mutants
    yield "form (clang-format)", check_format
    if not quick:
        yield "cppcheck", lambda: check_cppcheck(build)
        yield "clang-tidy", lambda: check_clang_tidy(build)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default=os.path.join(TOP, "build"))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    todo = list(checks(os.path.abspath(options.build), options.quick))
    totals = {"passed": 0, "failed": 0, "skipped": 0}
    print(f"1..{len(todo)}")
    for number, (name, check) in enumerate(todo, 1):
        try:
            complaints = list(check() or ())
        except Skip as reason:
            totals["skipped"] += 1
            print(f"ok {number} - {name} # SKIP {reason}", flush=True)
            continue
        totals["failed" if complaints else "passed"] += 1
        print(f"{'not ok' if complaints else 'ok'} {number} - {name}", flush=True)
        for line in "\n".join(complaints).split("\n")[:SHOWN_MAX] if complaints else ():
            print("#   " + line, flush=True)
        if len(complaints) > SHOWN_MAX:
            print(f"#   and {len(complaints) - SHOWN_MAX} more")
    print("{passed} passed, {failed} failed, {skipped} skipped".format(**totals))
    return 1 if totals["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())

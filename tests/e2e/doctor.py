#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Which backend is chosen, and why, as `kelpie doctor`, `kelpied --doctor`, the daemon's log and its refusal say it."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile

from kit import BUILD, Result, Skip, World, check, equal, run_tests, world_environment

HERE = os.path.dirname(os.path.abspath(__file__))
NO_QEMU = {"PATH": "/nonexistent"}
STATUSES = {"ok", "warn", "fail"}


@contextlib.contextmanager
def folder():
    path = tempfile.mkdtemp(prefix="kelpie-doctor-")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def fake_kvm(how):
    """What makes a program see a /dev/kvm of that kind, whatever this machine has."""
    if os.uname().machine != "x86_64":
        raise Skip("KVM is probed on x86_64 only")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise Skip("no C compiler for the preloaded /dev/kvm")
    with folder() as place:
        library = os.path.join(place, "fake_kvm.so")
        subprocess.run([compiler, "-shared", "-fPIC", "-D_GNU_SOURCE", "-o", library,
                        os.path.join(HERE, "..", "kit", "fake_kvm.c")], check=True)
        yield {"LD_PRELOAD": library, "FAKE_KVM": how}


def program(name, *words, build=BUILD, **environment):
    return Result(subprocess.run([os.path.join(build, name), *words], env={**world_environment(), **environment},
                                 stdin=subprocess.DEVNULL, capture_output=True, timeout=60))


def judged(result):
    """The checks by name; each that is not fine says what mends it, and the status says whether one fails."""
    document = result.json()
    equal(document["version"], 1, "version of the document")
    for row in document["checks"]:
        check(row["status"] in STATUSES, f"a status: {row}")
        check(row["detail"], f"a detail: {row}")
        check(row["status"] == "ok" or row["remedy"], f"a remedy: {row}")
    return {row["name"]: row for row in document["checks"]}


def asked(build=BUILD, **environment):
    """By the client, without a daemon: nothing is started, nothing is made."""
    with folder() as place:
        state = os.path.join(place, "state")
        result = program("kelpie", "doctor", "--json", build=build, KELPIE_STATE=state, **environment)
        rows = judged(result)
        failing = [row for row in rows.values() if row["status"] == "fail"]
        equal(result.status, 1 if failing else 0, "status of doctor")
        own = judged(program("kelpied", "--doctor", build=build, **environment))
        equal([(name, row["status"]) for name, row in rows.items()],
              [(name, row["status"]) for name, row in own.items()], "what the daemon itself says")
        text = program("kelpie", "doctor", build=build, KELPIE_STATE=state, **environment).text()
        for row in rows.values():
            check(row["name"] in text and (row["remedy"] or "") in text, f"a line for people: {row}")
        equal(os.listdir(place), [], "what doctor made")
    return rows


def show(*lines):
    for line in lines:
        print("# " + line.replace("\n", "\n# "))


def refusal(why, remedy, build=BUILD, words=("--backend", "auto"), **environment):
    """A daemon that cannot choose ends with 12 and the reason, and has made nothing; so does a client that wants it."""
    with folder() as place:
        state = os.path.join(place, "state")
        result = program("kelpied", "--state", state, *words, build=build, **environment)
        show(result.err.strip())
        equal(result.status, 12, "status of kelpied")
        equal(result.err, f"kelpied: no backend can be used: {why}\nTry: {remedy}\n", "what kelpied says")
        if words == ("--backend", "auto"):
            result = program("kelpie", "run", "-d", "--json", build=build, KELPIE_STATE=state, **environment)
            equal((result.status, result.out), (12, b""), "status of a client that starts a daemon")
            error = json.loads(result.err.strip().splitlines()[-1])
            equal((error["code"], error["exit"], error["remedy"]), ("unsupported", 12, remedy), "its error")
            check(error["message"].endswith(why), error["message"])
        equal(os.listdir(place), [], "what a refused start leaves")


def qemu_there():
    rows = {row["name"]: row for row in program("kelpied", "--doctor").json()["checks"]}
    if rows.get("qemu", {}).get("status") == "fail":
        raise Skip(rows["qemu"]["detail"])


def compiled_out():
    """This build, or the one beside it, without QEMU."""
    for build in (BUILD, os.path.join(BUILD, "bare")):
        if os.path.exists(os.path.join(build, "kelpied")):
            rows = {row["name"]: row for row in program("kelpied", "--doctor", build=build).json()["checks"]}
            if "compiled out" in rows["qemu"]["detail"]:
                return build
    raise Skip("no build without QEMU here: make bare")


def chosen(how, accelerator, why):
    """QEMU is there, and /dev/kvm is as told."""
    qemu_there()
    with fake_kvm(how) as environment:
        rows = asked(**environment)
        show(*(f"{row['name']}: {row['status']}: {row['detail']}" for row in rows.values()))
        check(rows["backend"]["detail"].startswith(f"qemu with {accelerator}, chosen by auto: {why}"),
              rows["backend"]["detail"])
        equal(rows["qemu"]["status"], "ok", "status of qemu")
        equal(rows["kvm"]["status"], "ok" if accelerator == "kvm" else "warn", "status of kvm")
        equal("isolation" in rows, accelerator == "tcg", "the warning about emulation")
        return rows


def test_qemu_there_kvm_fast():
    rows = chosen("fast", "kvm", "KVM ran 100,000 instructions in ")
    check("limit is 20000" in rows["backend"]["detail"], rows["backend"]["detail"])


def test_qemu_there_no_kvm():
    rows = chosen("none", "tcg", "there is no /dev/kvm")
    equal(rows["kvm"]["detail"], "there is no /dev/kvm", "detail of kvm")


def test_kvm_too_slow():
    rows = chosen("slow", "tcg", "/dev/kvm is there but too slow: 100,000 instructions took ")
    check(rows["kvm"]["detail"] in rows["backend"]["detail"], "the reason of the choice is KVM's")


def test_kvm_hangs():
    chosen("hang", "tcg", "/dev/kvm is there but too slow: it did not run 100000 instructions within ")


def test_kvm_denied():
    chosen("denied", "tcg", "/dev/kvm is there but of no use: a probe guest failed at /dev/kvm (Permission denied)")


def test_running_daemon_says_the_same():
    qemu_there()
    with fake_kvm("slow") as environment, World(backend="auto") as world:
        os.environ.update(environment)
        try:
            node = world.node("a")
        finally:
            for name in environment:
                del os.environ[name]
        result = node.cli("doctor", "--json")
        detail = judged(result)["backend"]["detail"]
        check(detail.startswith("qemu with tcg, chosen by auto: /dev/kvm is there but too slow"), detail)
        check(f"choice={detail}" in node.log_text(), "the log says it")
        equal(result.status, 0, "status of doctor")


def test_qemu_missing():
    rows = asked(**NO_QEMU)
    if "compiled out" in rows["qemu"]["detail"]:
        raise Skip("QEMU is compiled out of this build")
    why = f"no qemu-system-{os.uname().machine} in PATH"
    show(*(f"{row['name']}: {row['status']}: {row['detail']}" for row in rows.values()))
    equal((rows["qemu"]["status"], rows["qemu"]["detail"]), ("fail", why), "qemu")
    equal((rows["backend"]["status"], rows["backend"]["detail"]), ("fail", f"none can be used: {why}"), "backend")
    refusal(why, "apt-get install qemu-system-x86", **NO_QEMU)


def test_qemu_broken():
    qemu_there()
    with folder() as place:
        path = os.path.join(place, f"qemu-system-{os.uname().machine}")
        with open(path, "w", encoding="utf-8") as file:
            file.write("#!/bin/sh\nexit 1\n")
        os.chmod(path, 0o755)
        rows = asked(PATH=f"{place}:/usr/bin:/bin")
        check("does not answer" in rows["qemu"]["detail"], rows["qemu"]["detail"])
        refusal(rows["qemu"]["detail"], "apt-get install qemu-system-x86", PATH=f"{place}:/usr/bin:/bin")


def test_qemu_compiled_out():
    build = compiled_out()
    rows = asked(build=build)
    show(*(f"{row['name']}: {row['status']}: {row['detail']}" for row in rows.values()))
    equal((rows["qemu"]["status"], rows["qemu"]["detail"], rows["qemu"]["remedy"]),
          ("fail", "compiled out of this kelpied", "make QEMU=enabled"), "qemu")
    refusal("QEMU is compiled out of this kelpied", "make QEMU=enabled", build=build)
    refusal("QEMU is compiled out of this kelpied", "make QEMU=enabled", build=build, words=("--backend", "qemu"))


def test_backends_not_written_yet():
    for name in ("firecracker", "vz"):
        refusal(f"'{name}' is not part of this release", "kelpied --backend auto", words=("--backend", name))


def test_mock_is_never_chosen_by_itself():
    with World(backend="mock") as world:
        node = world.node("a")
        row = judged(node.cli("doctor", "--json"))["backend"]
        equal((row["status"], row["detail"]),
              ("warn", "mock, chosen by name: its guests are pretended, for tests only"), "backend")
        equal(node.cli("doctor", "-q").text().split(), ["firecracker", "backend"], "names")
    rows = judged(program("kelpied", "--doctor", "--backend", "mock"))
    equal(rows["backend"]["detail"], row["detail"], "before a start")
    check("mock" not in asked(**NO_QEMU)["backend"]["detail"], "auto without QEMU")


if __name__ == "__main__":
    sys.exit(run_tests(sys.modules[__name__]))

# SPDX-License-Identifier: Apache-2.0
# Named steps; the building itself is Meson's (meson.build). HACKING.md explains each.
#   QEMU= FIRECRACKER= VZ=   auto, enabled, disabled: which backends are built in
#   BACKEND=mock             for test-vm        SECONDS=2  for fuzz, each target
#   DST_SEED=n DST_SEEDS=n   for test-dst       DESTDIR= PREFIX=  for install
#   ONLY=REGEX               for test: programs whose name matches
#   ALL=1                    for matrix: every configuration
BUILD ?= build
MESON ?= meson
NINJA ?= ninja
PYTHON ?= python3
BACKEND ?= mock
PREFIX ?= /usr/local
options = $(if $(QEMU),-Dqemu=$(QEMU)) $(if $(FIRECRACKER),-Dfirecracker=$(FIRECRACKER)) $(if $(VZ),-Dvz=$(VZ))
# From the environment or the command line only; a shell's own SECONDS is not ours.
fuzz_seconds = $(or $(filter-out 0,$(SECONDS)),2)
only = $(if $(ONLY),--only '$(ONLY)')
runtests = $(PYTHON) tools/runtests.py
.DEFAULT_GOAL = all
MAKEFLAGS += --no-print-directory

.PHONY: all deps demo test test-vm test-dst matrix bench lint format fuzz coverage sanitize nightly install clean need-deps bare mutants

all: $(BUILD)/build.ninja
	@$(if $(strip $(options)),$(MESON) configure $(BUILD) $(options))
	@$(NINJA) -C $(BUILD)

$(BUILD)/build.ninja:
	@$(MESON) setup $(BUILD) $(options)

deps:
	@tools/deps.sh

# Only when something is missing: with all present a step needs neither root nor network.
need-deps:
	@tools/deps.sh --check $(deps_for) || tools/deps.sh

demo: need-deps all
	@KELPIE_BUILD=$(abspath $(BUILD)) $(PYTHON) tools/demo.py

# The programs without any backend but Mock, beside the others: what they say then is tested, too.
bare: $(BUILD)/build.ninja
	@[ -f $(BUILD)/bare/build.ninja ] || \
	    $(MESON) setup $(BUILD)/bare -Dqemu=disabled -Dfirecracker=disabled -Dvz=disabled >/dev/null
	@$(NINJA) -C $(BUILD)/bare kelpie kelpied kelpie-keeper

test: need-deps all bare
	@$(NINJA) -C $(BUILD) unit-tests fuzz-targets
	@$(PYTHON) tools/steps.py test --build $(BUILD) $(only)

test-vm: deps_for = $(filter mock,$(BACKEND))
test-vm: need-deps all
	@$(NINJA) -C $(BUILD) unit-tests
	@$(PYTHON) tools/steps.py test-vm --build $(BUILD) --backend $(BACKEND)

# Planted mistakes, each a simulator of its own.
mutants: all
	@$(PYTHON) tools/mutants.py --build $(BUILD)

test-dst: need-deps all
	@$(PYTHON) tools/steps.py test-dst --build $(BUILD) $(if $(DST_SEEDS),--seeds $(DST_SEEDS))

# The simulator, built and run otherwise, comes to the same hash.
matrix: need-deps all
	@$(PYTHON) tools/steps.py matrix --build $(BUILD) $(if $(ALL),--all)

bench: need-deps all
	@$(PYTHON) bench/run $(BUILD)

lint: need-deps all
	@$(NINJA) -C $(BUILD) unit-tests fuzz-targets
	@$(PYTHON) tools/tidy.py --build $(BUILD)

format:
	@git ls-files -co --exclude-standard '*.c' '*.h' | xargs clang-format -i

# Clang, libFuzzer, ASan and UBSan, in a build of its own.
fuzz: need-deps
	@[ -f $(BUILD)/fuzz/build.ninja ] || CC=clang $(MESON) setup $(BUILD)/fuzz -Dc_args=-fsanitize=fuzzer-no-link \
	    -Db_sanitize=address,undefined -Db_lundef=false -Dqemu=disabled >/dev/null
	@$(NINJA) -C $(BUILD)/fuzz fuzz-targets
	@$(PYTHON) tools/steps.py fuzz --build $(BUILD)/fuzz --seconds $(fuzz_seconds)

coverage: need-deps all
	@[ -f $(BUILD)/coverage/build.ninja ] || $(MESON) setup $(BUILD)/coverage -Db_coverage=true >/dev/null
	@$(NINJA) -C $(BUILD)/coverage all unit-tests fuzz-targets
	@$(PYTHON) tools/steps.py coverage --build $(BUILD)/coverage

# The guest is linked statically, which no sanitizer can be: tests use the plain one.
sanitize: need-deps all
	@[ -f $(BUILD)/asan/build.ninja ] || $(MESON) setup $(BUILD)/asan -Db_sanitize=address,undefined >/dev/null
	@[ -f $(BUILD)/tsan/build.ninja ] || $(MESON) setup $(BUILD)/tsan -Db_sanitize=thread >/dev/null
	@$(NINJA) -C $(BUILD)/asan unit-tests fuzz-targets kelpie-keeper
	@$(NINJA) -C $(BUILD)/tsan unit-tests kelpie-keeper
	@$(PYTHON) tools/steps.py sanitize --build $(BUILD)

nightly: need-deps all
	@$(MAKE) lint
	@$(MAKE) test
	@$(MAKE) sanitize
	@$(MAKE) fuzz SECONDS=120
	@if [ -x $(BUILD)/kelpie-dst ]; then $(MAKE) matrix ALL=1 && $(MAKE) test-dst DST_SEEDS=100000; \
	else echo "nightly: no simulator in this build" >&2; exit 2; fi

install: all
	@$(MESON) configure $(BUILD) -Dprefix=$(PREFIX)
	@DESTDIR=$(DESTDIR) $(MESON) install -C $(BUILD)

clean:
	@rm -rf $(BUILD)

# SPDX-License-Identifier: GPL-2.0
#
# What a person types. The work is done in scripts/.

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# LINUX=7.2: a kernel by its number has a build folder of its own.
SERIES := $(filter 7.%,$(LINUX))
ifneq ($(SERIES),$(BUILD_FOR))
Makefile: ;
%:
	@scripts/for-kernel $(SERIES) $(MAKE) $@
else

MACHINE ?= bochs
KERNEL := scripts/kernel --if-changed machine machine overlay

## a TD set up by Linux, from nothing to the report (MACHINE=qemu: on nested VMX)
run: machine-usable prepare payload
	@$(KERNEL)
	@scripts/run

## every test; ends in "N passed, N failed, N skipped"
test: prepare
	@scripts/test-group --all

## a root shell in the machine
shell: prepare payload
	@$(KERNEL)
	@scripts/kselftest
	@scripts/machine/boot --job shell --interactive

## a trace of SEAMCALLs and of KVM's locks, in words and as a picture
trace: prepare payload
	@$(KERNEL)
	@scripts/kselftest
	@scripts/trace-run

## what SEAMCALLs and the TDX ioctls cost, in instructions, C and Rust side by side
bench: prepare payload
	@scripts/kernel --if-changed bench machine overlay bench
	@scripts/bench

## the kernel with the overlay: build/obj/machine/arch/x86/boot/bzImage
kernel:
	@scripts/kernel machine machine overlay

## only compile the kernel's code of this tree: does it?
compile:
	@scripts/kernel --objects machine machine overlay

## KUnit suites under QEMU (FILTER=glob)
kunit: prepare
	@scripts/test-group kunit

## KVM selftests in the machine (TESTS=a,b)
kselftest: prepare
	@scripts/test-group kselftest

## everything beneath the TDX ioctls fails: all of it, goes on where it was stopped (STRIDE=n)
faults: prepare
	@$(KERNEL)
	@scripts/kselftest
	@scripts/faults --stride $(or $(STRIDE),1)

## the selftests in kernels with KASAN, UBSAN, kmemleak, KCSAN, lockdep, goes on where it was stopped (KERNELS="kasan kcsan")
sanitize: prepare
	@scripts/sanitize $(KERNELS)

## every check there is, short and long, goes on where it was stopped (CHECKS="faults fuzz", FRESH=1)
all-checks: prepare
	@scripts/all-checks $(if $(FRESH),--fresh) $(CHECKS)

## host-side tests: the emulated module's core, tdxvm
host-test: prepare
	@scripts/test-group host

## the emulated module against recordings of a real one (VECTORS=folder)
golden: prepare
	@scripts/test-group golden

## a check for a machine with TDX, to be copied there: build/tdx-check.tar.gz
tdx-check: prepare payload
	@$(KERNEL)
	@scripts/kselftest
	@scripts/tdx-check-pack

## generated programs of ioctls through C and through Rust (PROGRAMS=n, REPLAY=seed or file; goes on where it was stopped)
conformance: prepare payload
	@scripts/kernel --if-changed conformance machine overlay conformance
	@scripts/conformance $(if $(PROGRAMS),--programs $(PROGRAMS)) $(if $(REPLAY),--replay $(REPLAY))

## programs of ioctls that break the kernel, looked for with KCOV (TIME=seconds, REPLAY=file, SELFTEST=1)
fuzz: prepare payload
	@scripts/kernel --if-changed fuzz machine overlay fuzz
	@scripts/fuzz-kvm $(if $(TIME),--time $(TIME)) $(if $(REPLAY),--replay $(REPLAY)) $(if $(SELFTEST),--self-test)

## how much of the emulated module's core the host-side tests run, by line
coverage: prepare
	@scripts/coverage

## libFuzzer on the emulated module's dispatcher (TIME=seconds)
fuzz-core: prepare
	@scripts/fuzz-core $(TIME)

## write the documentation's list of leaves anew, from the leaves' declarations
docs-leaves: prepare
	@scripts/cargo run --quiet --locked --manifest-path tools/tdx/Cargo.toml --target-dir build/cargo \
		--package tdx-emulator-host --bin leaf-table Documentation/arch/x86/tdx-emulator-leaves.rst

## the documentation as HTML, as the kernel builds it: build/doc/index.html
doc: prepare
	@$(KERNEL)
	@scripts/doc

## write the documentation's lists of errors, `unsafe` and misuses anew, from the source
docs-unsafe:
	@scripts/docs-lists

## the guard with one part left out at a time: which test notices (REPEAT=N: the whole guard, N times)
mutants: prepare
	@scripts/mutate

## the guard as it is passes what kills the mutants, REPEAT=100 times (goes on where it was stopped)
guard: prepare
	@scripts/mutate --quick --repeat $(or $(REPEAT),100) none

## what must not compile
compile-fail: prepare
	@scripts/test-group compile-fail

## two mailable series, build/patches/, checked by git am and checkpatch (SIGNOFF=1 signs them off)
patches: prepare
	@$(KERNEL)
	@scripts/patches --check

## build the kernel after each patch (an hour; goes on where it was stopped)
patches-build: prepare
	@$(KERNEL)
	@scripts/patches-build

## the kernel in its other shapes: kvm-intel as a module, no emulator, Rust off
variants: prepare
	@scripts/test-group variants

## kernels and compilers: 7.3, 7.2, KVM as modules, gcc, the newest rustc (an hour; goes on where it was stopped)
matrix: prepare
	@scripts/matrix $(ROWS)

machine-usable:
	@scripts/machine/boot --check --machine $(MACHINE)

# What the host lacks, above all the toolchain root.
prepare:
	@scripts/toolchain >/dev/null

# What the machine's programs are made of.
payload tdxvm: prepare
	@scripts/payload

## look for a newer kernel source in Debian's backports
source-update:
	@KERNEL_SOURCE_UPDATE=1 scripts/kernel-source

## remove what was built
clean:
	rm -rf build/obj build/matrix build/[0-9]* build/mutants build/slips build/machine build/payload build/cargo build/coverage build/fuzz build/cargo-static build/patches build/series build/series-trees build/doc build/report build/faults build/sanitize build/fuzz-kvm build/all-checks build/log

## remove build/ wholly; the cache (toolchain, sources) stays
distclean:
	rm -rf build

## this list
help:
	@echo 'make run is the place to start. Needs root and a Debian; the cache is'
	@echo '$${KVM_TDX_CACHE:-~/.cache/kvm-tdx-rust}. Variables: LINUX=<kernel tree, tarball or 7.2>,'
	@echo 'FIRMWARE=<TDVF file>, JOBS=<number>.'
	@echo
	@awk '/^## /{ text = substr($$0, 4) } /^[a-z-]+:/ { if (text) printf "  %-14s %s\n", substr($$1, 1, index($$1, ":") - 1), text; text = "" }' $(MAKEFILE_LIST)

.PHONY: machine-usable run test shell trace bench kernel compile kunit kselftest faults sanitize all-checks host-test golden conformance tdx-check fuzz coverage fuzz-core docs-leaves compile-fail mutants guard variants matrix prepare payload tdxvm source-update clean distclean help docs-unsafe doc patches patches-build

export MACHINE LINUX FIRMWARE JOBS FILTER TESTS VECTORS REPEAT

endif

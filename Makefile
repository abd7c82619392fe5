# The door: each target installs what it needs (as root, on Debian) and does the whole thing. Meson does the building.
BUILD  ?= build
T      ?=
PREFIX ?= /usr/local
FUZZ_SECONDS ?= 60

.DEFAULT_GOAL := all
.PHONY: all help demo demo-clean play play-stop check bench lint asan tsan fuzz install clean format

all: $(BUILD)/build.ninja ## build every program into build/
	@meson compile -C $(BUILD)

$(BUILD)/build.ninja: meson.build meson_options.txt
	@tools/deps build
	@test -f $@ && meson setup --reconfigure $(BUILD) >/dev/null || meson setup $(BUILD) --prefix $(PREFIX) >/dev/null

help: ## show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: ## migrate a real (virtual) Debian server while it runs, and boot the image
	@tools/deps demo
	@$(MAKE) --no-print-directory all
	@tools/demo run

demo-clean: ## stop what the demo left running and remove its files
	@tools/demo clean

play: ## start a center on loopback, with a source to try things with
	@tools/deps demo
	@$(MAKE) --no-print-directory all
	@tools/play start

play-stop: ## end it
	@tools/play stop

check: ## run the tests; T=PATTERN runs those whose name matches
	@tools/deps test
	@$(MAKE) --no-print-directory all
	@tests/run --build $(BUILD) $(if $(T),--match '$(T)')

asan: ## the same tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@tools/deps test
	@test -f build-asan/build.ninja || meson setup build-asan -Db_sanitize=address,undefined -Db_lundef=false >/dev/null
	@meson compile -C build-asan
	@tests/run --build build-asan --sanitizer $(if $(T),--match '$(T)')

tsan: ## the data plane's tests under ThreadSanitizer
	@tools/deps test
	@test -f build-tsan/build.ninja || meson setup build-tsan -Db_sanitize=thread -Db_lundef=false >/dev/null
	@meson compile -C build-tsan
	@tests/run --build build-tsan --sanitizer --match '$(if $(T),$(T),stream)'

fuzz: ## libFuzzer on each parser, FUZZ_SECONDS (60) each
	@tools/deps test
	@test -f build-fuzz/build.ninja || CC=clang meson setup build-fuzz -Dfuzzers=true -Db_sanitize=address,undefined -Db_lundef=false >/dev/null
	@meson compile -C build-fuzz
	@tools/fuzz build-fuzz $(FUZZ_SECONDS)

bench: ## time a migration over loopback beside what people use today
	@tools/deps bench
	@$(MAKE) --no-print-directory all
	@bench/run --build $(BUILD)

lint: ## layout rules, formatting, shell, spelling
	@tools/deps lint
	@tools/lint

format: ## clang-format every C file
	@git ls-files '*.[ch]' | xargs clang-format -i

install: all ## install programs, man pages and units under PREFIX
	@meson install -C $(BUILD) --no-rebuild

clean: ## remove what was built (the caches too)
	@rm -rf build build-asan build-tsan build-fuzz

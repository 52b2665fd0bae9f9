# cachefs: `make help` lists what there is to make. Everything works on a bare Debian 12 as root.
SHELL := /bin/bash
.DEFAULT_GOAL := help

BIN := .venv/bin
BUILT_FROM := pyproject.toml setup.py setup.cfg packaging/bootstrap.sh $(wildcard mount_helper/*.c mount_helper/*.h)
PYTEST_ARGS ?=
TEST_JOBS ?= 3

.PHONY: help
help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

# ------------------------------------------------------------------------------------------ set-up
.PHONY: setup setup-demo
setup: ## system packages (root) and .venv with everything that tests and checks need
	@packaging/bootstrap.sh system test
	@$(MAKE) --silent --no-print-directory .venv/.stamp-test

.PHONY: setup-demo setup-bench
setup-bench: setup # what makes real Debian images
	@packaging/bootstrap.sh system bench

setup-demo: # fewer packages: what running needs
	@packaging/bootstrap.sh system demo
	@$(MAKE) --silent --no-print-directory .venv/.stamp-demo

.venv/.stamp-test: $(BUILT_FROM)
	@packaging/bootstrap.sh venv test,dev
	@touch .venv/.stamp-demo $@

.venv/.stamp-demo: $(BUILT_FROM)
	@packaging/bootstrap.sh venv demo
	@touch $@

# ------------------------------------------------------------------------------------------ try it
.PHONY: demo
demo: setup-demo ## import, mount and read real images in a temporary folder, and show what happened
	@PYTHONPATH=. $(BIN)/python packaging/demo.py

# ------------------------------------------------------------------------------------------ test it
.PHONY: test guest check coverage
test: setup ## the whole test suite (PYTEST_ARGS="-k name" for a part, TEST_JOBS=0 for one process)
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder -m "not guest" $(PYTEST_ARGS)

guest: setup-bench ## boot a full Debian guest from a mounted image in qemu (minutes)
	$(BIN)/python -m pytest -m guest $(PYTEST_ARGS)

.PHONY: stress
stress: export CACHEFS_STRESS_S = 60
stress: export CACHEFS_KILLS = 100
stress: export CACHEFS_LONGEST_READ_S = 2
stress: export CACHEFS_OUTAGE_S = 600
stress: export CACHEFS_LEARNING_KILLS = 60
stress: setup ## a minute of eviction under comparison, kills under load and while something is saved, S3 gone for ten minutes
	$(BIN)/python -m pytest tests/mount/test_lane_hits.py tests/fault/test_mount_kills.py \
	    tests/fault/test_mount_kills_learning.py tests/fault/test_mount_kills_profiles.py \
	    tests/fault/test_mount_s3_long_outage.py $(PYTEST_ARGS)

.PHONY: chaos
CHAOS_ARGS ?=
chaos: setup ## faults of every tier at random, under a load that compares (CHAOS_ARGS="--seconds 600 --seed 7")
	$(BIN)/python -m tests.chaos $(CHAOS_ARGS)

.PHONY: model sanitize fuzz
model: setup ## the model of the board's protocols, deeper than `make test` does (minutes)
	MODEL_DEPTH=2 $(BIN)/python -m pytest --timeout 3600 tests/model $(PYTEST_ARGS)

sanitize: setup ## the lane and the board under sanitizers, a minute each
	STRESS_SECONDS=60 FUZZ_SECONDS=60 $(BIN)/python -m pytest --timeout 300 $(PYTEST_ARGS) \
	    tests/mount_helper/test_board_stress.py tests/mount_helper/test_lane_fuzz.py tests/mount_helper/test_lane_extension.py

FUZZ_SECONDS ?= 300
FUZZ_SEEDS ?= 1
fuzz: setup ## random requests and lying daemons against the lane (FUZZ_SECONDS, FUZZ_SEEDS=1,2,3)
	FUZZ_SECONDS=$(FUZZ_SECONDS) FUZZ_SEEDS=$(FUZZ_SEEDS) $(BIN)/python -m pytest $(PYTEST_ARGS) \
	    tests/mount_helper/test_lane_fuzz.py

C_WARNINGS := -std=gnu11 -Wall -Wextra -Wshadow -Wstrict-prototypes -Wpointer-arith -Wvla -Wundef -Wformat=2 -Werror
check: setup ## format, lint, types, layers, and more warnings for C
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(CC) -fsyntax-only $(C_WARNINGS) -isystem $$($(BIN)/python -c \
	    'import sysconfig; print(sysconfig.get_path("include"))') mount_helper/*.c
	$(CC) -fsyntax-only $(C_WARNINGS) tests/mount_helper/native/*.c tests/disk/*.c
	$(CC) -fsyntax-only $(C_WARNINGS) $$(pkg-config --cflags fuse3) bench/servers/*.c

# Open to all, because some tests run a process as nobody.
COVERAGE_FOLDER := $(CURDIR)/build/coverage-data
coverage: export COVERAGE_FILE := $(COVERAGE_FOLDER)/data
coverage: setup ## the test suite with line and branch coverage, subprocesses included (at least 90%)
	@rm -rf $(COVERAGE_FOLDER) && mkdir -p $(COVERAGE_FOLDER) && chmod 1777 $(COVERAGE_FOLDER)
	$(BIN)/coverage run -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder -m "not guest" $(PYTEST_ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage html --quiet --fail-under=0
	$(BIN)/coverage report

# ------------------------------------------------------------------------------------------ measure it
.PHONY: bench-hot bench-tail bench-disk bench-cold bench-tiers bench-s3 bench-s3-clients bench-random-reads bench-import bench-chunk-size bench-eviction bench-eviction-large bench-fleet bench-training bench-prefetch bench-boot bench-observe bench-waste
BENCH_ARGS ?=

bench-hot: setup build/libfuse_pread ## hits, beside a bare pyfuse3 server and C libfuse servers
	$(BIN)/python -m bench.hot $(BENCH_ARGS)

bench-tail: setup ## latencies of hits while a cold stream runs, the daemon is stopped or killed
	$(BIN)/python -m bench.tail $(BENCH_ARGS)

bench-disk: setup ## hits with nothing in the page cache, beside fio on the segment file
	$(BIN)/python -m bench.disk $(BENCH_ARGS)

bench-cold: setup ## a cold sequential read from a local store, beside zstd -d
	$(BIN)/python -m bench.cold $(BENCH_ARGS)

bench-tiers: setup ## one read from L1, L2 (Redis, Memcached), a local store, and S3 near and far
	$(BIN)/python -m bench.tiers $(BENCH_ARGS)

bench-s3: setup ## cold reads and imports over S3, beside bare range GETs
	$(BIN)/python -m bench.s3 $(BENCH_ARGS)

bench-s3-clients: setup ## ways to ask S3 for a range, and what each costs
	$(BIN)/python -m bench.s3_clients $(BENCH_ARGS)

bench-random-reads: setup ## random cold 4 KiB reads from S3, beside desync (BENCH_ARGS="--desync PROGRAM")
	$(BIN)/python -m bench.random_reads $(BENCH_ARGS)

bench-import: setup ## import, beside zstd
	$(BIN)/python -m bench.import_ $(BENCH_ARGS)

bench-chunk-size: setup-bench ## chunk sizes on two versions of a Debian image
	$(BIN)/python -m bench.chunk_size $(BENCH_ARGS)

bench-observe: setup ## what it costs a hit or a miss that fetching ahead looks at it
	$(BIN)/python -m bench.observe $(BENCH_ARGS)

bench-waste: setup ## what is fetched ahead of random readers and not read
	$(BIN)/python -m bench.waste $(BENCH_ARGS)

bench-eviction: setup ## policies on real traces (a folder of yours: BENCH_ARGS="--traces FOLDER")
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.eviction $(BENCH_ARGS)

bench-prefetch: setup ## arms on real traces and boots (a folder of yours: BENCH_ARGS="--traces FOLDER")
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.prefetch $(BENCH_ARGS)

bench-boot: setup-bench ## guests that start from S3, with and without a profile (minutes, qemu)
	$(BIN)/python -m bench.boot $(BENCH_ARGS)

bench-fleet: setup ## guests of two versions of an image on a mount with a small L1, beside the simulator
	$(BIN)/python -m bench.fleet $(BENCH_ARGS)

bench-training: setup ## hits while eviction learns: their tail, and the CPU of the daemon
	$(BIN)/python -m bench.training $(BENCH_ARGS)

bench-eviction-large: setup # CPU and memory of policies over 16 million chunks: minutes, 8 GB
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.eviction --large $(BENCH_ARGS)

build/libfuse_pread: bench/servers/libfuse_pread.c
	@mkdir -p $(@D)
	$(CC) -O2 -std=gnu11 -Wall -Wextra -Werror -o $@ $< $$(pkg-config --cflags --libs fuse3)

# ------------------------------------------------------------------------------------------ clean
.PHONY: clean
clean: ## remove .venv and everything else that was built
	rm -rf .venv build *.egg-info .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache \
	    .hypothesis .import_linter_cache mount_helper/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

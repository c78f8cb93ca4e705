# make run · make test · make faults · make soak · make lint · make bench · make mutants · make screenshots · make lock

PYTHON ?= python3
BIN := .venv/bin

# Two processes per core, because tests mostly wait.
PARALLEL := --numprocesses $(shell expr 2 \* $$(getconf _NPROCESSORS_ONLN))

# The scaled-out settings, for Django's deployment checks; the values are made up.
SCALED_OUT := DATA_DIR=$$(mktemp -d) DOKPLOY_URL=https://dokploy.example.org DOKPLOY_API_KEY=a-key-for-the-checks \
	DATABASE_URL=postgres://portal@localhost/portal REDIS_URL=redis://localhost:6379/0 \
	ALLOWED_HOSTS=portal.example.org PORTAL_TLS=1 TRUSTED_PROXIES=1 \
	STACK_IMAGE=ghcr.io/example/stack:1 STACK_DOMAIN_SUFFIX=apps.example.net

.PHONY: run test faults soak lint bench mutants screenshots lock clean

run: .venv/.installed
	@exec $(BIN)/python manage.py serve

test: .venv/.installed-dev
	@$(BIN)/python -m pytest $(PARALLEL) --dist loadfile $(ARGS)

# Kills real processes at every point of a deployment. Tests that measure seconds run afterwards, one at a time: in
# parallel, other tests would slow them down. FIGURES_SO_FAR adds the counts of the first call to those of the second.
TIMED := $(addprefix tests/faults/test_,workers.py redis.py messages.py told_to_stop.py scaled_out_chaos.py)

faults: .venv/.installed-dev
	@$(BIN)/python -m pytest tests/faults -m faults $(PARALLEL) --dist load $(TIMED:%=--ignore=%) $(ARGS)
	@FIGURES_SO_FAR=1 $(BIN)/python -m pytest $(TIMED) -m faults $(ARGS)

# make soak SEED=7 COUNT=40 MINUTES=2: deployments under random faults drawn from the seed.
soak: export SOAK_SEED = $(SEED)
soak: export SOAK_COUNT = $(or $(COUNT),200)
soak: export SOAK_MINUTES = $(or $(MINUTES),10)
soak: .venv/.installed-dev
	@$(BIN)/python -m pytest tests/faults/test_soak.py -m faults -s $(ARGS)

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python manage.py makemigrations --check --dry-run
	$(BIN)/python manage.py check --fail-level WARNING
	$(SCALED_OUT) $(BIN)/python manage.py check --deploy --fail-level WARNING
	$(BIN)/python -m pytest tests/unit/test_templates.py

bench: .venv/.installed-dev
	@$(BIN)/python -m bench $(ARGS)

# Changes the engine and the models one place at a time, and prints the changes that no test notices. Takes hours.
mutants: .venv/.installed-dev
	@env -u DATABASE_URL -u REDIS_URL $(BIN)/mutmut run --max-children 1 $(ARGS) || true
	@$(BIN)/mutmut results | grep -v "not checked"

# Renews docs/images from a real demo. Needs Chromium and three free ports: PORT=9000 make screenshots.
screenshots: .venv/.installed-dev
	@$(BIN)/python docs/screenshots.py

# Writes the lock files: with hashes, without index addresses.
lock: .venv/.installed-dev
	$(BIN)/pip-compile $(LOCK) --extra postgres --output-file requirements.lock pyproject.toml
	$(BIN)/pip-compile $(LOCK) --extra postgres --extra dev --output-file requirements-dev.lock pyproject.toml

LOCK := --quiet --strip-extras --generate-hashes --no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
	--no-emit-options --allow-unsafe

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@touch $@

.venv/.installed-dev: .venv/.installed requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-dev.lock
	@touch $@

clean:
	rm -rf .venv var

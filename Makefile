# `make demo` and `make test` are enough to begin with; each makes its own virtual environment.
PYTHON ?= python3
# The first python3.10 that runs: pyenv's is a name that may stand for nothing.
PYTHON310 ?= $(shell for p in python3.10 $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.10.*/bin/python3.10; \
	do $$p -c '' 2>/dev/null && echo $$p && break; done)
PIP = -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-faults test-scale test-package test-boot deb soak lint clip schemas node-tools tensorrt gpu clean

demo: .venv-node/ready
	.venv-node/bin/python demo/run.py

test: .venv/ready
	.venv/bin/python -m pytest

# A real broker behind a proxy that misbehaves, cameras that fail, and hundreds of SIGKILLs.
test-faults: .venv/ready
	.venv/bin/python -m pytest -m faults -s tests/faults

# SCALE_NODES (1000) simulated nodes into SQLite and PostgreSQL, with everything killed again and again.
test-scale: .venv/ready
	.venv/bin/python -m pytest -m scale -s tests/scale

# The node's package for arm64, with all that it needs offline, into dist/. PYTHONS: whose wheels it has.
PYTHONS = 3.10 3.11 3.12
deb: .venv-node/ready
	.venv-node/bin/python systemd/build_package.py --python $(PYTHONS)

# Installed, cut, upgraded, removed and purged in an arm64 Debian; as root.
test-package: .venv/ready deb
	.venv/bin/python -m pytest -m package -s tests/package

# A blank card to a publishing node, on an emulated arm64 computer, with the power cut twice; as root.
test-boot: .venv/ready deb
	.venv/bin/python -m pytest -m boot -s tests/boot

# The demo clip as a camera for SOAK_MINUTES (10): nothing that the node holds may grow.
soak: .venv/ready
	.venv/bin/python -m pytest -m soak -s tests/soak

# The node must run on Python 3.10 (JetPack 6): its tests under it, where there is one.
.PHONY: test-310
ifeq ($(PYTHON310),)
test-310:
	@echo "skipped: tests of edge/ under Python 3.10 (no python3.10 on this machine)"
else
test-310: .venv-310/ready
	.venv-310/bin/python -m pytest tests/edge --ignore tests/edge/flash --ignore tests/edge/watch
endif

lint: .venv/ready
	.venv/bin/python $(PIP) --editable '.[lint]'
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# All that needs an NVIDIA device with TensorRT, with its tables.
gpu: .venv/ready
	.venv/bin/python -m pytest -m gpu -s tests/gpu

# NVIDIA's own code that needs no GPU, for two of the tests: 100 MB, x86-64.
TENSORRT = 10.3.0 10.13.0.35 10.16.1.11 11.4.0.106
tensorrt: .venv/ready
	.venv/bin/python $(PIP) --editable '.[tensorrt]'
	for version in $(TENSORRT); do \
		test -d .tensorrt/$$version || .venv/bin/python $(PIP) --no-deps --target .tensorrt/$$version \
			tensorrt-cu12-bindings==$$version || exit 1; \
	done

# The specification of AsyncAPI and MQTT's client for JavaScript, for the tests that want them.
node-tools:
	npm install --silent --no-audit --no-fund --prefix .node @asyncapi/specs@6 mqtt@5

clip: .venv-node/ready
	.venv-node/bin/python demo/make_clip.py

schemas: .venv-node/ready
	.venv-node/bin/python -m edge.delivery.schemas edge/schemas

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP) --editable '.[train,test]'
	touch $@

.venv-node/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-node
	.venv-node/bin/python $(PIP) --editable '.[demo]'
	touch $@

.venv-310/ready: pyproject.toml constraints.txt
	$(PYTHON310) -m venv .venv-310
	.venv-310/bin/python $(PIP) --editable '.[test]'
	touch $@

clean:
	rm -rf .venv .venv-node .venv-310 .tensorrt .node *.egg-info build dist .hypothesis .pytest_cache .mypy_cache .ruff_cache

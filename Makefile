# Everything runs in .venv, which the first target that needs it sets up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export HF_HUB_OFFLINE ?= 1

.PHONY: install train test test-slow lint tensorboard benchmark clean

install: $(STAMP)

# The constraints pin what was tested, with the CPU build of torch where one is at hand; without
# them (pip install -e .) the newest torch and its CUDA libraries are installed.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
# torchrl is an independent reference of the return estimators, for tests alone; it insists on an
# older tensordict than it needs for that.
	$(BIN)/python -m pip install --quiet --no-deps torchrl==0.14.1 hoptorch==0.1.4
	touch $@

# The main job: PPO reads mazes through a frozen pretrained MiniLM; then 200 held-out mazes.
train: install
	OMP_NUM_THREADS=1 $(BIN)/rl-lightning fit --config configs/ppo/textmaze.yaml
	OMP_NUM_THREADS=1 $(BIN)/rl-lightning validate --config configs/ppo/textmaze.yaml \
		--ckpt_path best
	@echo "curves: make tensorboard    checkpoints: checkpoints/ppo-textmaze/"

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow and not gpu"

# What takes longer, or is like what `make test` tests already.
test-slow: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "slow and not storm and not gpu"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

tensorboard: install
	$(BIN)/tensorboard --logdir logs

benchmark: install
	$(BIN)/python benchmarks/onpolicy.py --out benchmarks/results/speed/onpolicy.json
	$(BIN)/python benchmarks/llm_encoder.py --out benchmarks/results/speed/llm_encoder.json
	$(BIN)/python benchmarks/replay.py --out benchmarks/results/speed/replay.json
	$(BIN)/python benchmarks/offpolicy.py --out benchmarks/results/speed/offpolicy.json

clean:
	rm -rf $(VENV) build *.egg-info

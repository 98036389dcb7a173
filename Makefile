# make demo   train on the embedded set, print AP per class, draw detections (about five minutes on two CPU cores)
# make test   the tests
# Each sets up a virtual environment of its own in .venv first; nothing else needs to be installed than Python 3.10+.

PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test clean

demo: .venv/ready
	$(BIN)/python train_voc.py --config configs/demo.yaml --output checkpoint/demo-$$(date +%Y%m%d-%H%M%S)
	$(BIN)/python eval_voc.py
	$(BIN)/python detect.py

test: .venv/ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile tests

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -r requirements.txt
	touch $@

.venv/ready-dev: .venv/ready requirements-dev.txt
	$(BIN)/python -m pip install -q -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv

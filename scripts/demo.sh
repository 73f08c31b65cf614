#!/usr/bin/env bash
# From a fresh clone to a tuned prompt: environment, model and texts, training, evaluation, what the prompt says.
# Run it again and it reuses what is there.
set -euo pipefail
cd "$(dirname "$0")/.."
config=configs/movie_reviews.yaml
prompt=runs/movie-reviews/prompt

source scripts/setup.sh "demo"

printf '\n== Training 20 virtual tokens in front of a frozen model (%s)\n' "$config"
.venv/bin/ptuning train --config "$config" --resume

printf '\n== What the virtual tokens decode to, and how much of that can be believed\n'
.venv/bin/ptuning inspect "$prompt" --top-k 3 \
    --data assets/movie_reviews/test.csv --max-rows 300 --html runs/movie-reviews/report.html

printf '\n== Using it\n'
.venv/bin/ptuning predict "$prompt" --input "a gripping film that never lets go"
cat <<END
From Python:

    import ptuning
    lm = ptuning.PromptedLM.from_pretrained("assets/smollm2-135m-instruct", {"sentiment": "$prompt"})
    print(lm.classify([{"text": "a gripping film that never lets go"}], prompt="sentiment"))
END
printf '\nThe whole took %d min %d s.\n' $((SECONDS / 60)) $((SECONDS % 60))

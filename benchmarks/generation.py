"""Generation with the Hugging Face engine against its matrix products alone, and against transformers' own `generate`.

    python benchmarks/generation.py                       # a random model of SmolLM2-135M's shape
    python benchmarks/generation.py FOLDER --tokens 20    # a model of yours
    python benchmarks/generation.py --vllm                # our vLLM engine against vLLM's own, a tiny model, 32 x 8 responses of 6 tokens

All three get the same requests (12 prompts x 8 responses that all run to the end), in turns; the minimum of their CPU seconds counts. The
products are those of the linear layers: the prompts once, then one row a response and token. Attention, sampling and everything else is what the
engine adds to them. With ``--vllm`` what is compared with is vLLM's engine, asked for the same requests with the same seeds in one thread, which
does nothing with the answers: no engine on top of it can be faster.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from string import printable

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from rlkit.model.load import load_lm, load_tokenizer
from rlkit.model.tiny import make_tokenizer
from rlkit.rollout.hf import HFEngine
from rlkit.types import Prompt, Sampling


def random_model(folder: Path) -> str:
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer(printable).save_pretrained(folder)
    return str(folder)


def fastest(work: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """CPU seconds of each, the best of ``repeats`` after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats + 1):
        for name, run in work.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    return {name: min(x[1:]) for name, x in seconds.items()}


def measure(model: str, a: argparse.Namespace) -> None:
    vocabulary = len(load_tokenizer(model))
    generator = torch.Generator().manual_seed(0)
    prompts = [
        Prompt(str(i), tuple(torch.randint(3, vocabulary, (a.prompt - i % 8,), generator=generator).tolist()), "")
        for i in range(a.prompts)
    ]
    engine = HFEngine(model, max_model_len=a.prompt + a.tokens + 8)
    engine.tokenizer.eos_token_id = None  # all responses run to the end
    plain = load_lm(model).eval()
    width = max(len(p.token_ids) for p in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, p in enumerate(prompts):
        ids[row, width - len(p.token_ids) :] = torch.tensor(p.token_ids)
        mask[row, width - len(p.token_ids) :] = 1
    layers = [m for m in plain.modules() if isinstance(m, nn.Linear)]
    rows = {m.in_features: torch.randn(max(ids.numel(), a.prompts * a.n), m.in_features) for m in layers}

    def products() -> None:
        for m in layers:
            torch.mm(
                rows[m.in_features][: len(prompts) if m.out_features == plain.config.vocab_size else ids.numel()],
                m.weight.T,
            )
        for _ in range(a.tokens - 1):
            for m in layers:
                torch.mm(rows[m.in_features][: a.prompts * a.n], m.weight.T)

    sampling = Sampling(temperature=0.6, max_tokens=a.tokens, seed=0)

    def rlkit() -> None:
        with ThreadPoolExecutor(len(prompts)) as pool:
            list(pool.map(lambda p: engine.generate(p, a.n, sampling), prompts))

    def transformers() -> None:
        plain.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            temperature=0.6,
            top_k=0,
            num_return_sequences=a.n,
            min_new_tokens=a.tokens,
            max_new_tokens=a.tokens,
            pad_token_id=0,
            use_cache=True,
        )

    with torch.no_grad():
        found = fastest({"products alone": products, "rlkit": rlkit, "transformers' generate": transformers}, a.repeats)
    engine.close()
    print(f"{a.prompts} prompts x {a.n} responses of {a.tokens} tokens, {torch.get_num_threads()} threads; CPU seconds")
    for name, seconds in found.items():
        print(f"  {name:<24}{seconds:7.2f}   {seconds / found['products alone']:.2f} x products")


def measure_vllm(folder: str, a: argparse.Namespace) -> None:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from rlkit.model.tiny import make_tiny
    from rlkit.rollout.engine import numbered, request_seed
    from rlkit.rollout.vllm import VLLMEngine

    prompts, n, tokens = 32, 8, 6
    model = make_tiny(Path(folder) / "model", "0123456789>", hidden=64, layers=2, heads=2, kv_heads=1)
    engine = VLLMEngine(str(model), max_model_len=64)
    sampling, asked = Sampling(max_tokens=tokens, seed=0), [0]
    step = [Prompt(str(i), tuple(3 + (i // 10**k) % 10 for k in range(4)), "") for i in range(prompts)]

    def alone() -> None:
        for i, p in enumerate(step):
            params = SamplingParams(
                n=n,
                max_tokens=tokens,
                stop_token_ids=sorted(engine.endings.ids),
                detokenize=False,
                logprobs=0,
                seed=request_seed(numbered(sampling, i), p, engine.version),
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            asked[0] += 1
            engine.engine.add_request(f"alone {asked[0]}", {"prompt_token_ids": list(p.token_ids)}, params)
        while engine.engine.has_unfinished_requests():
            engine.engine.step()

    with ThreadPoolExecutor(prompts) as pool:

        def rlkit() -> None:
            list(pool.map(lambda i: engine.generate(step[i], n, numbered(sampling, i)), range(prompts)))

        found = fastest({"vLLM alone": alone, "rlkit": rlkit}, 4 * a.repeats)
    engine.close()
    print(f"{prompts} prompts x {n} responses of {tokens} tokens, {torch.get_num_threads()} threads; CPU seconds")
    for name, seconds in found.items():
        print(f"  {name:<24}{seconds:7.3f}   {found['vLLM alone'] / seconds:.2f} of vLLM's speed")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a model folder; without one, a random model of SmolLM2-135M's shape")
    for name, default in (("prompts", 12), ("n", 8), ("prompt", 56), ("tokens", 20), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--vllm", action="store_true", help="our vLLM engine against vLLM's own")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.vllm:
            measure_vllm(folder, given)
        else:
            measure(given.model or random_model(Path(folder)), given)

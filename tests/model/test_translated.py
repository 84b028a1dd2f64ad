"""A teacher with another tokenizer against passes of its own over the same texts, response by response."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import rlkit as rk
from rlkit.data.alignment import encode, ends, pieces
from rlkit.errors import ConfigError, ModelError
from rlkit.model.load import load_lm
from rlkit.model.policy import PolicyModel
from rlkit.model.translated import Translated
from rlkit.objective.divergences import generator
from rlkit.objective.full_vocab import Head, Ranked, UniversalLogit, full_divergence
from rlkit.types import Batch, Prompt, Rollout, Sampling
from tests.data.test_alignment import trained

PROMPTS = ("The loss of a policy: ", "Why naïve? ")
RESPONSES = ("it is a list of terms.", "two tokenizers, 日本 and e\u0301", "", "regularized")


# -- sorted probabilities -------------------------------------------------------------------------------------------------


def by_definition(z: Tensor, y: Tensor) -> Tensor:
    """``sum_i |p_(i) - q_(i)|`` of logits of two vocabularies, the shorter one padded with zeros."""
    p, q = (x.softmax(-1).sort(descending=True).values for x in (z, y))
    width = max(len(p), len(q))
    return (
        (torch.nn.functional.pad(p, (0, width - len(p))) - torch.nn.functional.pad(q, (0, width - len(q)))).abs().sum()
    )


@pytest.mark.parametrize("classes", [5, 9, 14])
def test_sorted_probabilities_by_their_definition_and_its_gradient(classes: int) -> None:
    g = torch.Generator().manual_seed(classes)
    hidden, weight = torch.randn(6, 4, generator=g), torch.randn(9, 4, generator=g)
    place = torch.tensor([0, 2, 3, 5])  # the others have no partner
    other = Head(torch.randn(4, 3, generator=g) * 2, torch.randn(classes, 3, generator=g) * 2)
    share = torch.rand(6, generator=g)
    own, table = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    value = full_divergence(Head(own, table), Ranked(other, place), UniversalLogit().generator, expected=share)
    (value * share).sum().backward()
    x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logits = torch.nn.functional.linear(other.hidden, other.weight)  # type: ignore[arg-type]
    want = [
        by_definition(w @ x[n], logits[int((place == n).nonzero()[0])]) if n in place else x[n].sum() * 0
        for n in range(6)
    ]
    torch.stack([a * b for a, b in zip(want, share, strict=True)]).sum().backward()
    if classes <= 9:
        assert value.tolist() == pytest.approx([float(v) for v in want], abs=1e-5)
    else:  # without the mass of the teacher's least likely tokens
        beyond = [float(y.softmax(-1).sort(descending=True).values[9:].sum()) for y in logits]
        assert value[place].tolist() == pytest.approx(
            [float(want[n]) - b for n, b in zip(place.tolist(), beyond, strict=True)], abs=1e-5
        )
    torch.testing.assert_close(own.grad, x.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(table.grad, w.grad, atol=1e-5, rtol=1e-4)


def test_between_equal_vocabularies_names_do_not_matter() -> None:
    """A permutation of the tokens is at distance 0, where every other divergence sees one."""
    z = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    eye, order = torch.eye(4), torch.tensor([2, 0, 3, 1])
    policy, anchor = Head(z, eye), Head(z[:, order], eye)
    assert float(full_divergence(policy, anchor, UniversalLogit().generator)) == pytest.approx(0, abs=1e-6)
    assert float(full_divergence(policy, anchor, generator("tv", None))) > 0.1
    with pytest.raises(ConfigError, match="leave it out"):
        UniversalLogit(top_k=5)


# -- texts in two tokenizers --------------------------------------------------------------------------------------------


def make(folder: Path, kind: str, seed: int, hidden: int) -> Path:
    """A random model with a trained tokenizer, and a word that ends its responses."""
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained(kind).backend_tokenizer, eos_token={"bytes": "<eos>", "words": "</s>"}[kind]
    )
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    return make(folder / "student", "bytes", 0, 32), make(folder / "teacher", "words", 1, 48)


def batch() -> tuple[Batch, list[Rollout]]:
    """Two prompts with responses of every length; the last token of one was not sampled."""
    tokenizer, g, rollouts = trained("bytes"), torch.Generator().manual_seed(2), list[Rollout]()
    end = tokenizer.convert_tokens_to_ids("<eos>")
    for k, prompt in enumerate(PROMPTS):
        ids = tuple(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        for text in RESPONSES:
            tokens = [*tokenizer(text, add_special_tokens=False)["input_ids"], *([] if text == RESPONSES[3] else [end])]
            sampled = [True] * len(tokens)
            if text == RESPONSES[1]:
                sampled[3] = False  # a tool's
            logp = (-torch.rand(len(tokens), generator=g)).tolist()
            rollouts.append(
                Rollout(
                    Prompt(str(k), ids, prompt), tokens, sampled, logp, [0] * len(tokens), "stop", group=k, reward=0.0
                )
            )
    return Batch.from_rollouts(rollouts), rollouts


@pytest.fixture(scope="module")
def state(models: tuple[Path, Path]) -> Any:
    def load_frozen(path: str, dtype: None, other_tokens: bool) -> PolicyModel:
        assert other_tokens
        return PolicyModel(load_lm(path)).requires_grad_(False).eval()

    student, teacher = models
    ours: Any = SimpleNamespace(start=str(student), device=torch.device("cpu"), load_frozen=load_frozen)
    return Translated(path=str(teacher)).build(ours)


def teachers(
    models: tuple[Path, Path], rollouts: list[Rollout]
) -> Iterator[tuple[Rollout, Tensor, int, list[int], list[Any]]]:
    """Each response with the teacher's log-probs ``[T, V]`` of its own tokens, those tokens, and the pieces."""
    one, two, lm = trained("bytes"), trained("words"), load_lm(models[1]).eval()
    for r in rollouts:
        ended = r.tokens[-1] == one.convert_tokens_to_ids("<eos>")
        said = r.tokens[: len(r.tokens) - ended]
        text = one.decode(said)
        prompt, (ids, other_ends) = two(r.prompt.text, add_special_tokens=False)["input_ids"], encode(two, text)
        found: list[Any] = list(pieces(ends(one.decode, said), other_ends))
        if ended:
            found.append((range(len(said), len(said) + 1), range(len(ids), len(ids) + 1)))
            ids = [*ids, two.convert_tokens_to_ids("</s>")]
        with torch.no_grad():
            logp = lm(input_ids=torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
        yield r, logp[len(prompt) - 1 : -1], len(prompt), ids, found


@pytest.mark.slow
def test_a_piece_has_the_teachers_log_prob_and_its_tokens_one_ratio(models: tuple[Path, Path], state: Any) -> None:
    b, rollouts = batch()
    got, first, several = state.logprobs(b, Sampling()), 0, 0
    for r, logp, _, ids, found in teachers(models, rollouts):
        place = dict(zip([i for i, s in enumerate(r.sampled) if s], range(first, first + sum(r.sampled)), strict=True))
        for own, other in found:
            ratio = [float(got[place[i]]) - r.logp[i] for i in own if i in place]
            if len(ratio) < len(own):
                assert ratio == [0.0] * len(ratio)  # a tool wrote a part of it
                continue
            total = sum(float(logp[j, ids[j]]) for j in other)
            assert sum(float(got[place[i]]) for i in own) == pytest.approx(total, abs=1e-3)
            assert ratio == pytest.approx([ratio[0]] * len(ratio), abs=1e-4)
            several += len(own) > 1 or len(other) > 1
        first += sum(r.sampled)
    assert several > 2


@pytest.mark.slow
def test_sorted_probabilities_are_compared_where_pieces_begin(models: tuple[Path, Path], state: Any) -> None:
    b, rollouts = batch()
    policy = PolicyModel(load_lm(models[0])).eval()
    assert b.ids is not None and b.length is not None and b.action is not None
    hidden = policy.hidden(b.ids, b.length, b.action, b.group)[b.action - 1]
    value = full_divergence(policy.output.over(hidden), state.head(b), UniversalLogit().generator)
    lm, first, zeros = load_lm(models[0]).eval(), 0, 0
    for r, logp, _, _, found in teachers(models, rollouts):
        with torch.no_grad():
            own_logits = lm(input_ids=torch.tensor([[*r.prompt.token_ids, *r.tokens]])).logits[0][
                len(r.prompt.token_ids) - 1 : -1
            ]
        starts = {own.start: other.start for own, other in found if len(other)}
        for i in (i for i, s in enumerate(r.sampled) if s):
            if i in starts:
                want, more = by_definition(own_logits[i], logp[starts[i]]), len(logp[0]) - own_logits.shape[1]
                beyond = (
                    logp[starts[i]].exp().sort(descending=True).values[own_logits.shape[1] :].sum() if more > 0 else 0.0
                )
                assert float(value[first]) == pytest.approx(float(want - beyond), abs=1e-4)
            else:
                assert float(value[first]) == 0
                zeros += 1
            first += 1
    assert zeros > 2


@pytest.mark.slow
def test_what_needs_one_vocabulary_refuses_such_a_teacher(models: tuple[Path, Path], small: dict[str, Any]) -> None:
    teacher = {"type": "Translated", "path": str(models[1])}
    for term in ("FullDivergence", "Wasserstein"):
        run = rk.load(
            {**small, "objective": [{"type": term, "anchor": "teacher"}], "teacher": teacher, "reference": None}
        )
        with pytest.raises(
            ConfigError,
            match=r"compares probabilities of the same tokens, but teacher \(type: Translated\) has a tokenizer",
        ):
            rk.train(run, quiet=True)
    frozen = {**teacher, "type": "Frozen"}
    run = rk.load({**small, "objective": [{"type": "UniversalLogit"}], "teacher": frozen, "reference": None})
    with pytest.raises(ModelError, match="or as a teacher type: Translated"):
        rk.train(run, quiet=True)


@pytest.mark.slow
def test_a_run_learns_from_a_teacher_of_another_tokenizer(models: tuple[Path, Path], small: dict[str, Any]) -> None:
    objective = [{"type": "UniversalLogit"}, {"type": "KL", "estimator": "k2", "anchor": "teacher", "coef": 0.1}]
    teacher = {"type": "Translated", "path": str(models[1])}
    folder = rk.train(rk.load({**small, "objective": objective, "teacher": teacher, "reference": None}), quiet=True)
    rows = folder.metrics()
    assert len(rows) == 3 and all(row["loss/UniversalLogit(teacher)"] > 0.01 for row in rows)

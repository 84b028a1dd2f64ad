"""References: what they are, when they move, and that they survive a resume."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

import rlkit as rk
from rlkit.checks import check
from rlkit.cluster.groups import LearnerGroup, LocalWorkers
from rlkit.data.tasks import Sorting
from rlkit.errors import ConfigError, ModelError, RunError
from rlkit.learner.learner import Learner
from rlkit.learner.plan import prepared
from rlkit.model import head
from rlkit.model.load import load_lm, load_tokenizer
from rlkit.model.reference import EMA, Frozen, Reference, ReferenceState, Served, Tempered, Trained
from rlkit.model.tiny import make_tiny
from rlkit.objective import loss
from rlkit.types import Batch, Prompt, Rollout, Sampling, Stats

pytestmark = pytest.mark.slow

NEEDS = frozenset({"ref"})


def batch() -> Batch:
    rollouts = [Rollout(Prompt("0", (3, 4), ""), [5, 6, 7], [True] * 3, [-1.0] * 3, [0] * 3, "stop")]
    return Batch.from_rollouts(rollouts)


def make(small: dict[str, Any], tiny: Path, reference: Any, needs: frozenset[str] = NEEDS, **more: Any) -> Learner:
    return Learner(rk.load({**small, "reference": reference, **more}).learner_setup(str(tiny), needs))


def shift(learner: Learner, by: float) -> None:
    with torch.no_grad():
        for p in learner.policy.parameters():
            p.add_(by * torch.ones_like(p))


def weights(learner: Learner, anchor: str = "ref") -> torch.Tensor:
    return torch.cat([p.flatten() for p in learner.anchors[anchor].model.base.parameters()])


def policy(learner: Learner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learner.policy.base.parameters()])


def test_ema_follows_by_its_formula_and_resumes(small: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    a = make(small, tiny, {"type": "EMA", "decay": 0.75, "every": 2})
    want = weights(a).clone()
    for step in (1, 2, 3, 4):
        shift(a, 0.01)
        a.after_step(step, Stats())
        if step % 2 == 0:
            want = 0.75 * want + 0.25 * policy(a)
    torch.testing.assert_close(weights(a), want)
    a.save(str(tmp_path))
    b = make(small, tiny, {"type": "EMA", "decay": 0.75, "every": 2})
    b.load(str(tmp_path))
    torch.testing.assert_close(weights(b), want)


def test_elastic_reset_by_its_formula_and_resumed(small: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    spec = {"type": "ElasticReset", "decay": 0.75, "every": 3}
    a = make(small, tiny, spec)
    start = policy(a)
    anchor = a.anchors["ref"].logprobs(batch(), Sampling())
    average = start.clone()
    for step in range(1, 6):
        shift(a, 0.01)
        moved = policy(a)
        a.after_step(step, Stats())
        average = 0.75 * average + 0.25 * moved
        if step == 3:
            torch.testing.assert_close(policy(a), average)
            average = start
        else:
            torch.testing.assert_close(policy(a), moved)
        if step == 4:
            a.save(str(tmp_path))
            b = make(small, tiny, spec)
            b.load(str(tmp_path))
    shift(b, 0.01)
    b.after_step(5, Stats())
    shift(a, 0.01), shift(b, 0.01)
    a.after_step(6, Stats()), b.after_step(6, Stats())
    torch.testing.assert_close(policy(a), policy(b))
    # The reference stays where training started.
    torch.testing.assert_close(a.anchors["ref"].logprobs(batch(), Sampling()), anchor)


def test_elastic_reset_moves_an_adapter_and_reaches_the_engine(small: dict[str, Any]) -> None:
    """With decay 0 the average is the policy; a reset right after a step gives back the start: every response is sampled from it."""
    small |= {
        "reference": {"type": "ElasticReset", "every": 1, "decay": 0.999999999},
        "peft": {"r": 4, "target_modules": "all-linear"},
        "steps": 3,
        "probe": {"every": 1},
        "learner": {"lr": 0.05},
    }
    rows = [
        json.loads(line) for line in (rk.train(rk.load(small), quiet=True) / "metrics.jsonl").read_text().splitlines()
    ]
    assert all(abs(r["kl/ref"]) < 1e-5 for r in rows) and rows[0]["learner/grad_norm"] > 0


@pytest.mark.parametrize(
    ("spec", "stats", "at"),
    [
        ({"every": 3}, [{}] * 6, [3, 6]),
        ({"kl_above": 0.05}, [{"kl/ref": x} for x in (0.1, 0.2, 0.4, 0.0, 0.9)], [3, 5]),
        ({"patience": 2}, [{"eval/score": x} for x in (0.5, 0.4, 0.45, 0.6, 0.6)], [3]),
        ({"patience": 1}, [{"eval/score": 0.5}, {}, {}, {"eval/score": 0.4}], [4]),
    ],
    ids=str,
)
def test_hard_resets_happen_when_they_should(
    small: dict[str, Any], tiny: Path, spec: dict[str, Any], stats: list[dict[str, float]], at: list[int]
) -> None:
    learner = make(small, tiny, {"type": "HardReset", "reset_optimizer": True, **spec})
    moved = []
    for step, values in enumerate(stats, 1):
        shift(learner, 0.01)
        before = weights(learner).clone()
        learner.after_step(step, Stats().update(values))
        if not torch.equal(before, weights(learner)):
            moved.append(step)
            torch.testing.assert_close(weights(learner), policy(learner))
    assert moved == at


def test_a_stalled_score_reaches_the_reference(small: dict[str, Any]) -> None:
    small |= {
        "reference": {"type": "HardReset", "patience": 1},
        "eval": {"every": 1, "prompts": 4},
        "steps": 3,
        "rewards": ["tests/rewards/examples.py:constant"],
    }
    rows = [
        line
        for line in (rk.train(rk.load(small), quiet=True) / "metrics.jsonl").read_text().splitlines()
        if "eval/score" in line
    ]
    assert len(rows) == 3


def test_soup_is_the_weighted_average(small: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    other = make_tiny(tmp_path / "other", Sorting.alphabet, hidden=64, layers=2, heads=2, kv_heads=1, seed=9)
    learner = make(small, tiny, {"type": "Soup", "paths": [str(tiny), str(other)], "weights": [0.25, 0.75]})
    a, b = (torch.cat([p.detach().flatten() for p in load_lm(path).parameters()]) for path in (tiny, other))
    torch.testing.assert_close(weights(learner), 0.25 * a + 0.75 * b)


def test_two_anchors_at_once_and_a_foreign_vocabulary(small: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    other = make_tiny(tmp_path / "other", Sorting.alphabet, hidden=64, layers=1, heads=1, kv_heads=1, seed=9)
    objective = [
        {"type": "PPOClip"},
        {"type": "KL", "estimator": "k2"},
        {"type": "Divergence", "f": "js", "anchor": "teacher", "coef": 0.1},
        {"type": "FullDivergence", "f": "forward_kl", "anchor": "teacher", "top_k": 3},
        {"type": "FullDivergence", "f": "reverse_kl"},
        {"type": "KL", "estimator": "k2", "anchor": {"of": ["ref", "teacher"]}},
    ]
    folder = rk.train(
        rk.load({**small, "objective": objective, "teacher": {"type": "Frozen", "path": str(other)}}), quiet=True
    )
    row = (folder / "metrics.jsonl").read_text().splitlines()[0]
    for name in ("js(teacher)", "forward_kl_top3(teacher)", "reverse_kl_full(ref)", "KL_k2(ref+teacher)"):
        assert f"loss/{name}" in row
    foreign = make_tiny(tmp_path / "foreign", "abc", hidden=64, layers=1, heads=1, kv_heads=1)
    with pytest.raises(ValueError, match="vocabulary of 6, the policy one of"):
        make(small, tiny, None, frozenset({"teacher"}), teacher={"type": "Frozen", "path": str(foreign)})


def test_one_divergence_on_two_kinds_of_rows_is_computed_once(
    small: dict[str, Any], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two terms of one name: the gradient is that of each on its own rows, and the output layers are passed once for both."""
    other = make_tiny(tmp_path / "other", Sorting.alphabet, hidden=64, layers=1, heads=1, kv_heads=1, seed=9)
    sources = [("policy", 0.3), ("dataset", 0.7)]
    js = [{"type": "FullDivergence", "f": "js", "anchor": "teacher", "on": on, "coef": c} for on, c in sources]
    rollouts = [
        Rollout(
            Prompt(on, (3, 4), ""),
            tokens,
            [True] * len(tokens),
            [-1.0] * len(tokens),
            [0] * len(tokens),
            "stop",
            group=g,
            source=on,
        )
        for g, (on, tokens) in enumerate([("policy", [5, 6, 7]), ("dataset", [8, 9])])
    ]
    b, passes, grads = Batch.from_rollouts(rollouts), [], []
    pass_over = head.full_divergence
    monkeypatch.setattr(head, "full_divergence", lambda *a, **o: passes.append(o["expected"]) or pass_over(*a, **o))
    for objective in (js, js[:1], js[1:]):
        data = {"data": {**small["data"], "demonstrations": "rows.jsonl"}}
        run = rk.load({**small, **data, "objective": objective, "reference": None})
        setup = run.learner_setup(str(tiny), frozenset({"teacher_full"}))
        learner = Learner(dataclasses.replace(setup, teacher=Frozen(path=str(other))))
        terms = learner.setup.objective
        coefs = [float(t.coef) for t in terms]  # type: ignore[arg-type]
        new, micro = learner._evaluate(prepared(terms, b, torch.Generator()), coefs)
        value, _ = loss(terms, new, micro, coefs)
        value.backward()
        grads.append(torch.cat([p.grad.flatten() for p in learner.policy.parameters() if p.grad is not None]))
    assert len(passes) == 3
    torch.testing.assert_close(passes[0], torch.tensor([0.1, 0.1, 0.1, 0.35, 0.35]))
    torch.testing.assert_close(grads[0], grads[1] + grads[2], rtol=1e-4, atol=1e-6)
    wrong = [{**js[0], "top_k": 4}, {**js[1], "top_k": 4, "of": "policy"}]
    run = rk.load({**small, "objective": wrong, "teacher": {"type": "Frozen", "path": str(other)}})
    with pytest.raises(ConfigError, match=r"two terms that are both called js_top4\(teacher\) but compare differently"):
        check(run)


def test_the_full_reverse_kl_is_the_mean_of_the_sampled_one(small: dict[str, Any], tiny: Path) -> None:
    """With LoRA the reference is the policy without its adapter, its head included."""
    run = {"peft": {"r": 4, "target_modules": ["q_proj", "v_proj"]}, "objective": [{"type": "FullDivergence"}]}
    learner = make(small, tiny, {"type": "Frozen"}, frozenset({"ref", "ref_full"}), **run)
    with torch.no_grad():
        for n, p in learner.policy.lm.named_parameters():
            if "lora_B" in n:
                p.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    b = batch()
    from rlkit.model.policy import evaluate_new

    new = evaluate_new(
        learner.backend,
        b,
        Sampling(),
        frozenset(),
        [(learner.full[0], learner.anchors["ref"].head(b), torch.ones(b.N))],
    )
    want = torch.zeros(b.N)
    for token in range(len(Sorting.alphabet) + 3):
        logs = []
        for where in range(b.N):  # every token of the vocabulary in every place
            c = b.replace(ids=b.ids.index_fill(0, b.action[where], token))
            with torch.no_grad():
                logs.append(
                    (
                        evaluate_new(learner.backend, c, Sampling(), frozenset()).logp[where],
                        learner.anchors["ref"].logprobs(c, Sampling())[where],
                    )
                )
        p, q = (torch.stack(x) for x in zip(*logs, strict=True))
        want += p.exp() * (p - q)
    assert float(want.min()) > 1e-4
    torch.testing.assert_close(new.full["reverse_kl_full(ref)"].detach(), want, rtol=1e-4, atol=1e-6)


def test_a_tempered_reference_is_flat_where_the_reward_is_low(small: dict[str, Any], tiny: Path) -> None:
    learner = make(small, tiny, {"type": "Tempered", "floor": 0.25})
    plain = make(small, tiny, {"type": "Frozen"})
    b = batch()
    for reward, power in ((1.0, 1.0), (0.0, 0.25), (5.0, 1.0), (0.5, 0.625)):
        b = b.replace(reward=torch.tensor([reward]))
        want = plain.anchors["ref"].logprobs(b, Sampling(temperature=1 / power))
        torch.testing.assert_close(learner.anchors["ref"].logprobs(b, Sampling()), want, rtol=1e-5, atol=1e-5)


@dataclass(frozen=True, kw_only=True)
class Mine(Reference):
    """A user's, which has log-probs alone."""

    def build(self, trained: Trained) -> ReferenceState:
        return Half()


class Half(ReferenceState):
    def logprobs(self, b: Batch, sampling: Sampling) -> torch.Tensor:
        return torch.full((b.N,), 0.5).log()


def test_a_reference_of_ones_own_needs_log_probs_alone_and_says_what_it_does_not_give(
    small: dict[str, Any], tiny: Path
) -> None:
    run = rk.load(small).replace(reference=Mine())
    learner = Learner(run.learner_setup(str(tiny), NEEDS))
    [found] = learner.annotate([batch()], ("ref",)).values()
    assert found.exp().tolist() == pytest.approx([0.5] * 3)
    whole = rk.load({**small, "objective": [{"type": "PPOClip"}, {"type": "FullDivergence"}]})
    for reference, gives in (
        (Frozen(), True),
        (EMA(), True),
        (Tempered(), False),
        (Mine(), False),
    ):
        given = whole.replace(reference=reference)
        if gives:
            check(given)
            continue
        with pytest.raises(ConfigError, match=f"reference, which type: {type(reference).__name__} does not give"):
            check(given)


class Server(BaseHTTPRequestHandler):
    """Knows one model; answers by ``plan``: a status, or None for no answer at all, and then as vLLM does: by ``lm``, if there is one."""

    protocol_version = "HTTP/1.1"
    lm: ClassVar[Any] = None
    plan: ClassVar[list[int | None]] = []
    asked: ClassVar[list[str]] = []
    odd: ClassVar[list[str]] = []  # what is answered before anything else

    def do_GET(self) -> None:
        self.answer({"data": [{"id": "theirs"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        ids, k = asked["prompt"], asked["prompt_logprobs"]
        if k > 20:
            self.plan.append(400)
        known = [None, *({str(i): {"logprob": -i / 10}} for i in ids[1:])]
        if self.lm is not None:
            with torch.no_grad():
                logp = self.lm(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            best = logp.topk(k).indices.tolist()
            known[1:] = [
                {str(i): {"logprob": float(row[i])} for i in {token, *likely}}
                for token, row, likely in zip(ids[1:], logp, best, strict=True)
            ]
        self.answer({"choices": [{"prompt_logprobs": known}]})

    def answer(self, content: dict[str, Any]) -> None:
        self.asked.append(f"{self.client_address} {self.path}")
        status = self.plan.pop(0) if self.plan else 200
        if status is None:
            self.close_connection = True
            return
        text = (self.odd.pop(0) if self.odd else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Server.plan, Server.asked, Server.odd, Server.lm = [], [], [], None
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as served:
        served.daemon_threads = True
        threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_a_server_that_does_not_answer_is_asked_again_through_the_connections_that_are_open(server: str) -> None:
    trained: Any = SimpleNamespace(sampling=Sampling())
    state = Served(url=f"{server}/v1", parallel=2).build(trained)  # as clients of OpenAI's are told it
    rollouts = [
        Rollout(Prompt(str(i), (3, 4), ""), [5, 6 + i], [True] * 2, [-1.0] * 2, [0] * 2, "stop") for i in range(4)
    ]
    b = Batch.from_rollouts(rollouts)
    expected = [-x / 10 for x in b.ids[b.action].tolist()]
    Server.plan = [None, 503, 429]
    assert state.logprobs(b, Sampling()).tolist() == pytest.approx(expected)
    lost = len(Server.asked) - 1 - b.S
    assert lost == 3 and state.logprobs(b, Sampling()).tolist() == pytest.approx(expected)
    assert len({line.split(" /")[0] for line in Server.asked}) <= 3 < len(Server.asked)
    Server.plan = [404] * b.S
    with pytest.raises(RunError, match=r"completions answered 404.*`--resume` continues"):
        state.logprobs(b, Sampling())
    Server.plan, tired = [503] * 20, Served(url=server, patience=0.3)
    with pytest.raises(ModelError, match="models answered 503"):
        tired.build(trained)
    Server.plan = [200] + [503] * 20
    with pytest.raises(RunError, match="completions answered 503"):
        tired.build(trained).logprobs(b, Sampling())


def test_an_address_where_no_vllm_server_answers_is_told(server: str) -> None:
    trained: Any = SimpleNamespace(sampling=Sampling())
    b, models = batch(), '{"data": [{"id": "theirs"}]}'
    for odd, told in (
        (
            "<html>A proxy</html>",
            "models answered what is no JSON: '<html>A proxy</html>'. Start one with `vllm serve MODEL`",
        ),
        (
            '{"data": []}',
            "does not answer as a vLLM server does: start one with `vllm serve MODEL`, or correct the url",
        ),
        ('["theirs"]', "does not answer as a vLLM server does"),
    ):
        Server.odd = [odd]
        with pytest.raises(ModelError, match=told):
            Served(url=server).build(trained)
    for odd, told in (
        ('{"choices": []}', "does not answer as a vLLM server does"),
        ('{"choices": [{"text": "x"}]}', "does not answer as a vLLM server does"),
        (
            '{"choices": [{"prompt_logprobs": [null, null]}]}',
            r"gave no prompt_logprobs for \d+ tokens; it must be a vLLM server",
        ),
    ):
        Server.odd = [models, *[odd] * b.S]
        with pytest.raises(ModelError, match=told):
            Served(url=server).build(trained).logprobs(b, Sampling())
    with pytest.raises(ModelError, match=r"no answer from http://localhost:x/v1/models .*correct the url"):
        Served(url="http://localhost:x").build(trained)
    with pytest.raises(ModelError, match=r"no answer from no/v1/models .*correct the url"):
        Served(url="no").build(trained)


def distilled(small: dict[str, Any], tiny: Path, teacher: Any, **more: Any) -> list[Stats]:
    """What two steps towards a teacher's three most likely tokens measured."""
    objective = [{"type": "FullDivergence", "f": "forward_kl", "anchor": "teacher", "top_k": 3}]
    run = rk.load({**small, "objective": objective, "teacher": teacher, "reference": None, **more})
    learner = Learner(run.learner_setup(str(tiny)))
    group = LearnerGroup(LocalWorkers(learner), learner.setup)
    return [group.update(group.annotate(batch(), run.passes), (1.0,), seed) for seed in (0, 1)]


def test_a_server_teaches_what_the_same_model_in_this_process_teaches(
    small: dict[str, Any], tiny: Path, tmp_path: Path, server: str
) -> None:
    other = make_tiny(tmp_path / "other", Sorting.alphabet, hidden=64, layers=1, heads=1, kv_heads=1, seed=9)
    Server.lm = load_lm(other).eval()
    asked = distilled(small, tiny, {"type": "Served", "url": server})
    known = distilled(small, tiny, {"type": "Frozen", "path": str(other)})
    for a, b in zip(asked, known, strict=True):
        for name in ("loss/forward_kl_top3(teacher)", "learner/grad_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-4) and a[name] > 0.001


def test_what_a_server_cannot_teach_is_said_before_the_first_step(
    small: dict[str, Any], tiny: Path, tmp_path: Path, server: str
) -> None:
    teacher = {"type": "Served", "url": server}

    def term(**more: Any) -> dict[str, Any]:
        return {"objective": [{"type": "FullDivergence", "anchor": "teacher", **more}], "teacher": teacher}

    for more, told in (
        (term(), r"reverse_kl_full\(teacher\) compares all tokens, but teacher .* Set top_k of the term, e.g. 20"),
        (term(top_k=3, of="policy"), r"are likely for `of: policy`, but teacher .* Set of: anchor"),
        (term(top_k=3) | {"sampling": {"temperature": 0.7}}, r"log-probs at temperature 1: set sampling.temperature"),
        (term() | {"objective": [{"type": "Wasserstein", "anchor": "teacher"}]}, "in the output layer of its anchor"),
    ):
        with pytest.raises(ConfigError, match=told):
            check(rk.load({**small, **more}))
    foreign = make_tiny(tmp_path / "foreign", Sorting.alphabet + "xyz", hidden=64, layers=1, heads=1, kv_heads=1)
    Server.lm = load_lm(foreign).eval()
    with pytest.raises(ModelError, match="and the policy's tokens end at"):
        Learner(rk.load({**small, **term(top_k=13)}).learner_setup(str(tiny)))
    Server.plan = [200, 400]
    with pytest.raises(ModelError, match="start it with --max-logprobs 3, or lower the terms' top_k"):
        Learner(rk.load({**small, **term(top_k=3)}).learner_setup(str(tiny)))


def test_a_teacher_in_bfloat16_and_one_that_visits_the_device(small: dict[str, Any], tiny: Path) -> None:
    learner = make(small, tiny, {"type": "Frozen", "path": str(tiny), "dtype": "bfloat16"}, frozenset({"ref_full"}))
    state, b = learner.anchors["ref"], batch()
    assert {p.dtype for p in state.model.parameters()} == {torch.bfloat16}
    exact = make(small, tiny, {"type": "Frozen", "path": str(tiny)}, frozenset({"ref_full"})).anchors["ref"]
    gap = (state.logprobs(b, Sampling()) - exact.logprobs(b, Sampling())).abs().mean()
    assert 0 < float(gap) < 0.05
    # What a head needs stays there when the model has gone back to host memory.
    exact.offload = True
    head = exact.head(b)
    want = head.log_probs(slice(0, b.N), head.classes, 1.0, False)
    with torch.no_grad():
        for p in exact.model.parameters():
            p.zero_()
    torch.testing.assert_close(head.log_probs(slice(0, b.N), head.classes, 1.0, False), want, rtol=0, atol=0)


@pytest.mark.parametrize("wider", ["teacher", "policy"])
def test_a_vocabulary_that_is_padded_to_another_size_is_the_same(
    small: dict[str, Any], tiny: Path, tmp_path: Path, wider: str
) -> None:
    """Qwen2.5 has 151,936 rows in its small models and 152,064 in its large ones, for one tokenizer."""
    padded, lm = tmp_path / "padded", load_lm(tiny)
    tokenizer = load_tokenizer(tiny)
    size = lm.config.vocab_size
    lm.resize_token_embeddings(size + 5, mean_resizing=False)
    lm.save_pretrained(padded)
    tokenizer.save_pretrained(padded)
    start, other = (tiny, padded) if wider == "teacher" else (padded, tiny)
    learner = make(small, start, {"type": "Frozen", "path": str(other)}, frozenset({"ref", "ref_full"}))
    b, state = batch(), learner.anchors["ref"]
    with torch.no_grad():
        want = load_lm(tiny).eval()(b.ids[None]).logits[0, b.action - 1].log_softmax(-1)
    whole = state.head(b).log_probs(slice(0, b.N), learner.policy.output.out_features, 1.0, False)
    torch.testing.assert_close(whole[:, :size], want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state.logprobs(b, Sampling()), want.gather(-1, b.ids[b.action][:, None])[:, 0])

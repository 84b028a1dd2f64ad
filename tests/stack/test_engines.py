"""Engines against the learner: the same log-probs after every sync, and tokens that know which weights made them."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlkit.cluster.groups import EngineGroup, LearnerGroup, LocalWorkers
from rlkit.cluster.ray import check_resources, start_engines
from rlkit.cluster.start import beside, start_beside
from rlkit.cluster.sync import WeightSync, probe_parity
from rlkit.commands.merge import merge
from rlkit.data.tasks import Sorting
from rlkit.errors import ClusterError
from rlkit.learner.learner import Learner
from rlkit.model.load import load_tokenizer
from rlkit.model.tiny import make_tiny
from rlkit.rollout.engine import Aborted, EngineSetup, EngineSpec
from rlkit.rollout.hf import HF, HFEngine
from rlkit.rollout.vllm import VLLMEngine
from rlkit.run import Cluster
from rlkit.run import load as make_run
from rlkit.samples import by_episode
from rlkit.types import Batch, Prompt, Rollout, Sampling
from tests.rollout.chats import player, prompt_of

PROMPTS = [Prompt(str(i), tuple(range(3, 5 + i)), "") for i in range(4)]


@pytest.fixture(scope="module")
def merged(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model halfway between two."""
    folder = tmp_path_factory.mktemp("merged")
    other = make_tiny(folder / "other", Sorting.alphabet, hidden=64, layers=2, heads=2, kv_heads=1, seed=1)
    return merge([tiny, other], folder / "out").folder


@pytest.fixture(scope="module")
def vllm(merged: Path) -> Iterator[VLLMEngine]:
    engine = VLLMEngine(str(merged), max_model_len=512)
    yield engine
    engine.close()


@pytest.fixture(params=["hf", "vllm"])
def engine(request: pytest.FixtureRequest, tiny: Path) -> Iterator[Any]:
    if request.param == "vllm":
        yield request.getfixturevalue("vllm")
        return
    made = HFEngine(str(tiny), max_model_len=512)
    yield made
    made.close()


def largest_gap(engine: Any, learners: LearnerGroup, rollouts: list[Rollout]) -> float:
    return max(
        abs(a - b)
        for r, other in zip(rollouts, learners.logprobs(rollouts), strict=True)
        for a, b in zip(r.logp, other, strict=True)
    )


def test_a_merged_model_is_loaded_by_vllm(small: dict[str, Any], merged: Path, vllm: VLLMEngine) -> None:
    assert vllm.version == 0, "other tests give this engine other weights: this one comes first"
    setup = make_run(small).learner_setup(str(merged), frozenset())
    rollouts = [r for p in PROMPTS for r in vllm.generate(p, 3, Sampling(max_tokens=24, seed=1))]
    assert largest_gap(vllm, LearnerGroup(LocalWorkers(Learner(setup)), setup), rollouts) < 1e-4


GROWS = "{% for m in messages %}{{ m.content }}>{% endfor %}"
REWRITES = "{% for m in messages %}{{ m.content if loop.last else m.content[:1] }}>{% endfor %}"


@pytest.mark.parametrize(("template", "rows"), [(GROWS, 1), (REWRITES, 3)])
def test_each_token_of_an_episode_has_the_learners_log_prob(
    template: str, rows: int, small: dict[str, Any], merged: Path, vllm: VLLMEngine
) -> None:
    assert vllm.version == 0, "other tests give this engine other weights"

    async def thrice(chat: Any, rng: Any) -> dict[str, Any]:
        for _ in range(3):
            await chat.generate(max_tokens=12)
            chat.user(rng.choice("012") * 3)
        return {"each": [0.0, 1.0, 0.5]}

    tokenizer = load_tokenizer(str(merged))
    tokenizer.chat_template = template
    playing = player(vllm, tokenizer, thrice)
    rollouts = [r for k in range(2) for r in playing.generate(prompt_of(tokenizer, f"{k}12"), 3, Sampling(seed=k))]
    playing.close()
    assert all(r.error is None for r in rollouts)
    assert {len(of) for of in by_episode(rollouts)} == {rows}
    setup = make_run(small).learner_setup(str(merged), frozenset())
    for r, learned in zip(rollouts, LearnerGroup(LocalWorkers(Learner(setup)), setup).logprobs(rollouts), strict=True):
        sampled = [x for x, own in zip(r.logp, r.sampled, strict=True) if own]
        assert max(abs(a - b) for a, b in zip(sampled, learned, strict=True)) < 1e-4


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=24, seed=1),
        Sampling(temperature=0.7, top_p=0.9, max_tokens=24, seed=1),
        Sampling(temperature=1.3, top_k=5, max_tokens=24, seed=1),
    ],
    ids=["plain", "top-p", "top-k"],
)
def test_log_probs_agree_after_each_of_three_syncs(
    small: dict[str, Any], tiny: Path, engine: Any, sampling: Sampling
) -> None:
    settings = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_tokens": sampling.max_tokens,
    }
    run = make_run(
        {**small, "sampling": settings, "learner": {"lr": 3e-3}, "objective": [{"type": "NLL", "acknowledge": True}]}
    )
    setup = run.learner_setup(str(tiny), frozenset())
    learners = LearnerGroup(LocalWorkers(Learner(setup)), setup)
    engines = EngineGroup(LocalWorkers(engine))
    sync = WeightSync(learners, engines, "wait")
    seen = []
    for version in (engine.version + 1, engine.version + 2, engine.version + 3):
        sync.publish(version)
        rollouts = [r for p in PROMPTS for r in engines.generate(p, 3, sampling)]
        assert {v for r in rollouts for v in r.version} == {version}
        assert largest_gap(engine, learners, rollouts) < 1e-4
        seen.append([x for r in rollouts for x in r.logp])
        learners.update(Batch.from_rollouts(rollouts), (1.0,), seed=0)
    assert seen[0] != seen[1] != seen[2]  # the weights did move
    with pytest.raises(RuntimeError, match="parity probe"):  # the last update was not published
        probe_parity(learners, engines, PROMPTS, sampling, 1e-4, engine.version)


def test_on_a_cpu_embeddings_take_weights_where_they_lie_and_only_what_multiplies_is_packed(
    small: dict[str, Any], tiny: Path, vllm: VLLMEngine
) -> None:
    run = make_run({**small, "learner": {"lr": 3e-2}, "objective": [{"type": "NLL", "acknowledge": True}]})
    setup = run.learner_setup(str(tiny), frozenset())
    learners = LearnerGroup(LocalWorkers(Learner(setup)), setup)
    engines = EngineGroup(LocalWorkers(vllm))
    model: Any = vllm.engine.collective_rpc("get_model")[0]
    embedding, head = model.model.embed_tokens, model.lm_head
    assert embedding is not head and embedding.weight is head.weight  # tied
    place = embedding.weight.data_ptr()
    for _ in range(2):
        WeightSync(learners, engines, "wait").publish(vllm.version + 1)
        rollouts = [r for p in PROMPTS for r in engines.generate(p, 3, Sampling(max_tokens=24, seed=1))]
        assert largest_gap(vllm, learners, rollouts) < 1e-4
        learners.update(Batch.from_rollouts(rollouts), (1.0,), seed=0)
        assert embedding.weight.data_ptr() == place and head.weight is embedding.weight
        assert embedding.cpu_linear.linear is None and head.cpu_linear.linear is not None


def test_a_merged_adapter_reaches_the_engine(small: dict[str, Any], tiny: Path, engine: Any) -> None:
    run = make_run(
        {
            **small,
            "objective": [{"type": "NLL", "acknowledge": True}],
            "learner": {"lr": 3e-2},
            "peft": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
        }
    )
    setup = run.learner_setup(str(tiny), frozenset())
    learners = LearnerGroup(LocalWorkers(Learner(setup)), setup)
    engines = EngineGroup(LocalWorkers(engine))
    for _ in range(2):
        WeightSync(learners, engines, "wait").publish(engine.version + 1)
        rollouts = [r for p in PROMPTS for r in engines.generate(p, 3, Sampling(max_tokens=24, seed=1))]
        assert largest_gap(engine, learners, rollouts) < 1e-4
        learners.update(Batch.from_rollouts(rollouts), (1.0,), seed=0)


def test_a_seeded_response_does_not_depend_on_what_it_was_batched_with(engine: Any) -> None:
    sampling = Sampling(max_tokens=16, seed=7)
    alone = [[r.tokens for r in engine.generate(p, 2, sampling)] for p in PROMPTS]
    together: list[Any] = [None] * len(PROMPTS)

    def one(i: int) -> None:
        together[i] = [r.tokens for r in engine.generate(PROMPTS[i], 2, sampling)]

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(PROMPTS))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert together == alone and len({tuple(x) for group in alone for x in group}) > 4


def test_a_request_leaves_nothing_for_the_garbage_collector(vllm: VLLMEngine) -> None:
    """Outputs that wait for a collection are memory that grows, and holes in it afterwards."""
    vllm.generate(PROMPTS[0], 2, Sampling(max_tokens=4))
    gc.collect()
    gc.disable()
    try:
        for prompt in PROMPTS:
            vllm.generate(prompt, 2, Sampling(max_tokens=4))
        left = [type(o).__name__ for o in gc.get_objects()]
    finally:
        gc.enable()
    assert left.count("CompletionOutput") <= 2  # of the last request, which the engine's thread still has at hand


def test_without_a_seed_a_prompt_gets_other_responses_each_time(engine: Any) -> None:
    first, second = ([r.tokens for r in engine.generate(PROMPTS[0], 2, Sampling(max_tokens=16))] for _ in range(2))
    assert first != second


def test_more_prompt_tokens_than_one_step_takes(vllm: VLLMEngine) -> None:
    """vLLM's runner on CPUs cannot take back the draw of a prompt that it has cut in two: it must not cut."""
    prompts = [Prompt(f"m{i}", tuple(3 + (i + j * j) % 9 for j in range(500)), "") for i in range(12)]
    with ThreadPoolExecutor(12) as pool:
        vllm._submit(lambda: time.sleep(0.2))  # so that all arrive at once
        groups = list(pool.map(lambda p: vllm.generate(p, 1, Sampling(max_tokens=4, seed=1)), prompts))
    assert all(len(g[0].tokens) for g in groups)


def test_scoring_gives_the_log_probs_of_sampling(vllm: VLLMEngine) -> None:
    rollouts = [r for p in PROMPTS for r in vllm.generate(p, 2, Sampling(max_tokens=12, seed=3))]
    for r, scored in zip(rollouts, vllm.score(rollouts), strict=True):
        assert scored == pytest.approx(r.logp, abs=1e-4)


def test_the_most_likely_tokens_of_given_rows(merged: Path, vllm: VLLMEngine) -> None:
    vllm.begin_update("wait")  # other tests have given it other weights
    vllm.assign(load_file(merged / "model.safetensors"))
    vllm.end_update(vllm.version + 1)
    rows = [[3, 4, 5, 6, 7], [8, 9], [4, 4, 3, 6, 5, 7, 3]]
    hf = HFEngine(str(merged))
    (logp, ids, top), (own, own_ids, own_top) = vllm.likely(rows, 5), hf.likely(rows, 5)
    hf.close()
    assert torch.equal(ids, own_ids) and logp.tolist() == pytest.approx(own.tolist(), abs=1e-4)
    torch.testing.assert_close(top, own_top, rtol=1e-4, atol=1e-4)


def test_a_teacher_in_an_actor_of_its_own(ray_session: None, merged: Path) -> None:
    cluster = beside(Cluster(cpus=0.3, engines=5, transfer="gloo"), 1, 1, None)
    pool, hf = start_beside(HF(), EngineSetup(path=str(merged)), cluster), HFEngine(str(merged))
    rows = [[3, 4, 5, 6, 7], [8, 9], [4, 4, 3, 6, 5, 7, 3]]
    (logp, top), (own, ids, likely) = pool.likely(rows, 3), hf.likely(rows, 3)
    pool.close()
    hf.close()
    assert logp.tolist() == pytest.approx(own.tolist(), abs=1e-5) and torch.equal(top.ids, ids)
    torch.testing.assert_close(top.logp, likely, rtol=1e-5, atol=1e-5)
    with pytest.raises(
        ClusterError, match=r"beside 2 engine\(s\) of 4 device\(s\) of a teacher, a reference or a reward need 10 GPUs"
    ):
        check_resources(Cluster(), {"CPU": 9.0, "GPU": 8.0}, beside=[beside(Cluster(), 2, 4, None)])


def ask(vllm: VLLMEngine, prompt: Prompt) -> Any:
    try:  # greedy responses of a random model run in circles
        return vllm.generate(prompt, 1, Sampling(temperature=0.0, max_tokens=400))[0]
    except Aborted as error:
        return error


def in_flight(vllm: VLLMEngine, mode: Any) -> Any:
    """Publishes a new version in the middle of a long response, and returns what came of the response."""
    prompt = next(p for k in range(3, 14) if len(ask(vllm, p := Prompt(str(k), (k, k, 4), "")).tokens) == 400)
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(ask(vllm, prompt)))
    thread.start()
    while not vllm._waiting:
        time.sleep(0.001)
    vllm.begin_update(mode)
    vllm.end_update(vllm.version + 1)
    thread.join(60)
    return result[0]


def test_an_update_waits_for_keeps_or_aborts_running_requests(vllm: VLLMEngine) -> None:
    start = vllm.version
    waited = in_flight(vllm, "wait")
    assert set(waited.version) == {start} and vllm.version == start + 1
    kept = in_flight(vllm, "keep")
    assert set(kept.version) == {start + 1, start + 2} and kept.version == sorted(kept.version)
    assert isinstance(in_flight(vllm, "abort"), Aborted)


def update_in_the_middle(
    vllm: VLLMEngine, mode: Any, prompts: list[Prompt], sampling: Sampling, publish: Any, after: int = 6
) -> list[list[Rollout]]:
    """Groups of 8 responses; ``publish`` is called each time when the engine has made ``after`` more tokens of some response."""
    scheduler = vllm.engine.engine_core.engine_core.scheduler
    with ThreadPoolExecutor(len(prompts)) as pool:
        groups = [pool.submit(vllm.generate, p, 8, sampling) for p in prompts]
        for k in (1, 2):
            while (
                not all(g.done() for g in groups)
                and max((r.num_output_tokens for r in list(scheduler.running)), default=0) < k * after
            ):
                time.sleep(0.0005)
            publish(mode)
        return [g.result() for g in groups]


def test_a_continued_response_is_the_one_that_nothing_had_stopped(vllm: VLLMEngine) -> None:
    """The same weights under new versions: tokens (so seeds, limit and a stop string over the seam), log-probs and text must not change."""

    def publish(mode: Any) -> None:
        vllm.begin_update(mode)
        vllm.end_update(vllm.version + 1)

    prompts = [Prompt(f"c{i}", tuple(range(3, 5 + i)), "") for i in range(6)]
    sampling = Sampling(max_tokens=40, stop=("21", "34"), seed=5)
    start = vllm.version
    whole = [vllm.generate(p, 8, sampling) for p in prompts]
    vllm.version = start
    parts = update_in_the_middle(vllm, "continue", prompts, sampling, publish)
    for a, b in zip([r for g in whole for r in g], [r for g in parts for r in g], strict=True):
        assert (a.tokens, a.text, a.finish) == (b.tokens, b.text, b.finish) and b.logp == pytest.approx(
            a.logp, abs=1e-4
        )
        assert b.version == sorted(b.version) and set(b.version) <= {start, start + 1, start + 2}
    assert any(len(set(r.version)) == 3 for g in parts for r in g)
    assert {r.finish for g in parts for r in g} == {"stop", "length"}


@pytest.mark.parametrize("ahead", [False, True], ids=["", "with a batch in flight"])
@pytest.mark.parametrize("mode", ["continue", "keep"])
def test_every_token_knows_the_weights_that_sampled_it(
    small: dict[str, Any], tiny: Path, vllm: VLLMEngine, mode: Any, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(
        {
            **small,
            "learner": {"lr": 1e-2},
            "objective": [{"type": "NLL", "acknowledge": True}],
            "sampling": {"max_tokens": 40},
        }
    )
    setup = run.learner_setup(str(tiny), frozenset())
    learners = [LearnerGroup(LocalWorkers(Learner(setup)), setup) for _ in range(3)]
    engines, start = EngineGroup(LocalWorkers(vllm)), vllm.version + 1
    WeightSync(learners[0], engines, "wait").publish(start)
    made = Batch.from_rollouts(vllm.generate(PROMPTS[1], 8, Sampling(max_tokens=40, seed=1)))
    learners[1].update(made, (1.0,), seed=0)
    learners[2].update(made, (-1.0,), seed=0)
    core = vllm.engine.engine_core.engine_core
    if ahead:  # as vLLM schedules on GPUs: a batch may run between two steps
        monkeypatch.setattr(core, "batch_queue", deque(maxlen=2))
        monkeypatch.setattr(core, "batch_queue_size", 2)
        monkeypatch.setattr(core, "step_fn", core.step_with_batch_queue)

    def publish(mode: Any) -> None:
        WeightSync(learners[vllm.version + 1 - start], engines, mode).publish(vllm.version + 1)

    rollouts = [
        r for g in update_in_the_middle(vllm, mode, PROMPTS * 3, Sampling(max_tokens=40, seed=9), publish) for r in g
    ]
    seams = [(s, r.version.index(start + 1)) for s, r in enumerate(rollouts) if len(set(r.version)) == 3]
    known = [learner.logprobs(rollouts) for learner in learners]
    gaps = {
        k: [
            abs(x - known[k][s][t])
            for s, r in enumerate(rollouts)
            for t, (x, w) in enumerate(zip(r.logp, r.version, strict=True))
            if w == start + k
        ]
        for k in range(3)
    }
    assert len(seams) > 3 and max(gaps[0]) < 1e-4
    # The first new token is not an old one.
    assert min(abs(rollouts[s].logp[t] - known[0][s][t]) for s, t in seams) > 1e-4
    if mode == "continue":
        assert max(*gaps[1], *gaps[2]) < 1e-4  # nothing was computed from what the old weights had cached
    else:
        assert max(*gaps[1], *gaps[2]) > 1e-2


def test_a_kept_response_leaves_no_stale_cache_for_others(small: dict[str, Any], tiny: Path, vllm: VLLMEngine) -> None:
    run = make_run(
        {
            **small,
            "learner": {"lr": 1e-2},
            "objective": [{"type": "NLL", "acknowledge": True}],
            "sampling": {"max_tokens": 40},
        }
    )
    setup = run.learner_setup(str(tiny), frozenset())
    learners = LearnerGroup(LocalWorkers(Learner(setup)), setup)
    engines = EngineGroup(LocalWorkers(vllm))
    WeightSync(learners, engines, "wait").publish(vllm.version + 1)
    prompt = Prompt("long", tuple(3 + i % 9 for i in range(100)), "")
    learners.update(Batch.from_rollouts(vllm.generate(prompt, 8, Sampling(max_tokens=40, seed=1))), (1.0,), seed=0)
    later: list[Rollout] = []

    def publish(mode: Any) -> None:
        if not later:
            WeightSync(learners, engines, mode).publish(vllm.version + 1)
            later.extend(vllm.generate(prompt, 8, Sampling(max_tokens=8, seed=2)))

    update_in_the_middle(vllm, "keep", [prompt] * 4, Sampling(max_tokens=300, seed=9), publish)
    assert largest_gap(vllm, learners, later) < 1e-4


def test_a_prompt_that_is_too_long_is_refused(engine: Any) -> None:
    with pytest.raises(ValueError, match="600 tokens"):
        engine.generate(Prompt("long", (3,) * 600, ""), 1, Sampling(max_tokens=4))


def test_greedy_responses_report_finite_log_probs(engine: Any) -> None:
    a, b = engine.generate(PROMPTS[1], 2, Sampling(temperature=0.0, max_tokens=8))
    assert a.tokens == b.tokens and all(math.isfinite(x) for x in a.logp)


def test_a_teacher_behind_a_server(small: dict[str, Any], tiny: Path) -> None:
    """A real ``vllm serve`` gives the log-probs that the same model gives in this process."""
    from rlkit.rollout.vllm import environment

    env = {**os.environ, **environment()}
    serve = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(tiny),
        "--served-model-name",
        "tiny",
        "--port",
        "8377",
        "--dtype",
        "float32",
        "--enforce-eager",
        "--max-model-len",
        "128",
        "--kv-cache-memory-bytes",
        str(64 << 20),
        "--block-size",
        "32",
    ]
    server = subprocess.Popen(
        serve, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        for _ in range(150):
            with contextlib.suppress(OSError), urllib.request.urlopen("http://127.0.0.1:8377/health"):
                break
            assert server.poll() is None
            time.sleep(1)
        terms = [{"type": "FullDivergence", "anchor": name, "top_k": 4} for name in ("ref", "teacher")]
        teacher = {"type": "Served", "url": "http://127.0.0.1:8377"}
        run = make_run({**small, "objective": terms, "teacher": teacher, "reference": {"type": "Frozen"}})
        learner = Learner(run.learner_setup(str(tiny), frozenset({"ref", "teacher"})))
        rollouts = [Rollout(p, list(range(4, 9)), [True] * 5, [-1.0] * 5, [0] * 5, "stop") for p in PROMPTS]
        found = learner.annotate([Batch.from_rollouts(rollouts)], ("ref", "teacher", "ref_full", "teacher_full"))
        assert float((found["ref"] - found["teacher"]).abs().max()) < 1e-4
        assert torch.equal(found["ref_full/ids"], found["teacher_full/ids"]) and found["ref_full/ids"].shape[1] == 4
        assert float((found["ref_full/logp"] - found["teacher_full/logp"]).abs().max()) < 1e-4
        for change, told in (
            ({"model": "other"}, "has no model 'other'; it has tiny"),
            ({"url": "http://127.0.0.1:1"}, "no answer from"),
        ):
            wrong = make_run({**small, "teacher": {**teacher, **change}})
            with pytest.raises(ValueError, match=told):
                Learner(wrong.learner_setup(str(tiny), frozenset({"teacher"})))
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(30)


class Gate:
    """An engine whose requests wait until a weight update."""

    def __init__(self) -> None:
        self.begun, self.open = 0, threading.Event()

    def ready(self) -> dict[str, Any]:
        return {}

    def progress(self) -> int:
        return self.begun

    def generate(self) -> int:
        self.begun += 1
        self.open.wait(60)
        return 1

    def stats(self) -> int:
        return self.begun

    def end_update(self) -> None:
        self.open.set()


@dataclass(frozen=True)
class Gated(EngineSpec):
    def start(self, setup: EngineSetup) -> Any:
        return Gate()


def test_requests_never_keep_an_engine_from_a_weight_update(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """More requests than the actor has threads for: a weight update must not wait in their queue."""
    monkeypatch.setattr("rlkit.cluster.ray.REQUESTS", 8)
    engines = start_engines(Gated(), EngineSetup(path=""), Cluster(cpus=0.2, timeout=30))
    with ThreadPoolExecutor(24) as threads:
        requests = [threads.submit(engines.one, 0, "generate") for _ in range(24)]
        while engines.call("stats") != [8]:
            time.sleep(0.05)
        engines.call("end_update")
        assert sum(r.result() for r in requests) == 24
    engines.close()

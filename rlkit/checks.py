"""What no section of a configuration can see alone: each check looks at one thing, and all that is wrong is said at once.

A check yields sentences: where, what, and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkit import shipped
from rlkit.data import SETS
from rlkit.data.curriculum import ZeroVariance
from rlkit.data.examples import ExampleRows
from rlkit.data.offline import Offline
from rlkit.errors import ConfigError, InputError
from rlkit.learner.backend import check_deepspeed_options
from rlkit.model.endings import Endings
from rlkit.model.generation import load_settings, settled
from rlkit.model.hub import model_config, require_model
from rlkit.model.load import examine, same_tokens
from rlkit.model.reference import Frozen, asked_at
from rlkit.objective import Term, sources_of
from rlkit.objective.full_vocab import Wasserstein, WholeVocabulary, told_apart
from rlkit.objective.labelled import LabelTerm
from rlkit.objective.losses import AStar
from rlkit.objective.oracle import Finding, dishonest, examine_all, refuse_nothing
from rlkit.record.output import require_file, require_folder
from rlkit.rewards import RewardSpec
from rlkit.rollout.pool import Pool
from rlkit.rollout.vllm import VLLM, check_options
from rlkit.run import Run
from rlkit.types import Prompt, Sampling
from rlkit.verifier.verify import gold_against_itself


def _remedy(where: str, path: str) -> str:
    """What to do about a model that is not there: the configuration that leaves it, where one does."""
    if where == "critic.path":
        return ""
    name = Path(path).parent.name if Path(path).name == "final" else ""
    name = name if shipped.find(f"algorithms/{name}") else "grpo"
    return (
        f"Give a model folder or a hub name, or train one first, e.g. rlkit train configs/algorithms/{name}.yaml, which leaves "
        f"runs/{name}/final."
    )


class Findings:
    """Collects what is wrong in the blocks ``with findings: ...``, so that all of it is said at once."""

    def __init__(self) -> None:
        self.errors: list[InputError] = []

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, InputError):
            self.errors.append(error)
            return True
        return False

    def refuse(self) -> None:
        """Raises what was found: a single error as it is, several as a ConfigError with a line for each."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            raise ConfigError("\n".join(map(str, self.errors)))


def check_configuration(run: Run, *, new: bool) -> list[Finding]:
    """What costs next to nothing: sections together, models that must be there, the place of a ``new`` run, the objective.

    Returns:
        What the objective's parts really do, for those who want to say it.

    Raises:
        InputError: all that is wrong, a line for each.
    """
    wrong, found = Findings(), list[Finding]()
    with wrong:
        check(run)
    if run.model.path is not None:
        with wrong:
            require_model(run.model.path, "model.path")
            model_config(run.model.path, "model.path")
    for where, path, _ in _other_models(run):
        with wrong:
            require_model(path, where, _remedy(where, path))
    if new:
        with wrong:
            require_folder(run.folder, "out")
    for section, _, spec in run.anchors:
        if spec.kept is not None and not Path(spec.kept).exists():
            with wrong:
                require_file(spec.kept, f"{section}.precompute")
    if not wrong.errors:  # a term is examined once it fits the run
        found = examine_all(run.objective, run.reward_penalties)
        # To imitate responses is noise only where they are the model's own.
        told = [f for f in found if not run.rollout.by_teacher or f.sampled != "on-policy"]
        with wrong:
            refuse_nothing(told, run.off_policy)
    wrong.refuse()
    return found


def _other_models(run: Run) -> Iterator[tuple[str, str, bool]]:
    """(setting, folder or hub name, whether its tokens may be others) of every model beside the one that is trained."""
    for section, _, spec in run.anchors:
        for path in spec.models:
            yield f"{section}.path", path, spec.other_tokens
    if run.critic is not None and run.critic.path is not None:
        yield "critic.path", run.critic.path, False


def check_models(run: Run, tokenizer: Any) -> None:
    """Raises ModelError for a model that cannot be loaded, or whose tokens are not those of the model that is trained."""
    for where, path, other_tokens in _other_models(run):
        model_config(path, where, _remedy(where, path))
        examine(path, where)
        if not other_tokens:
            same_tokens(path, where, tokenizer)
    if run.model.path is not None:
        examine(run.model.path)


def check(run: Run) -> None:
    """Impossible combinations that single sections cannot see, before anything is loaded.

    Raises:
        ConfigError: every reason with its remedy, one a line.
    """
    found = [sentence for one in CHECKS for sentence in one(run)]
    if found:
        raise ConfigError("\n".join(found))


def _stored_rows(run: Run) -> Iterator[str]:
    stored = [t for t in run.objective if t.on == "reference"]
    if stored and run.data.stored is None:
        yield (
            f"{stored[0].name} reads stored rows of the reference (on: reference), but data.stored is not set. Make them "
            "with: rlkit filter CONFIG --model MODEL --low 1 --out kept.jsonl --responses stored.jsonl, then data.stored: "
            "{path: stored.jsonl}."
        )
    strange = [n for t in stored for n in t.needs if n not in ("ref", "behav", "old", "entropy")]
    if strange:
        yield f"{stored[0].name} needs {strange[0]!r}, which stored rows do not have; they have ref, behav, old and entropy."


def _rows(run: Run) -> Iterator[str]:
    """Terms and the rows that they read."""
    if not run.online and not run.data.per_step:
        yield "rollout.prompts is 0, but data has no rows to train on. Set data.pairs, data.labelled or data.demonstrations."
        return
    for term in run.objective:
        yield from (
            _of_samples(run, term) if term.on == "policy" else () if term.on == "reference" else _of_data(run, term)
        )
    for spec in run.data.offline:
        if not any(_reads(t, spec) for t in run.objective):
            on = "pairs" if len(spec.sources) > 1 else spec.sources[0]
            yield f"data.{spec.key} is set, but no term reads it. Add one with on: {on}, or leave it out."
    if run.pairing is not None and not any(t.pairwise and t.on == "policy" for t in run.objective):
        yield "pairing is set, but no term compares a step's own responses. Add one with on: policy, or leave it out."


def _of_samples(run: Run, term: Term) -> Iterator[str]:
    """What a term lacks that reads what the run samples."""
    if not run.online:
        there = [source for spec in run.data.offline for source in spec.sources]
        yield (
            f"{term.name} reads responses that are sampled (on: policy), but this run samples none. Say which rows it reads (on: "
            f"{', '.join(there) or 'dataset'}), or give prompts: data.train or data.task, with rollout.prompts above 0."
        )
    if term.pairwise and run.pairing is None:
        yield f"{term.name} compares a step's own responses (on: policy), but pairing is null. Set pairing: {{type: BestWorst}}."


def _of_data(run: Run, term: Term) -> Iterator[str]:
    """What a term lacks that reads rows of data."""
    if not any(_reads(term, spec) for spec in run.data.offline):
        key = next(kind.key for kind in SETS if _reads(term, kind))
        yield f"{term.name} reads on: {term.on}, but data.{key} is not set. Name a file: data: {{{key}: rows.jsonl}}."
    strange = [n for n in term.needs if n in ("adv", "returns", "value")]
    if strange:
        yield f"{term.name} needs {strange[0]!r}, which only responses have that the run samples; on: {term.on} reads rows of data."
    if "mismatched" in term.needs and term.on != "labelled":
        yield f"{term.name} compares responses with other prompts, which is done for on: labelled alone; it reads on: {term.on}."


def _reads(term: Term, spec: Offline | type[Offline]) -> bool:
    return not set(sources_of(term)).isdisjoint(spec.sources)


def _rows_of_data(run: Run) -> Iterator[str]:
    """Settings that are about samples, where rows of data are trained on."""
    if run.data.offline and (run.sampling.top_p < 1 or run.sampling.top_k):
        yield (
            "sampling.top_p or sampling.top_k cuts distributions, and rows of data hold tokens that are cut off: their log-prob would be "
            "-inf. Set sampling.top_p: 1.0 and sampling.top_k: 0."
        )
    if run.online:
        return
    if run.sampling.temperature not in (0.0, 1.0):
        yield (
            f"sampling.temperature is {run.sampling.temperature:g}: log-probs are taken at this temperature, also those of rows, which "
            "nobody sampled at it. Set sampling.temperature: 1.0; eval.temperature is that of answers to held-out prompts."
        )
    if run.vllm and (run.cluster is None or not run.asks):
        yield "vllm is set, but no engine of vLLM starts: nothing is sampled to train on. Leave it out."
    for name, part in (("reward_penalties", run.reward_penalties), ("correction", run.correction)):
        if part:
            yield f"{name} is about responses that are sampled, but this run samples none. Leave it out."


def _precomputed(run: Run) -> Iterator[str]:
    """Kept outputs on rows of data are all that is compared with a reference or a teacher."""
    for section, anchor, spec in (("reference", "ref", run.reference), ("teacher", "teacher", run.teacher)):
        if spec is None or spec.kept is None:
            continue
        if not run.data.offline:
            yield f"{section}.precompute keeps log-probs of rows of data, but data has none. Leave it out."
        reads = {anchor, f"{anchor}_full"}
        others = [t.name for t in run.objective if t.needs & reads and (t.on == "policy" or "mismatched" in t.needs)]
        parts: tuple[Any, ...] = (run.advantage, *run.reward_penalties)
        others += [type(p).__name__ for p in parts if run.online and anchor in p.needs]
        if others:
            yield (
                f"{section}.precompute keeps log-probs of rows of data, but {', '.join(others)} compares more than those with the "
                f"{section}. Leave it out."
            )
        yield from _likely_tokens(run, anchor, f"{section}.precompute keeps the log-probs")


def _anchors(run: Run) -> Iterator[str]:
    parts: tuple[Any, ...] = (*(t for t in run.objective if t.on != "reference"), *run.reward_penalties, run.advantage)
    for anchor, spec, remedy in (
        ("ref", run.reference, "reference: {type: Frozen}"),
        ("teacher", run.teacher, "teacher: {type: Frozen, path: FOLDER_OR_HUB_NAME}"),
    ):
        users = ", ".join(type(t).__name__ for t in parts if t.needs & {anchor, f"{anchor}_full"})
        if users and spec is None:
            yield (
                f"{users} compares with anchor {anchor!r}, but {remedy.split(':')[0]} is null. Set {remedy}, or use another "
                "anchor."
            )
    if isinstance(run.teacher, Frozen) and run.teacher.path is None and run.needs & {"teacher", "teacher_full"}:
        yield "teacher has no `path`: it would be the model that training starts from, which is anchor: ref."


def _whole_distributions(run: Run) -> Iterator[str]:
    need = run.needs
    if need & {"ref_full", "teacher_full"} and (run.sampling.top_p < 1 or run.sampling.top_k):
        yield (
            "FullDivergence compares whole distributions, but sampling.top_p or sampling.top_k cuts them: where one is zero "
            "and the other is not, the divergence is infinite. Set sampling.top_p: 1.0 and sampling.top_k: 0."
        )
    for section, anchor, spec in run.anchors:
        if f"{anchor}_full" not in need or spec.whole:
            continue
        if not spec.asked:
            yield (
                f"FullDivergence needs the whole distributions of {section}, which type: {type(spec).__name__} does not give. "
                "Use type: Frozen, or a sampled Divergence."
            )
            continue
        if spec.kept is None:
            yield from _likely_tokens(run, anchor, f"{section} (type: {type(spec).__name__}) gives the log-probs")


def _other_tokens(run: Run) -> Iterator[str]:
    """Terms that compare the same tokens of two models, where an anchor has a vocabulary of its own."""
    for section, anchor, spec in run.anchors:
        for term in run.objective if spec.other_tokens else ():
            if isinstance(term, WholeVocabulary) and term.anchor == anchor and not term.any_tokens:
                yield (
                    f"{term.name} compares probabilities of the same tokens, but {section} (type: {type(spec).__name__}) has a tokenizer "
                    "of its own. Use UniversalLogit, or what compares sampled texts: Divergence, KL, TokenKL."
                )


def _likely_tokens(run: Run, anchor: str, source: str) -> Iterator[str]:
    """Terms that read more of an anchor than its most likely tokens, where its ``source`` gives no more than these."""
    gives = f"{source} of its most likely tokens"
    for term in run.objective:
        if not isinstance(term, WholeVocabulary) or term.anchor != anchor:
            continue
        if isinstance(term, Wasserstein):
            yield f"{term.name} measures distances in the output layer of its anchor, but {gives}. Use type: Frozen."
        elif term.reads is None:
            yield (
                f"{term.name} compares all tokens, but {gives}. Set top_k of the term, e.g. 20, which joins the rest in one bucket, or use "
                "type: Frozen."
            )
        elif term.of != "anchor":
            yield f"{term.name} tells those tokens apart that are likely for `of: {term.of}`, but {gives}. Set of: anchor."


def _asked(run: Run) -> Iterator[str]:
    """References that are asked for log-probs give them at temperature 1 alone."""
    told = asked_at(run.sampling)
    if told is not None and any(spec.asked and run.needs & {a, f"{a}_full"} for _, a, spec in run.anchors):
        yield told


def _pools(run: Run) -> Iterator[str]:
    """Teachers in engines of their own: how many tokens these give, and where there is no cluster."""
    for section, anchor, spec in run.anchors:
        if not isinstance(spec, Pool):
            continue
        gives, asked = spec.vllm.get("max_logprobs", -1), told_apart(run.objective, anchor)
        if isinstance(gives, int) and 0 <= gives < asked:
            yield f"{section}.vllm.max_logprobs is {gives}, but the terms tell {asked} of its most likely tokens apart. Leave it out."
        if run.cluster is not None:
            continue
        if spec.engines > 1 or spec.tensor_parallel > 1 or spec.gpus is not None:
            yield f"{section} is a pool of several engines or devices, which need a cluster. Set cluster: {{}}."
        if spec.engine == "vllm" and isinstance(run.engine, VLLM):
            yield (
                f"{section} and rollout.engine are both vllm, of which there is one in a process: set cluster: {{}}, or {section}.engine: "
                "hf."
            )


def _by_teacher(run: Run) -> Iterator[str]:
    """Prompts that the teacher answers."""
    if not run.rollout.by_teacher:
        return
    if not isinstance(run.teacher, Pool) or run.teacher.kept is not None:
        yield "rollout.by_teacher has a teacher answer prompts, which needs engines of its own. Set teacher: {type: Pool, path: MODEL}."
    if run.rollout.episode is not None:
        yield "rollout.by_teacher answers single prompts, and rollout.episode holds conversations: use one of them."
    if not run.online:
        yield "rollout.by_teacher is about prompts, but this run samples none. Leave it out."


def _one_name(run: Run) -> Iterator[str]:
    """Terms of one name share what is computed over the whole vocabulary."""
    known = dict[str, Any]()
    for t in run.objective:
        if isinstance(t, WholeVocabulary) and known.setdefault(t.name, t.compared) != t.compared:
            yield (
                f"objective has two terms that are both called {t.name} but compare differently: {known[t.name]} and {t.compared}. Give "
                "them one `f`, `parameter` and `of`."
            )


def _values(run: Run) -> Iterator[str]:
    need = run.needs
    if run.critic is not None and "value" not in need:
        yield "critic is set, but nothing needs values: set advantage: {type: GAE} and add {type: ValueMSE} to the objective."
    if "value" in run.advantage.needs and "returns" not in need:
        yield (
            f"advantage {type(run.advantage).__name__} needs a value function, but nothing trains it: add {{type: ValueMSE, "
            "coef: 0.5} to the objective."
        )
    if "returns" in need and "value" not in run.advantage.needs:
        yield "ValueMSE trains a value function that nothing uses: set advantage: {type: GAE}."


def _batches(run: Run) -> Iterator[str]:
    groups = run.rollout.prompts if run.online else run.data.per_step
    if groups and run.learner.minibatches > groups:
        key = "rollout.prompts" if run.online else "per_step of the rows of data"
        yield (
            f"learner.minibatches is {run.learner.minibatches}, but a step has only {groups} prompt groups "
            f"({key}), which are never split. Lower it, or raise {key}."
        )
    if run.online and run.advantage.group and run.rollout.n < 2:
        yield (
            f"advantage {type(run.advantage).__name__} compares the responses of one prompt, but rollout.n is "
            f"{run.rollout.n}. Set rollout.n to 2 or more, or use advantage: Plain, ReinforcePlusPlus or GAE."
        )


def _sampling(run: Run) -> Iterator[str]:
    if run.rollout.interrupt is not None and run.rollout.lengths is not None:
        yield "rollout.interrupt and rollout.lengths both decide when a response ends: use one of them."
    if run.rollout.over and run.data.refill == "ahead":
        yield "data.refill: ahead and rollout.over both start more groups than a step needs: use one of them."
    if run.sampling.temperature == 0:
        yield "sampling.temperature is 0: greedy responses of one prompt are all equal and teach nothing. Use 1.0."
    if run.cluster is None and run.rollout.max_lag and run.rollout.kind.shares:
        yield "rollout.max_lag above 0 needs an engine of its own to overlap with: set cluster: {} or rollout.engine: vllm."


def _engine(run: Run) -> Iterator[str]:
    if run.rollout.engine == "vllm":
        try:
            check_options(run.vllm)
        except InputError as error:
            yield str(error)


def _ranks(run: Run) -> Iterator[str]:
    if run.cluster is None or run.cluster.learners == 1:
        return
    if run.deepspeed is None:
        yield (
            f"cluster.learners is {run.cluster.learners}, but deepspeed is null: several ranks need DeepSpeed. Add "
            "deepspeed: {zero_optimization: {stage: 1}}."
        )


def _colocation(run: Run) -> Iterator[str]:
    cluster = run.cluster
    if cluster is None or not cluster.colocate:
        return
    if not run.rollout.kind.rests:
        yield (
            f"cluster.colocate: engines of the kind {run.rollout.kind.label} cannot leave their device to a learner. Set rollout.engine: "
            "vllm, or cluster.colocate: false."
        )
    if cluster.engines != cluster.learners or cluster.tensor_parallel > 1:
        yield (
            f"cluster.colocate puts one engine beside each learner, but there are {cluster.engines} engine(s) of "
            f"{cluster.tensor_parallel} device(s) and {cluster.learners} learner(s). Set cluster.engines to the number of learners and "
            "cluster.tensor_parallel to 1."
        )
    if cluster.gpus not in (None, 0, 0.5):
        yield (
            f"cluster.gpus is {cluster.gpus:g}, but with cluster.colocate engine and learner of one number have a GPU together, half of it "
            "each. Leave it out."
        )
    zero = (run.deepspeed or {}).get("zero_optimization", {})
    stage, away = zero.get("stage", 0), (zero.get("offload_optimizer") or {}).get("device", "none") != "none"
    if not away and (stage == 3 or (stage == 1 and run.model.dtype == "bfloat16")):
        yield (
            f"cluster.colocate: under ZeRO-{stage}{' in bfloat16' if stage == 1 else ''} DeepSpeed cannot move the optimizer's state of "
            "a learner that waits to the host. Set deepspeed.zero_optimization.stage to 2, or keep it there: offload_optimizer: {device: "
            "cpu}."
        )
    if run.rollout.max_lag or run.rollout.over:
        yield (
            "cluster.colocate: engines sleep while learners work, so nothing can be generated ahead. Set rollout.max_lag and rollout.over "
            "to 0."
        )


def _shared_rows(run: Run) -> Iterator[str]:
    size, learners = run.learner.sequence_parallel, 1 if run.cluster is None else run.cluster.learners
    if size == 1:
        return
    if run.deepspeed is None or learners % size:
        yield (
            f"learner.sequence_parallel is {size}: so many ranks share each row, but there are {learners} learner(s)"
            f"{' without deepspeed' if run.deepspeed is None else ''}. Set cluster.learners to a multiple of it, with a deepspeed section."
        )
    for i, term in enumerate(run.objective):
        if isinstance(term, WholeVocabulary):
            yield (
                f"objective.{i}: {term.name} compares whole distributions, which ranks that share a row do not. Set "
                "learner.sequence_parallel to 1."
            )


def _precision(run: Run) -> Iterator[str]:
    if run.model.dtype == "bfloat16" and run.deepspeed is None:
        yield (
            "model.dtype: bfloat16 needs DeepSpeed, which keeps float32 master weights. Add deepspeed: "
            "{zero_optimization: {stage: 1}}, or set model.dtype: float32."
        )
    if run.deepspeed is None:
        return
    zero = run.deepspeed.get("zero_optimization", {})
    stage = zero.get("stage", 0) if isinstance(zero, dict) else None
    if stage not in (0, 1, 2, 3):
        yield f"deepspeed.zero_optimization is {zero!r:.100}; it must be a mapping with stage 0, 1, 2 or 3."
    elif run.model.dtype == "bfloat16" and not stage:
        yield (
            "model.dtype: bfloat16 needs deepspeed.zero_optimization.stage 1, 2 or 3: DeepSpeed refuses float32 gradient sums "
            "under stage 0."
        )
    elif isinstance(zero, dict):
        yield from _offloading(zero, stage)
    try:
        check_deepspeed_options(run.deepspeed, run.model.dtype == "bfloat16")
    except InputError as error:
        yield str(error)


def _offloading(zero: Mapping[str, Any], stage: int) -> Iterator[str]:
    """What DeepSpeed would pass over without a word, or end by an assertion."""
    for key, least in (("offload_optimizer", 1), ("offload_param", 3)):
        told = zero.get(key) or {}
        if not isinstance(told, Mapping):
            yield f"deepspeed.zero_optimization.{key} is {told!r:.100}; it must be a mapping, e.g. {{device: cpu}}."
            continue
        where = told.get("device", "none")
        needed = 3 if where == "nvme" else least
        if where != "none" and stage < needed:
            other = "3" if needed == 3 else "1, 2 or 3"
            yield (
                f"deepspeed.zero_optimization.{key}: {{device: {where}}} needs stage {other}, and stage is {stage}: DeepSpeed "
                "leaves it out without a word. Raise the stage, or remove it."
            )
        if told.get("ratio", 1.0) != 1.0:
            yield (
                f"deepspeed.zero_optimization.{key}.ratio is {told['ratio']!r:.20}: a part of the optimizer's state on the host needs "
                "DeepSpeed's own Adam, and rlkit trains with torch's AdamW. Leave it out."
            )


def _rewards(run: Run) -> Iterator[str]:
    if run.model.warm_up is not None and run.data.task is None:
        yield "model.warm_up learns from a task's demonstrations, but data has no `task`."
    if not run.rewards and run.data.task is None and run.rollout.episode is None and (run.online or run.asks):
        yield "rewards is empty. Name a reward, e.g. rewards: [math] or rewards: [my_file.py:my_reward]."
    try:
        names = [r.label for r in run.scored_by]
    except InputError as error:
        yield str(error)
        return
    for part in run.parts:
        if part.split("/")[0] not in names:
            yield (
                f"the reward {part!r} is read on its own, but the rewards are {', '.join(names)}. Name one of them, or give a reward that "
                "name (name: ...)."
            )
    for rule in run.data.drop:
        if isinstance(rule, ZeroVariance) and rule.of is not None and rule.of.split("/")[0] not in names:
            yield (
                f"data.drop: ZeroVariance looks at the reward {rule.of!r}, but the rewards are {', '.join(names)}. Name one "
                "of them in `of`, or give a reward that name (name: ...)."
            )


def _room(run: Run) -> Iterator[str]:
    if run.rollout.episode is not None and run.rollout.max_model_len is None:
        yield (
            "rollout.episode is set, but rollout.max_model_len is not: say how many tokens a whole conversation may have, with what is "
            "added between the turns (sampling.max_tokens is the limit of one turn)."
        )


def check_room(run: Run) -> None:
    """Raises ConfigError for episodes of which nobody says how long they may become."""
    for sentence in _room(run):
        raise ConfigError(sentence)


def _episodes(run: Run) -> Iterator[str]:
    section = run.rollout
    if section.episode is None:
        if section.serve is not False:
            yield (
                "rollout.serve is set, but rollout.episode is not: calls are turns of episodes. Name a function that takes an `endpoint` "
                "and returns a reward: rollout.episode: my_file.py:solve."
            )
        return
    yield from _room(run)
    if section.interrupt is not None:
        yield "rollout.interrupt ends single responses, and rollout.episode holds conversations: use one of them."
    alone = [t.name for t in run.objective if t.on == "policy" and (t.whole_groups or isinstance(t, AStar))]
    if alone:
        yield (
            f"{alone[0]} compares whole responses with their rewards, but an episode may be several rows (where the chat template rewrites "
            "what came before). Use a loss on tokens, e.g. PPOClip or Reinforce."
        )


CHECKS = (
    _stored_rows,
    _rows,
    _rows_of_data,
    _precomputed,
    _anchors,
    _whole_distributions,
    _other_tokens,
    _asked,
    _pools,
    _by_teacher,
    _one_name,
    _values,
    _batches,
    _sampling,
    _engine,
    _ranks,
    _colocation,
    _shared_rows,
    _precision,
    _rewards,
    _episodes,
)


# -- what needs data or a model's files ----------------------------------------------------------------------------------


def check_sets(run: Run, prompts: Sequence[Prompt]) -> None:
    """Raises ConfigError for a set that a reference or teacher names and no prompt is of."""
    known = {str(p.columns.get("dataset", "")) for p in prompts}
    for section, _, spec in run.anchors:
        strange = [name for name in spec.sets if name not in known]
        if strange:
            there = ", ".join(sorted(known - {""})) or "no set that has a name"
            raise ConfigError(
                f"{section}.per_set names {strange[0]!r}, but the prompts are of {there}: the name is that of a file among several, "
                "without its ending, or what their column `dataset` says."
            )


def check_columns(run: Run, prompts: Sequence[Prompt], examples: Sequence[ExampleRows] = ()) -> None:
    """Raises ConfigError for a prompt without a number in a column that some term reads."""

    def is_number(x: Any) -> bool:
        try:
            return math.isfinite(float(x))
        except (TypeError, ValueError):
            return False

    for name in run.columns:
        readers = [t for t in run.objective if f"col:{name}" in t.needs]
        rows = list(prompts) if run.online else []
        if readers and all(t.on not in ("policy", "reference") for t in readers):
            rows = []
        rows += [e.prompt for x in examples if any(_reads(t, x.spec) for t in readers) for row in x.rows for e in row]
        bad = [p for p in rows if not is_number(p.columns.get(name))]
        if bad:
            parts: tuple[Any, ...] = (*run.objective, run.advantage, *run.reward_penalties)
            users = ", ".join(type(t).__name__ for t in parts if f"col:{name}" in t.needs)
            make = (
                "Make it with: rlkit filter CONFIG --model MODEL --soft-value 0.5 --out rows.jsonl, then data.train: rows.jsonl."
                if name == "v_star"
                else "Add it to the data."
            )
            raise ConfigError(
                f"{users} reads the column {name!r}, but {len(bad)} of {len(rows)} prompts have no number there (the "
                f"first: {bad[0].id}). {make}"
            )


def check_labels(run: Run, examples: Sequence[ExampleRows]) -> Iterator[str]:
    """What terms that tell good responses from bad ones have to say of those of the data.

    Raises:
        ConfigError: for a term there is only one kind of them.
    """
    for term in run.objective:
        if not isinstance(term, LabelTerm) or term.on != "labelled":
            continue
        labels = [e.reward for x in examples if _reads(term, x.spec) for row in x.rows for e in row]
        if not labels:
            continue
        good = sum(x > term.above for x in labels)
        if good in (0, len(labels)):
            kind, place = ("good", "above") if good else ("bad", "not above")
            raise ConfigError(
                f"{term.name}: all {len(labels)} responses of the data are {kind}, because their labels, from {min(labels):g} to "
                f"{max(labels):g}, are {place} {term.above:g}. Say which scores are good: "
                "data.labelled.threshold, or `above` of the term."
            )
        advice = term.advice(good, len(labels) - good)
        if advice is not None:
            yield f"{term.name}: {advice}"


def context_length(run: Run, prompts: Sequence[Prompt], model: str | None, at_least: int = 0) -> int:
    """Room for the longest prompt and its response (``at_least`` tokens); ``model`` must offer that much (None: it is made to measure).

    Raises:
        ConfigError: the longest prompt and its response do not fit.
    """
    asked = run.rollout.max_model_len
    limits = {} if asked is None else {"rollout.max_model_len": asked}
    known = context_of(model)
    if known is not None:
        limits["the model's context"] = known
    longest = max(prompts, key=lambda p: len(p.token_ids), default=None)
    if longest is None:  # nothing is asked
        return at_least
    response = run.sampling.max_tokens if run.rollout.lengths is None else run.rollout.lengths.limits[-1]
    needed = len(longest.token_ids) + response
    for what, limit in limits.items():
        if needed > limit:
            raise ConfigError(
                f"prompt {longest.id} has {len(longest.token_ids)} tokens; with sampling.max_tokens = "
                f"{response} that makes {needed}, and {what} is {limit}. Lower sampling.max_tokens or "
                "data.max_prompt_tokens."
            )
    needed = max(needed, at_least)
    return asked or min(needed + 8, limits.get("the model's context", needed + 8))


def context_of(model: str | None) -> int | None:
    """Tokens that a model takes; None if it does not say, or is made to measure."""
    found = None if model is None else getattr(model_config(model, "model.path"), "max_position_embeddings", None)
    return found or None


# -- what a run says when it starts --------------------------------------------------------------------------------------


def what_to_know(run: Run, findings: list[Finding]) -> Iterator[str]:
    """What is allowed and may surprise: of ``findings`` those where a part does not do what its name says, old samples, dropout."""
    for finding in dishonest(findings, run.off_policy):
        yield f"note: {finding.sentence} (rlkit check; acknowledge: true silences this)"
    yield from filter(None, (stale(run), without_dropout(run)))


def stale(run: Run) -> str | None:
    """A warning for samples of two or more versions ago that nothing corrects: the ratio to ``old`` does not see their age."""
    section = run.rollout
    lag = section.max_lag + (math.ceil(section.over) + section.overtake if section.over else 0)
    blind = [t.name for t in run.objective if "adv" in t.needs and "behav" not in t.needs]
    if lag < 2 or run.correction is not None or not blind:
        return None
    return (
        f"warning: tokens may be {lag} steps old when they are trained on (rollout.max_lag: {section.max_lag}, over: {section.over:g}), "
        f"and {', '.join(blind)} does not see their age: it compares with the learner's own log-probs. Set correction: {{type: "
        "TruncatedIS}, a loss against the engine's log-probs (CISPO, DPPO, ISGradient), or a lag of at most 1."
    )


def without_dropout(run: Run) -> str | None:
    """A note for an adapter that asks for dropout."""
    share = (run.peft or {}).get("lora_dropout", 0)
    if not share:
        return None
    return (
        f"note: peft.lora_dropout is {share}, but rlkit trains without dropout: the log-probs before and after an update must be of one "
        "network, or every importance ratio is wrong. Leave it out."
    )


def generation_notes(path: str, tokenizer: Any, sampling: Sampling) -> list[str]:
    """What should be known of a model's generation settings before it is trained; raises ModelError for unusable ones."""
    ends = Endings.of(path, tokenizer).ids
    _, changed = settled(load_settings(path), ends)
    notes = (
        [f"note: {path}: generation settings: {'; '.join(changed)} (in the trained model's file)."] if changed else []
    )
    if not ends and not sampling.stop:
        notes.append(
            f"warning: {path} names no EOS token: nothing but sampling.max_tokens ends a response. Set eos_token in its "
            "tokenizer_config.json, or sampling.stop."
        )
    return notes


def self_test(specs: Sequence[RewardSpec], prompts: Sequence[Prompt]) -> list[str]:
    """What the reward ``math`` says of reference answers that it would not accept from a model: such rows can only teach wrongly."""
    spec = next((s for s in specs if s.is_math), None)
    if spec is None:
        return []

    rows = [{"id": p.id, "answer": p.answer} for p in prompts if p.answer is not None]
    bad = gold_against_itself(rows, **{k: v for k, v in spec.args.items() if k in ("mode", "extract")})
    if not bad:
        return []
    found = ", ".join(f"{b['id']} ({str(b['answer'])[:40]!r}: {b['reason']})" for b in bad[:5])
    return [
        f"warning: {len({b['id'] for b in bad})} of {len(rows)} reference answers are not accepted by the reward `math` when a model "
        f"gives them: {found}{', ...' if len(bad) > 5 else ''}. Correct or remove these rows."
    ]

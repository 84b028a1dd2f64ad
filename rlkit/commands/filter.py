"""``rlkit filter``: the training prompts that a model sometimes solves (offline learnability filter, RIF-RFT)."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkit.commands.engines import model_folder, running
from rlkit.data.prompts import load_prompts
from rlkit.data.stored import write_stored
from rlkit.errors import ConfigError, DataError
from rlkit.files import replace_file, told
from rlkit.heldout import sample_and_score
from rlkit.model.load import load_tokenizer
from rlkit.run import Run
from rlkit.samples import Prompt, Rollout
from rlkit.session import quiet_libraries


@dataclass(frozen=True)
class Filtered:
    """The prompts that were kept, of ``asked`` prompts.

    Attributes:
        prompts: those kept, in their order. rows: the same as rows of data, each with its ``pass_rate`` (and ``v_star``, ``base_rewards``).
        solved: one response with a reward of at least 1 for each kept prompt that has one, with its log-probs.
        answered: all scored responses to the kept prompts, prompt by prompt. within: their range of pass rates, in words.
    """

    run: Run
    tokenizer: Any
    asked: int
    prompts: tuple[Prompt, ...]
    rows: tuple[dict[str, Any], ...]
    solved: tuple[Rollout, ...]
    answered: tuple[Rollout, ...] = ()
    within: str = ""

    @property
    def unended(self) -> int:
        """How many of the responses were cut off: rows of data are made of the others alone."""
        return sum(r.finish != "stop" for r in self.answered)

    def write(self, path: str | Path) -> None:
        """The rows as a JSONL file."""
        _write(path, self.rows)

    def write_transcripts(self, path: str | Path) -> int:
        """The scored episodes of the kept prompts as people read them; returns how many.

        Raises:
            ConfigError: the run plays none.
        """
        if not all(r.transcript for r in self.answered):
            raise ConfigError("a file of transcripts is about episodes, and rollout.episode is not set.")
        shown = [f"=== {r.prompt.id}: reward {r.reward:g}\n{r.transcript}\n" for r in self.answered]
        with told("transcripts", "Make room, or give another file."):
            replace_file(Path(path), "\n".join(shown))
        return len(shown)

    def write_solved(self, path: str | Path) -> None:
        """The solved responses as a file for ``data.stored``."""
        self._single("a file of solved responses")
        write_stored(path, self.solved)

    def write_pairs(self, path: str | Path, better: str | None = None) -> int:
        """For each kept prompt its best response against its worst, where rewards differ, as a file for ``data.pairs``; returns how many.

        Responses that were cut off are left out here and below: a row of data ends with the token that ends a response.

        ``better``: a column (or ``answer``) whose text is preferred to the first response that is another one, whatever rewards say (SPIN).

        Raises:
            DataError: a prompt without a text there.
        """
        self._single("a file of pairs")
        rows = []
        for _, group in itertools.groupby(self._ended(), key=lambda r: r.prompt.id):
            said = list(group)
            ranked = sorted(said, key=lambda r: r.reward)
            worst, best = ranked[0], ranked[-1]
            if better is not None:
                text = _demonstration(best.prompt, better)
                other = next((r.text for r in said if r.text.strip() != text.strip()), None)
                rows += [] if other is None else [{**_asked(best.prompt), "chosen": text, "rejected": other}]
            elif best.reward > worst.reward and best.text != worst.text:
                scores = {"chosen_score": best.reward, "rejected_score": worst.reward}
                rows.append({**_asked(best.prompt), "chosen": best.text, "rejected": worst.text, **scores})
        return _write(path, rows)

    def write_labelled(self, path: str | Path) -> int:
        """Every response with its reward, as a file for ``data.labelled``."""
        self._single("a file of labelled responses")
        return _write(path, [{**_asked(r.prompt), "response": r.text, "label": r.reward} for r in self._ended()])

    def write_demonstrations(self, path: str | Path) -> int:
        """The solved responses as a file for ``data.demonstrations``."""
        self._single("a file of demonstrations")
        solved = (r for r in self.solved if r.finish == "stop" and r.text.strip())
        return _write(path, [{**_asked(r.prompt), "response": r.text} for r in solved])

    def _single(self, what: str) -> None:
        """Raises ConfigError where the responses are conversations."""
        if any(r.episode is not None for r in self.answered):
            raise ConfigError(f"{what} is about single responses, and an episode is a conversation. Leave it out.")

    def _ended(self) -> Iterator[Rollout]:
        return (r for r in self.answered if r.finish == "stop" and r.text.strip())

    def settings(self, path: str | Path) -> dict[str, Any]:
        """What of the section ``data`` has to change so that the written file gives these prompts again.

        Whether its texts are rendered once more depends on where they came from, so it is tried.
        """
        data, kept = self.run.data, self.prompts
        column = "messages" if any("messages" in p.columns for p in kept) else "question"
        columns = {"prompt": column, **({"answer": "answer"} if "answer" in data.columns else {})}
        plain: dict[str, Any] = {"columns": {}, "template": "plain"}
        plain |= {"system": None} if data.system is not None else {}
        plain |= {"chat_template_kwargs": {}} if data.chat_template_kwargs else {}
        changes: dict[str, Any] = {}
        for changes in ({}, {"columns": columns}, plain):
            read = dataclasses.replace(data, task=None, train=str(path), **changes)
            try:
                again = load_prompts(read, "train", self.tokenizer)
            except DataError:
                continue  # a column that this file does not have
            if [(p.id, p.token_ids) for p in again] == [(p.id, p.token_ids) for p in kept]:
                break
        return {**({"task": None} if data.task is not None else {}), "train": str(path), **changes}


def filter(
    run: Run,
    model: str | Path,
    *,
    n: int = 8,
    low: float = 0.0,
    high: float = 1.0,
    soft_value: float | None = None,
    rewards: bool = False,
    unsolved: bool = False,
    say: Callable[[str], None] = print,
) -> Filtered:
    """The prompts of ``run.data.train`` that ``model`` solves in a share of ``n`` responses between ``low`` and ``high``.

    Of a run that plays episodes, in a share of ``n`` episodes.

    Args:
        low: 0 means at least one success. soft_value: beta of ``v_star = beta log mean exp(reward / beta)`` in each row (A*-PO).
        rewards: each row also gets ``base_rewards``, the rewards of its responses (InfAlign, RLKF).
        unsolved: with low 0 prompts without a success are kept, too; ``rewards`` means this as well.

    Raises:
        ConfigError: no model, no prompts, or an empty range.
    """
    if low > high:
        raise ConfigError(f"--low is {low} and --high is {high}: the lowest pass rate is above the highest.")
    above = low == 0 and not (unsolved or rewards)  # at least one success
    quiet_libraries()
    path = model_folder(model)
    tokenizer = load_tokenizer(path, "--model")
    prompts = load_prompts(run.data, "train", tokenizer, say)
    with running(run, path, prompts, say=say) as (engine, scores):
        rollouts = sample_and_score(engine, scores, prompts, n, dataclasses.replace(run.sampling, seed=run.seed))
    kept, rows, solved, answered = list[Prompt](), list[dict[str, Any]](), list[Rollout](), list[Rollout]()
    for i, p in enumerate(prompts):
        group = rollouts[i * n : (i + 1) * n]
        found = [r.reward for r in group if not math.isnan(r.reward)]
        rate = sum(min(1.0, max(0.0, x)) for x in found) / len(found) if found else None
        if rate is None or not (low < rate <= high if above else low <= rate <= high):
            continue
        kept.append(p)
        answered += [r for r in group if not math.isnan(r.reward)]
        solved += [r for r in group if r.reward >= 1][:1]
        row = {"id": p.id, "prompt": p.text, "answer": p.answer, **p.columns, "pass_rate": rate}
        if soft_value is not None:
            row["v_star"] = _soft_value(found, soft_value)
        if rewards:
            row["base_rewards"] = found
        rows.append(row)
    within = f"{'above' if above else 'from'} {low:g} to {high:g}"
    return Filtered(run, tokenizer, len(prompts), tuple(kept), tuple(rows), tuple(solved), tuple(answered), within)


def _write(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> int:
    """Rows as a JSONL file; how many they are."""
    with told("the rows that are kept", "Make room, or give another file."):
        replace_file(Path(path), "".join(json.dumps(row, default=str) + "\n" for row in rows))
    return len(rows)


def _asked(p: Prompt) -> dict[str, Any]:
    """A prompt as a row holds it: before its template, which is applied again where the row is read."""
    return {"id": p.id, "prompt": list(p.columns["messages"]) if "messages" in p.columns else p.columns["question"]}


def _demonstration(p: Prompt, column: str) -> str:
    found = p.answer if column == "answer" else p.columns.get(column)
    if not isinstance(found, str) or not found.strip():
        raise DataError(
            f"prompt {p.id} has no text in {column!r} to prefer to the model's response (--better); it has answer, {', '.join(p.columns)}."
        )
    return found


def _soft_value(rewards: Sequence[float], beta: float) -> float:
    """``beta log mean exp(reward / beta)``, from the largest reward, so that nothing overflows."""
    top = max(rewards)
    return top + beta * math.log(sum(math.exp((x - top) / beta) for x in rewards) / len(rewards))

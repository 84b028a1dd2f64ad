"""A judge: a model behind an OpenAI-compatible server that is shown a response and says what it is worth.

The template is a file of the user's, in which ``{response}``, ``{question}`` and other names in braces stand for what a reward's parameters
would be filled with; other braces stay as they are::

    Question: {question}
    Reference answer: {answer}
    Response: {response}
    How good is the response, from 0 to 10? Reason first, and end with a line "Score: N".
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import inspect
import json
import re
import sqlite3
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from rlkit.asking import Client, Pace, key_of
from rlkit.bounds import Count, NonNegative, Positive
from rlkit.errors import ConfigError, RewardError, first_line
from rlkit.place import Place
from rlkit.rewards.functions import is_of_group
from rlkit.rewards.grader import Grader

FIELD = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
VERDICT = r"(?i)\b(?:score|rating|grade|verdict)\b\W{0,8}?(-?\d+(?:\.\d+)?)"
CHARACTERS = 3.0  # of a token, until a server has counted them
SHOWN = 200  # characters of an answer in a message
IN_MEMORY = 10_000  # answers that are kept without a file


@dataclass(frozen=True, kw_only=True)
class Judge(Grader):
    """What a model behind an OpenAI-compatible server says of a response.

    Attributes:
        url: with the version, e.g. http://host:8000/v1. model: null is the server's first.
        prompt: the file with the template, the user's message; system: a system message, if there is one.
        verdict: a pattern (Python's ``re``) whose last match in the answer is the verdict: its group, or several by name, which become
            parts of the reward. With ``{responses}`` in the template the judge sees all responses to a prompt, numbered from 1, and as many
            last matches are the verdicts on them in their order.
        values: what words are worth as a verdict, e.g. {A: 1, B: 0, tie: 0.5}. scale: the lowest and the highest number that may be said,
            which become 0 and 1; null takes numbers as they are.
        options: more keys of a request, e.g. {temperature: 0, max_tokens: 512}.
        tries: how often it is asked when its answer has no verdict. retry_for: seconds for which a server that is busy or away is asked
            again. wait: seconds that one answer may take.
        key_from: the environment variable that holds the server's key. It is read from there alone, and written nowhere.
        requests_a_minute, tokens_a_minute: what the server admits; waiting for a turn counts as time of the call, so that ``concurrency``
            of the reward must not be larger than what ``timeout`` has turns for.
        cache: a file (SQLite) in which answers are kept by what was asked, up to ``kept`` of them; a later run, or one that is resumed,
            asks nothing twice. Without one they are kept in memory. Equal questions that are under way are asked once in any case.
        prices: of a million tokens that the model reads, and that it writes, in whatever currency. most_tokens, most_cost: what a run may
            use, resumed or not; when it is used up the run stops.
    """

    usual_timeout: ClassVar[float] = 180.0

    url: str
    prompt: Place
    model: str | None = None
    system: str | None = None
    verdict: str = VERDICT
    values: dict[str, float] = field(default_factory=dict)
    scale: tuple[float, float] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    tries: Count = 2
    retry_for: NonNegative = 120.0
    wait: Positive = 60.0
    key_from: str | None = None
    requests_a_minute: Positive | None = None
    tokens_a_minute: Positive | None = None
    cache: Place | None = None
    kept: Count = 100_000
    prices: tuple[NonNegative, NonNegative] = (0.0, 0.0)
    most_tokens: Count | None = None
    most_cost: Positive | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.match(r"https?://[^/\s]+", self.url):
            raise ConfigError(f"Judge.url is {self.url[:100]!r}; it must be like http://host:8000/v1.")
        try:
            groups = re.compile(self.verdict).groups
        except re.error as error:
            raise ConfigError(f"Judge.verdict is no pattern: {error}.") from None
        if groups == 0:
            raise ConfigError(
                "Judge.verdict has no group: put what is the verdict in parentheses, e.g. 'Score: (\\d+)'."
            )
        if self.scale is not None and not self.scale[0] < self.scale[1]:
            raise ConfigError(f"Judge.scale is {list(self.scale)}; the first number must be below the second.")
        if self.most_cost is not None and not any(self.prices):
            raise ConfigError(
                "Judge.most_cost is set, but prices is not: say what a million tokens cost, prices: [IN, OUT]."
            )

    # -- what it asks -----------------------------------------------------------------------------------------------

    @functools.cached_property
    def template(self) -> str:
        """The text of the file; it travels with the judge to its process."""
        try:
            return Path(self.prompt).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"Judge.prompt: {self.prompt!r} cannot be read: {first_line(error)}.") from None

    @property
    def fields(self) -> tuple[str, ...]:
        """The names in braces of its texts."""
        return tuple(dict.fromkeys(FIELD.findall(f"{self.system or ''}{self.template}")))

    @property
    def __signature__(self) -> inspect.Signature:
        """Its parameters: what the template has in braces."""
        return inspect.Signature([inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in self.fields])

    def check(self) -> None:
        if not self.fields:
            raise ConfigError(
                f"Judge.prompt: {self.prompt!r} has nothing to fill in, e.g. {{question}} and {{response}}."
            )
        key_of(self.key_from, "Judge.key_from")

    def messages(self, given: Mapping[str, Any]) -> list[dict[str, str]]:
        """What the judge is told. Braces in what is filled in stay as they are."""

        def filled(text: str) -> str:
            return FIELD.sub(lambda m: _shown(given[m[1]]) if m[1] in given else m[0], text)

        system = [] if self.system is None else [{"role": "system", "content": filled(self.system)}]
        return [*system, {"role": "user", "content": filled(self.template)}]

    # -- what it answers --------------------------------------------------------------------------------------------

    def read(self, answer: str, responses: int | None = None) -> Any:
        """The verdict in an answer, or a list of them on so many ``responses``; None where it has none."""
        found = list(re.finditer(self.verdict, answer.rpartition("</think>")[2]))[-(responses or 1) :]
        verdicts = [self._worth(m) for m in found]
        if len(found) < (responses or 1) or None in verdicts:
            return None
        return verdicts[-1] if responses is None else verdicts

    def _worth(self, m: re.Match[str]) -> float | dict[str, float] | None:
        parts = m.groupdict() or {"": m[1]}
        numbers = {name: self._number(text) for name, text in parts.items() if text is not None}
        known = {name: x for name, x in numbers.items() if x is not None}
        if not known or len(known) < len(numbers):
            return None
        return known.get("", known)

    def _number(self, text: str) -> float | None:
        words = {word.casefold(): x for word, x in self.values.items()}
        if text.strip().casefold() in words:
            return words[text.strip().casefold()]
        try:
            x = float(text)
        except ValueError:
            return None
        if self.scale is None:
            return x
        low, high = self.scale
        return (x - low) / (high - low) if low <= x <= high else None

    # -- asking, in its process -------------------------------------------------------------------------------------

    @functools.cached_property
    def _asking(self) -> _Asking:
        return _Asking(self)

    def start(self) -> None:
        _ = self._asking

    async def __call__(self, **given: Any) -> Any:
        """Raises RewardError where its answers have no verdict, or the server refuses; WorkerTimeout where there is no answer."""
        several = len(given["responses"]) if is_of_group(self.fields) else None
        messages = self.messages(given)
        for attempt in range(self.tries):
            answer = await self._asking.answer(messages, attempt)
            verdict = self.read(answer, several)
            if verdict is not None:
                return verdict
            self._asking.forget(messages, attempt)
        raise RewardError(
            f"the judge's answer has no verdict that `verdict` finds{'' if self.scale is None else ' within `scale`'}: it ends with "
            f"{answer[-SHOWN:]!r}"
        )

    def taken(self) -> dict[str, int]:
        return self._asking.taken()

    def metrics(self, used: Mapping[str, int]) -> dict[str, float]:
        names = ("asked", "cached", "retries", "unread")
        return {
            **{name: float(used.get(name, 0)) for name in names},
            "tokens": float(_tokens(used)),
            **({"cost": self.cost(used)} if any(self.prices) else {}),
        }

    def cost(self, used: Mapping[str, int]) -> float:
        """What its tokens cost so far."""
        return (used.get("read", 0) * self.prices[0] + used.get("written", 0) * self.prices[1]) / 1e6

    def spent(self, used: Mapping[str, int]) -> str | None:
        tokens, cost = _tokens(used), self.cost(used)
        if self.most_tokens is not None and tokens >= self.most_tokens:
            what = f"{tokens:,} tokens were used, and most_tokens is {self.most_tokens:,}"
        elif self.most_cost is not None and cost >= self.most_cost:
            what = f"its answers cost {cost:.4g}, and most_cost is {self.most_cost:g}"
        else:
            return None
        return f"its budget is used up: {what}. Raise it and give --resume, which goes on from the last checkpoint."


def _tokens(used: Mapping[str, int]) -> int:
    return used.get("read", 0) + used.get("written", 0)


def _shown(x: Any) -> str:
    """A value in a template: a text as it is, responses with their numbers, anything else as JSON."""
    if isinstance(x, str):
        return x
    if isinstance(x, list) and x and all(isinstance(one, str) for one in x):
        return "\n\n".join(f"[{i}]\n{one}" for i, one in enumerate(x, 1))
    return json.dumps(x, ensure_ascii=False, default=str)


class _Asking:
    """A judge at work: its connections, its pace, and the answers that it has."""

    def __init__(self, spec: Judge) -> None:
        key = key_of(spec.key_from, "Judge.key_from")
        self.spec, self.counts = spec, Counter[str]()
        self.client = Client(spec.url, key=key, patience=spec.retry_for, timeout=spec.wait, parallel=1024)
        self.requests = None if spec.requests_a_minute is None else Pace(spec.requests_a_minute)
        self.tokens = None if spec.tokens_a_minute is None else Pace(spec.tokens_a_minute)
        self.kept = Kept(spec.cache, spec.kept)
        self.under_way = dict[str, asyncio.Task[str]]()
        self.model = spec.model
        self.written = 0.0  # the mean of tokens that an answer has, as far as one is known
        self._named = asyncio.Lock()
        self._again = 0
        self.strange = f"{spec.url} does not answer as an OpenAI-compatible server does (choices, message, content)"

    def taken(self) -> dict[str, int]:
        self.counts["retries"] += self.client.again - self._again
        self._again = self.client.again
        found, self.counts = dict(self.counts), Counter()
        return found

    async def answer(self, messages: Sequence[Mapping[str, str]], attempt: int) -> str:
        """From what is kept, from a question that is under way, or from the server."""
        await self._name()
        key = self._key(messages, attempt)
        if (kept := self.kept.get(key)) is not None:
            self.counts["cached"] += 1
            return kept
        if key in self.under_way:
            self.counts["cached"] += 1
        else:
            self.under_way[key] = task = asyncio.ensure_future(self._ask(key, messages))
            task.add_done_callback(functools.partial(self._done, key))
        # One of several that wait may be given up, and the others still want the answer.
        return await asyncio.shield(self.under_way[key])

    def _done(self, key: str, task: asyncio.Task[str]) -> None:
        self.under_way.pop(key)
        if not task.cancelled():
            task.exception()  # nobody may be left who waits for it

    def forget(self, messages: Sequence[Mapping[str, str]], attempt: int) -> None:
        """An answer without a verdict is not kept."""
        self.counts["unread"] += 1
        self.kept.drop(self._key(messages, attempt))

    def _key(self, messages: Sequence[Mapping[str, str]], attempt: int) -> str:
        asked = [self.model, messages, self.spec.options, attempt]
        return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()

    async def _name(self) -> None:
        """Asks the server which model it has, where none is named."""
        async with self._named:
            if self.model is None:
                try:
                    self.model = str((await self.client.ask("models"))["data"][0]["id"])
                except (KeyError, IndexError, TypeError):
                    raise RewardError(self.strange) from None

    async def _ask(self, key: str, messages: Sequence[Mapping[str, str]]) -> str:
        expected = sum(len(m["content"]) for m in messages) / CHARACTERS + self.written
        try:
            await self._turn(expected)
            self.counts["asked"] += 1
            said = await self.client.ask(
                "chat/completions", {**self.spec.options, "model": self.model, "messages": list(messages)}
            )
            text = said["choices"][0]["message"]["content"]
            if not isinstance(text, str):
                raise TypeError
        except (KeyError, IndexError, TypeError):
            raise RewardError(self.strange) from None
        self._count(said, expected)
        self.kept.put(key, text)
        return text

    async def _turn(self, tokens: float) -> None:
        now = asyncio.get_running_loop().time()
        waits = [pace.wait(now, x) for pace, x in ((self.requests, 1.0), (self.tokens, tokens)) if pace is not None]
        if waits and max(waits) > 0:
            await asyncio.sleep(max(waits))

    def _count(self, said: Mapping[str, Any], expected: float) -> None:
        usage, spec = said.get("usage") or {}, self.spec
        read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not isinstance(read, int) or not isinstance(written, int):
            if spec.most_tokens or spec.most_cost or any(spec.prices):
                raise RewardError(
                    f"{spec.url} does not say how many tokens an answer took (usage), so that no budget can be kept. Leave prices, "
                    "most_tokens and most_cost out, or ask another server"
                )
            return
        self.counts.update({"read": read, "written": written})
        self.written += 0.1 * (written - self.written)
        if self.tokens is not None:
            self.tokens.correct(read + written - expected)


class Kept:
    """Answers by the hash of what was asked: at most ``most``, the oldest leave. In a file, or in memory (``path`` None).

    Several runs may use one file. One that cannot be used costs questions, not the run.
    """

    def __init__(self, path: str | None, most: int) -> None:
        self.most = most if path is not None else min(most, IN_MEMORY)
        self.memory = OrderedDict[str, str]()
        self.db: sqlite3.Connection | None = None
        if path is None:
            return
        try:
            self.db = sqlite3.connect(path, timeout=30.0, isolation_level=None)
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL)")
        except sqlite3.Error as error:
            raise ConfigError(
                f"Judge.cache: {path!r} cannot be used: {error}. Name a file that can be written, or remove it."
            ) from None

    def get(self, key: str) -> str | None:
        if self.db is None:
            return self.memory.get(key)
        with contextlib.suppress(sqlite3.Error):
            found = self.db.execute("SELECT text FROM answers WHERE key = ?", (key,)).fetchone()
            return None if found is None else str(found[0])
        return None

    def put(self, key: str, text: str) -> None:
        if self.db is None:
            self.memory[key] = text
            if len(self.memory) > self.most:
                self.memory.popitem(last=False)
            return
        with contextlib.suppress(sqlite3.Error):
            last = self.db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, text)).lastrowid or 0
            self.db.execute("DELETE FROM answers WHERE rowid <= ?", (last - self.most,))

    def drop(self, key: str) -> None:
        if self.db is None:
            self.memory.pop(key, None)
            return
        with contextlib.suppress(sqlite3.Error):
            self.db.execute("DELETE FROM answers WHERE key = ?", (key,))

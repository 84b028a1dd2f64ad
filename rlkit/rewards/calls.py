"""Rewards on what a model calls, against the calls of an answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlkit.tools.calls import ToolCall, parse_calls


def similar_calls(response: str, answer: object, tools: Sequence[Mapping[str, Any]] = (), think: bool = True) -> float:
    """How similar a response's calls of tools are to the answer's, in [0, 1]; -1 for one that is not of the form.

    * **-1**: not exactly one ``<think>...</think>`` (``think: false`` asks for none), a call that cannot be read, or one of a tool or with
      an argument that the column ``tools`` does not have (schemas, as in a chat's ``tools``; without that column nothing is looked up).
    * **calls in the answer**: 0 without a call; else each call, in its order, takes the most similar one of its name that is left, and
      the reward is ``sum sim / (|calls| + |calls of the answer| - |pairs|)``. ``sim`` is a sum over arguments that both have, divided by
      how many either has: ROUGE-L of texts, 1 for equal numbers, else 1 for what is written alike.
    * **a text as the answer**: ROUGE-L; 1 where both are the same, 0 where one is blank or the response calls a tool.

    Source: STAR 2602.03022, Sim-RL (the released reward; its ROUGE-L also cuts words to their stems).
    """
    if think and len(re.findall(r"<think>.*?</think>", response, re.DOTALL)) != 1:
        return -1.0
    calls, wanted = parse_calls(response), parse_calls(str(answer))
    if any(call.error is not None or not _listed(call, tools) for call in calls):
        return -1.0
    if not wanted:
        return 0.0 if calls else rouge_l(_said(response), _said(str(answer)))
    left, total, pairs = list(wanted), 0.0, 0
    for call in calls:
        same = [other for other in left if other.name == call.name]
        if same:
            best = max(same, key=lambda other: _similar(call, other))
            left.remove(best)
            total, pairs = total + _similar(call, best), pairs + 1
    return total / (len(calls) + len(wanted) - pairs) if calls else 0.0


def _said(text: str) -> str:
    return text.rpartition("</think>")[2].strip()


def _listed(call: ToolCall, tools: Sequence[Mapping[str, Any]]) -> bool:
    if not tools:
        return True
    known = {}
    for tool in tools:
        told = tool.get("function", tool)
        parameters = told.get("parameters") or {}
        known[told["name"]] = parameters.get("properties", parameters)
    return call.name in known and call.arguments.keys() <= known[call.name].keys()


def _similar(call: ToolCall, other: ToolCall) -> float:
    either = call.arguments.keys() | other.arguments.keys()
    if not either:
        return 1.0
    return sum(
        _alike(call.arguments[k], other.arguments[k]) for k in call.arguments.keys() & other.arguments.keys()
    ) / len(either)


def _alike(a: Any, b: Any) -> float:
    if isinstance(a, str) and isinstance(b, str):
        return rouge_l(a, b)
    if isinstance(a, int | float) and isinstance(b, int | float):
        return float(a == b)
    return float(str(a) == str(b))


def rouge_l(a: str, b: str) -> float:
    """The F1 of the longest common subsequence of words, in [0, 1]: twice its length over that of both; equal texts: 1, a blank: 0."""
    if a == b:
        return 1.0
    one, two = (re.findall(r"[a-z0-9]+", text.lower()) for text in (a, b))
    if not one or not two:
        return 0.0
    row = [0] * (len(two) + 1)
    for word in one:
        before = 0
        for j, other in enumerate(two):
            kept = row[j + 1]
            row[j + 1] = before + 1 if word == other else max(row[j + 1], row[j])
            before = kept
    return 2 * row[-1] / (len(one) + len(two))

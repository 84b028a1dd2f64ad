"""Secrets stay out of what a run writes down: a command line, a configuration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

MASK = "***"
_SECRET = re.compile(
    r"(?i)(?:^|[^a-z])(?:secret|password|passwd|pwd|credentials?|auth|authorization|bearer"
    r"|(?:api|access|private|secret|license|teacher|wandb)[_.]?key"
    r"|(?<!bos_)(?<!eos_)(?<!pad_)(?<!unk_)(?<!sep_)(?<!cls_)(?<!mask_)(?<!stop_)token)$"
)
_KNOWN = re.compile(  # secrets by their own form, wherever they are
    r"hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|glpat-[A-Za-z0-9_-]{16,}|xox[abpr]-[A-Za-z0-9-]{10,}"
    r"|AKIA[A-Z0-9]{16}"
)
_IN_URL = re.compile(r"(?<=://)([^/@\s:]*):([^/@\s]+)@")
_PAIR = re.compile(r"""(["']?)([A-Za-z_][\w.-]*)\1(\s*[:=]\s*)("[^"]*"|'[^']*'|[^\s,}\]"']+)""")
_RANDOM = re.compile(r"(?=\S*[0-9])(?=\S*[A-Za-z])\S{16,}")


def is_secret(name: str) -> bool:
    """Whether a key, option or variable of this name holds a secret: ``api_key``, ``HF_TOKEN``, ``--password``; not ``max_tokens``."""
    return _SECRET.search(name.lstrip("-").replace("-", "_")) is not None


def mask_text(text: str, inside: str = "") -> str:
    """Hides secrets in a text: those with a known form, passwords in addresses, and the values of secret names (``inside`` another)."""
    prefix = f"{inside}." if inside else ""
    text = _IN_URL.sub(rf"\1:{MASK}@", _KNOWN.sub(MASK, text))
    return _PAIR.sub(lambda m: f"{m[1]}{m[2]}{m[1]}{m[3]}{MASK}" if is_secret(prefix + m[2]) else m[0], text)


def mask_command(arguments: Sequence[str]) -> list[str]:
    """A command line without its secrets: ``log.wandb.api_key=x``, ``HF_TOKEN=x``, ``--token x`` and what looks like one."""
    out, hide = list[str](), False
    for text in arguments:
        name, equals, value = text.partition("=")
        if hide and not text.startswith("-"):
            out.append(MASK)
        elif equals and is_secret(name):
            out.append(f"{name}={MASK}")
        else:
            out.append(f"{name}={mask_text(value, name)}" if equals else mask_text(text))
        hide = not equals and text.startswith("-") and is_secret(text)
    return out


def mask_values(x: Any, name: str = "") -> Any:
    """Plain data without its secrets. It is read again, so a value of a secret name is hidden only if it also looks like a secret."""
    if isinstance(x, dict):
        return {k: mask_values(v, f"{name}.{k}") for k, v in x.items()}
    if isinstance(x, list):
        return [mask_values(v, name) for v in x]
    if isinstance(x, str):
        return MASK if is_secret(name) and _RANDOM.fullmatch(x) else _IN_URL.sub(rf"\1:{MASK}@", _KNOWN.sub(MASK, x))
    return x

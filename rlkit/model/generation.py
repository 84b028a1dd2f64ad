"""The generation settings of a model: read before a run starts, and written with the trained model so that they can be loaded again."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlkit.errors import ModelError, first_line

SAMPLING = {  # what only sampling reads, each with the value that has no effect
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
    "min_p": None,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}


def load_settings(model: str | Path) -> Any:
    """The ``GenerationConfig`` of a model folder or hub name; without a file of its own, that of the model's configuration.

    Raises:
        ModelError: settings that transformers does not load.
    """
    from transformers import AutoConfig, GenerationConfig

    try:
        try:
            return GenerationConfig.from_pretrained(str(model))
        except OSError:
            if Path(model, "generation_config.json").exists():
                raise
            return GenerationConfig.from_model_config(AutoConfig.from_pretrained(str(model)))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.path: the generation settings of {str(model)!r} cannot be used: {first_line(error)} Mend or remove "
            "its generation_config.json."
        ) from error


def eos_tokens(settings: Any) -> list[int]:
    """The EOS ids that settings name: none, one or several."""
    eos = settings.eos_token_id
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)


def settled(given: Any, ends: Iterable[int]) -> tuple[Any, list[str]]:
    """Settings that can be saved, with ``ends`` as EOS ids, and what was changed for that; ``given`` stays as it is.

    transformers loads settings that contradict each other and refuses to save them. Their meaning is kept: a temperature without
    ``do_sample`` asks for sampling, so it is set; under ``do_sample: false`` a temperature has no effect and is left out, as is
    everything else that transformers says has none.
    """
    made, said = copy.deepcopy(given), list[str]()
    made.eos_token_id = sorted(ends) or None
    asked = [k for k, idle in SAMPLING.items() if getattr(made, k, None) not in (None, idle)]
    if asked and made.do_sample is None:
        made.do_sample = True
        said.append(f"do_sample is set, because {', '.join(asked)} ask(s) for sampling")
    try:
        made.validate(strict=True)
    except ValueError as error:
        for name in re.findall(r"^- `(\w+)`:", str(error), re.MULTILINE):
            said.append(f"{name}: {getattr(made, name)} is left out, because it has no effect")
            setattr(made, name, None)
        try:
            made.validate(strict=True)
        except ValueError as last:
            raise ModelError(
                f"model.path: the generation settings contradict each other ({first_line(last)}), and the trained model "
                "could not be saved with them. Mend its generation_config.json."
            ) from last
    return made, said

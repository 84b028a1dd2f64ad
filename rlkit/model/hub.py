"""Whether a model can be had at all, before anything is loaded: a folder that is there, or a name that the hub knows.

The hub's client asks again and again where nobody answers, half a minute for each of the files of a model; a mistyped folder, which reads
like a hub name, would cost that too. Here one question decides, within ``PATIENCE`` seconds.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rlkit.errors import ConfigError, InputError, ModelError, first_line
from rlkit.files import checksum

PATIENCE = 10.0  # seconds
OWN_CODE = "it needs code of its own, which rlkit does not execute. Use a model that transformers knows."


def require_model(name: str, where: str, remedy: str = "") -> None:
    """Refuses a name that is neither a model folder, nor in the hub's cache, nor on the hub. ``where`` is the setting that holds it.

    Raises:
        ModelError: which of these it is, and what to do.
    """
    told = _missing(name, Path(name))
    if told is not None:
        raise ModelError(f"{where}: {name[:200]!r} {told} {remedy}".rstrip())


def model_config(path: str, where: str, remedy: str = "") -> Any:
    """The configuration of a model folder or hub name, which costs next to nothing.

    Raises:
        ModelError: there is no model. ConfigError: there is something that transformers does not read.
    """
    require_model(path, where, remedy=remedy)
    return read_config(path, where, ConfigError, remedy)


def read_config(path: str, where: str, wrong: type[InputError], remedy: str = "") -> Any:
    """Of a model that is there; raises ModelError for an adapter alone, and ``wrong`` for what transformers does not read."""
    from transformers import AutoConfig

    if (Path(path) / "adapter_config.json").is_file():
        raise ModelError(
            f"{where}: {path} holds an adapter, not a whole model. Merge it into its base model first (PEFT: merge_and_unload, "
            "save_pretrained) and give that folder; to go on training an adapter of rlkit, give the run's final/ folder."
        )
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # whatever transformers makes of somebody's file
        raise wrong(f"{where}: {path!r} is not a model: {said_of(error)} {remedy}".rstrip()) from error


def said_of(error: BaseException) -> str:
    """What transformers says of files that it does not load; of those with code of their own, what rlkit says."""
    if "trust_remote_code" in str(error):
        return OWN_CODE
    return first_line(error)


def fingerprint(path: str) -> str:
    """What changes when a model does: a checksum of a folder's configuration and weights, or the commit of a model of the hub."""
    folder = Path(path)
    if folder.is_dir():
        files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin") or p.name == "config.json")
        return "-".join(f"{checksum(p)[1]}" for p in files)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(path, "config.json")
    return Path(found).parent.name if isinstance(found, str) else path


def _missing(name: str, place: Path) -> str | None:
    if not name.strip():
        return "is empty: name a model folder, or a model on the hub."
    if os.path.isdir(place):
        known = any((place / file).is_file() for file in ("config.json", "adapter_config.json"))
        return None if known else "is a folder without a config.json, not a model."
    if os.path.exists(place):
        return "is a file, not a model folder."
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return "is no folder, and it cannot be the name of a model on the hub."
    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return None
    if constants.HF_HUB_OFFLINE:
        return "is no folder, and no such model is in the hub's cache (HF_HUB_OFFLINE is set, so the hub is not asked)."
    try:
        HfApi().model_info(name, timeout=PATIENCE)
    except RepositoryNotFoundError:
        return "is no folder, and the hub has no model of that name that you may read."
    except HfHubHTTPError as error:
        return f"is no folder, and the hub does not give it: {first_line(error)}."
    except Exception as error:  # the client's own kinds of "no connection", which changed with its versions
        return (
            f"is no folder, it is not in the hub's cache, and the hub does not answer ({type(error).__name__}). Give the path of a model "
            "folder, or make a connection to the hub."
        )
    return None

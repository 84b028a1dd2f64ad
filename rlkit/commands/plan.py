"""``rlkit plan``: what a run needs before it starts, on this machine or on others."""

from __future__ import annotations

from rlkit.planning import Gpu, HerePlan, Plan, local_gpus, plan_here
from rlkit.planning import plan as plan_gpus
from rlkit.run import Run
from rlkit.session import quiet_libraries


def plan(
    run: Run,
    gpu: str | Gpu | None = None,
    nodes: int = 1,
    gpus_per_node: int = 8,
    *,
    prompt_tokens: float | None = None,
    mean_length: float | None = None,
    turns: float | None = None,
    growth: bool = True,
) -> Plan | HerePlan:
    """Memory of every role, seconds, and the layout that fits; ``str`` makes the report, ``fits`` says whether there is one.

    Args:
        gpu: ``H100``, ``80GB``, ...; None is this machine, whatever ``gpus_per_node`` says, and its processors where it has no GPUs.
        prompt_tokens, mean_length: mean tokens of a prompt and of a response, or of one answer of an episode, where they are known.
        turns: answers of an episode; None: as many of ``sampling.max_tokens`` as ``rollout.max_model_len`` has room for.
        growth: also simulate 1 to 1,024 GPUs.

    Raises:
        ConfigError: an unknown GPU, or a model that cannot be planned.
    """
    quiet_libraries()
    if gpu is None:
        here = local_gpus()
        if here is None:
            return plan_here(run, prompt_tokens=prompt_tokens, turns=turns)
        gpu, gpus_per_node = here
    return plan_gpus(
        run,
        gpu,
        nodes,
        gpus_per_node,
        prompt_tokens=prompt_tokens,
        mean_length=mean_length,
        turns=turns,
        growth=growth,
    )

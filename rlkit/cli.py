"""``rlkit train | eval | sample | show | submit``. A user's mistake ends with one message and exit code 2."""

from __future__ import annotations

import argparse
import difflib
import io
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rlkit.bounds import Bound
from rlkit.errors import ConfigError, DataError, InputError, RlkitError
from rlkit.files import replace_file, told
from rlkit.reading import printable, shown
from rlkit.record.output import require_file
from rlkit.stopping import Stopped


def main(argv: Sequence[str] | None = None) -> int:
    """The command line.

    Exit codes: 0 done; 1 the run failed; 2 something in the input is wrong; 3 the time limit came first; 128 and the
    number of a signal (130 SIGINT, 143 SIGTERM, 129 SIGHUP): it did. After 3 and a signal a checkpoint is there.
    """
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        return int(arguments.run(arguments) or 0)
    except RlkitError as error:
        if os.environ.get("RLKIT_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except Stopped as stopped:
        print(f"\n{stopped.why}; {stopped.kept or 'no step was made yet'}.", file=sys.stderr)
        return stopped.code
    except KeyboardInterrupt:
        print("\ninterrupted; a training run continues from its last checkpoint with --resume.", file=sys.stderr)
        return 130


class _Screen(io.FileIO):
    """Output that stops nothing: what cannot be written, because a pipe is closed, a terminal gone or a disk full, is left out."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


def entry() -> None:
    """The program: after an interruption it ends without waiting for threads that still generate or score."""
    for name in ("stdout", "stderr"):
        old = getattr(sys, name)
        raw = _Screen(old.fileno(), "w", closefd=False)
        by_line = old.line_buffering or name == "stderr"
        setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw), old.encoding, old.errors, line_buffering=by_line))
    code = main()
    if code in (0, 1, 2):
        sys.exit(code)
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Parser(argparse.ArgumentParser):
    """Raises instead of printing its usage; knows its options by name."""

    def __init__(self, **options: Any) -> None:
        self.flags = list[str]()
        super().__init__(**options)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        self.flags += [name for name in names if name.startswith("--")]
        return super().add_argument(*names, **options)

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith("?") else "."
        raise ConfigError(f"{printable(message)}{end} `{self.prog} --help` shows what there is.")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of one call.

    Raises:
        ConfigError: an unknown command or option, with the closest one, or a value that an option does not take.
    """
    top, commands = parsers()
    if argv and not argv[0].startswith("-") and argv[0] not in commands:
        raise ConfigError(
            f"there is no command {shown(argv[0])}.{_closest(argv[0], commands)} There are {', '.join(commands)}."
        )
    arguments, rest = top.parse_known_args(
        argv
    )  # argparse wants key=value before the options; people write them after, too
    mine = commands[arguments.command]
    for x in rest:
        if x.startswith("-") and "=" in x and hasattr(arguments, "overrides"):
            mine.error(f"there is no option {shown(x)}; a setting is written without dashes, {shown(x.lstrip('-'))}")
        if x.startswith("-"):
            mine.error(f"there is no option {shown(x)}.{_closest(x.partition('=')[0], mine.flags)}".rstrip("."))
        if "=" not in x or not hasattr(arguments, "overrides"):
            mine.error(f"{shown(x)} is one argument too many")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _closest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name[:100], list(names), 1)
    return f" Did you mean {near[0]}?" if near else ""


def _number(kind: type[int] | type[float], bound: Bound) -> Callable[[str], float]:
    """What argparse calls with the text of an option that takes a number."""

    def read(text: str) -> float:
        try:
            x = kind(text)
        except ValueError:
            words = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"found {shown(text)}, expected {words}") from None
        if not bound.admits(x):
            raise argparse.ArgumentTypeError(f"is {shown(x)}; it must {bound}")
        return x

    return read


count = _number(int, Bound(at_least=1))
seed = _number(int, Bound(at_least=0, at_most=2**32 - 1))
positive = _number(float, Bound(above=0))
not_negative = _number(float, Bound(at_least=0))
share = _number(float, Bound(at_least=0, at_most=1))


def parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser of a whole call, and that of each command."""
    top = Parser(prog="rlkit", description="KL-regularized RL post-training of language models.")
    commands = top.add_subparsers(required=True, dest="command", metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> Parser:
        p = commands.add_parser(name, help=text, description=text)
        p.set_defaults(run=run)
        return p

    p = command("train", train, "Train as a configuration says.")
    p.add_argument("config")
    p.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="e.g. steps=200 learner.lr=1e-5 objective.1.coef=0.02",
    )
    p.add_argument(
        "--resume", action="store_true", help="continue the newest run of this name from its last checkpoint"
    )

    p = command("show", show, "Print the resolved configuration, where each value came from, and what each term needs.")
    p.add_argument("config")
    p.add_argument("overrides", nargs="*", default=[], metavar="key=value")

    p = command(
        "check",
        check,
        "Say what each term of the objective really optimises, by exact enumeration; exit code 1 if a name "
        "promises something else.",
    )
    p.add_argument("config")
    p.add_argument("overrides", nargs="*", default=[], metavar="key=value")

    p = command(
        "eval",
        evaluate,
        "Measure a model on the held-out prompts of a configuration: avg@n, pass@k, maj@k, with intervals.",
    )
    p.add_argument("config")
    p.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="e.g. data.test=[math500,aime24] eval.prompts=500 sampling.top_p=0.95",
    )
    p.add_argument("--model", required=True, help="a model folder, a hub name, or a run folder")
    p.add_argument("-n", type=count, default=1, help="responses a prompt (default 1)")
    p.add_argument(
        "--out", metavar="FOLDER", help="keep every response there; the same command goes on after an interruption"
    )
    p.add_argument(
        "--temperature", type=not_negative, action="append", help="may be repeated: votes over several temperatures"
    )
    p.add_argument("--adaptive", action="store_true", help="stop sampling a prompt when its majority answer is settled")
    p.add_argument(
        "--self-certainty",
        action="store_true",
        help="also vote weighed by self-certainty (one more pass over each response)",
    )
    p.add_argument("--forgetting", metavar="BASE", help="also KL(BASE‖model) on responses of BASE")
    p.add_argument("--engines", type=count, default=1, help="engines; more than one run on Ray")
    p.add_argument("--address", help="a Ray cluster (auto, or host:port)")

    p = command("metrics", metrics, "Every metric again from stored samples, or a paired comparison of two models.")
    p.add_argument("samples", help="what `rlkit eval --out` wrote")
    p.add_argument("--against", metavar="SAMPLES", help="those of another model on the same prompts")
    p.add_argument(
        "-k", type=count, action="append", help="k of pass@k and maj@k; may be repeated (default: powers of two)"
    )
    p.add_argument("--out", help="write the report as JSON")

    p = command("fit", fit, "Fit scaling curves to runs: ScaleRL's sigmoid to each, or one power law over model sizes.")
    p.add_argument("runs", nargs="+", help="run folders")
    p.add_argument("--law", choices=("sigmoid", "power"), default="sigmoid")
    p.add_argument(
        "--unit", choices=("tokens", "seconds", "step"), default="tokens", help="what compute is measured in"
    )
    p.add_argument("--sizes", type=positive, nargs="+", help="parameters of each run's model (power law)")
    p.add_argument("--skip", type=not_negative, default=0.0, help="leave out points before this much compute")
    p.add_argument(
        "--until",
        type=positive,
        default=math.inf,
        help="fit points up to this much compute only: the rest tests the prediction",
    )
    p.add_argument("--ceiling", type=positive, default=1.0, help="the largest possible reward")
    p.add_argument("--extrapolate", type=positive, default=4.0, help="predict at so many times the compute spent")
    p.add_argument("--out", default="fit.png", help="the picture (default fit.png)")

    p = command(
        "audit-reward",
        audit,
        "Run a verifier, or two, over stored responses: what they decide, why, and where they disagree.",
    )
    p.add_argument(
        "file",
        help="JSONL with response and answer, and perhaps correct (a label) and finish; `rlkit eval` writes such files",
    )
    p.add_argument("--reward", default="math", help="a built-in name or my_file.py:function (default math)")
    p.add_argument("--against", help="another one to compare with")
    p.add_argument("--show", type=count, default=5, help="examples of each kind of difference (default 5)")

    p = command(
        "filter",
        keep,
        "Keep the training prompts that a model sometimes solves (offline learnability filter, RIF-RFT).",
    )
    p.add_argument("config")
    p.add_argument("overrides", nargs="*", default=[], metavar="key=value")
    p.add_argument("--model", required=True, help="a model folder, a hub name, or a run folder")
    p.add_argument("-n", type=count, default=8, help="responses a prompt (default 8)")
    p.add_argument("--low", type=share, default=0.0, help="lowest pass rate (0, the default: at least one success)")
    p.add_argument("--high", type=share, default=1.0, help="highest pass rate (default 1)")
    p.add_argument("--out", required=True, help="the JSONL file to write")
    p.add_argument(
        "--soft-value",
        type=positive,
        metavar="BETA",
        help="also write v_star = BETA log mean exp(reward / BETA) (A*-PO)",
    )
    p.add_argument(
        "--responses", help="also store one solved response of each kept prompt with its log-probs (data.stored)"
    )

    p = command("plot", plot, "Draw the curves of a run, reward against sqrt(KL) among them.")
    p.add_argument("run_folder", help="a run folder")

    p = command(
        "sample",
        sample,
        "Sample responses of a model, or of what decoding makes of it: DeRa, best of n, rejection sampling.",
    )
    p.add_argument("model", help="a model folder, a hub name, or a run folder")
    p.add_argument("--prompt", action="append", required=True, help="may be repeated")
    p.add_argument(
        "--template",
        metavar="NAME",
        help="plain, chat, chat:NAME, ... (default: what the run trained with; of a model that is not of a run, plain)",
    )
    p.add_argument("-n", type=count, default=4)
    p.add_argument("--temperature", type=not_negative, default=1.0)
    p.add_argument("--top-p", type=share, default=1.0)
    p.add_argument("--max-tokens", type=count, default=64)
    p.add_argument("--seed", type=seed, default=0)
    p.add_argument("--engine", choices=("vllm", "hf"), default="hf")
    p.add_argument("--reference", metavar="MODEL", help="mix with this model at every token (DeRa); needs --realign")
    p.add_argument(
        "--realign",
        type=not_negative,
        metavar="LAMBDA",
        help="0 is the reference, 1 the model, above 1 goes further (a weaker KL)",
    )
    p.add_argument(
        "--reward", metavar="FN", help="score responses: my_file.py:fn of (prompt, response), or a built-in name"
    )
    p.add_argument("--answer", action="append", help="the reference answer of each prompt, where the reward reads one")
    p.add_argument(
        "--best", action="store_true", help="show the best of the n by --reward, and the KL that selecting costs"
    )
    p.add_argument(
        "--tilt", type=positive, metavar="BETA", help="keep responses by rejection, towards model * exp(reward / BETA)"
    )

    p = command(
        "plan",
        plan,
        "What a run needs before it starts: memory of every role, seconds, the layout that fits, growth with GPUs.",
    )
    p.add_argument("config")
    p.add_argument("overrides", nargs="*", default=[], metavar="key=value")
    p.add_argument(
        "--gpu", help="H100, H200, A100-80GB, A100-40GB, L40S, RTX4090, or a size like 80GB (default: this machine)"
    )
    p.add_argument("--nodes", type=count, default=1)
    p.add_argument("--gpus-per-node", type=count, default=8)
    p.add_argument("--prompt-tokens", type=positive, help="mean tokens of a prompt, where known")
    p.add_argument("--mean-length", type=positive, help="mean tokens of a response, where known")
    p.add_argument("--no-growth", action="store_true", help="leave out the simulation of 1 to 1,024 GPUs")
    p.add_argument(
        "--probe",
        action="store_true",
        help="also run one worst-case learner step here, with dummy data, and measure it",
    )

    p = command("submit", submit, "Send `rlkit train CONFIG` to a Ray cluster as a job.")
    p.add_argument("config")
    p.add_argument("overrides", nargs="*", default=[], metavar="key=value")
    p.add_argument("--address", required=True, help="the Ray dashboard, e.g. http://head:8265")
    p.add_argument("--no-wait", action="store_true", help="return once the job is accepted")
    return top, dict(commands.choices)


def train(a: argparse.Namespace) -> None:
    from rlkit.config import load
    from rlkit.trainer import train as run_training

    run_training(load(a.config, a.overrides), resume=a.resume)


def show(a: argparse.Namespace) -> None:
    from rlkit.checks import check
    from rlkit.config import describe, load_with_origins

    run, origins = load_with_origins(a.config, a.overrides)
    print(describe(run, origins))
    print("\nterm                          needs                         reduce  coefficient")
    for t in run.objective:
        print(f"{t.name:<29} {', '.join(sorted(t.needs)) or '-':<29} {t.reduce:<7} {t.coef}")
    for penalty in run.reward_penalties:
        print(f"{penalty.name:<29} {', '.join(sorted(penalty.needs)):<29} {'reward':<7} {penalty.coef}")
    print(f"\nforward passes before each update: {', '.join(run.passes) or 'none'}")
    check(run)


def check(a: argparse.Namespace) -> int:
    from rlkit.checks import check as check_run
    from rlkit.config import load
    from rlkit.objective.oracle import dishonest, examine_all

    run = load(a.config, a.overrides)
    check_run(run)
    off_policy = run.off_policy
    found = examine_all(run.objective, run.reward_penalties)
    print(f"{'part':<28} {'sampled':<19} {'cosine':>7} {'norm':>7} {'noise':>7}   follows the gradient of")
    for f in found:
        print(f"{f.part:<28} {f.sampled:<19} {f.cosine:>7.3f} {f.norm:>7.3f} {f.noise:>7.2f}   {f.heading}")
    print(
        "\ncosine, norm: the expected gradient against the exact one of what the name says. noise: standard deviation of one response's\n"
        f"gradient over the norm of the mean. This run is {'off-policy too' if off_policy else 'on-policy'}.\n"
    )
    for f in found:
        if off_policy or f.sampled != "off-policy":
            print(f.sentence)
    wrong = dishonest(found, off_policy)
    if wrong:
        print(
            f"\n{len(wrong)} finding(s) where a term does not do what its name says, or nothing at all. Change the term "
            "(docs/regularizers.md shows which form does), or accept it with acknowledge: true."
        )
    return 1 if wrong else 0


def _score_training(a: argparse.Namespace) -> tuple[Any, Any, list[Any], list[Any]]:
    """The run, the tokenizer, the training prompts, and ``a.n`` scored responses to each of them, in order."""
    import dataclasses

    from rlkit.config import load
    from rlkit.data.prompts import load_prompts
    from rlkit.evaluation.commands import model_folder, running
    from rlkit.model.load import load_tokenizer
    from rlkit.session import quiet_libraries
    from rlkit.trainer import sample_and_score

    quiet_libraries()
    run = load(a.config, a.overrides)
    path = model_folder(a.model)
    tokenizer = load_tokenizer(path)
    prompts = load_prompts(run.data, "train", tokenizer, print, run.base)
    with running(run, path, prompts) as (engines, scorer):
        return (
            run,
            tokenizer,
            prompts,
            sample_and_score(engines, scorer, prompts, a.n, dataclasses.replace(run.sampling, seed=run.seed)),
        )


def evaluate(a: argparse.Namespace) -> None:
    from rlkit.evaluation import commands

    commands.evaluate(a)


def metrics(a: argparse.Namespace) -> None:
    from rlkit.evaluation import commands

    commands.metrics(a)


def fit(a: argparse.Namespace) -> None:
    from rlkit.evaluation import commands

    commands.fit(a)


def audit(a: argparse.Namespace) -> None:
    from rlkit.rewards.audit import audit_command

    audit_command(a)


def keep(a: argparse.Namespace) -> None:
    if a.low > a.high:
        raise ConfigError(f"--low is {a.low} and --high is {a.high}: the lowest pass rate is above the highest.")
    for option, path in (("--out", a.out), ("--responses", a.responses)):
        if path is not None:
            require_file(path, option)
    run, tokenizer, prompts, rollouts = _score_training(a)
    rates = {
        p.id: [min(1.0, max(0.0, r.reward)) for r in rollouts[i * a.n : (i + 1) * a.n] if r.reward == r.reward]
        for i, p in enumerate(prompts)
    }
    kept, solved = list[Any](), []
    lines = []
    for i, p in enumerate(prompts):
        rate = sum(rates[p.id]) / len(rates[p.id]) if rates[p.id] else None
        if rate is None or not (a.low < rate <= a.high if a.low == 0 else a.low <= rate <= a.high):
            continue
        kept.append(p)
        solved += [r for r in rollouts[i * a.n : (i + 1) * a.n] if r.reward >= 1][:1]
        row = {"id": p.id, "prompt": p.text, "answer": p.answer, **p.columns, "pass_rate": rate}
        if a.soft_value is not None:
            own = [r.reward for r in rollouts[i * a.n : (i + 1) * a.n] if r.reward == r.reward]
            row["v_star"] = max(own) + a.soft_value * math.log(
                sum(math.exp((x - max(own)) / a.soft_value) for x in own) / len(own)
            )
        lines.append(json.dumps(row, default=str) + "\n")
    with told("the rows that are kept", "Make room, or give another --out."):
        replace_file(Path(a.out), "".join(lines))
    if not kept:
        raise ConfigError(
            f"none of {len(prompts)} prompts has a pass rate in the range; {a.out} is empty. Raise -n, or widen --low and "
            "--high."
        )
    if a.responses:
        from rlkit.data.stored import write_stored

        write_stored(a.responses, solved)
        print(f"{a.responses}: {len(solved)} solved responses with their log-probs")
    print(
        f"{a.out}: {len(kept)} of {len(prompts)} prompts kept (pass rate of {a.n} responses {'above' if a.low == 0 else 'from'} "
        f"{a.low:g} to {a.high:g}). Train on them with:\n  rlkit train {' '.join(map(shlex.quote, [a.config, *a.overrides]))} "
        f"{_read_back(run, tokenizer, a.out, kept)}"
    )
    if run.data.task is not None and (not run.rewards or any(spec.fn == "task" for spec in run.rewards)):
        print("and another reward than `task`, which needs data.task, e.g. rewards=[exact].")


def _read_back(run: Any, tokenizer: Any, path: str, kept: list[Any]) -> str:
    """The overrides with which ``path`` gives the prompts ``kept`` again: whether the file's texts are rendered depends on the source."""
    import dataclasses

    from rlkit.data.prompts import load_prompts

    column = "messages" if any("messages" in p.columns for p in kept) else "question"
    columns = {"prompt": column, **({"answer": "answer"} if "answer" in run.data.columns else {})}
    plain: dict[str, Any] = {"columns": {}, "template": "plain"}
    plain |= {"system": None} if run.data.system is not None else {}
    plain |= {"chat_template_kwargs": {}} if run.data.chat_template_kwargs else {}
    changes: dict[str, Any] = {}
    for changes in ({}, {"columns": columns}, plain):
        try:
            again = load_prompts(
                dataclasses.replace(run.data, task=None, train=path, **changes), "train", tokenizer, base=run.base
            )
        except DataError:
            continue  # a column that this file does not have
        if [(p.id, p.token_ids) for p in again] == [(p.id, p.token_ids) for p in kept]:
            break

    def yaml(x: Any) -> str:
        if x is None:
            return "null"
        return "{" + ", ".join(f"{k}: {v}" for k, v in x.items()) + "}" if isinstance(x, dict) else str(x)

    settings = {**({"task": "null"} if run.data.task is not None else {}), "train": path, **changes}
    return " ".join(shlex.quote(f"data.{k}={yaml(v)}") for k, v in settings.items())


def sample(a: argparse.Namespace) -> None:
    from rlkit.evaluation import commands

    commands.sample(a)


def plot(a: argparse.Namespace) -> None:
    from rlkit.record.plots import plot_run

    print(plot_run(Path(a.run_folder)))


def plan(a: argparse.Namespace) -> int:
    from rlkit.config import load
    from rlkit.planning import HerePlan, Plan, local_gpus, plan_here
    from rlkit.planning import plan as make_plan
    from rlkit.planning.probe import probe
    from rlkit.session import quiet_libraries

    quiet_libraries()
    run = load(a.config, a.overrides)
    here = local_gpus() if a.gpu is None else None
    found: HerePlan | Plan
    if a.gpu is None and here is None:
        found = plan_here(run, prompt_tokens=a.prompt_tokens)
    else:
        gpu, count = here or (a.gpu, a.gpus_per_node)
        found = make_plan(
            run,
            gpu,
            a.nodes,
            count,
            prompt_tokens=a.prompt_tokens,
            mean_length=a.mean_length,
            growth=not a.no_growth,
        )
    print(found)
    if a.probe:
        print(f"\n{probe(run)}")
    return 0 if found.fits else 1


def submit(a: argparse.Namespace) -> None:
    from rlkit.cluster.submit import submit_job

    submit_job(a.config, a.overrides, a.address, wait=not a.no_wait)

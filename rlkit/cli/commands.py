"""The commands of the program: for each one what it takes, and the call of the function that does it, whose result is printed.

A command is a class: its docstring is what ``--help`` says, ``arguments`` what it takes, ``run`` makes the call, as any other program would
through ``import rlkit as rk``, and returns the exit code. So nothing is imported for ``--help`` or a mistake in an option.
"""

from __future__ import annotations

import contextlib
import functools
import math
import shlex
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, ClassVar

import rlkit as rk
from rlkit.cli.completion import SHELLS, script
from rlkit.cli.parser import Parser, count, not_negative, number, positive, seed, share
from rlkit.errors import ConfigError
from rlkit.record.output import require_file


class Command:
    """Base of the commands."""

    name: ClassVar[str]

    @classmethod
    def add_to(cls, commands: Any) -> Parser:
        """The command's own parser, below that of the program."""
        text = " ".join((cls.__doc__ or "").split())
        p: Parser = commands.add_parser(cls.name, help=text, description=text)
        p.set_defaults(run=cls.run)
        cls.arguments(p)
        return p

    @staticmethod
    def arguments(p: Parser) -> None:
        raise NotImplementedError

    @staticmethod
    def run(a: Namespace) -> int:
        raise NotImplementedError


def configuration(p: Parser, example: str | None = None) -> None:
    """The arguments of :func:`rlkit.load`."""
    p.add_argument("config", help="a YAML file, or a name that `rlkit configs` lists")
    p.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=example)


class Train(Command):
    """Train as a configuration says."""

    name = "train"

    @staticmethod
    def arguments(p: Parser) -> None:
        configuration(p, "e.g. steps=200 learner.lr=1e-5 objective.1.coef=0.02")
        p.add_argument(
            "--resume", action="store_true", help="continue the newest run of this name from its last checkpoint"
        )

    @staticmethod
    def run(a: Namespace) -> int:
        rk.train(rk.load(a.config, a.overrides), resume=a.resume)
        return 0


class Sweep(Command):
    """Train a configuration with several values of some keys and several seeds, one after the other or side by side, and compare."""

    name = "sweep"

    @staticmethod
    def arguments(p: Parser) -> None:
        configuration(p, "key=value for all runs, key=a,b,c for a run of each, e.g. learner.lr=1e-6,1e-5 steps=200")
        p.add_argument("--seeds", type=count, default=1, help="so many, from the configuration's own on (default 1)")
        p.add_argument("--at-once", type=count, default=1, metavar="N", help="runs side by side (default 1)")
        p.add_argument("--out", metavar="FOLDER", help="the folder of the runs (default: runs/NAME-sweep)")
        p.add_argument("--address", help="a Ray dashboard: each run is a job there (rlkit submit)")

    @staticmethod
    def run(a: Namespace) -> int:
        say = functools.partial(print, flush=True)
        found = rk.sweep(a.config, a.overrides, seeds=a.seeds, at_once=a.at_once, out=a.out, address=a.address, say=say)
        print(f"\n{found}")
        if found.report is not None:
            print(f"\nall runs over each other: {found.report}")
        return 1 if found.failed else 0


class Configs(Command):
    """List the configurations that come with rlkit, or print one as a start for a file of your own."""

    name = "configs"

    @staticmethod
    def arguments(p: Parser) -> None:
        p.add_argument("which", nargs="?", metavar="NAME", help="print this one, e.g. algorithms/grpo")

    @staticmethod
    def run(a: Namespace) -> int:
        print(rk.configs() if a.which is None else rk.print_config(a.which), end="" if a.which else "\n")
        return 0


class Init(Command):
    """Write a small project of your own into a folder: a configuration, a reward and its test."""

    name = "init"

    @staticmethod
    def arguments(p: Parser) -> None:
        p.add_argument("folder", nargs="?", default=".", help="default: the current folder")

    @staticmethod
    def run(a: Namespace) -> int:
        written = rk.init(a.folder)
        print(f"written: {', '.join(map(str, written))}")
        print(
            f"  cd {shlex.quote(a.folder)} && rlkit train train.yaml" if a.folder != "." else "  rlkit train train.yaml"
        )
        return 0


class Completion(Command):
    """Print what a shell needs to complete commands: `source <(rlkit completion bash)`."""

    name = "completion"

    @staticmethod
    def arguments(p: Parser) -> None:
        p.add_argument("shell", choices=SHELLS)

    @staticmethod
    def run(a: Namespace) -> int:
        below = Parser(prog="rlkit").add_subparsers()
        parsers = {c.name: c.add_to(below) for c in COMMANDS}
        takes = frozenset(name for name, p in parsers.items() if "config" in p.takes)
        print(script(a.shell, {name: p.flags for name, p in parsers.items()}, takes), end="")
        return 0


class Show(Command):
    """Print the resolved configuration, where each value came from, and what each term needs."""

    name = "show"

    @staticmethod
    def arguments(p: Parser) -> None:
        configuration(p)

    @staticmethod
    def run(a: Namespace) -> int:
        found = rk.show(a.config, a.overrides)
        print(found)
        if found.problems:
            raise ConfigError("\n".join(found.problems))
        return 0


class Check(Command):
    """Say what each term of the objective really optimises, by exact enumeration; exit code 1 if a name promises something else."""

    name = "check"

    @staticmethod
    def arguments(p: Parser) -> None:
        configuration(p)

    @staticmethod
    def run(a: Namespace) -> int:
        found = rk.check(rk.load(a.config, a.overrides))
        print(found)
        return 1 if found.dishonest else 0


class Eval(Command):
    """Measure a model on the held-out prompts of a configuration: avg@n, pass@k, maj@k, with intervals."""

    name = "eval"

    @staticmethod
    def arguments(p: Parser) -> None:
        configuration(p, "e.g. data.test=[math500,aime24] eval.prompts=500 sampling.top_p=0.95")
        p.add_argument("--model", required=True, help="a model folder, a hub name, or a run folder")
        p.add_argument("-n", type=count, default=1, help="responses a prompt (default 1)")
        p.add_argument(
            "--out", metavar="FOLDER", help="keep every response there; the same command goes on after an interruption"
        )
        p.add_argument(
            "--temperature",
            type=not_negative,
            action="append",
            default=[],
            help="may be repeated: votes over several temperatures",
        )
        p.add_argument(
            "--adaptive", action="store_true", help="stop sampling a prompt when its majority answer is settled"
        )
        p.add_argument(
            "--self-certainty",
            action="store_true",
            help="also vote weighed by self-certainty (one more pass over each response)",
        )
        p.add_argument("--forgetting", metavar="BASE", help="also KL(BASE‖model) on responses of BASE")
        p.add_argument(
            "--control",
            metavar="YAML",
            help='change what is sampled from at every token, e.g. "{type: DeRa, reference: BASE, lam: 1.5}", or a file of that',
        )
        p.add_argument("--engines", type=count, default=1, help="engines; more than one run on Ray")
        p.add_argument("--address", help="a Ray cluster (auto, or host:port)")

    @staticmethod
    def run(a: Namespace) -> int:
        report = rk.evaluate(
            rk.load(a.config, a.overrides),
            a.model,
            n=a.n,
            out=a.out,
            temperatures=a.temperature,
            adaptive=a.adaptive,
            self_certainty=a.self_certainty,
            forgetting=a.forgetting,
            control=a.control,
            engines=a.engines,
            address=a.address,
        )
        print(report)
        if a.out:
            print(
                f"\n{a.out}/: samples.jsonl (every response), report.json (every metric with its interval). Again without a model: rlkit "
                f"metrics {a.out}"
            )
        return 0


class Metrics(Command):
    """Every metric again from stored samples, or a paired comparison of two models."""

    name = "metrics"

    @staticmethod
    def arguments(p: Parser) -> None:
        p.add_argument("samples", help="what `rlkit eval --out` wrote")
        p.add_argument("--against", metavar="SAMPLES", help="those of another model on the same prompts")
        p.add_argument(
            "-k", type=count, action="append", help="k of pass@k and maj@k; may be repeated (default: powers of two)"
        )
        p.add_argument("--out", help="write the report as JSON")

    @staticmethod
    def run(a: Namespace) -> int:
        if a.out:
            require_file(a.out, "--out")
        found = rk.metrics(a.samples, ks=a.k) if a.against is None else rk.compare(a.samples, a.against)
        print(found)
        if a.out:
            found.write(a.out)
        return 0


class Fit(Command):
    """Fit scaling curves to runs: ScaleRL's sigmoid to each, or one power law over model sizes."""

    name = "fit"

    @staticmethod
    def arguments(p: Parser) -> None:
        p.add_argument("runs", nargs="+", help="run folders")
        p.add_argument("--law", choices=("sigmoid", "power"), default="sigmoid")
        p.add_argument(
            "--unit", choices=("tokens", "seconds", "step"), default="tokens", help="what compute is measured in"
        )
        p.add_argument(
            "--sizes", type=positive, nargs="+", default=(), help="parameters of each run's model (power law)"
        )
        p.add_argument("--skip", type=not_negative, default=0.0, help="leave out points before this much compute")
        p.add_argument(
            "--until",
            type=positive,
            default=math.inf,
            help="fit points up to this much compute only: the rest tests the prediction",
        )
        p.add_argument("--ceiling", type=positive, default=1.0, help="the largest possible reward")
        p.add_argument("--extrapolate", type=positive, default=4.0, help="predict at so many times the compute spent")
        p.add_argument("--out", default="fit.png", help="the picture: .svg, .pdf or .png (default fit.png)")

    @staticmethod
    def run(a: Namespace) -> int:
        require_file(a.out, "--out")
        report = rk.fit_runs(
            a.runs,
            law=a.law,
            unit=a.unit,
            sizes=a.sizes,
            skip=a.skip,
            until=a.until,
            ceiling=a.ceiling,
            extrapolate=a.extrapolate,
        )
        print(report.table())
        print(f"drawn in {report.plot(a.out)}")
        return 0


class AuditReward(Command):
    """Run a verifier, or two, over stored responses: what they decide, why, and where they disagree."""

    name = "audit-reward"

    @staticmethod
    def arguments(p: Parser) -> None:
        p.add_argument(
            "file",
            help="JSONL with response and answer, and perhaps correct (a label) and finish; `rlkit eval` writes such files",
        )
        p.add_argument("--reward", default="math", help="a built-in name or my_file.py:function (default math)")
        p.add_argument("--against", help="another one to compare with")
        p.add_argument("--show", type=count, default=5, help="examples of each kind of difference (default 5)")

    @staticmethod
    def run(a: Namespace) -> int:
        print(rk.audit(a.file, [x for x in (a.reward, a.against) if x]).report(a.show))
        return 0


class Filter(Command):
    """Keep the training prompts that a model sometimes solves (offline learnability filter, RIF-RFT)."""

    name = "filter"

    @staticmethod
    def arguments(p: Parser) -> None:
        configuration(p)
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
            "--rewards",
            action="store_true",
            help="also write base_rewards, the rewards of the responses, and keep prompts without a success (InfAlign, RLKF)",
        )
        p.add_argument(
            "--responses", help="also store one solved response of each kept prompt with its log-probs (data.stored)"
        )
        p.add_argument(
            "--pairs", help="also write the best response of each kept prompt against its worst (data.pairs)"
        )
        p.add_argument(
            "--better",
            metavar="COLUMN",
            help="with --pairs: a column whose text is preferred to the model's own response (SPIN); keeps prompts without a success, too",
        )
        p.add_argument("--labelled", help="also write every response with its reward (data.labelled)")
        p.add_argument("--demonstrations", help="also write the solved responses (data.demonstrations)")
        p.add_argument("--transcripts", help="also write the episodes of kept prompts as people read them")

    @staticmethod
    def run(a: Namespace) -> int:
        for option in ("out", "responses", "pairs", "labelled", "demonstrations", "transcripts"):
            if vars(a)[option] is not None:
                require_file(vars(a)[option], f"--{option}")
        if a.better and not a.pairs:
            raise ConfigError("--better says what pairs hold; name their file with --pairs FILE.")
        run = rk.load(a.config, a.overrides)
        for option in ("responses", "pairs", "labelled", "demonstrations"):
            if vars(a)[option] is not None and run.rollout.episode is not None:
                raise ConfigError(
                    f"--{option} is about single responses, and rollout.episode plays conversations. Leave it out, or give --transcripts."
                )
        if a.transcripts and run.rollout.episode is None:
            raise ConfigError("--transcripts shows episodes, and rollout.episode is not set. Leave it out.")
        found = rk.filter(
            run,
            a.model,
            n=a.n,
            low=a.low,
            high=a.high,
            soft_value=a.soft_value,
            rewards=a.rewards,
            unsolved=a.better is not None,
        )
        found.write(a.out)
        if not found.prompts:
            raise ConfigError(
                f"none of {found.asked} prompts has a pass rate in the range; {a.out} is empty. Raise -n, or widen --low and "
                "--high."
            )
        if a.responses:
            found.write_solved(a.responses)
            print(f"{a.responses}: {len(found.solved)} solved responses with their log-probs")
        for path, write, what in (
            (
                a.pairs,
                functools.partial(found.write_pairs, better=a.better),
                f"pairs of {a.better or 'the best response to a prompt'} and {'a response' if a.better else 'its worst'}",
            ),
            (a.labelled, found.write_labelled, "responses with their rewards"),
            (a.demonstrations, found.write_demonstrations, "solved responses"),
            (a.transcripts, found.write_transcripts, "episodes to read"),
        ):
            if path:
                print(f"{path}: {write(path)} {what}")
        if found.unended and (a.pairs or a.labelled or a.demonstrations):
            print(
                f"{found.unended} of {len(found.answered)} responses were cut off after {run.sampling.max_tokens} tokens "
                "(sampling.max_tokens) and are in none of these files, whose rows end by themselves."
            )
        print(
            f"{a.out}: {len(found.prompts)} of {found.asked} prompts kept (pass rate of {a.n} responses "
            f"{found.within}). Train on them with:\n"
            f"  rlkit train {' '.join(map(shlex.quote, [a.config, *a.overrides]))} {_typed(found.settings(a.out))}"
        )
        if run.data.task is not None and (not run.rewards or any(spec.fn == "task" for spec in run.rewards)):
            print("and another reward than `task`, which needs data.task, e.g. rewards=[exact].")
        return 0


def _typed(settings: dict[str, Any]) -> str:
    """Settings of the section ``data`` as they are typed in a shell."""

    def yaml(x: Any) -> str:
        if isinstance(x, dict):
            return "{" + ", ".join(f"{k}: {v}" for k, v in x.items()) + "}"
        return "null" if x is None else str(x)

    return " ".join(shlex.quote(f"data.{k}={yaml(v)}") for k, v in settings.items())


class Report(Command):
    """Write one page about a run, or about several over each other: curves, responses, configuration, alarms. It needs no network."""

    name = "report"

    @staticmethod
    def arguments(p: Parser) -> None:
        p.add_argument("runs", nargs="+", help="run folders; those that differ in their seed alone are drawn as one")
        p.add_argument("--out", metavar="FILE", help="default: report.html in the first folder")

    @staticmethod
    def run(a: Namespace) -> int:
        if a.out:
            require_file(a.out, "--out")
        print(rk.report_runs(a.runs, a.out))
        return 0


class Watch(Command):
    """Show a run in the terminal while it goes on. It reads nothing but the run's files."""

    name = "watch"

    @staticmethod
    def arguments(p: Parser) -> None:
        p.add_argument("run_folder", help="a run folder; with --address the id of a job")
        p.add_argument("--address", metavar="URL", help="the Ray dashboard of a cluster, e.g. http://head:8265")
        p.add_argument("--every", type=positive, default=2.0, metavar="SECONDS", help="default 2")
        p.add_argument("--once", action="store_true", help="show it as it is now, and end")

    @staticmethod
    def run(a: Namespace) -> int:
        clear = "\033[H\033[J" if sys.stdout.isatty() and not a.once else ""
        with contextlib.suppress(KeyboardInterrupt):  # the usual way to end it
            for text in rk.watch(a.run_folder, a.every, address=a.address):
                print(f"{clear}{text}", flush=True)
                if a.once:
                    break
        return 0


class Plot(Command):
    """Draw the curves of a run, reward against sqrt(KL) among them."""

    name = "plot"

    @staticmethod
    def arguments(p: Parser) -> None:
        p.add_argument("run_folder", help="a run folder")

    @staticmethod
    def run(a: Namespace) -> int:
        print(rk.plot_run(a.run_folder))
        return 0


class Sample(Command):
    """Sample responses of a model, or of what decoding makes of it: a control (DeRa), best of n, rejection sampling."""

    name = "sample"

    @staticmethod
    def arguments(p: Parser) -> None:
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
        p.add_argument(
            "--reference", metavar="MODEL", help="mix with this model at every token (DeRa); needs --realign"
        )
        p.add_argument(
            "--realign",
            type=not_negative,
            metavar="LAMBDA",
            help="0 is the reference, 1 the model, above 1 goes further (a weaker KL)",
        )
        p.add_argument(
            "--control",
            metavar="YAML",
            help="change what is sampled from at every token, e.g. \"{type: IDLE, pattern: '[0-9]'}\" (docs/guide.md), or a file of that",
        )
        p.add_argument(
            "--reward", metavar="FN", help="score responses: my_file.py:fn of (prompt, response), or a built-in name"
        )
        p.add_argument(
            "--answer",
            action="append",
            default=[],
            help="the reference answer of each prompt, where the reward reads one",
        )
        p.add_argument(
            "--best", action="store_true", help="show the best of the n by --reward, and the KL that selecting costs"
        )
        p.add_argument(
            "--tilt",
            type=positive,
            metavar="BETA",
            help="keep responses by rejection, towards model * exp(reward / BETA)",
        )

    @staticmethod
    def run(a: Namespace) -> int:
        found = rk.sample(
            a.model,
            a.prompt,
            n=a.n,
            sampling=rk.Sampling(temperature=a.temperature, top_p=a.top_p, max_tokens=a.max_tokens, seed=a.seed),
            template=a.template,
            engine=a.engine,
            reference=a.reference,
            realign=a.realign,
            control=a.control,
            reward=a.reward,
            answers=a.answer,
            best=a.best,
            tilt=a.tilt,
            say=functools.partial(print, file=sys.stderr),
        )
        for one in found:
            print(one)
        return 0


class Merge(Command):
    """Make one model of several: a soup, SLERP or a sum of task vectors, and the way back to the start (LITI)."""

    name = "merge"

    @staticmethod
    def arguments(p: Parser) -> None:
        p.add_argument("models", nargs="+", help="model folders, hub names, or run folders")
        p.add_argument("--out", metavar="FOLDER", required=True, help="the model folder to write")
        p.add_argument(
            "--method",
            choices=("linear", "slerp", "task"),
            default="linear",
            help="linear: the mean of the weights (a soup); slerp: along the arc between the task vectors from --base, by tensor (WARP); "
            "task: --base plus the sum of the task vectors",
        )
        p.add_argument(
            "--weights",
            type=number,
            nargs="+",
            metavar="W",
            help="one for each model; linear and slerp: in [0, 1], sum 1 (default: equal), task: any (default: 1)",
        )
        p.add_argument("--base", metavar="MODEL", help="the model that the others started from")
        p.add_argument(
            "--eta",
            type=share,
            default=1.0,
            help="share of the way from --base to what was merged (LITI; WARP takes 0.3); default 1",
        )
        p.add_argument(
            "--dtype",
            choices=("float32", "bfloat16", "float16"),
            help="of the merged weights (default: that of the models)",
        )

    @staticmethod
    def run(a: Namespace) -> int:
        made = rk.merge(a.models, a.out, method=a.method, weights=a.weights, base=a.base, eta=a.eta, dtype=a.dtype)
        print(made)
        return 0


class Plan(Command):
    """What a run needs before it starts: memory of every role, seconds, the layout that fits, growth with GPUs."""

    name = "plan"

    @staticmethod
    def arguments(p: Parser) -> None:
        configuration(p)
        p.add_argument(
            "--gpu", help="H100, H200, A100-80GB, A100-40GB, L40S, RTX4090, or a size like 80GB (default: this machine)"
        )
        p.add_argument("--nodes", type=count, default=1)
        p.add_argument("--gpus-per-node", type=count, default=8)
        p.add_argument("--prompt-tokens", type=positive, help="mean tokens of a prompt, where known")
        p.add_argument(
            "--mean-length", type=positive, help="mean tokens of a response (of one answer of an episode), where known"
        )
        p.add_argument("--turns", type=positive, help="answers of an episode (default: as many as fit)")
        p.add_argument("--no-growth", action="store_true", help="leave out the simulation of 1 to 1,024 GPUs")
        p.add_argument("--out", metavar="FILE", help="also draw memory and growth (.svg, .pdf, .png)")
        p.add_argument(
            "--probe",
            action="store_true",
            help="also run one worst-case learner step here, with dummy data, and measure it",
        )

    @staticmethod
    def run(a: Namespace) -> int:
        if a.out:
            require_file(a.out, "--out")
        run = rk.load(a.config, a.overrides)
        found = rk.plan(
            run,
            a.gpu,
            a.nodes,
            a.gpus_per_node,
            prompt_tokens=a.prompt_tokens,
            mean_length=a.mean_length,
            turns=a.turns,
            growth=not a.no_growth,
        )
        print(found)
        if a.out:
            print(f"\ndrawn in {found.plot(a.out)}")
        if a.probe:
            print(f"\n{rk.probe(run)}")
        return 0 if found.fits else 1


class Convert(Command):
    """Write what a configuration of TRL, verl or OpenRLHF is here; what is not carried over, or means something else, stands in it."""

    name = "convert"

    @staticmethod
    def arguments(p: Parser) -> None:
        p.add_argument("file", help="a YAML file, or a shell script with key=value words or OpenRLHF's options")
        p.add_argument(
            "--from",
            dest="kind",
            choices=("trl", "verl", "openrlhf"),
            help="whose it is (default: found out from its keys)",
        )
        p.add_argument(
            "--method",
            choices=("grpo", "dpo", "kto", "sft", "gkd", "distillation"),
            help="which of TRL's trainers it is for (default: found out from its keys)",
        )
        p.add_argument(
            "--processes", type=count, default=1, help="how many processes TRL was launched with (default 1)"
        )
        p.add_argument("--out", metavar="FILE", help="the YAML file to write (default: the screen)")

    @staticmethod
    def run(a: Namespace) -> int:
        if a.out:
            require_file(a.out, "--out")
        found = rk.convert(a.file, a.kind, processes=a.processes, method=a.method)
        if not a.out:
            print(found, end="")
            return 0
        Path(a.out).write_text(str(found))
        print(
            f"{a.out}: {len(found.left_out)} settings were not carried over, {len(found.notes)} notes; both stand in it"
        )
        return 0


class Doctor(Command):
    """Say what this machine has and what of it will hurt a run; exit code 1 if something stops every run, or a part of --gpu failed."""

    name = "doctor"

    @staticmethod
    def arguments(p: Parser) -> None:
        p.add_argument(
            "--gpu",
            action="store_true",
            help="also try what rlkit does on GPUs by every way that this machine has, and report in Markdown",
        )
        p.add_argument("--short", action="store_true", help="with --gpu: what takes seconds, without Ray and vLLM")
        p.add_argument("--model", help="with --gpu: a real model to train for twenty steps, a folder or a hub name")
        p.add_argument("--out", metavar="FILE", help="with --gpu: where to write the report (default: the screen)")

    @staticmethod
    def run(a: Namespace) -> int:
        if not a.gpu:
            if a.short or a.model or a.out:
                raise ConfigError("--short, --model and --out belong to --gpu.")
            found = rk.doctor()
            print(found)
            return 0 if found.works else 1
        if a.out:
            require_file(a.out, "--out")
        say = functools.partial(print, file=sys.stderr, flush=True)
        report = rk.gpu_check(a.model, short=a.short, say=say, out=a.out)
        if not a.out:
            print(report)
        return 0 if report.passed else 1


class Submit(Command):
    """Send `rlkit train CONFIG` to a Ray cluster as a job, with the current folder, and follow it."""

    name = "submit"

    @staticmethod
    def arguments(p: Parser) -> None:
        configuration(p)
        p.add_argument("--address", required=True, metavar="URL", help="the Ray dashboard, e.g. http://head:8265")
        p.add_argument(
            "--resume", action="store_true", help="continue the newest run of this name in `out` on the cluster"
        )
        p.add_argument(
            "--env",
            action="append",
            default=[],
            metavar="NAME[=VALUE]",
            help="a variable for the run; without a value the one that it has here; may be repeated",
        )
        p.add_argument("--fetch", metavar="FOLDER", help="copy the run folder into this folder at the end")
        p.add_argument("--no-wait", action="store_true", help="return once the job is accepted")

    @staticmethod
    def run(a: Namespace) -> int:
        rk.submit(
            a.config,
            a.overrides,
            address=a.address,
            wait=not a.no_wait,
            resume=a.resume,
            env=a.env,
            fetch_to=a.fetch,
            say=functools.partial(print, flush=True),
        )
        return 0


class Jobs(Command):
    """List the jobs of a Ray cluster; follow the log of one of them, end it, or copy its run folder."""

    name = "jobs"

    @staticmethod
    def arguments(p: Parser) -> None:
        p.add_argument("id", nargs="?", metavar="JOB", help="follow the log of this one until it ends")
        p.add_argument("--address", required=True, metavar="URL", help="the Ray dashboard, e.g. http://head:8265")
        p.add_argument("--stop", action="store_true", help="end it instead; it writes a checkpoint first")
        p.add_argument("--fetch", metavar="FOLDER", help="copy its run folder into this folder instead")
        p.add_argument("--checkpoints", action="store_true", help="with --fetch: its checkpoints, too")

    @staticmethod
    def run(a: Namespace) -> int:
        if a.id is None and (a.stop or a.fetch):
            raise ConfigError(f"which job? `rlkit jobs --address {a.address}` lists them.")
        if (a.stop and a.fetch) or (a.checkpoints and not a.fetch):
            raise ConfigError("--stop and --fetch exclude each other, and --checkpoints belongs to --fetch.")
        if a.stop:
            print(f"job {a.id}: {rk.stop_job(a.id, address=a.address).status.lower()}")
        elif a.fetch:
            print(f"fetched: {rk.fetch_job(a.id, a.fetch, address=a.address, checkpoints=a.checkpoints)}")
        elif a.id is not None:
            ended = rk.follow_job(a.id, address=a.address, say=functools.partial(print, flush=True))
            print(f"job {a.id}: {ended.status.lower()}")
        else:
            print("\n".join(map(str, rk.jobs(a.address))) or "no jobs yet")
        return 0


COMMANDS: tuple[type[Command], ...] = (
    Train,
    Sweep,
    Configs,
    Init,
    Show,
    Check,
    Eval,
    Metrics,
    Fit,
    AuditReward,
    Filter,
    Report,
    Watch,
    Plot,
    Sample,
    Merge,
    Plan,
    Convert,
    Doctor,
    Submit,
    Jobs,
    Completion,
)

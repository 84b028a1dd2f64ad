"""``rlkit check``: what each term of an objective really optimises, by exact enumeration."""

from __future__ import annotations

from dataclasses import dataclass

from rlkit.checks import check as check_run
from rlkit.objective.oracle import Finding, dishonest, examine_all
from rlkit.run import Run


@dataclass(frozen=True)
class Checked:
    """What was found of every part of an objective, on-policy and off-policy; ``str`` makes the report.

    Attributes:
        off_policy: whether the run is, so that findings off-policy count.
    """

    findings: tuple[Finding, ...]
    off_policy: bool

    @property
    def dishonest(self) -> tuple[Finding, ...]:
        """Findings where a part does not do what its name says, or nothing at all."""
        return tuple(dishonest(list(self.findings), self.off_policy))

    def __str__(self) -> str:
        lines = [f"{'part':<28} {'sampled':<19} {'cosine':>7} {'norm':>7} {'noise':>7}   follows the gradient of"]
        for f in self.findings:
            lines.append(f"{f.part:<28} {f.sampled:<19} {f.cosine:>7.3f} {f.norm:>7.3f} {f.noise:>7.2f}   {f.heading}")
        lines.append(
            "\ncosine, norm: the expected gradient against the exact one of what the name says. noise: standard deviation of one "
            f"response's\ngradient over the norm of the mean. This run is {'off-policy too' if self.off_policy else 'on-policy'}.\n"
        )
        if any(f.pull is not None for f in self.findings):
            lines.append(
                "Of a loss of pairs or labels, cosine is the correlation of the reward with what it is at the optimum of the named "
                "objective,\nand norm the coefficient of its divergence.\n"
            )
        lines += [f.sentence for f in self.findings if self.off_policy or f.sampled != "off-policy"]
        if self.dishonest:
            lines.append(
                f"\n{len(self.dishonest)} finding(s) where a term does not do what its name says, or nothing at all. Change the term "
                "(docs/regularizers.md shows which form does), or accept it with acknowledge: true."
            )
        return "\n".join(lines)


def check(run: Run) -> Checked:
    """Examines every term and penalty, classes of the user's own included.

    Raises:
        ConfigError: sections of the run that do not fit together.
    """
    check_run(run)
    return Checked(tuple(examine_all(run.objective, run.reward_penalties)), run.off_policy)

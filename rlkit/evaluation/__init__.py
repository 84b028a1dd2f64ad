"""What trained models can do: metrics of samples, votes, comparisons, scaling fits."""

from rlkit.evaluation.compare import (
    Comparison,
    Forgetting,
    ForgettingFit,
    compare,
    forgetting,
    forgetting_fit,
    forgetting_of,
    mcnemar,
    permutation_test,
)
from rlkit.evaluation.metrics import (
    auroc,
    avg_at_k,
    brier,
    distinct_answers,
    ece,
    g_pass_at_k,
    length_stats,
    mg_pass_at_k,
    pass_at_k,
    pass_hat_k,
    powers_of_two,
    risk_coverage_area,
    summarize,
    truncation_rate,
)
from rlkit.evaluation.scaling import (
    Curve,
    PowerLawFit,
    ScalingReport,
    SigmoidFit,
    fit_power_law,
    fit_runs,
    fit_sigmoid,
    read_curve,
    sigmoid,
)
from rlkit.evaluation.voting import (
    TemperatureVote,
    maj_at_k,
    majority,
    majority_probability,
    should_stop,
    solved_at_any,
    tally,
    temperature_vote,
    weighted_vote,
)

__all__ = [
    "Comparison", "Curve", "Forgetting", "ForgettingFit", "PowerLawFit", "ScalingReport", "SigmoidFit", "TemperatureVote", "auroc",
    "avg_at_k", "brier", "compare", "distinct_answers", "ece", "fit_power_law", "fit_runs", "fit_sigmoid", "forgetting", "forgetting_fit",
    "forgetting_of", "g_pass_at_k", "length_stats", "maj_at_k", "majority", "majority_probability", "mcnemar", "mg_pass_at_k",
    "pass_at_k", "pass_hat_k", "permutation_test", "powers_of_two", "read_curve", "risk_coverage_area", "should_stop", "sigmoid",
    "solved_at_any", "summarize", "tally", "temperature_vote", "truncation_rate", "weighted_vote",
]

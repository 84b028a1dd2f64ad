"""OpenRLHF's options: what they become."""

from __future__ import annotations

from pathlib import Path

import pytest

import rlkit as rk
from rlkit.checks import check
from rlkit.cli import main
from rlkit.moving.settings import from_options

SCRIPT = r"""
set -x
python3 -m openrlhf.cli.train_ppo_ray \
   --actor.num_nodes 1 --actor.num_gpus_per_node 4 \
   --vllm.num_engines 4 --vllm.tensor_parallel_size 1 --train.colocate_all --vllm.enable_sleep --ds.enable_sleep \
   --actor.model_name_or_path Qwen/Qwen2.5-7B \
   --reward.remote_url examples/math_reward.py \
   --data.prompt_dataset $HOME/dapo --data.input_key prompt --data.label_key label --data.apply_chat_template \
   --rollout.batch_size 128 --rollout.n_samples_per_prompt 8 --rollout.micro_batch_size 32 --rollout.max_new_tokens 1024 \
   --train.batch_size 512 --train.max_epochs 1 --train.num_episodes 3 --data.max_len 2048 \
   --algo.advantage.estimator group_norm --actor.eps_clip_low_high 0.2 0.28 \
   --algo.kl.init_coef 1e-3 --algo.kl.use_loss --algo.kl.estimator k3 \
   --algo.dynamic_filtering_enable --algo.dynamic_filtering_range 0 1 \
   --algo.advantage.is_correction_level token \
   --ds.zero_stage 2 --actor.adam.lr 5e-7 --actor.optim adam --reward.clip_range -5 5 \
   --eval.steps 10 --logger.wandb.key secret --something.new 3
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "run.sh").write_text(SCRIPT)
    return tmp_path / "run.sh"


def loaded(*words: str) -> rk.Run:
    run = rk.load(
        rk.convert(
            ["--actor.model_name_or_path=m", "--data.prompt_dataset=d", "--reward.remote_url=r.py", *words]
        ).settings
    )
    check(run)
    return run


def test_a_script_of_grpo(script: Path) -> None:
    found = rk.convert(script)
    run = rk.load(found.settings)
    check(run)
    assert (run.rollout.prompts, run.rollout.n, run.learner.minibatches) == (128, 8, 2)
    assert run.objective == (
        rk.PPOClip(eps_high=0.28, reduce="token"),
        rk.KL(estimator="k3", coef=0.001, reduce="token", acknowledge=True),
    )
    assert run.advantage == rk.GroupNorm(eps=1e-9) and not run.reward_penalties
    assert run.correction == rk.corrections.IcePop(low=0.5, high=5.0)
    assert run.data.train == str(Path.home() / "dapo") and run.data.columns == {"prompt": "prompt", "answer": "label"}
    assert (run.data.template, run.data.max_prompt_tokens, run.sampling.max_tokens) == ("chat", 1024, 1024)
    assert run.cluster is not None and run.cluster.colocate and (run.cluster.learners, run.cluster.engines) == (4, 4)
    assert (run.learner.lr, run.learner.schedule, run.learner.final_lr) == (5e-7, "cosine", 0.1)
    assert {x.key for x in found.left_out} == {"reward.clip_range", "something.new"}
    assert "secret" not in str(found) and any("share of all, 0.03" in note for note in found.notes)


def test_the_kl_in_the_reward_is_the_default_and_stands_where_theirs_does() -> None:
    """A group's baseline and scale do not see it there; the batch's do."""
    assert loaded().reward_penalties == (rk.KLReward(coef=0.01),)
    assert isinstance(loaded().advantage, rk.GAE) and loaded().critic is not None
    of_groups = loaded(
        "--algo.advantage.estimator", "rloo", "--rollout.n_samples_per_prompt", "4", "--algo.kl.target", "0.1"
    )
    (penalty,) = of_groups.reward_penalties
    assert isinstance(penalty, rk.KLReward) and penalty.placement == "advantage" and of_groups.advantage == rk.RLOO()
    assert penalty.coef == rk.AdaptiveKL(init=0.01, target=0.1, horizon=10000.0, per="token")
    assert not loaded("--algo.kl.init_coef", "0").reward_penalties


def test_options_of_earlier_versions() -> None:
    words = "--pretrain m --prompt_data d --n_samples_per_prompt 4 --advantage_estimator dr_grpo --init_kl_coef 0 --async_train"
    run = rk.load(rk.convert(words.split()).settings)
    assert run.advantage == rk.GroupMean() and run.rollout.n == 4 and run.rollout.max_lag == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--algo.kl.use_loss", "k1 in the loss has an expected gradient of zero"),
        ("--algo.kl.estimator k2", "k2 in the reward has the gradient of no KL"),
        ("--algo.advantage.estimator flash_reinforce", "'flash_reinforce' has no counterpart"),
        ("--train.batch_size 100", "1024 is not a multiple of 100"),
    ],
)
def test_what_has_no_counterpart_is_refused(words: str, message: str) -> None:
    with pytest.raises(rk.ConfigError, match=message):
        loaded(*words.split())


def test_unbiased_gradients_and_bands() -> None:
    run = loaded("--algo.kl.use_loss", "--algo.kl.unbiased_gradient")
    assert run.objective[1] == rk.KL(estimator="k2", importance="token", coef=0.01)
    band = ("--algo.advantage.is_correction_level", "seq", "--algo.advantage.is_correction_threshold", "0.9", "1.1")
    assert loaded(*band).correction == rk.corrections.SequenceMask(low=0.9, high=1.1)
    cap = ("--algo.advantage.is_correction_level=token", "--algo.advantage.is_correction_mode=clip")
    assert loaded(*cap).correction == rk.corrections.TruncatedIS(cap=5.0)


def test_words_are_read_as_a_shell_gives_them() -> None:
    found = from_options(["python", "-m", "x", "--a.b", "1e-3", "--flag", "--c=d", "--e", "-10", "10", "--f", "text"])
    assert found == {"a.b": 1e-3, "flag": True, "c": "d", "e": [-10, 10], "f": "text"}


def test_the_program_reads_a_script(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(script)]) == 0
    said = capsys.readouterr().out
    assert "# From a configuration of OpenRLHF" in said and "# Not carried over: something.new: 3" in said

"""verl's overrides: what they become."""

from __future__ import annotations

from pathlib import Path

import pytest

import rlkit as rk
from rlkit.cli import main
from rlkit.moving.settings import from_words

SCRIPT = r"""
set -x
export VLLM_USE_V1=1   # not a setting
python3 -m verl.trainer.main_ppo \
    algorithm.adv_estimator=grpo \
    data.train_files=$HOME/data/gsm8k/train.parquet \
    data.train_batch_size=1024 \
    data.max_response_length=1024 \
    data.filter_overlong_prompts=True \
    actor_rollout_ref.model.path=Qwen/Qwen2.5-7B-Instruct \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    actor_rollout_ref.actor.ppo_mini_batch_size=256 \
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=40 \
    actor_rollout_ref.actor.use_kl_loss=True \
    actor_rollout_ref.actor.kl_loss_coef=0.001 \
    actor_rollout_ref.actor.kl_loss_type=low_var_kl \
    actor_rollout_ref.actor.entropy_coeff=0 \
    actor_rollout_ref.actor.fsdp_config.param_offload=True \
    actor_rollout_ref.rollout.tensor_model_parallel_size=2 \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=5 \
    +actor_rollout_ref.rollout.val_kwargs.n=4 \
    trainer.total_training_steps=200 \
    trainer.logger='["console","wandb"]' \
    trainer.project_name='mine' \
    trainer.n_gpus_per_node=8 \
    trainer.test_freq=5 \
    trainer.total_epochs=15 $@
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "run.sh").write_text(SCRIPT)
    return tmp_path / "run.sh"


def test_a_script_of_grpo(script: Path) -> None:
    found = rk.convert(script)
    run = rk.load(found.settings)
    assert run.data.train == str(Path.home() / "data" / "gsm8k" / "train.parquet")
    assert (run.rollout.prompts, run.rollout.n, run.learner.minibatches, run.steps) == (1024, 5, 4, 200)
    assert run.objective == (
        rk.PPOClip(dual_clip=3.0, reduce="token"),
        rk.KL(estimator="k3", coef=0.001, reduce="token", acknowledge=True),
    )
    assert run.advantage == rk.GroupNorm(eps=1e-6) and run.data.columns["answer"] == "reward_model.ground_truth"
    assert run.cluster is not None
    assert run.cluster.learners + run.cluster.engines * run.cluster.tensor_parallel == 8
    assert (run.eval.every, run.eval.n, run.eval.temperature) == (5, 4, 0.0) and run.log.wandb == {"project": "mine"}
    assert [x.key for x in found.left_out] == ["actor_rollout_ref.actor.fsdp_config.param_offload"]


def test_defaults_of_verl_are_a_part_of_it() -> None:
    run = rk.load(rk.convert(["actor_rollout_ref.model.path=m", "data.train_files=t.parquet"]).settings)
    assert (
        isinstance(run.advantage, rk.GAE)
        and run.advantage.lam == 1.0
        and run.critic is not None
        and run.critic.lr == 1e-5
    )
    assert [type(term).__name__ for term in run.objective] == ["PPOClip", "ValueMSE"] and run.data.too_long == "raise"


def test_kl_in_the_reward_under_a_controller() -> None:
    words = ["algorithm.use_kl_in_reward=True", "algorithm.kl_ctrl.type=adaptive", "algorithm.adv_estimator=rloo"]
    run = rk.load(rk.convert([*words, "actor_rollout_ref.model.path=m", "data.train_files=t"]).settings)
    (penalty,) = run.reward_penalties
    assert penalty == rk.KLReward(estimator="k1", coef=rk.AdaptiveKL(init=0.001, target=0.1, per="token"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["algorithm.adv_estimator=remax"], "'remax' has no counterpart"),
        (["actor_rollout_ref.actor.policy_loss.loss_mode=geo_mean"], "'geo_mean' has no counterpart"),
        (
            ["actor_rollout_ref.actor.use_kl_loss=True", "actor_rollout_ref.actor.kl_loss_type=kl"],
            "an expected gradient of zero",
        ),
        (["data.train_batch_size=100", "trainer.nnodes=1"], "100 is not a multiple of 256"),
        (["nothing"], "there are no settings in it"),
    ],
)
def test_what_has_no_counterpart_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(rk.ConfigError, match=message):
        rk.convert(words)


def test_words_are_read_as_hydra_reads_them() -> None:
    found = from_words(["python3", "-m", "verl", "a.b=1e-6", "+a.c='x y'", "a.d=[1,2]", "DEBUG=1", "--flag=3"])
    assert found == {"a": {"b": 1e-6, "c": "x y", "d": [1, 2]}}


def test_a_file_that_is_neither_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.sh").write_text("a='")
    assert main(["convert", str(tmp_path / "x.sh")]) == 2
    assert "is neither YAML (.yaml) nor a shell script" in capsys.readouterr().err

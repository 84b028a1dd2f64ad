"""What rlkit raises, as one tree. Each class also is the built-in exception that it stands for, and can be pickled.

::

    RlkitError
        InputError (ValueError)             something that the user gave is wrong; the command line ends with exit code 2
            ConfigError                     a setting or an argument
            DataError                       a row, a file of rows, or a data set
            ModelError                      a model folder, its tokenizer, or an adapter
            CheckpointError                 a checkpoint or a run folder
            ClusterError                    the cluster does not exist or is too small
        RunError (RuntimeError)             the run failed; exit code 1
            NumericsError (FloatingPointError)  a loss, gradient or weight that is not finite
            RewardError                     a reward failed under ``on_reward_error: raise``
            EpisodeError                    an episode failed under ``on_reward_error: raise``
                ContextFull                 an episode's context has no room for another token
            EngineError                     an engine failed, or does not sample what the learner trains
            WorkerError                     a worker died
                WorkerTimeout (TimeoutError)  a worker gives no sign of life, or gets no further

Only these become one line on the command line. Every other exception, those of a user's own reward or loss among them, keeps its
traceback.

To add one: choose the nearest parent, take one message as the only argument, say in the message where, what and what to do. Its
docstring says what causes it and what helps; ``python scripts/error_page.py`` writes docs/errors.md from these.
"""

from __future__ import annotations


class RlkitError(Exception):
    """Everything that rlkit raises on purpose."""


class InputError(RlkitError, ValueError):
    """Something that the user gave is wrong.

    Cause: one of the classes below; nothing was started, or nothing of it was kept.
    Remedy: what the message says, then the same command again.
    """


class ConfigError(InputError):
    """A setting or an argument is wrong.

    Cause: a key that does not exist, a value that its key does not take, sections that do not fit together, an option of a command.
    Remedy: the message names the place (file and line, `command line`, or the field of a class), what stands there, and what can
        stand there; all mistakes of a file come at once.
    """


class DataError(InputError):
    """A row, a file of rows, or a data set is wrong.

    Cause: a file that is not there or not JSON, a column that is missing, an answer that is empty, a chat that a template refuses.
    Remedy: mend the row that the message names (file and line, or the number of the row), or name another column in `data.columns`.
    """


class ModelError(InputError):
    """A model folder, its tokenizer, or an adapter cannot be used.

    Cause: files that are missing or damaged, a tokenizer of another model, an architecture or an adapter whose log-probs are not
        those of its own forward pass.
    Remedy: take another folder or another kind of adapter; [models.md](models.md) says what is asked of a model.
    """


class CheckpointError(InputError):
    """A checkpoint or a run folder cannot be used.

    Cause: a damaged file, a run folder that another process uses, a setting that cannot change within a run.
    Remedy: continue from the checkpoint before it, which the message names, or start a run under another name.
    """


class ClusterError(InputError):
    """The cluster does not exist or is too small.

    Cause: no Ray at the address, fewer CPUs or GPUs than engines and learners ask for, a path that a job would not find.
    Remedy: start what is missing, or lower `cluster.engines`, `cluster.learners` or `cluster.cpus`.
    """


class RunError(RlkitError, RuntimeError):
    """The run failed.

    Cause: one of the classes below, or something that could not be written.
    Remedy: `--resume` continues from the last checkpoint.
    """


class NumericsError(RunError, FloatingPointError):
    """A loss, gradient or weight is not finite.

    Cause: a reward or a log-prob that is not, a learning rate that is too large, several skipped steps in a row
        (`learner.max_skipped`).
    Remedy: look at the term, the prompt and the token that the message names; continue from the checkpoint before with a smaller
        `learner.lr`.
    """


class RewardError(RunError):
    """A reward failed under ``on_reward_error: raise``.

    Cause: the function raised, gave no number, or did not come back within its `timeout`; or it has given no answer at all for too long
        (`patience`), whatever `on_reward_error` says.
    Remedy: mend the function for the response that the message shows, return None where there is no verdict, or set
        `on_reward_error: mask`.
    """


class EpisodeError(RunError):
    """An episode failed under ``on_reward_error: raise``, or its function used its handle on the model wrongly.

    Cause: the function raised, returned no rewards, never asked the model, did not end within its `timeout`, or asked for an answer
        where there can be none.
    Remedy: mend the function by what the message says and the transcript that it shows, or set `on_reward_error: mask`.
    """


class ContextFull(EpisodeError):
    """An episode's context has no room for another token.

    Cause: its turns and what was added between them have reached `rollout.max_model_len`.
    Remedy: end the episode while its handle's `left` says that there is room (or catch this, and return the rewards so far), or raise
        `rollout.max_model_len`.
    """


class EngineError(RunError):
    """An engine failed, or does not sample what the learner trains.

    Cause: an exception inside vLLM or the Hugging Face engine; log-probs of the parity probe that differ by more than
        `probe.tolerance`.
    Remedy: the message shows both numbers, or the engine's own error; a `vllm:` option that changes sampling is the usual cause of
        the first.
    """


class WorkerError(RunError):
    """A worker died.

    Cause: the system killed it (memory is the usual reason), or its machine is gone; and it was started again `cluster.restarts`
        times.
    Remedy: read the end of its log, which the message shows; give it more memory or smaller batches (`learner.max_tokens`).
    """


class WorkerTimeout(WorkerError, TimeoutError):
    """A worker gives no sign of life, or gets no further.

    Cause: it is stopped, or one step took longer than `cluster.stall`.
    Remedy: raise `cluster.timeout` or `cluster.stall` if the work itself is slow.
    """


def first_line(error: BaseException) -> str:
    """The first line of what an exception of somebody else's says, for a sentence of ours; its class where it says nothing."""
    text = str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)
    return next(iter(text.strip().splitlines()), type(error).__name__)

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
            EngineError                     an engine failed, or does not sample what the learner trains
            WorkerError                     a worker died
                WorkerTimeout (TimeoutError)  a worker gives no sign of life, or gets no further

Only these become one line on the command line. Every other exception, those of a user's own reward or loss among them, keeps its
traceback.

To add one: choose the nearest parent, take one message as the only argument, say in the message where, what and what to do.
"""

from __future__ import annotations


class RlkitError(Exception):
    """Everything that rlkit raises on purpose."""


class InputError(RlkitError, ValueError):
    """Something that the user gave is wrong."""


class ConfigError(InputError):
    """A setting or an argument is wrong."""


class DataError(InputError):
    """A row, a file of rows, or a data set is wrong."""


class ModelError(InputError):
    """A model folder, its tokenizer, or an adapter cannot be used."""


class CheckpointError(InputError):
    """A checkpoint or a run folder cannot be used."""


class ClusterError(InputError):
    """The cluster does not exist or is too small."""


class RunError(RlkitError, RuntimeError):
    """The run failed."""


class NumericsError(RunError, FloatingPointError):
    """A loss, gradient or weight is not finite."""


class RewardError(RunError):
    """A reward failed under ``on_reward_error: raise``."""


class EngineError(RunError):
    """An engine failed, or does not sample what the learner trains."""


class WorkerError(RunError):
    """A worker died."""


class WorkerTimeout(WorkerError, TimeoutError):
    """A worker gives no sign of life, or gets no further."""


def first_line(error: BaseException) -> str:
    """The first line of what an exception of somebody else's says, for a sentence of ours; its class where it says nothing."""
    text = str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)
    return next(iter(text.strip().splitlines()), type(error).__name__)

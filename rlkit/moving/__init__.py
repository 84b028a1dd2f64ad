"""Configurations of other libraries as ones of rlkit: what is carried over, what means something else here, and what cannot be.

``settings`` has what the readers share, which are ``trl``, ``verl`` and ``openrlhf``. Defaults of a library count as if they were
written: they are a part of what its users run."""

"""What one does with a run beside training it: one file a command, a function that returns what it found.

The command line (:mod:`rlkit.cli`) calls these through the face, ``rk.evaluate(...)``, as any other program does, and prints the result.
``say`` hears notes and progress while a command works; messages name an argument as the command line does (``--out``).
"""

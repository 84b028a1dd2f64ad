"""What people look at: runs read back from their folders (``runs``), their curves as pictures (``charts``, ``panels``), one page that needs
nothing but itself (``page``), and the terminal (``terminal``). Nothing here needs more than the files of a run."""

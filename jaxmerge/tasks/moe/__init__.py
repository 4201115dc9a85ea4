"""Mixtures under a gate, put side by side: the tasks "moe" (``gates.py``) and "moe_ablations" (``ablations.py``).

``models.py`` makes the methods and ``train.py`` trains them, each in a folder of its own that a stopped run goes on
in; ``rows.py`` and ``grid.py`` say which ones the ablations have. ``measure.py`` and ``diagnose.py`` take the same
figures of any of them, ``table.py``, ``differences.py`` and ``words/`` turn figures into rows, differences and sentences.
``dry_run.py`` says what a config needs.
"""

"""How the bundled model is made: data, training, evaluation. ``python -m tools.train_tiny --help``.

A small video model is made from it: ``python -m tools.train_tiny.video --help``.
"""

"""Evaluates speed and fidelity by measuring: ``compare``, ``tune``, ``frontier`` and ``bench``."""

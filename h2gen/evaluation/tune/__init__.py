"""Tuning: finds, for a model, steps and size, the settings with the best fidelity at each speed.

``tune`` is the whole of it. ``recording`` runs prompts uncached and records inner products between steps;
``forecast_errors`` computes from them what skipping a run of steps costs; ``shortest_path`` finds the best plan for
every budget; ``polish`` improves it on measured images; ``stage_changes`` predicts what thresholds would decide, and
``threshold_search`` finds the best of them; ``search`` does all of these for every budget; and
``build_profile`` keeps the best of what was found, measured on other prompts.
"""

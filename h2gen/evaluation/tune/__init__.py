"""Plans and thresholds found automatically: what steps cost to leave out, which to leave out, and what that comes to.

``recording`` runs prompts uncached and keeps inner products between steps; ``errors`` makes of them what it costs to
forecast a run of steps; ``shortest`` finds for every budget the plan of least total error; ``polish`` betters it on
measured pictures; ``tuning`` does all of it and makes a profile.
"""

"""Profiles: for a model, steps and size, what each speed costs in fidelity, and the settings that buy it.

Those of the bundled model ship with h2gen; the user's own are made by ``h2gen tune``.
"""

from h2gen.settings.profiles.files import file_name, list_profiles, read_profile, to_toml, user_folder, write_profile
from h2gen.settings.profiles.find import find_profile, mismatch
from h2gen.settings.profiles.profile import (
    FEWEST_STEPS,
    Choice,
    Figures,
    Profile,
    ProfileKey,
    check_fidelity,
    check_speedup,
    stretched,
)

__all__ = [
    "FEWEST_STEPS",
    "Choice",
    "Figures",
    "Profile",
    "ProfileKey",
    "check_fidelity",
    "check_speedup",
    "file_name",
    "find_profile",
    "list_profiles",
    "mismatch",
    "read_profile",
    "stretched",
    "to_toml",
    "user_folder",
    "write_profile",
]

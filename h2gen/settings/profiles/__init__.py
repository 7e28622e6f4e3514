"""Profiles: for a model, steps and size, the fidelity at each speed and the settings that reach it.

Profiles of the bundled model ship with h2gen; ``h2gen tune`` makes others. For FLUX.1 [dev] and its relatives
``published`` has plans that others have published.
"""

from h2gen.settings.profiles.files import file_name, list_profiles, read_profile, to_toml, user_folder, write_profile
from h2gen.settings.profiles.find import ProfileSearch, find_profile, loaded_otherwise, mismatch
from h2gen.settings.profiles.profile import (
    FEWEST_STEPS,
    PLURALS,
    Choice,
    Figures,
    Profile,
    ProfileKey,
    label_of,
    loading_words,
    sort_of,
    stretched,
)

__all__ = [
    "FEWEST_STEPS",
    "PLURALS",
    "Choice",
    "Figures",
    "Profile",
    "ProfileKey",
    "ProfileSearch",
    "file_name",
    "find_profile",
    "label_of",
    "list_profiles",
    "loaded_otherwise",
    "loading_words",
    "mismatch",
    "read_profile",
    "sort_of",
    "stretched",
    "to_toml",
    "user_folder",
    "write_profile",
]

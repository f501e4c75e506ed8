"""Where device profiles lie, and the option that says otherwise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

PROFILES_VARIABLE = "EDGEAD_PROFILES"
OFF = "off"

ProfileOption = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="PLACE|off",
        help="Device profiles of 'edgead tune': a folder, or a file that ends in .json.",
        show_default="EDGEAD_PROFILES, or ~/.config/edgead/profiles",
    ),
]


def profile_place(option: str | None) -> Path | None:
    """Return the folder or file of device profiles, None for ``off``.

    Raises:
        ConfigError: a file or folder was named that is not there.
    """
    from edgead.runtime.errors import ConfigError

    if option == OFF:
        return None
    if option is None:
        return default_place()
    place = Path(option)
    if place.suffix == ".json" and not place.is_file():
        raise ConfigError(f"there is no device profile {place}; write one with 'edgead tune NAME.edgead --profile …'")
    if place.suffix != ".json" and not place.is_dir():
        raise ConfigError(f"there is no folder of device profiles {place}; check the path, or give --profile off")
    return place


def default_place() -> Path | None:
    """Return the folder that ``EDGEAD_PROFILES`` names, else ``edgead/profiles`` in the user's configuration folder.

    None where the user has no home.
    """
    chosen = os.environ.get(PROFILES_VARIABLE)
    if chosen:
        return Path(chosen)
    from edgead.runtime.files import user_folder

    settings = user_folder("config")
    return None if settings is None else settings / "edgead" / "profiles"


def place_to_write(option: str | None) -> Path | None:
    """Return where a profile goes, None for ``off``.

    Raises:
        ConfigError: nothing was named, and the user has no home.
    """
    from edgead.runtime.errors import ConfigError

    if option == OFF:
        return None
    place = default_place() if option is None else Path(option)
    if place is None:
        raise ConfigError("this user has no home folder for device profiles; name a place with --profile, or off")
    return place

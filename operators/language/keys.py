"""Where the key of a remote engine stands. A module of its own because what masks keys must start fast."""

from __future__ import annotations

from typing import Final

KEY_VARIABLES: Final = ("WINNOW_ENGINE_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the key, the first one that is set counts. Workers get them from the driver."""

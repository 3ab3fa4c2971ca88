"""Reinforcement learning for models that think, then draw (UniGRPO, arXiv 2603.23500).

``from unigrpo import Bagel`` is the model: ``Bagel.from_pretrained(folder_or_hub_id)``, ``save_pretrained(folder)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unigrpo.models.bagel_files.pretrained import Bagel

__all__ = ["Bagel"]


def __getattr__(name: str) -> Any:
    """Import the model when it is asked for: it takes torch along, which reading recipes and --help do without."""
    if name == "Bagel":
        from unigrpo.models.bagel_files.pretrained import Bagel

        return Bagel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

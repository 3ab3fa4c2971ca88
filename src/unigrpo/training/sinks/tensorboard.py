"""TensorBoard: event files in RUN/tensorboard; ``tensorboard --logdir runs`` shows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import yaml

from unigrpo.training.sinks import Place, Shown

FOLDER = "tensorboard"


class TensorBoard:
    """Writes one event file per session."""

    def __init__(self, place: Place) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self.writer = SummaryWriter(str(place.run_dir / FOLDER))
        if not place.begun:
            recipe = yaml.safe_dump(dict(place.recipe), sort_keys=False)
            self.writer.add_text("recipe", "".join(f"    {line}\n" for line in recipe.splitlines()), 0)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers in fp64, which only TensorBoard's newer format of scalars has."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step, new_style=True, double_precision=True)
        self.writer.flush()

    def pictures(self, step: int, name: str, shown: Sequence[Shown]) -> None:
        """Write pictures, and their captions as text of the same name."""
        for number, one in enumerate(shown):
            self.writer.add_image(f"{name}/{number}", np.asarray(one.picture), step, dataformats="HWC")
        words = "\n".join(f"{number}. {one.caption}" for number, one in enumerate(shown))
        self.writer.add_text(f"{name}/captions", words, step)

    def histogram(self, step: int, name: str, values: Sequence[float]) -> None:
        """Write a distribution (of finite numbers: TensorBoard takes no others)."""
        finite = [value for value in values if np.isfinite(value)]
        if finite:
            self.writer.add_histogram(name, np.asarray(finite), step)

    def close(self, failed: bool) -> None:
        """Flush and close the file."""
        self.writer.close()


def open_sink(place: Place, say: Callable[[str], None]) -> TensorBoard:
    """Open it."""
    return TensorBoard(place)

"""The course of a training as a matplotlib figure."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

_TRAIN, _VALIDATION, _BALANCED = "#1f5fa8", "#c2571a", "#6b8f23"
_LINES = (  # panel, key of the history, label, colour
    (0, "loss", "training, with penalty", _TRAIN),
    (0, "validation_loss", "validation", _VALIDATION),
    (1, "accuracy", "training", _TRAIN),
    (1, "validation_accuracy", "validation", _VALIDATION),
    (1, "validation_balanced_accuracy", "validation, balanced", _BALANCED),
)


def training_curve(history: Sequence[dict[str, float]], kept: int | None = None) -> Figure:
    """Loss and accuracy by epoch.

    Args:
        history: of `infodisent.training.fit.fit_head`; at least one epoch.
        kept: number, from 1, of the epoch whose weights were kept by early stopping.

    Raises:
        ValueError: no epochs.
    """
    if not history:
        raise ValueError("training_curve: history is empty, at least one epoch is needed")
    figure = Figure(figsize=(9, 3.4), facecolor="white", layout="constrained")
    panels = figure.subplots(1, 2)
    epochs = range(1, len(history) + 1)
    for panel, key, label, color in _LINES:
        if key in history[0]:
            values = [epoch[key] for epoch in history]
            # one epoch is a point, which no line shows
            marker = "o" if len(history) == 1 else None
            panels[panel].plot(epochs, values, label=label, color=color, marker=marker)
    for panel, title in zip(panels, ("loss", "accuracy"), strict=True):
        if kept is not None:
            panel.axvline(kept, color="#8a909c", linestyle=":", label=f"kept: epoch {kept}")
        panel.set_title(title)
        panel.set_xlabel("epoch")
        panel.grid(alpha=0.3)
        panel.legend(frameon=False, fontsize=8)
    panels[1].set_ylim(0, 1.02)
    return figure

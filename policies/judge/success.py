"""Can the success head tell success from failure on episodes that it has not seen?"""

from __future__ import annotations

from typing import Any

import numpy as np

from worldmodel.imagine import Imagined

from .ranking import auroc
from .recorded import Windows


def success_auroc(found: Imagined, windows: Windows) -> dict[str, Any]:
    """AUROC of the head's probabilities on imagined frames of held-out episodes, by frame.

    Args:
        found: imagined under the true actions.
    """
    if found.success is None:
        return {"not_run": "this model has no success head: its data does not say what succeeds"}
    labels = windows.success[:, found.frames + windows.past - 1].numpy()
    scores = found.success.numpy()
    groups = np.repeat(windows.episode, scores.shape[1])
    failures = np.array([kind != "expert" for kind in windows.kind])
    part = auroc(scores.ravel(), labels.ravel(), groups).to_dict()
    part["episodes"] = len(np.unique(windows.episode))
    if failures.any() and labels[failures].any():
        some = np.repeat(failures, scores.shape[1])
        part["exploratory"] = auroc(
            scores.ravel()[some], labels.ravel()[some], groups[some]
        ).to_dict()
    return part

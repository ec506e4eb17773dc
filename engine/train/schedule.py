"""Learning-rate schedules as pure functions of the step: warm-up, then decay.

    python -c "from engine.train.schedule import rate_factor; print(rate_factor(5, 10, 2, 'cosine', 0.1))"
"""

from __future__ import annotations

import math

SCHEDULES = ("constant", "cosine", "linear")


def rate_factor(step: int, total_steps: int, warmup_steps: int, schedule: str, floor: float = 0.0) -> float:
    """The factor on the peak rate at `step` (from 0): a linear rise over the warm-up, then the schedule's decay.

    `cosine` (Loshchilov and Hutter 2017, eq. 5, without restarts) and `linear` decay from 1 to `floor`, reached
    after the last step; `constant` stays at 1.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    fall = 0.5 * (1.0 + math.cos(math.pi * progress)) if schedule == "cosine" else 1.0 - progress
    return floor + (1.0 - floor) * fall

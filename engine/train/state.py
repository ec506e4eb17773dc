"""The saved state of a training run: its progress, and the checks of a state before it is restored.

    python -c "from engine.io.checkpoint import load_plain; print(load_plain('runs/RUN/last.pt')['progress'])"
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from engine.io.checkpoint import CheckpointError, load_plain
from engine.train import distributed

STATE_FORMAT = "min-llama-training"
STATE_TYPES = {
    "identity": dict, "progress": dict, "tally": dict, "random": list, "model": dict, "optimizer": dict, "scaler": dict,
    "tensors": dict,
}  # fmt: skip
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's moments of a parameter; an optimizer with others names them in `moments`
DAMAGED = (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError)  # by restoring a bad state


@dataclass
class Progress:
    """The state of a run besides weights, optimizer moments and random state."""

    step: int = 0
    epoch: int = 0
    place: int = 0  # batches of this epoch that are done
    targets: int = 0
    best_score: float = float("-inf")
    stale: int = 0  # evaluations without improvement
    seconds: float = 0.0
    processor_seconds: float = 0.0  # of this process only
    done: bool = False  # the workload ended the run
    skipped: int = 0  # steps left out because a float16 gradient was not finite


def read_state(path: Path, identity: dict[str, Any], best: str = "best.pt") -> dict[str, Any]:
    """Reads the state that `Trainer.save` wrote beside the checkpoint `best`.

    Raises CheckpointError if it is damaged, belongs to a run of another identity, or has lost its best checkpoint.
    """
    state = load_plain(path)
    if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
        raise CheckpointError(f"{path} is not the state of a training run")
    if isinstance(state.get("random"), dict):  # the format of an earlier version
        state["random"] = [state["random"]]
    state = {"tally": {}, "scaler": {}, "tensors": {}} | state  # absent in states of an earlier version
    for name, kind in STATE_TYPES.items():
        if not isinstance(state.get(name), kind):
            raise damaged(path, f"its {name} is not a {kind.__name__}")
    if (processes := len(state["random"])) != distributed.size():
        raise CheckpointError(f"{path} was started with {processes} process(es), not {distributed.size()}")
    for name in state["identity"] | identity:  # a field at its default may be missing on either side
        original, value = state["identity"].get(name), identity.get(name)
        if isinstance(original, Tensor) or original != value:
            raise CheckpointError(f"{path} was started with {name} {original}, not {value}")
    state["progress"] = _progress(path, state["progress"])
    if math.isfinite(state["progress"].best_score) and not path.with_name(best).exists():
        raise CheckpointError(
            f"{path.with_name(best)}, the best model up to step {state['progress'].step}, is gone: put it back, or "
            f"delete {path.name} and train again"
        )
    return state


def _progress(path: Path, saved: dict[str, Any]) -> Progress:
    """The saved progress, if every entry is known and of its type."""
    plain = asdict(Progress())
    for name, value in saved.items():
        kind = type(plain.get(name))
        good = type(value) is kind or (kind is float and type(value) is int)
        if not good or (name != "best_score" and not 0 <= value < float("inf")) or value != value:
            raise damaged(path, f"its progress has {name} {str(value)[:40]}")
    return Progress(**saved)


def damaged(path: Path, reason: object) -> CheckpointError:
    """The error for a state that cannot be restored, with what to do."""
    short = " ".join(str(reason).split())[:200]
    return CheckpointError(f"{path} is damaged ({short}): delete it and train again, or put back a copy")


def check_moments(state: Any, optimizer: Optimizer) -> None:
    """Raises ValueError unless each entry has the optimizer's moments, in the shape of its parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = getattr(optimizer, "moments", MOMENTS)
    for index, entry in state.items():
        if type(index) is not int or not 0 <= index < len(parameters):
            raise ValueError(f"the optimizer has a state of parameter {index!r}")
        if set(entry) != {"step", *moments} or type(entry["step"]) is not int or entry["step"] < 1:
            raise ValueError(f"the optimizer's state of parameter {index} has other moments")
        for moment in map(entry.get, moments):
            if not isinstance(moment, Tensor) or moment.shape != parameters[index].shape or not moment.isfinite().all():
                raise ValueError(f"a moment of parameter {index} is not of its shape, or not finite")


@torch.no_grad()
def restore_tensors(targets: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copies saved tensors into those of the same names. Raises ValueError for other names, shapes or bad values."""
    if set(targets) != set(saved):
        raise ValueError(f"it has the tensors {sorted(saved)[:3]}, not {sorted(targets)[:3]}")
    for name, target in targets.items():
        if saved[name].shape != target.shape or not saved[name].isfinite().all():
            raise ValueError(f"the tensor {name} has another shape, or is not finite")
        target.copy_(saved[name])

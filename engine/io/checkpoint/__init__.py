"""Checkpoints in and out: every supported format is read here, strictly, without running pickled code.

    python -c "from engine.io import checkpoint; print(checkpoint.read_checkpoint('models/stories.pt').config)"
"""

from engine.io.checkpoint.contents import (
    Checkpoint,
    CheckpointError,
    check_finite,
    check_tensors,
    find_tokenizer,
    is_padding,
    parameter_shapes,
)
from engine.io.checkpoint.llama2c import BIN_HEADER, bin_order
from engine.io.checkpoint.pickles import load_plain, save_plain
from engine.io.checkpoint.reader import CLASSIFIER_FORMAT, FORMAT, read_checkpoint, save_checkpoint

__all__ = [
    "BIN_HEADER",
    "CLASSIFIER_FORMAT",
    "FORMAT",
    "Checkpoint",
    "CheckpointError",
    "bin_order",
    "check_finite",
    "check_tensors",
    "find_tokenizer",
    "is_padding",
    "load_plain",
    "parameter_shapes",
    "read_checkpoint",
    "save_checkpoint",
    "save_plain",
]

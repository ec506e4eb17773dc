"""The settings of `--option submission`.

    python run_llama.py --option submission --help
"""

from __future__ import annotations

from dataclasses import dataclass

from tasks.settings import MachineSettings, ModelSettings, flag


@dataclass(frozen=True, kw_only=True)
class SubmissionSettings(ModelSettings, MachineSettings):
    """the hand-in"""

    andrewid: str = flag("", "names the zip and the folder in it", metavar="ID", required=True)
    course: str = flag("spring2026", "edition of the course", choices=("spring2026", "fall2025"))

"""What a config's task does; the only room that knows ConfigDict.

moe                two frozen experts under a trained gate (``moe/gates.py``)
moe_ablations      mixtures of K experts, their baselines and ablations (``moe/ablations.py``)
merge              measure two experts and their merges, and write the report (``merge.py``)
sample             draw many samples of one model into shards on disk (``sample.py``)
train_expert       train a base expert (``train.py``)
train_classifier   train the digits classifier (``train.py``)
"""

from ml_collections import ConfigDict

from jaxmerge.run import Run
from jaxmerge.tasks import merge, sample, train
from jaxmerge.tasks.moe import ablations, gates

TASKS = {
    "merge": merge.run,
    "moe": gates.run,
    "moe_ablations": ablations.run,
    "sample": sample.run,
    "train_expert": train.expert,
    "train_classifier": train.classifier,
}


def run(config: ConfigDict, run: Run) -> None:
    """Does what ``config.task`` says, in the run's workdir.

    Raises:
        ValueError: an unknown task; names those that there are.
    """
    if config.task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {config.task!r}.")
    TASKS[config.task](config, run)

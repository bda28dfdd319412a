"""Training on a fleet that never waits for its slowest device, and can be repeated bit for bit.

`AsyncTrainer` owns the weights. Each lane has a copy of the model, whose circuits run at a place of
its own; it takes the next batch at the newest weights, and its gradient is applied as it arrives::

    loader --batches--> Schedule --Task--> Lane (thread): forward, backward --gradient--> Schedule
                           |  ^                                                  |
                     RunLog   version + 1 <-- optimizer.step() <-- applied, or dropped

The modules are read in this order: `log`, `schedule` (without threads or clock), `weighting`,
`lanes`, `batches`, `trainer`.
"""

from qailab.training.log import Entry, RunLog
from qailab.training.trainer import AsyncTrainer, Step
from qailab.training.weighting import circuit_quality

__all__ = ["AsyncTrainer", "Entry", "RunLog", "Step", "circuit_quality"]

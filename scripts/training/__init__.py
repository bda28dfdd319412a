"""The parts of ``scripts/train.py``: read options, model, loop, checkpoint and report, in order."""

"""Pre-training and mid-training.

`train.py` runs a stage; `next_token.py` is its Lightning module, made of the loss, rows, optimizer and step filter in
the files of these names. `parallel.py` distributes the model over ranks, `trainer_state.py` saves and resumes.
"""

"""Checkpoints of several processes: each writes what it alone has, and all are one commit.

::

    checkpoint-step-12/
      MANIFEST.json  model.json  optim.json  ...     by the first process, as in a run of one
      model.safetensors                              tensors that every process has whole
      rank-0.json  rank-1.json                       each by its process: random state, data place
      rank-0/model.safetensors                       its parts of tensors that are spread (DTensor)
      rank-0/plugins/ema.safetensors
      rank-1/own/model.safetensors                   whole tensors that are others on this process

Why not torch's distributed checkpoint: its ``.metadata`` is a pickle, which reading runs; it names
that file before the data is durable; it hashes nothing; and its planning sends every process's plan
to the first and back. Here a part carries its place in the header of its file, so nothing has to be
planned: a process that goes on with the same parts reads its own file and no other.
"""

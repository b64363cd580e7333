"""Checkpoints that write only what changed: what did not is a hard link to an earlier file.

::

    a save    sample every tensor -> hash those that look the same -> unchanged | changed
    step 100  model.safetensors                                     nothing is known to stay yet
    step 300  model-00001.safetensors  model-00000.safetensors      what stayed; what changes
    step 400  model-00001.safetensors  model-00000.safetensors      linked; written

What stayed at the last save is hashed without a sample. What looks changed is written at once
(unless in the background) while threads hash the rest; should something of that have changed after
all, those files are written anew.

The file system counts the links, so each folder is whole by itself for every tool, and any of them
may be removed at any time. Which file a tensor is in stands in the manifest (``"split"``), and for
other tools in ``model.safetensors.index.json``, the form of Hugging Face's sharded checkpoints.
"""

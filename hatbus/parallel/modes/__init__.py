"""How a run of several processes shares its model: whole on each (DDP), or in shards (FSDP2)."""

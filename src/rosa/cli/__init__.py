"""The `rosa` command: one small file per sub-command, loaded when it is called."""

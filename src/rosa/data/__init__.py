"""Training rows and prompts: files, templates, token ids."""

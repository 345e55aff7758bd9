"""The PEFT methods of the study, one YAML file each, and every other method of PEFT."""

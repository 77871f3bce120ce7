"""Everything except the modules that the assignment names and the commands."""

from mini_llama.environment import prepare_command

prepare_command()  # here, since commands import packages before their main is called

"""Everything except the modules that the assignment names and the commands."""

from mini_llama.environment import check_packages

check_packages()  # here, since commands import packages before their main could say what is missing

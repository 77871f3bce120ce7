"""The four options of run_llama.py: their data, runs, scores and files."""

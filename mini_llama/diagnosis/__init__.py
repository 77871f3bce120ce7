"""What is wrong with a student's modules, and where."""

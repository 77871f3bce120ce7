"""Run the graded commands for several seeds and compare them with the courses' figures."""

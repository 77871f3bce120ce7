"""Submissions made, checked, run and graded."""

"""Making, checking, running and grading submissions."""

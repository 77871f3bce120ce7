"""Spring 2026's addition task: questions, training, test."""

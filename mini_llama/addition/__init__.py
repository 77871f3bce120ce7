"""Spring 2026's addition task: data, training and testing."""

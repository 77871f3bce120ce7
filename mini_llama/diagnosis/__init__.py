"""Find mistakes in a student's modules, component by component or inside the whole model."""

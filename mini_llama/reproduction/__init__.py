"""The graded commands run over seeds and compared with the courses' figures."""

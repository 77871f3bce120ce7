"""The course's given files, in our words: they take the place of those that were not handed in.

The courses ask for the files that students write alone. Each of these has the names that the
assignment's file has, by which a student's modules import it.
"""
